// SPDX-License-Identifier: Apache-2.0
//
// The state of the library in this process: control node, machine, list of devices. Like the
// vendor's it is made for one thread and has no locks.
#ifndef LIBRARY_H
#define LIBRARY_H

#include "driver.h"
#include "xpuml.h"

#include <sys/stat.h>

enum { LISTED_AT_MOST = 99, TABLE = 128 };

// An entry of the list, which is what a handle points to.
struct xpuml_device {
    int number;  // N of /dev/xpuN; UNSET for a gap
    bool listed; // false once another listing has taken its place
    bool valid;
    xpumlDeviceAttributes_t attributes; // as they were when the entry was first used
};

struct library {
    int control;      // 0: not open, as in the vendor's library
    struct site site; // as the environment has it; roots may be NULL
    struct machine *machine;
    int file;         // that was last looked into; -1: none
    struct stat seen; // it, at that moment
    uint64_t looked;  // nanoseconds of the monotonic clock, when it was asked for last
    struct xpuml_device *devices;
    unsigned count;
};

extern struct library library;

// Reads the environment, and the machine for the first time.
bool library_load(struct error *error);

// Reads the machine again if its file was replaced, by the last look at it; it is looked at anew
// when that was 10 us ago. A file with errors changes nothing.
void library_refresh(void);

// Roots and file, complete.
struct site library_site(void);

// The errno that an open of a node ends with, 0 when it opens; the machine need not be known yet.
int library_refusal(int number);

// Lists the device nodes anew. Handles of the listing before are freed: with quirks using one
// crashes.
void library_list(void);

#endif
