// SPDX-License-Identifier: Apache-2.0
//
// Device nodes: their names, and making a directory hold exactly those of a machine.
#ifndef NODES_H
#define NODES_H

#include "machine.h"

// N of the name xpuN, UNSET for any other name.
int node_number(const char *name);

// The major of all nodes. For release 5, without a setting, it is 195 where no driver of this
// kernel has that.
int node_major(const struct machine *machine);

// Returns false if the directory holds a node that is not the simulator's.
bool nodes_check(const struct machine *machine, const char *dev_root, struct error *error);

// Makes the machine's nodes and removes other nodes of the simulator. A foreign node stays
// untouched and is an error.
bool nodes_settle(const struct machine *machine, const char *dev_root, struct error *error);

#endif
