// SPDX-License-Identifier: Apache-2.0
//
// The machine file: reads, checks, numbers and writes it.
#define _GNU_SOURCE // mkostemp
#include "machine.h"
#include "xpuml.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SLOT = 1 << 3, LAST_SLOT = 31 };

// --- values of its own ---------------------------------------------------------------------------

struct address pci_address(unsigned pci) {
    struct address address;
    snprintf(address.text, sizeof address.text, "%04x:%02x:%02x.%x", pci >> 16, pci >> 8 & 0xff,
             pci >> 3 & 0x1f, pci & 7);
    return address;
}

static bool pci_read(const struct key *key, const char *text, void *field) {
    unsigned domain, bus, slot, function;
    (void)key;
    if (sscanf(text, "%4x:%2x:%2x.%1x", &domain, &bus, &slot, &function) != 4)
        return false;
    unsigned pci = domain << 16 | bus << 8 | (slot & 0x1f) << 3 | (function & 7);
    *(unsigned *)field = pci;
    return strcasecmp(pci_address(pci).text, text) == 0;
}

static void pci_print(const struct key *key, const void *field, char *text, size_t size) {
    (void)key;
    snprintf(text, size, "%s", pci_address(*(const unsigned *)field).text);
}

static bool bridges_read(const struct key *key, const char *text, void *field) {
    struct bridges *bridges = field;
    char copy[128];
    char *rest = copy, *item;
    if (snprintf(copy, sizeof copy, "%s", text) >= (int)sizeof copy)
        return false;
    for (bridges->count = 0; (item = strsep(&rest, ",")) != NULL; bridges->count++)
        if (bridges->count == MAX_BRIDGES || !pci_read(key, item, &bridges->items[bridges->count]))
            return false;
    return true;
}

static void bridges_print(const struct key *key, const void *field, char *text, size_t size) {
    const struct bridges *bridges = field;
    (void)key;
    for (int i = 0, length = 0; i < bridges->count; i++)
        length += snprintf(text + length, size - (size_t)length, "%s%s", i ? "," : "",
                           pci_address(bridges->items[i]).text);
}

static bool model_read(const struct key *key, const char *text, void *field) {
    (void)key;
    return (*(const struct model **)field = model_named(text)) != NULL;
}

static void model_print(const struct key *key, const void *field, char *text, size_t size) {
    (void)key;
    snprintf(text, size, "%s", (*(const struct model *const *)field)->name);
}

static bool action_read(const struct key *key, const char *text, void *field) {
    struct action *action = field;
    (void)key;
    static const char *const plain[] = {
        [ACTION_HANG] = "hang",
        [ACTION_CRASH] = "crash",
        [ACTION_FPE] = "fpe",
        [ACTION_ABORT] = "abort",
        [ACTION_GARBAGE_STRINGS] = "garbage-strings",
        [ACTION_TRUNCATED_STRINGS] = "truncated-strings",
    };
    action->kind = ACTION_CODE;
    if (strncmp(text, "code:", 5) == 0)
        return read_number(text + 5, -4095, 99999, &action->number);
    action->kind = ACTION_DELAY;
    if (strncmp(text, "delay:", 6) == 0)
        return read_number(text + 6, 0, 3600000, &action->number);
    for (int i = ACTION_HANG; i <= ACTION_TRUNCATED_STRINGS; i++)
        if (strcmp(plain[i], text) == 0) {
            action->kind = i;
            return true;
        }
    return false;
}

// The first is the XPU driver's default; the last is none.
static const char *const vf_driver_names[] = {XPU_DRIVER, "vfio-pci", "none", NULL};

static bool drivers_read(const struct key *key, const char *text, void *field) {
    struct numbers *drivers = field;
    char copy[128];
    char *rest = copy, *item;
    (void)key;
    if (snprintf(copy, sizeof copy, "%s", text) >= (int)sizeof copy)
        return false;
    for (drivers->count = 0; (item = strsep(&rest, ",")) != NULL; drivers->count++) {
        int *place = &drivers->items[drivers->count];
        if (drivers->count == MAX_VFS)
            return false;
        for (*place = 0; vf_driver_names[*place] != NULL; ++*place)
            if (strcmp(vf_driver_names[*place], item) == 0)
                break;
        if (vf_driver_names[*place] == NULL)
            return false;
    }
    return true;
}

static void drivers_print(const struct key *key, const void *field, char *text, size_t size) {
    const struct numbers *drivers = field;
    (void)key;
    for (int i = 0, length = 0; i < drivers->count; i++)
        length += snprintf(text + length, size - (size_t)length, "%s%s", i ? "," : "",
                           vf_driver_names[drivers->items[i]]);
}

static bool later_read(const struct key *key, const char *text, void *field) {
    static const char *const names[] = {"serial", "id", "minor", "name", NULL};
    char copy[128];
    char *rest = copy, *item;
    int functions = 0;
    (void)key;
    if (strcmp(text, "all") == 0 || strcmp(text, "none") == 0) {
        *(int *)field = *text == 'a' ? LATER_ALL : 0;
        return true;
    }
    if (snprintf(copy, sizeof copy, "%s", text) >= (int)sizeof copy)
        return false;
    while ((item = strsep(&rest, ",")) != NULL) {
        int place = 0;
        while (names[place] != NULL && strcmp(names[place], item) != 0)
            place++;
        if (names[place] == NULL)
            return false;
        functions |= 1 << place;
    }
    *(int *)field = functions;
    return true;
}

static const struct kind later_kind = {later_read, NULL};
static const struct kind pci_kind = {pci_read, pci_print};
static const struct kind bridges_kind = {bridges_read, bridges_print};
static const struct kind model_kind = {model_read, model_print};
static const struct kind drivers_kind = {drivers_read, drivers_print};
static const struct kind action_kind = {action_read, NULL};

// --- the grammar ---------------------------------------------------------------------------------

static const char *const off_on[] = {"off", "on", NULL};
static const char *const call_halfway[] = {"call", "halfway", NULL};
static const char *const no_or_errno[] = {"no", "yes", "EIO", "ENXIO", "EBUSY", "EPERM", NULL};
static const char *const twice_node[] = {"twice", "node", NULL};
static const char *const by_node_scattered[] = {"by-node", "scattered", NULL};
static const char *const next_own[] = {"next-slot", "own-slot", NULL};
static const char *const loaded_gone[] = {"loaded", "gone", NULL};
static const char *const calls[] = {
    [CALL_INIT] = "xpumlInit",
    [CALL_SHUTDOWN] = "xpumlShutdown",
    [CALL_ERROR_STRING] = "xpumlErrorString",
    [CALL_DRIVER_VERSION] = "xpumlSystemGetDriverVersion",
    [CALL_XPUML_VERSION] = "xpumlSystemGetXPUMLVersion",
    [CALL_COUNT] = "xpumlDeviceGetCount",
    [CALL_HANDLE_BY_INDEX] = "xpumlDeviceGetHandleByIndex",
    [CALL_ATTRIBUTES] = "xpumlDeviceGetAttributes",
    [CALL_ARCHITECTURE] = "xpumlDeviceGetArchitecture",
    [CALL_BOARD_ID] = "xpumlDeviceGetBoardId",
    [CALL_PCI_INFO] = "xpumlDeviceGetPciInfo",
    [CALL_MEMORY_INFO] = "xpumlDeviceGetMemoryInfo",
    [CALL_UTILIZATION_RATES] = "xpumlDeviceGetUtilizationRates",
    [CALL_TEMPERATURE] = "xpumlDeviceGetTemperature",
    [CALL_POWER_USAGE] = "xpumlDeviceGetPowerUsage",
    [CALL_CLOCK_INFO] = "xpumlDeviceGetClockInfo",
    [CALL_STATE] = "xpumlDeviceGetState",
    [CALL_PROCESSES] = "xpumlDeviceGetComputeRunningProcesses",
    [CALL_HOST_VXPU_MODE] = "xpumlDeviceGetHostVxpuMode",
    [CALL_SET_SRIOV_VF_NUM] = "xpumlDeviceSetSriovVfNum",
    [CALL_SERIAL] = "xpumlDeviceGetSerial",
    [CALL_ID] = "xpumlDeviceGetId",
    [CALL_MINOR_NUMBER] = "xpumlDeviceGetMinorNumber",
    [CALL_NAME] = "xpumlDeviceGetName",
    NULL,
};

static bool missing_read(const struct key *key, const char *text, void *field) {
    char copy[512];
    char *rest = copy, *item;
    int functions = 0;
    (void)key;
    if (snprintf(copy, sizeof copy, "%s", strcmp(text, "none") == 0 ? "" : text) >=
        (int)sizeof copy)
        return false;
    while (*copy != '\0' && (item = strsep(&rest, ",")) != NULL) {
        int call = 0;
        while (calls[call] != NULL && strcmp(calls[call], item) != 0)
            call++;
        if (call >= CALL_SERIAL || REQUIRED_CALLS & 1 << call)
            return false;
        functions |= 1 << call;
    }
    *(int *)field = functions;
    return true;
}

static const struct kind missing_kind = {missing_read, NULL};

#define NUMBER(low, high, fallback) &number_kind, low, high, fallback, NULL, NULL
#define NUMBERS(low, high) &numbers_kind, low, high, 0, NULL, NULL
#define WORD(words, fallback) &word_kind, 0, 0, fallback, words, NULL
#define TEXT(type, field) &text_kind, 0, sizeof(((type *)0)->field), 0, NULL, NULL
#define OWN(kind, accepted) kind, 0, 0, 0, NULL, accepted
#define END {NULL, 0, NULL, 0, 0, 0, NULL, NULL}

#define MODELS                                                                                     \
    "K100, K200, R200, R300, R200-8F, R200-8FS, R100, R420, RG800, RG800-PRO, P800, P800-PCIe"

#define SETTING(field) offsetof(struct settings, field)
static const struct key setting_keys[] = {
    {"quirks", SETTING(quirks), WORD(off_on, 1)},
    {"model", SETTING(model), OWN(&model_kind, MODELS)},
    {"major", SETTING(major), NUMBER(1, 511, UNSET)},
    {"minors", SETTING(minors), WORD(twice_node, UNSET)},
    {"order", SETTING(order), WORD(by_node_scattered, UNSET)},
    {"vf-functions", SETTING(vf_functions), WORD(next_own, UNSET)},
    {"later-functions", SETTING(later_functions),
     OWN(&later_kind, "all, none or, by commas, serial, id, minor, name")},
    {"missing-functions", SETTING(missing_functions),
     OWN(&missing_kind, "none or, by commas, functions that the plugin can do without")},
    {"driver", SETTING(gone), WORD(loaded_gone, 0)},
    {"driver-version", SETTING(driver_version), TEXT(struct settings, driver_version)},
    {"library-version", SETTING(library_version), TEXT(struct settings, library_version)},
    {"wrong-count", SETTING(wrong_count), NUMBER(0, MAX_NODES, UNSET)},
    {"vf-delay", SETTING(vf_delay), NUMBER(0, 3600000, 0)},
    {"request-delay", SETTING(request_delay), NUMBER(0, 3600000, 0)},
    {"dev-root", SETTING(dev_root), TEXT(struct settings, dev_root)},
    {"sysfs-root", SETTING(sysfs_root), TEXT(struct settings, sysfs_root)},
    END,
};

// The drivers of a card.
static const char *const card_drivers[] = {XPU_DRIVER, "vfio-pci", "none", NULL};

#define CARD(field) offsetof(struct card, field)
static const struct key card_keys[] = {
    {"model", CARD(model), OWN(&model_kind, MODELS)},
    {"pci", CARD(pci), OWN(&pci_kind, "an address dddd:bb:ss.f, such as 0000:3b:00.0")},
    {"numa", CARD(numa), NUMBER(-1, 1023, 0)},
    {"bridges", CARD(bridges), OWN(&bridges_kind, "1 to 6 PCI addresses, the outermost first")},
    {"memory", CARD(memory), NUMBER(0, 1048576, UNSET)},
    {"serial", CARD(serial), TEXT(struct card, serial)},
    {"nodes", CARD(nodes), NUMBERS(0, MAX_NODES - 1)},
    {"minors", CARD(minors), NUMBERS(0, MAX_MINOR)},
    {"state", CARD(states), NUMBERS(0, 9999)},
    {"vfs", CARD(vfs), NUMBER(0, MAX_VFS, 0)},
    {"vf-nodes", CARD(vf_nodes), NUMBERS(0, MAX_NODES - 1)},
    {"vf-minors", CARD(vf_minors), NUMBERS(0, MAX_MINOR)},
    {"vf-states", CARD(vf_states), NUMBERS(0, 9999)},
    {"vf-drivers", CARD(vf_drivers), OWN(&drivers_kind, "for each VF kunlun, vfio-pci or none")},
    {"driver", CARD(driver), WORD(card_drivers, 0)},
    {"lost", CARD(lost), WORD(yes_no, 0)},
    {"busy", CARD(busy), WORD(yes_no, 0)},
    {"unreadable", CARD(unreadable), WORD(no_or_errno, 0)},
    {"splits", CARD(splits), WORD(yes_no, 1)},
    {"total-vfs", CARD(total_vfs), NUMBER(0, 256, UNSET)},
    {"model-number", CARD(model_number), NUMBER(0, UNKNOWN_MODEL, UNSET)},
    {"cold-split", CARD(cold_split), WORD(yes_no, 0)},
    {"utilization", CARD(utilization), NUMBER(0, 42949671, 0)},
    {"temperature", CARD(temperature), NUMBER(-616, 200, 40)},
    {"power", CARD(power), NUMBER(-1, 1000000, 60)},
    {"clock", CARD(clock), NUMBER(0, 5200, UNSET)},
    END,
};

#define TARGET(type)                                                                               \
    {"card", offsetof(type, target.card), NUMBER(0, MAX_CARDS - 1, UNSET)},                        \
        {"half", offsetof(type, target.half), NUMBER(0, MAX_HALVES - 1, UNSET)}, {                 \
        "vf", offsetof(type, target.vf), NUMBER(0, MAX_VFS - 1, UNSET)                             \
    }

static const struct key fault_keys[] = {
    {"function", offsetof(struct fault, call), WORD(calls, UNSET)},
    TARGET(struct fault),
    {"action", offsetof(struct fault, action),
     OWN(&action_kind,
         "code:N, delay:MS, hang, crash, fpe, abort, garbage-strings, truncated-strings")},
    {"at", offsetof(struct fault, halfway), WORD(call_halfway, 0)},
    {"times", offsetof(struct fault, times), NUMBER(1, 1000000, UNSET)},
    END,
};

static const struct key process_keys[] = {
    {"pid", offsetof(struct process, pid), NUMBER(1, 4194304, UNSET)},
    {"host-pid", offsetof(struct process, host_pid), NUMBER(1, 4194304, UNSET)},
    TARGET(struct process),
    {"memory", offsetof(struct process, memory), NUMBER(0, 1048576, 0)},
    END,
};

// --- reading -------------------------------------------------------------------------------------

static const char blanks[] = " \t\r";

// Appends a zeroed record to an array; NULL if memory is exhausted.
static void *append(void *array, unsigned *count, size_t size) {
    void **records = array;
    char *grown = realloc(*records, (*count + 1) * size);
    if (grown == NULL)
        return NULL;
    *records = grown;
    return memset(grown + size * (*count)++, 0, size);
}

static bool read_keys(const struct key *keys, const char *what, char *rest, void *record,
                      struct error *error) {
    const char *seen[32];
    unsigned count = 0;
    grammar_reset(keys, record);
    for (char *word; (word = strtok_r(NULL, blanks, &rest)) != NULL;) {
        if (!grammar_read(keys, what, word, record, error))
            return false;
        for (unsigned i = 0; i < count; i++)
            if (strcmp(seen[i], word) == 0)
                return fail(error, "%s of %s is given twice", word, what);
        seen[count++] = word; // cut at its '=', and no key comes twice: there is room for all
    }
    return true;
}

static bool read_setting(struct machine *machine, char *rest, struct error *error) {
    rest += strspn(rest, blanks);
    for (size_t end = strlen(rest); end > 0 && strchr(blanks, rest[end - 1]) != NULL; end--)
        rest[end - 1] = '\0';
    return grammar_read(setting_keys, "set", rest, &machine->settings, error);
}

static bool read_card(struct machine *machine, char *rest, unsigned line, struct error *error) {
    struct card *card = append(&machine->cards, &machine->card_count, sizeof *machine->cards);
    char *number = strtok_r(NULL, blanks, &rest);
    if (card == NULL)
        return fail(error, "out of memory");
    card->line = line;
    if (number == NULL || !read_number(number, 0, MAX_CARDS - 1, &card->number))
        return fail(error, "number of card: '%s'; accepted: 0..%d", number ? number : "",
                    MAX_CARDS - 1);
    if (!read_keys(card_keys, "card", rest, card, error))
        return false;
    if (card->model == NULL || card->pci == 0)
        return fail(error, "card %d needs %s=", card->number, card->model ? "pci" : "model");
    return true;
}

static bool read_fault(struct machine *machine, char *rest, unsigned line, struct error *error) {
    struct fault *fault = append(&machine->faults, &machine->fault_count, sizeof *machine->faults);
    if (fault == NULL)
        return fail(error, "out of memory");
    fault->line = line;
    if (snprintf(fault->text, sizeof fault->text, "%s", rest) >= (int)sizeof fault->text)
        return fail(error, "a fault of more than %zu characters", sizeof fault->text - 1);
    if (!read_keys(fault_keys, "fault", rest, fault, error))
        return false;
    if (fault->call == UNSET || fault->action.kind == ACTION_NONE)
        return fail(error, "fault needs %s=", fault->call == UNSET ? "function" : "action");
    if (fault->halfway && fault->call != CALL_SET_SRIOV_VF_NUM)
        return fail(error, "at=halfway of fault needs function=%s", calls[CALL_SET_SRIOV_VF_NUM]);
    if (fault->halfway)
        fault->call = CALL_SET_SRIOV_HALFWAY;
    return true;
}

static bool read_process(struct machine *machine, char *rest, unsigned line, struct error *error) {
    struct process *process =
        append(&machine->processes, &machine->process_count, sizeof *machine->processes);
    if (process == NULL)
        return fail(error, "out of memory");
    process->line = line;
    if (!read_keys(process_keys, "process", rest, process, error))
        return false;
    if (process->pid == UNSET || process->target.card == UNSET)
        return fail(error, "process needs %s=", process->pid == UNSET ? "pid" : "card");
    return true;
}

// A comment begins at the start of a word.
static const char *find_comment(const char *line, const char *end) {
    for (const char *mark = line; mark < end; mark++)
        if (*mark == '#' && (mark == line || strchr(blanks, mark[-1]) != NULL))
            return mark;
    return end;
}

static bool read_line(struct machine *machine, char *text, unsigned line, struct error *error) {
    char *rest = text;
    text[find_comment(text, text + strlen(text)) - text] = '\0';
    char *word = strtok_r(text, blanks, &rest);
    if (word == NULL)
        return true;
    if (strcmp(word, "set") == 0)
        return read_setting(machine, rest, error);
    if (strcmp(word, "card") == 0)
        return read_card(machine, rest, line, error);
    if (strcmp(word, "fault") == 0)
        return read_fault(machine, rest, line, error);
    if (strcmp(word, "process") == 0)
        return read_process(machine, rest, line, error);
    return fail(error, "unknown word '%s'; accepted: set, card, fault, process", word);
}

static bool fail_at(unsigned line, struct error *error) {
    struct error reason = *error;
    return fail(error, "line %u: %.*s", line, (int)sizeof reason.text - 32, reason.text);
}

static bool read_lines(struct machine *machine, struct error *error) {
    char *text = strdup(machine->text), *rest = text, *line;
    bool good = text != NULL || fail(error, "out of memory");
    for (unsigned number = 1; good && (line = strsep(&rest, "\n")) != NULL; number++)
        good = read_line(machine, line, number, error) || fail_at(number, error);
    free(text);
    return good;
}

// --- checking and numbering ----------------------------------------------------------------------

struct numbering {
    bool nodes[MAX_NODES];
    bool minors[MAX_MINOR + 1];
    int next_node, next_minor;
};

static bool claim(const struct numbers *numbers, bool *taken, const char *what,
                  struct error *error) {
    for (int i = 0; i < numbers->count; i++) {
        if (taken[numbers->items[i]])
            return fail(error, "%s %d is taken twice", what, numbers->items[i]);
        taken[numbers->items[i]] = true;
    }
    return true;
}

static bool has(const struct numbers *numbers, const char *what, int wanted, struct error *error) {
    if (numbers->count == 0 || numbers->count == wanted)
        return true;
    return fail(error, "%s has %d values; accepted: %d", what, numbers->count, wanted);
}

static bool refuse_vfs(const struct card *card, struct error *error) {
    char accepted[32] = "0";
    for (int vfs = 1, length = 1; vfs <= MAX_VFS; vfs++)
        if (card_allows(card, vfs))
            length += snprintf(accepted + length, sizeof accepted - (size_t)length, ", %d", vfs);
    if (accepted[1] == '\0')
        return fail(error, "vfs of card: this %s has no VFs; accepted: 0", card->model->name);
    return fail(error, "vfs of card: this %s does not have %d VFs; accepted: %s", card->model->name,
                card->vfs, accepted);
}

static bool check_card(const struct card *card, struct numbering *numbering, struct error *error) {
    int halves = card->model->halves, slot = card->pci >> 3 & 0x1f;
    if (card->vfs > 0 && !card_allows(card, card->vfs))
        return refuse_vfs(card, error);
    if (card->vfs > 0 && !card->own_slot && slot == LAST_SLOT)
        return fail(error, "pci of card: the VFs need the slot after it");
    if (card->own_slot && (int)(card->pci & 7) + card->vfs > 7)
        return fail(error, "pci of card: the VFs need the functions after it");
    return has(&card->nodes, "nodes", halves, error) &&
           has(&card->minors, "minors", halves, error) &&
           has(&card->states, "state", halves, error) &&
           has(&card->vf_nodes, "vf-nodes", card->vfs, error) &&
           has(&card->vf_minors, "vf-minors", card->vfs, error) &&
           has(&card->vf_states, "vf-states", card->vfs, error) &&
           claim(&card->nodes, numbering->nodes, "node", error) &&
           claim(&card->vf_nodes, numbering->nodes, "node", error) &&
           claim(&card->minors, numbering->minors, "minor", error) &&
           claim(&card->vf_minors, numbering->minors, "minor", error);
}

// The driver gives a node the lowest free N.
static bool give_nodes(struct card *card, struct numbers *nodes, int count,
                       struct numbering *numbering, struct error *error) {
    for (; nodes->count < count; nodes->count++) {
        while (numbering->next_node < MAX_NODES && numbering->nodes[numbering->next_node])
            numbering->next_node++;
        if (numbering->next_node == MAX_NODES)
            return fail(error, "more than %d nodes", MAX_NODES);
        numbering->nodes[nodes->items[nodes->count] = numbering->next_node] = true;
        card->changed = true;
    }
    return true;
}

// A driver of release 5 gives a node the minor N.
static void give_minors_by_node(struct card *card, const struct numbers *nodes,
                                struct numbers *minors, struct numbering *numbering) {
    for (; minors->count < nodes->count; card->changed = true) {
        int minor = nodes->items[minors->count];
        numbering->minors[minors->items[minors->count++] = minor] = true;
    }
}

// One of release 4 gives a probed function the lowest free place: two minors, of which only a K200
// needs the second. The control node's place is never free.
static void give_minors(struct card *card, struct numbers *minors, int count, int halves,
                        struct numbering *numbering) {
    while (minors->count < count) {
        int *minor = &numbering->next_minor;
        while (numbering->minors[*minor] || numbering->minors[*minor + 1])
            *minor += 2;
        for (int half = 0; half < halves; half++)
            numbering->minors[minors->items[minors->count++] = *minor + half] = true;
        *minor += 2;
        card->changed = true;
    }
}

// The XPU driver makes a node for each function that is bound to it.
static bool has_node(const struct card *card, int part, bool vf) {
    const char *driver = vf ? vf_driver(card, part) : card_driver(card);
    return driver != NULL && strcmp(driver, XPU_DRIVER) == 0;
}

static bool add_units(struct machine *machine, const struct card *card, bool vf) {
    const struct numbers *states = vf ? &card->vf_states : &card->states;
    const struct numbers *nodes = vf ? &card->vf_nodes : &card->nodes;
    const struct numbers *minors = vf ? &card->vf_minors : &card->minors;
    for (int part = 0; part < nodes->count; part++) {
        if (!has_node(card, part, vf))
            continue;
        struct unit *unit = append(&machine->units, &machine->unit_count, sizeof *machine->units);
        if (unit == NULL)
            return false;
        int state = states->count ? states->items[part] : XPUML_STATE_RUNNING;
        *unit = (struct unit){card, part, vf, nodes->items[part], minors->items[part], state};
    }
    return true;
}

static int compare(const void *left, const void *right) {
    unsigned a = *(const unsigned *)left, b = *(const unsigned *)right;
    return (a > b) - (a < b);
}

static bool index_addresses(struct machine *machine, struct error *error) {
    for (unsigned i = 0; i < machine->card_count; i++)
        for (int k = -1; k < machine->cards[i].vfs; k++) {
            unsigned *address =
                append(&machine->addresses, &machine->address_count, sizeof *machine->addresses);
            if (address == NULL)
                return fail(error, "out of memory");
            *address = k < 0 ? machine->cards[i].pci : vf_pci(&machine->cards[i], k);
        }
    if (machine->address_count > 0)
        qsort(machine->addresses, machine->address_count, sizeof *machine->addresses, compare);
    for (unsigned i = 1; i < machine->address_count; i++)
        if (machine->addresses[i - 1] == machine->addresses[i])
            return fail(error, "two devices have the address %s",
                        pci_address(machine->addresses[i]).text);
    return true;
}

bool machine_has_address(const struct machine *machine, unsigned pci) {
    return machine->address_count > 0 &&
           bsearch(&pci, machine->addresses, machine->address_count, sizeof pci, compare) != NULL;
}

static bool check_target(const struct machine *machine, const struct target *target,
                         struct error *error) {
    if (target->card == UNSET)
        return (target->half == UNSET && target->vf == UNSET) ||
               fail(error, "half and vf need card=");
    if (machine->by_number[target->card] == NULL)
        return fail(error, "there is no card %d", target->card);
    if (target->half != UNSET && target->vf != UNSET)
        return fail(error, "half and vf exclude each other");
    return true;
}

static bool number_cards(struct machine *machine, struct numbering *numbering,
                         struct error *error) {
    memset(machine->by_number, 0, sizeof machine->by_number);
    for (unsigned i = 0; i < machine->card_count; i++) {
        struct card *card = &machine->cards[i];
        if (machine->by_number[card->number] != NULL)
            return fail(error, "card %d comes twice", card->number) || fail_at(card->line, error);
        machine->by_number[card->number] = card;
        if (machine->settings.gone) { // the driver took all splits and numbers with it
            card->changed |= card->vfs > 0 || card->nodes.count > 0 || card->minors.count > 0;
            card_split(card, 0);
            card->nodes.count = card->minors.count = 0;
        }
        if (card->driver != 0) // the XPU driver removes the VFs when it is unbound
            card_split(card, 0);
        if (card->vf_drivers.count > 0 && card->vf_drivers.count != card->vfs) {
            card->vf_drivers.count = 0; // of the former VFs
            card->changed = true;
        }
        int own_slot = machine->settings.vf_functions;
        card->own_slot = own_slot == UNSET ? card->model->own_slot : own_slot;
        if (!check_card(card, numbering, error))
            return fail_at(card->line, error);
    }
    for (int vf = 0; vf <= 1 && !machine->settings.gone; vf++)
        for (unsigned i = 0; i < machine->card_count; i++) {
            struct card *card = &machine->cards[i];
            struct numbers *nodes = vf ? &card->vf_nodes : &card->nodes;
            struct numbers *minors = vf ? &card->vf_minors : &card->minors;
            int count = vf ? card->vfs : card->model->halves;
            if (!give_nodes(card, nodes, count, numbering, error))
                return false;
            if (machine->settings.minors)
                give_minors_by_node(card, nodes, minors, numbering);
            else
                give_minors(card, minors, count, vf ? 1 : count, numbering);
            if (!add_units(machine, card, vf))
                return fail(error, "out of memory");
        }
    return true;
}

bool machine_number(struct machine *machine, struct error *error) {
    struct numbering *numbering = calloc(1, sizeof *numbering);
    machine->unit_count = machine->address_count = 0;
    bool good = numbering != NULL || fail(error, "out of memory");
    if (good)
        numbering->minors[control_minor(machine)] = true;
    if (good && machine->settings.minors)
        numbering->nodes[control_minor(machine)] = true;
    good = good && number_cards(machine, numbering, error) && index_addresses(machine, error);
    free(numbering);
    memset(machine->by_node, 0, sizeof machine->by_node);
    for (unsigned i = 0; i < machine->unit_count; i++)
        machine->by_node[machine->units[i].node] = &machine->units[i];
    return good;
}

// Fills in the settings that are not given.
static void follow_release(struct settings *settings, int release) {
    int *const facts[] = {&settings->minors, &settings->order};
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        if (*facts[i] == UNSET)
            *facts[i] = release > 4;
    if (settings->later_functions == UNSET)
        settings->later_functions = release > 4 ? LATER_ALL : 0;
}

struct machine *machine_parse(const char *text, struct error *error) {
    struct machine *machine = calloc(1, sizeof *machine);
    if (machine == NULL || (machine->text = strdup(text)) == NULL) {
        fail(error, "out of memory");
        free(machine);
        return NULL;
    }
    grammar_reset(setting_keys, &machine->settings);
    machine->settings.later_functions = UNSET;
    bool good = read_lines(machine, error);
    follow_release(&machine->settings, machine_release(machine));
    good = good && machine_number(machine, error);
    for (unsigned i = 0; good && i < machine->fault_count; i++)
        good = check_target(machine, &machine->faults[i].target, error) ||
               fail_at(machine->faults[i].line, error);
    for (unsigned i = 0; good && i < machine->process_count; i++)
        good = check_target(machine, &machine->processes[i].target, error) ||
               fail_at(machine->processes[i].line, error);
    if (good)
        return machine;
    machine_free(machine);
    return NULL;
}

void machine_free(struct machine *machine) {
    if (machine == NULL)
        return;
    free(machine->text);
    free(machine->cards);
    free(machine->faults);
    free(machine->processes);
    free(machine->units);
    free(machine->addresses);
    free(machine);
}

// --- the file ------------------------------------------------------------------------------------

struct machine *machine_read(const char *path, struct error *error) {
    FILE *file = fopen(path, "re");
    char *text = NULL;
    size_t room = 0;
    if (file == NULL) {
        fail(error, "cannot read %s: %s", path, strerror(errno));
        return NULL;
    }
    errno = 0;
    ssize_t length = getdelim(&text, &room, '\0', file); // a text has no NUL: this is all of it
    struct machine *machine = NULL;
    if (length < 0 && errno != 0)
        fail(error, "cannot read %s: %s", path, strerror(errno));
    else if (length > 0 && !feof(file))
        fail(error, "%s is not a text", path);
    else
        machine = machine_parse(length < 0 ? "" : text, error);
    free(text);
    fclose(file);
    return machine;
}

static void print_card(const struct card *card, const char *line, size_t length, FILE *out) {
    const char *end = line + length, *comment = find_comment(line, end);
    fprintf(out, "card %d", card->number);
    grammar_print(card_keys, card, out);
    if (comment < end)
        fprintf(out, "  %.*s", (int)(end - comment), comment);
}

static void print_machine(const struct machine *machine, FILE *out) {
    const struct card *card = machine->cards, *end = card + machine->card_count;
    const char *line = machine->text;
    for (unsigned number = 1; *line != '\0'; number++) {
        size_t length = strcspn(line, "\n");
        bool here = card != end && card->line == number;
        if (here && card->changed)
            print_card(card, line, length, out);
        else
            fwrite(line, 1, length, out);
        card += here;
        fputc('\n', out);
        line += length + (line[length] == '\n');
    }
}

bool machine_write(const struct machine *machine, const char *path, struct error *error) {
    char draft[4096];
    if (snprintf(draft, sizeof draft, "%s.draft", path) >= (int)sizeof draft)
        return fail(error, "%s: the path is too long", path);
    int descriptor = open(draft, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (descriptor < 0)
        return fail(error, "cannot write beside %s: %s", path, strerror(errno));
    FILE *file = fdopen(descriptor, "w");
    if (file == NULL) {
        close(descriptor);
        unlink(draft);
        return fail(error, "cannot write %s: %s", path, strerror(errno));
    }
    print_machine(machine, file);
    bool good = fflush(file) == 0 && fchmod(descriptor, 0644) == 0 && fsync(descriptor) == 0;
    good = fclose(file) == 0 && good && rename(draft, path) == 0;
    if (good)
        return true;
    fail(error, "cannot replace %s: %s", path, strerror(errno));
    unlink(draft);
    return false;
}

int machine_lock(const char *path, struct error *error) {
    char lock[4096];
    if (snprintf(lock, sizeof lock, "%s.lock", path) >= (int)sizeof lock) {
        fail(error, "%s: the path is too long", path);
        return -1;
    }
    int descriptor = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor >= 0 && flock(descriptor, LOCK_EX) == 0)
        return descriptor;
    fail(error, "cannot lock %s: %s", lock, strerror(errno));
    if (descriptor >= 0)
        close(descriptor);
    return -1;
}

// --- derived values ------------------------------------------------------------------------------

void card_split(struct card *card, int vfs) {
    card->changed |= card->vfs != vfs;
    card->vfs = vfs;
    card->vf_nodes.count = card->vf_minors.count = 0;
    card->vf_states.count = card->vf_drivers.count = 0;
}

int card_refusal(const struct card *card) {
    static const int numbers[] = {0, EACCES, EIO, ENXIO, EBUSY, EPERM};
    return numbers[card->unreadable];
}

int card_memory(const struct card *card) {
    return card->memory == UNSET ? card->model->memory : card->memory;
}

int card_total_vfs(const struct card *card) {
    return card->total_vfs == UNSET ? card->model->max_vfs : card->total_vfs;
}

// Boards with 12 GB have six memory channels and cannot be split, with any model.
bool card_splits(const struct card *card) {
    return card->model->vf_counts != 0 && card->splits && card_total_vfs(card) > 0 &&
           card_memory(card) > 12288;
}

bool card_allows(const struct card *card, int vfs) {
    bool possible = vfs >= 0 && vfs <= MAX_VFS && vfs <= card_total_vfs(card);
    return vfs == 0 || (possible && card_splits(card) && card->model->vf_counts >> vfs & 1);
}

int machine_release(const struct machine *machine) {
    return machine->settings.model == NULL ? 4 : machine->settings.model->release;
}

int control_minor(const struct machine *machine) { return machine->settings.minors ? 255 : 128; }

// Scattered: 0, 2, 1, 3, 4, 6, 5, 7 and so on. The middle two of four change places.
int library_rank(const struct settings *settings, int node) {
    int place = node & 3;
    bool moves = settings->order && (place == 1 || place == 2);
    return moves ? node - place + 3 - place : node;
}

bool card_in_use(const struct machine *machine, const struct card *card) {
    for (unsigned i = 0; i < machine->process_count; i++)
        if (machine->processes[i].target.card == card->number)
            return true;
    return card->busy;
}

unsigned vf_pci(const struct card *card, int vf) {
    return card->own_slot ? card->pci + 1 + (unsigned)vf
                          : ((card->pci & ~7u) + SLOT) | (unsigned)vf;
}

const char *vf_driver(const struct card *card, int vf) {
    const char *name = vf_driver_names[card->vf_drivers.count > 0 ? card->vf_drivers.items[vf] : 0];
    return strcmp(name, "none") == 0 ? NULL : name;
}

const char *card_driver(const struct card *card) {
    return strcmp(card_drivers[card->driver], "none") == 0 ? NULL : card_drivers[card->driver];
}

unsigned unit_pci(const struct unit *unit) {
    return unit->vf ? vf_pci(unit->card, unit->part) : unit->card->pci;
}

uint64_t unit_memory(const struct unit *unit) {
    int memory = card_memory(unit->card);
    if (unit->vf) // whole, half or third, the third rounded down to 8 MiB
        memory = memory / unit->card->vfs / 8 * 8;
    else if (unit->card->vfs > 0 && unit->card->cold_split)
        memory = 0;
    return (uint64_t)memory << 20;
}

bool target_matches(const struct target *target, const struct unit *unit) {
    if (target->card == UNSET)
        return true;
    if (unit == NULL || unit->card->number != target->card)
        return false;
    if (target->half != UNSET)
        return !unit->vf && unit->part == target->half;
    if (target->vf != UNSET)
        return unit->vf && unit->part == target->vf;
    return true;
}
