// SPDX-License-Identifier: Apache-2.0
//
// The kernel driver's work: numbers, nodes and sysfs of a machine, and splitting a card.
#ifndef DRIVER_H
#define DRIVER_H

#include "machine.h"

// The places of a machine's file, nodes and sysfs tree on the host.
struct site {
    const char *path, *dev_root, *sysfs_root;
};

// Fills in roots that are NULL: those of the machine, else /dev and no sysfs tree.
void site_complete(struct site *site, const struct machine *machine);

// Writes the machine to the file and makes the host match. The caller holds the lock. Nothing is
// changed if the directory of nodes holds a foreign one.
bool driver_settle(const struct machine *machine, const struct site *site, struct error *error);

// Record that all nodes are open, for a split of a card meanwhile; and the time of that.
void driver_note_opening(const struct site *site);
uint64_t driver_opened_at(const struct site *site); // nanoseconds; 0: never

// Splits a card, or removes its VFs, on the host and in the file.
bool driver_split(const struct site *site, int card, int vfs, struct error *error);

#endif
