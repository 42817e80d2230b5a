// SPDX-License-Identifier: Apache-2.0
//
// The state of the library in this process: control node, machine, list of devices. Like the
// vendor's it serves one thread and has no locks.
#ifndef LIBRARY_H
#define LIBRARY_H

#include "driver.h"
#include "xpuml.h"

#include <sys/stat.h>

enum { LISTED_AT_MOST = 99, TABLE = 128 };

// An entry of the list; a handle points to it.
struct xpuml_device {
    int number;  // N of /dev/xpuN; UNSET for a gap
    bool listed; // false once another listing has replaced it
    bool valid;
    xpumlDeviceAttributes_t attributes; // at the first use of the entry
};

struct library {
    int control;      // 0: not open, as in the vendor's library
    struct site site; // by the environment; roots may be NULL
    struct machine *machine;
    int file;         // the last file that was examined; -1: none
    struct stat seen; // its status at that moment
    uint64_t looked;  // time of that, in nanoseconds of the monotonic clock
    struct xpuml_device *devices;
    unsigned count;
};

extern struct library library;

// Reads the environment, and the machine for the first time.
bool library_load(struct error *error);

// Reads the machine again if its file was replaced. The file is examined again after 10 us at the
// earliest. A file with errors changes nothing.
void library_refresh(void);

// Returns the complete roots and file.
struct site library_site(void);

// Returns the errno of an open of a node, 0 for success; the machine may be unknown yet.
int library_refusal(int number);

// Lists the device nodes again. Handles of the former listing are freed: with quirks their use
// crashes.
void library_list(void);

#endif
