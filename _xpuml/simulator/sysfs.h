// SPDX-License-Identifier: Apache-2.0
//
// The part of sysfs that belongs to XPUs, as a tree of plain files.
#ifndef SYSFS_H
#define SYSFS_H

#include "machine.h"

// Makes the tree below `root` match the machine. Nothing is done without a root, or for a root in
// the kernel's own sysfs.
bool sysfs_settle(const struct machine *machine, const char *root, struct error *error);

#endif
