// SPDX-License-Identifier: Apache-2.0
//
// What is known about each board, and how libxpuml 4.0.12.1 reports it.
#ifndef MODEL_H
#define MODEL_H

#include <stdbool.h>
#include <stdint.h>

enum { PCI_VENDOR = 0x1d22, PCI_DEVICE_VF = 0x3685, UNKNOWN_MODEL = 9999, MODEL_R200 = 2 };

struct engines {
    uint32_t cluster, sdnn, dma, decoder, encoder, image;
    uint64_t l3; // bytes
};

struct model {
    const char *name;
    int arch, board, number; // 0, 0, 9999 for a board the library does not know
    int halves;              // nodes of one card
    int max_vfs;             // what the driver says it allows
    bool splits;             // whether it then does
    int memory;              // MiB of one node, unless the machine says otherwise
    int clock;               // MHz
    uint16_t device, subsystem_vendor, subsystem_device;
    const struct engines *engines; // undivided
};

// NULL for a name that is none.
const struct model *model_named(const char *name);

// What a VF has when its card is split into so many.
const struct engines *engines_of_vf(int vfs);

// What is left to a card whose VFs have the rest.
extern const struct engines engines_of_pf;

#endif
