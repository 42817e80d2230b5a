// SPDX-License-Identifier: Apache-2.0
//
// The simulated machine: the content of its file, checked and numbered. docs/simulator.md has the
// grammar.
#ifndef MACHINE_H
#define MACHINE_H

#include "grammar.h"
#include "model.h"

enum {
    MAX_CARDS = 8192,
    MAX_NODES = 16384,
    MAX_MINOR = 65535,
    MAX_HALVES = 2,
    MAX_BRIDGES = 6, // above a card
};

// Later functions of the library, of which each may be missing.
enum { LATER_SERIAL = 1, LATER_ID = 2, LATER_MINOR = 4, LATER_NAME = 8, LATER_ALL = 15 };

#define XPU_DRIVER "kunlun"

enum call {
    CALL_INIT,
    CALL_SHUTDOWN,
    CALL_ERROR_STRING,
    CALL_DRIVER_VERSION,
    CALL_XPUML_VERSION,
    CALL_COUNT,
    CALL_HANDLE_BY_INDEX,
    CALL_ATTRIBUTES,
    CALL_ARCHITECTURE,
    CALL_BOARD_ID,
    CALL_PCI_INFO,
    CALL_MEMORY_INFO,
    CALL_UTILIZATION_RATES,
    CALL_TEMPERATURE,
    CALL_POWER_USAGE,
    CALL_CLOCK_INFO,
    CALL_STATE,
    CALL_PROCESSES,
    CALL_HOST_VXPU_MODE,
    CALL_SET_SRIOV_VF_NUM,
    CALL_SERIAL,
    CALL_ID,
    CALL_MINOR_NUMBER,
    CALL_NAME,
    CALL_SET_SRIOV_HALFWAY, // no call of its own: the middle of a change of VFs
};

// Functions of release 4 that may not be missing.
enum {
    REQUIRED_CALLS = 1 << CALL_INIT | 1 << CALL_ERROR_STRING | 1 << CALL_DRIVER_VERSION |
        1 << CALL_XPUML_VERSION | 1 << CALL_COUNT | 1 << CALL_HANDLE_BY_INDEX | 1 << CALL_PCI_INFO |
        1 << CALL_STATE,
};

struct settings {
    const struct model *model; // by its release: the defaults of the next five; NULL: release 4
    int major;                 // UNSET: see node_major
    int minors;                // 0: twice the place, and the control node's is 128; 1: N, and 255
    int order;                 // 0: indexes in the order of N; 1: scattered
    int vf_functions;          // 0: in the next slot; 1: in the card's; UNSET: by the card's model
    int later_functions;       // bits
    int missing_functions;     // bits, by call
    int quirks, gone, wrong_count, vf_delay, request_delay;
    char driver_version[80], library_version[80];
    char dev_root[2048], sysfs_root[2048];
};

// PCI addresses, the outermost first.
struct bridges {
    int count;
    unsigned items[MAX_BRIDGES];
};

struct card {
    int number;
    unsigned line; // its line in the file
    bool changed;  // no longer the same as in the file
    const struct model *model;
    unsigned pci; // domain, bus, slot and function in 16, 8, 5 and 3 bits
    int numa, memory, vfs, lost, busy, unreadable, splits, cold_split;
    int total_vfs;    // of its SR-IOV capability, 0 without one; UNSET: by the model
    int model_number; // by the library; UNSET: by the model
    bool own_slot;    // of its VFs
    int driver;       // index in card_drivers
    int utilization, temperature, power, clock;
    char serial[17];
    struct numbers nodes, minors, states, vf_nodes, vf_minors, vf_states;
    struct numbers vf_drivers; // indexes in vf_driver_names
    struct bridges bridges;
};

// The target of a fault or a process: a card's half or VF, a whole card, or (faults only) all
// devices.
struct target {
    int card, half, vf;
};

enum {
    ACTION_NONE,
    ACTION_CODE,
    ACTION_DELAY,
    ACTION_HANG,
    ACTION_CRASH,
    ACTION_FPE,
    ACTION_ABORT,
    ACTION_GARBAGE_STRINGS,
    ACTION_TRUNCATED_STRINGS,
};

struct action {
    int kind;
    int number; // the code, or milliseconds
};

struct fault {
    unsigned line;
    struct target target;
    int call, halfway;
    struct action action;
    int times; // UNSET: every time
    int used;
    char text[256]; // the line, which identifies the fault after a replacement of the file
};

struct process {
    unsigned line;
    struct target target;
    int pid, host_pid, memory;
};

// A function with a node: a card, a half of one, a PF, a VF that is bound to the XPU driver.
struct unit {
    const struct card *card;
    int part; // number of the half or VF
    bool vf;
    int node, minor, state;
};

struct machine {
    char *text;
    struct settings settings;
    struct card *cards; // in the order of probing, that of their lines
    struct fault *faults;
    struct process *processes;
    struct unit *units;
    unsigned *addresses; // of all PCI functions, sorted
    unsigned card_count, fault_count, process_count, unit_count, address_count;
    struct card *by_number[MAX_CARDS];
    struct unit *by_node[MAX_NODES];
};

// Returns a checked and numbered machine; NULL and the reason if the text is wrong.
struct machine *machine_parse(const char *text, struct error *error);
struct machine *machine_read(const char *path, struct error *error);
void machine_free(struct machine *machine);

// Checks and numbers a machine again after its cards were changed.
bool machine_number(struct machine *machine, struct error *error);

// Replaces the file by the machine's text; lines of unchanged cards stay as they are. The caller
// holds the lock, as there is one draft.
bool machine_write(const struct machine *machine, const char *path, struct error *error);

bool machine_has_address(const struct machine *machine, unsigned pci);

// Takes the lock of all writers of the file: returns a descriptor to close, or -1 and the reason.
int machine_lock(const char *path, struct error *error);

// Splits a card or removes its VFs; their numbers are forgotten.
void card_split(struct card *card, int vfs);
bool card_splits(const struct card *card);
bool card_allows(const struct card *card, int vfs);
int card_total_vfs(const struct card *card);
bool card_in_use(const struct machine *machine, const struct card *card);
int card_memory(const struct card *card); // MiB

// Returns the errno of an open of the card's nodes, 0 for success.
int card_refusal(const struct card *card);

unsigned unit_pci(const struct unit *unit);
uint64_t unit_memory(const struct unit *unit); // bytes

// The release of driver and library: 4, or 5 for a P800.
int machine_release(const struct machine *machine);
int control_minor(const struct machine *machine);
int library_rank(const struct settings *settings, int node); // indexes ascend by it

// Returns the kernel driver of a VF or a card, NULL for none.
const char *vf_driver(const struct card *card, int vf);
const char *card_driver(const struct card *card);

// A call about no device matches only a target that names none.
bool target_matches(const struct target *target, const struct unit *unit);

struct address {
    char text[16];
};
struct address pci_address(unsigned pci);
unsigned vf_pci(const struct card *card, int vf);

#endif
