// SPDX-License-Identifier: Apache-2.0
//
// The known facts about each board, and its description by libxpuml 4.0.12.1 or, for a P800, by one
// of release 5.
#ifndef MODEL_H
#define MODEL_H

#include <stdbool.h>
#include <stdint.h>

enum { PCI_VENDOR = 0x1d22, UNKNOWN_MODEL = 9999, MODEL_R200 = 2, MAX_VFS = 4 };

struct engines {
    uint32_t cluster, sdnn, dma, decoder, encoder, image;
    uint64_t l3; // bytes
};

struct model {
    const char *name;
    int arch, board, number; // 0, 0, 9999 for a board the library does not know
    int release;             // the first release of the library that knows these numbers
    int halves;              // nodes of one card
    int max_vfs;             // the maximum that the driver reports
    unsigned vf_counts;      // bit n: the driver makes n VFs
    bool own_slot;           // the VFs are functions of the card's slot, not of the next one
    int memory;              // MiB of one node, unless the machine file has another number
    int clock;               // MHz
    uint16_t device, vf_device, subsystem_vendor, subsystem_device;
    const struct engines *engines;    // undivided, and of one of 1 to 4 VFs
    const char *product, *vf_product; // names by the library; NULL: by the model's name
};

// Returns NULL for an unknown name.
const struct model *model_named(const char *name);

// Returns the engines that remain for a card beside its VFs.
extern const struct engines engines_of_pf;

#endif
