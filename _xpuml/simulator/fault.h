// SPDX-License-Identifier: Apache-2.0
//
// Faults that the machine file asks for: which call of which device they strike, and what they do.
#ifndef FAULT_H
#define FAULT_H

#include "machine.h"

// Before a call: delays, hangs or kills it. True when the call has to answer `code` and do nothing.
bool fault_strikes(struct machine *machine, enum call call, const struct unit *unit, int *code);

// After a call that filled in a text.
void fault_spoils(struct machine *machine, enum call call, const struct unit *unit, char *text,
                  size_t size);

// Takes over how often each fault struck from the machine as it was before its file was replaced.
void faults_carry_over(struct machine *machine, const struct machine *before);

// Sleeps for all of the time, whatever signals arrive.
void delay(int milliseconds);

// Dies of the signal. Not by an operation that happens to trap: what does depends on processor and
// compiler, and the signal is what others see.
_Noreturn void die(int signal);

#endif
