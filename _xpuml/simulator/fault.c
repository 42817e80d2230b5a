// SPDX-License-Identifier: Apache-2.0
//
// Applies the faults of the machine file to calls.
#include "fault.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

void die(int number) {
    sigset_t only;
    signal(number, SIG_DFL);
    sigemptyset(&only);
    sigaddset(&only, number);
    sigprocmask(SIG_UNBLOCK, &only, NULL);
    raise(number);
    abort();
}

void delay(int milliseconds) {
    if (milliseconds == 0)
        return;
    struct timespec rest = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    while (nanosleep(&rest, &rest) != 0 && errno == EINTR)
        ;
}

// Returns true if the fault strikes this call, and counts the call.
static bool is_due(struct fault *fault, enum call call, const struct unit *unit) {
    if (fault->call != (int)call || !target_matches(&fault->target, unit) ||
        fault->used == fault->times)
        return false;
    fault->used++;
    return true;
}

static bool spoils(const struct fault *fault) {
    return fault->action.kind >= ACTION_GARBAGE_STRINGS;
}

bool fault_strikes(struct machine *machine, enum call call, const struct unit *unit, int *code) {
    for (unsigned i = 0; i < machine->fault_count; i++) {
        struct fault *fault = &machine->faults[i];
        if (spoils(fault) || !is_due(fault, call, unit))
            continue;
        switch (fault->action.kind) {
        case ACTION_CODE:
            *code = fault->action.number;
            return true;
        case ACTION_DELAY:
            delay(fault->action.number);
            break;
        case ACTION_HANG:
            for (;;)
                pause();
        case ACTION_CRASH:
            die(SIGSEGV);
        case ACTION_FPE:
            die(SIGFPE);
        case ACTION_ABORT:
            abort();
        }
    }
    return false;
}

void fault_spoils(struct machine *machine, enum call call, const struct unit *unit, char *text,
                  size_t size) {
    for (unsigned i = 0; i < machine->fault_count; i++) {
        struct fault *fault = &machine->faults[i];
        if (!spoils(fault) || size == 0 || !is_due(fault, call, unit))
            continue;
        if (fault->action.kind == ACTION_GARBAGE_STRINGS)
            memset(text, 0xa5, size); // not UTF-8, and without an end
        else
            text[strlen(text) / 2] = '\0';
    }
}

void faults_carry_over(struct machine *machine, const struct machine *before) {
    for (unsigned i = 0; i < machine->fault_count; i++)
        for (unsigned k = 0; k < before->fault_count; k++)
            if (strcmp(machine->faults[i].text, before->faults[k].text) == 0)
                machine->faults[i].used = before->faults[k].used;
}
