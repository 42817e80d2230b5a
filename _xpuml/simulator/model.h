// SPDX-License-Identifier: Apache-2.0
//
// The known facts about each board, and its description by libxpuml 4.0.12.1.
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
    int max_vfs;             // the maximum that the driver reports
    bool splits;             // whether the driver then splits it
    int memory;              // MiB of one node, unless the machine file has another number
    int clock;               // MHz
    uint16_t device, subsystem_vendor, subsystem_device;
    const struct engines *engines; // undivided
};

// Returns NULL for an unknown name.
const struct model *model_named(const char *name);

// Returns the engines of one of so many VFs.
const struct engines *engines_of_vf(int vfs);

// Returns the engines that remain for a card beside its VFs.
extern const struct engines engines_of_pf;

#endif
