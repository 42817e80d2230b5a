// SPDX-License-Identifier: Apache-2.0
//
// The table of boards. Memory sizes are the usual ones. Engines of boards that were never measured
// are all ones, as the library reports a failed query.
#include "model.h"

#include <string.h>

#define MIB (1024u * 1024u)
#define FAILED 0xFFFFFFFFu
#define UNKNOWN 0, 0, UNKNOWN_MODEL

static const struct engines kl1 = {4, 4, 4, 0, 0, 0, 16 * MIB};
static const struct engines kl2 = {8, 6, 8, 9, 3, 6, 64 * MIB - 4096};
static const struct engines kl3 = {FAILED, FAILED, FAILED, FAILED, FAILED, FAILED, 96 * MIB};

static const struct engines vf_engines[] = {
    {8, 6, 6, 9, 3, 6, 64 * MIB - 4096},
    {3, 3, 3, 4, 1, 3, 32 * MIB},
    {2, 2, 2, 3, 1, 2, 16 * MIB},
};

const struct engines engines_of_pf = {0, 0, 2, 0, 0, 0, 0};

static const struct model models[] = {
    // name, arch, board, number, halves, max VFs, splits, memory, clock, PCI ids, engines
    {"K100", 1, 1, 1, 1, 0, false, 8192, 900, 0x3684, 0, 0, &kl1},
    {"K200", 1, 2, 0, 2, 0, false, 8192, 900, 0x3684, 0, 0, &kl1},
    {"R200", 2, 100, MODEL_R200, 1, 3, true, 16384, 1300, 0x3684, 2, 1, &kl2},
    {"R300", 2, 101, 3, 1, 3, true, 32768, 1300, 0x3684, 2, 3, &kl2},
    {"R200-8F", 2, 102, 4, 1, 3, true, 32768, 1300, 0x3684, 2, 4, &kl2},
    {"R200-8FS", UNKNOWN, 1, 3, true, 32768, 1300, 0x3684, 2, 5, &kl2},
    {"R100", UNKNOWN, 1, 3, false, 16384, 1300, 0x3684, 2, 2, &kl2},
    {"R420", UNKNOWN, 1, 3, false, 16384, 1300, 0x3684, 2, 6, &kl2},
    {"RG800", UNKNOWN, 1, 3, true, 32768, 1300, 0x3684, 2, 7, &kl2},
    {"RG800-PRO", UNKNOWN, 1, 3, true, 32768, 1300, 0x3684, 2, 8, &kl2},
    {"P800", UNKNOWN, 1, 0, false, 98304, 1300, 0x3688, 0, 0, &kl3},
};

const struct model *model_named(const char *name) {
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        if (strcmp(models[i].name, name) == 0)
            return &models[i];
    return NULL;
}

const struct engines *engines_of_vf(int vfs) { return &vf_engines[vfs - 1]; }
