// SPDX-License-Identifier: Apache-2.0
//
// What the simulator exports besides the vendor's functions: the tools that edit a machine file ask
// here whether it is right and have the host follow. Those two answer 0 when all is well, 1 when
// the text is wrong, 2 when the host cannot follow, with the reason in one line.
#ifndef CONTROL_H
#define CONTROL_H

#include "xpuml.h"

// The errno that an open of the node xpuN ends with on the machine that the environment names, 0
// when it opens: for programs that open nodes themselves, as there is no driver behind these.
XPUML_API int xpumlSimulatorOpen(int number);

// Whether the text is that of a machine file.
XPUML_API int xpumlSimulatorCheck(const char *text, char *error, unsigned size);

// Checks the text (NULL: what is in the file), adds the numbers that the driver gives, replaces the
// file at `path` by it, and makes device nodes and sysfs tree agree. Roots that are NULL are taken
// from the file; without one there, nodes are in /dev and no sysfs tree is kept. The caller holds
// the lock of the file (flock of `path`.lock). When the text is wrong or a foreign node is in the
// way, nothing was changed.
XPUML_API int xpumlSimulatorSettle(const char *path, const char *text, const char *dev_root,
                                   const char *sysfs_root, char *error, unsigned size);

#endif
