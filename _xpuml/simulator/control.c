// SPDX-License-Identifier: Apache-2.0
//
// The functions for tools that edit the machine file.
#include "control.h"
#include "driver.h"
#include "library.h"

enum { RIGHT, WRONG_TEXT, WRONG_HOST };

static int answer(int code, const struct error *reason, char *error, unsigned size) {
    snprintf(error, size, "%s", code == RIGHT ? "" : reason->text);
    return code;
}

int xpumlSimulatorOpen(int number) { return library_refusal(number); }

int xpumlSimulatorCheck(const char *text, char *error, unsigned size) {
    struct error reason;
    struct machine *machine = machine_parse(text, &reason);
    int code = machine != NULL ? RIGHT : WRONG_TEXT;
    machine_free(machine);
    return answer(code, &reason, error, size);
}

int xpumlSimulatorSettle(const char *path, const char *text, const char *dev_root,
                         const char *sysfs_root, char *error, unsigned size) {
    struct error reason;
    struct machine *machine =
        text != NULL ? machine_parse(text, &reason) : machine_read(path, &reason);
    int code = machine != NULL ? RIGHT : WRONG_TEXT;
    if (machine != NULL) {
        struct site site = {path, dev_root, sysfs_root};
        site_complete(&site, machine);
        code = driver_settle(machine, &site, &reason) ? RIGHT : WRONG_HOST;
    }
    machine_free(machine);
    return answer(code, &reason, error, size);
}
