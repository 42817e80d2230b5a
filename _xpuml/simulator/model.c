// SPDX-License-Identifier: Apache-2.0
//
// The table of boards. Memory sizes are the usual ones. Engines that were never measured are all
// ones, as the library reports a failed query. The device ids of single P800 boards and of their
// VFs are not known: the VFs have that of their card, which proves nothing.
#include "model.h"

#include <string.h>

#define MIB (1024u * 1024u)
#define FAILED 0xFFFFFFFFu
#define UNKNOWN 0, 0, UNKNOWN_MODEL, 4
#define KL1 0x3684, 0, 0, 0
#define KL2(subsystem) 0x3684, 0x3685, 2, subsystem
#define KL3(device) device, device, 0, 0
#define UNMEASURED(clusters, l3) {clusters, FAILED, FAILED, FAILED, FAILED, FAILED, l3}

enum { NO_VFS = 0, ONE_TO_THREE = 1 << 1 | 1 << 2 | 1 << 3, TWO_OR_FOUR = 1 << 2 | 1 << 4 };

static const struct engines kl1[] = {{4, 4, 4, 0, 0, 0, 16 * MIB}};
static const struct engines kl2[1 + MAX_VFS] = {
    {8, 6, 8, 9, 3, 6, 64 * MIB - 4096},
    {8, 6, 6, 9, 3, 6, 64 * MIB - 4096},
    {3, 3, 3, 4, 1, 3, 32 * MIB},
    {2, 2, 2, 3, 1, 2, 16 * MIB},
};
static const struct engines kl3[1 + MAX_VFS] = {
    [0] = UNMEASURED(12, 96 * MIB),
    [2] = UNMEASURED(FAILED, 48 * MIB),
    [4] = UNMEASURED(FAILED, 24 * MIB),
};

const struct engines engines_of_pf = {0, 0, 2, 0, 0, 0, 0};

static const struct model models[] = {
    // name, arch, board, number, release, halves, max VFs, VFs, own slot, memory, clock, PCI ids,
    // engines, product
    {"K100", 1, 1, 1, 4, 1, 0, NO_VFS, false, 8192, 900, KL1, kl1, NULL, NULL},
    {"K200", 1, 2, 0, 4, 2, 0, NO_VFS, false, 8192, 900, KL1, kl1, NULL, NULL},
    {"R200", 2, 100, MODEL_R200, 4, 1, 3, ONE_TO_THREE, false, 16384, 1300, KL2(1), kl2, NULL,
     NULL},
    {"R300", 2, 101, 3, 4, 1, 3, ONE_TO_THREE, false, 32768, 1300, KL2(3), kl2, NULL, NULL},
    {"R200-8F", 2, 102, 4, 4, 1, 3, ONE_TO_THREE, false, 32768, 1300, KL2(4), kl2, NULL, NULL},
    {"R200-8FS", UNKNOWN, 1, 3, ONE_TO_THREE, false, 32768, 1300, KL2(5), kl2, NULL, NULL},
    {"R100", UNKNOWN, 1, 3, NO_VFS, false, 16384, 1300, KL2(2), kl2, NULL, NULL},
    {"R420", UNKNOWN, 1, 3, NO_VFS, false, 16384, 1300, KL2(6), kl2, NULL, NULL},
    {"RG800", UNKNOWN, 1, 3, ONE_TO_THREE, false, 32768, 1300, KL2(7), kl2, NULL, NULL},
    {"RG800-PRO", UNKNOWN, 1, 3, ONE_TO_THREE, false, 32768, 1300, KL2(8), kl2, NULL, NULL},
    {"P800", 3, 0, 300, 5, 1, 4, TWO_OR_FOUR, true, 98304, 1300, KL3(0x3688), kl3, "P800 OAM",
     "P800 VF"},
    {"P800-PCIe", 3, 0, 300, 5, 1, 4, TWO_OR_FOUR, true, 98304, 1300, KL3(0x3687), kl3, "P800 PCIe",
     "P800 VF"},
};

const struct model *model_named(const char *name) {
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        if (strcmp(models[i].name, name) == 0)
            return &models[i];
    return NULL;
}
