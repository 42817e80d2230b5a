// SPDX-License-Identifier: Apache-2.0
//
// Faults of the machine file: the call and device that each strikes, and its effect.
#ifndef FAULT_H
#define FAULT_H

#include "machine.h"

// Before a call: delays, hangs or kills it. True if the call must return `code` and do nothing.
bool fault_strikes(struct machine *machine, enum call call, const struct unit *unit, int *code);

// After a call that filled in a text.
void fault_spoils(struct machine *machine, enum call call, const struct unit *unit, char *text,
                  size_t size);

// Takes over the counts of strikes from the machine before its file was replaced.
void faults_carry_over(struct machine *machine, const struct machine *before);

// Sleeps for the whole time, also if signals arrive.
void delay(int milliseconds);

// Dies of the signal, not by an operation that traps: the result of such an operation depends on
// processor and compiler.
_Noreturn void die(int signal);

#endif
