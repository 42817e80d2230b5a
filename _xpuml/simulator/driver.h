// SPDX-License-Identifier: Apache-2.0
//
// What the kernel driver does: numbers, nodes and sysfs of a machine, and splitting a card.
#ifndef DRIVER_H
#define DRIVER_H

#include "machine.h"

// Where a machine's file is and where on the host it shows.
struct site {
    const char *path, *dev_root, *sysfs_root;
};

// Fills in the roots that are NULL: as the machine has them, else /dev and no sysfs tree.
void site_complete(struct site *site, const struct machine *machine);

// Makes the file say what the machine is, and the host look like it. The caller holds the lock.
// Nothing is changed when the directory of nodes holds a foreign one.
bool driver_settle(const struct machine *machine, const struct site *site, struct error *error);

// Notes that all nodes are opened, for a split of a card meanwhile; and when they were last.
void driver_note_opening(const struct site *site);
uint64_t driver_opened_at(const struct site *site); // nanoseconds; 0: never

// Splits a card, or takes its VFs away, on the host and in the file.
bool driver_split(const struct site *site, int card, int vfs, struct error *error);

#endif
