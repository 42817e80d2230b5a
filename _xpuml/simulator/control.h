// SPDX-License-Identifier: Apache-2.0
//
// The simulator's exports besides the vendor's functions, for the tools that edit a machine file:
// they check the text, make the host match it, and describe it. They return 0 for success, 1 for a
// wrong text, 2 if the host cannot match, with the reason in one line.
#ifndef CONTROL_H
#define CONTROL_H

#include "xpuml.h"

// Returns the errno of an open of the node xpuN on the machine that the environment names, 0 for
// success. For programs that open nodes themselves: there is no driver behind simulated nodes.
XPUML_API int xpumlSimulatorOpen(int number);

// Returns whether the text is that of a machine file.
XPUML_API int xpumlSimulatorCheck(const char *text, char *error, unsigned size);

// Checks the text (NULL: the file's content), adds the numbers that the driver assigns, replaces
// the file at `path`, and makes device nodes and sysfs tree match. Roots that are NULL are taken
// from the file; without one there, nodes are in /dev and there is no sysfs tree. The caller holds
// the lock of the file (flock of `path`.lock). If the text is wrong or a foreign node is in the
// way, nothing is changed.
XPUML_API int xpumlSimulatorSettle(const char *path, const char *text, const char *dev_root,
                                   const char *sysfs_root, char *error, unsigned size);

// Fills in a line for each device node in the order of the library's indexes, and the last one for
// the control node: node, major:minor, PCI address, NUMA node and model, with tabs between.
XPUML_API int xpumlSimulatorDescribe(const char *path, char *text, unsigned size, char *error,
                                     unsigned error_size);

#endif
