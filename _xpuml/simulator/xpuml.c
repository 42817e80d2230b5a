// SPDX-License-Identifier: Apache-2.0
//
// The functions of libxpuml over a simulated machine, with the faults of 4.0.12.1 unless the
// machine has `quirks=off`. Then there are error codes instead of the vendor library's crashes, and
// no limits.
#include "xpuml.h"
#include "fault.h"
#include "library.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#define COMMIT " commit: 5d0a1f7c3be24986d1c0a7e2f4b8936a0c5e7d12"

enum { PAGE = 4096, PROCESSES_AT_MOST = 99 };

// Numbers of driver requests in a call, for calls with more than one.
enum { REQUESTS_OF_AN_ENTRY = 6, REQUESTS_OF_MEMORY = 2, REQUESTS_OF_UTILIZATION = 3 };

// --- common parts of calls -----------------------------------------------------------------------

static bool has_quirks(void) { return library.machine->settings.quirks; }

// The vendor's library dies here; a clean one would refuse.
static int crash(int signal) {
    if (has_quirks())
        die(signal);
    return XPUML_INVALID_ARGUMENT;
}

// Returns the driver's record for the number of a handle; NULL if it does not answer for it.
static const struct unit *ask(const struct xpuml_device *device, int requests) {
    delay(library.machine->settings.request_delay * requests);
    const struct unit *unit = library.machine->by_node[device->number];
    return unit != NULL && !unit->card->lost ? unit : NULL;
}

static const struct unit *unit_of(const struct xpuml_device *device) {
    return device == NULL || device->number == UNSET ? NULL
                                                     : library.machine->by_node[device->number];
}

// The beginning of every call but Init, Shutdown and ErrorString. False: the call returns `code`.
static bool enter(enum call call, const struct unit *unit, int *code) {
    *code = XPUML_DRIVER_NOT_LOADED;
    return library.control != 0 && !fault_strikes(library.machine, call, unit, code);
}

// The same for a call with a handle.
static bool enter_device(enum call call, const struct xpuml_device *device, int *code) {
    *code = XPUML_DRIVER_NOT_LOADED;
    if (library.control == 0)
        return false;
    library_refresh();
    if (device == NULL) {
        *code = crash(SIGSEGV);
        return false;
    }
    *code = XPUML_INVALID_ARGUMENT;
    return device->listed && enter(call, unit_of(device), code);
}

// The same for a call that refuses a handle marked invalid and fills in something.
static bool enter_checked(enum call call, const struct xpuml_device *device, const void *output,
                          int *code) {
    if (!enter_device(call, device, code))
        return false;
    *code = XPUML_INVALID_ARGUMENT;
    return device->valid && output != NULL;
}

// --- library and system --------------------------------------------------------------------------

int xpumlInit(void) {
    struct error error;
    char path[4096];
    int code;
    if (library.control != 0)
        return XPUML_SUCCESS;
    if (!library_load(&error)) {
        fprintf(stderr, "libxpuml simulator: %s\n", error.text);
        return XPUML_DRIVER_NOT_LOADED;
    }
    if (fault_strikes(library.machine, CALL_INIT, NULL, &code))
        return code;
    if (library.machine->settings.gone)
        return XPUML_DRIVER_NOT_LOADED;
    snprintf(path, sizeof path, "%s/xpuctrl", library_site().dev_root);
    int control = open(path, O_RDWR | O_NONBLOCK);
    if (control < 0 && (errno == ENXIO || errno == ENODEV))
        control = open("/dev/null", O_RDWR); // see refusal() in library.c
    if (control < 0)
        return XPUML_DRIVER_NOT_LOADED;
    library.control = control;
    library_list();
    return XPUML_SUCCESS;
}

static int shut_down(void) {
    int code;
    return library.machine != NULL && fault_strikes(library.machine, CALL_SHUTDOWN, NULL, &code)
               ? code
               : XPUML_SUCCESS;
}

const char *xpumlErrorString(int code) {
    static const char *const texts[] = {
        "Success",
        "Uninitialized",
        "Invalid Argument",
        "Not Supported",
        "Insufficient Permissions",
        "Already Initialized",
        "Not Found",
        "Insufficient Size",
        "Insufficient External Power",
        "Driver Not Loaded",
        "Timeout",
        "Interrupt Request Issue",
        "Shared Library Not Found",
        "Function Not Found",
        "Corrupted infoROM",
        "XPU is lost",
        "XPU requires restart",
        "Operating system blocked the request",
        "Driver/library version mismatch",
        "In use by another client",
        "Insufficient Memory",
        "Unknown Error",
        "Unknown Error",
        "Insufficient Resources",
        "Requested frequency is not supported",
    };
    int answer;
    if (library.machine != NULL)
        fault_strikes(library.machine, CALL_ERROR_STRING, NULL, &answer);
    return code >= 0 && code < (int)(sizeof texts / sizeof *texts) ? texts[code] : "Unknown Error";
}

static int version(enum call call, const char *set, const char *release_4, char *buffer,
                   unsigned size) {
    const char *usual = machine_release(library.machine) > 4 ? "5.0.21.47" : release_4;
    snprintf(buffer, size, "%s", *set ? set : usual);
    fault_spoils(library.machine, call, NULL, buffer, size);
    return XPUML_SUCCESS;
}

int xpumlSystemGetDriverVersion(char *text, unsigned size) {
    int code;
    library_refresh();
    if (!enter(CALL_DRIVER_VERSION, NULL, &code))
        return code;
    if (library.machine->settings.gone)
        return XPUML_UNKNOWN;
    return version(CALL_DRIVER_VERSION, library.machine->settings.driver_version,
                   "4.0.third_unknown.1" COMMIT, text, size);
}

int xpumlSystemGetXPUMLVersion(char *text, unsigned size) {
    int code;
    library_refresh();
    if (!enter(CALL_XPUML_VERSION, NULL, &code))
        return code;
    return version(CALL_XPUML_VERSION, library.machine->settings.library_version, "4.0.12.1" COMMIT,
                   text, size);
}

// --- finding devices -----------------------------------------------------------------------------

int xpumlDeviceGetCount(unsigned *count) {
    int code;
    library_refresh();
    if (!enter(CALL_COUNT, NULL, &code))
        return code;
    const struct settings *settings = &library.machine->settings;
    if (count == NULL || settings->gone)
        return XPUML_UNKNOWN;
    bool wrong = settings->wrong_count != UNSET;
    unsigned driver = wrong ? (unsigned)settings->wrong_count : library.machine->unit_count;
    delay(settings->request_delay);
    if (driver != library.count)
        library_list();
    *count = wrong ? driver : library.count;
    return XPUML_SUCCESS;
}

static void fill_numbers(xpumlDeviceAttributes_t *attributes, const struct unit *unit) {
    const struct card *card = unit->card;
    const struct model *model = card->model;
    attributes->archId = model->arch;
    attributes->boardId = model->board;
    attributes->modelId = card->model_number == UNSET ? model->number : card->model_number;
    if (card->vfs > 0 && attributes->modelId == MODEL_R200)
        attributes->modelId = unit->vf ? 200 + card->vfs : 200;
    else if (model->release > machine_release(library.machine) ||
             (card->vfs > 0 && model->release == 4)) // it knows the parts of no other board
        attributes->modelId = UNKNOWN_MODEL;
    if (attributes->modelId == UNKNOWN_MODEL)
        attributes->archId = attributes->boardId = 0;
}

static const struct engines *engines_of(const struct unit *unit) {
    if (unit->vf)
        return &unit->card->model->engines[unit->card->vfs];
    return unit->card->vfs > 0 ? &engines_of_pf : unit->card->model->engines;
}

static void serial_of(const struct unit *unit, char *serial, size_t size) {
    if (*unit->card->serial != '\0')
        snprintf(serial, size, "%s", unit->card->serial);
    else
        snprintf(serial, size, "02K0SIM%09d", unit->card->number);
}

static void fill(xpumlDeviceAttributes_t *attributes, const struct unit *unit) {
    const struct engines *engines = engines_of(unit);
    memset(attributes, 0, sizeof *attributes);
    fill_numbers(attributes, unit);
    attributes->clusterCount = engines->cluster;
    attributes->sdnnCount = engines->sdnn;
    attributes->dmaEngineCount = engines->dma;
    attributes->decoderCount = engines->decoder;
    attributes->encoderCount = engines->encoder;
    attributes->imgProcCount = engines->image;
    attributes->maxVFCount = unit->vf ? 0 : (uint32_t)unit->card->model->max_vfs;
    attributes->globalMemorySizeMB = unit_memory(unit) >> 20;
    attributes->l3MemorySizeMB = engines->l3 >> 20;
    if (library.machine->settings.later_functions & LATER_SERIAL) {
        char serial[sizeof attributes->sn + 1];
        serial_of(unit, serial, sizeof serial);
        memcpy(attributes->sn, serial, strlen(serial));
    }
}

int xpumlDeviceGetHandleByIndex(unsigned index, xpumlDevice_t *handle) {
    int code;
    library_refresh();
    struct xpuml_device *device = index < library.count ? &library.devices[index] : NULL;
    if (!enter(CALL_HANDLE_BY_INDEX, unit_of(device), &code))
        return code;
    if (handle == NULL || (has_quirks() && index >= TABLE))
        return XPUML_INVALID_ARGUMENT;
    if (device == NULL || device->number == UNSET)
        return crash(SIGSEGV);
    if (!device->valid) {
        const struct unit *unit = ask(device, REQUESTS_OF_AN_ENTRY);
        if (unit == NULL)
            return XPUML_UNKNOWN;
        fill(&device->attributes, unit);
        device->valid = true;
    }
    *handle = device;
    return XPUML_SUCCESS;
}

// --- cached answers ------------------------------------------------------------------------------

static int get_attributes(xpumlDevice_t device, xpumlDeviceAttributes_t *attributes) {
    int code;
    if (!enter_checked(CALL_ATTRIBUTES, device, attributes, &code))
        return code;
    *attributes = device->attributes;
    return XPUML_SUCCESS;
}

static int get_architecture(xpumlDevice_t device, unsigned *architecture) {
    int code;
    if (!enter_checked(CALL_ARCHITECTURE, device, architecture, &code))
        return code;
    *architecture = (unsigned)device->attributes.archId;
    return XPUML_SUCCESS;
}

static int get_board_id(xpumlDevice_t device, unsigned *board) {
    int code;
    if (!enter_checked(CALL_BOARD_ID, device, board, &code))
        return code;
    *board = (unsigned)device->attributes.boardId;
    return XPUML_SUCCESS;
}

// --- answers that are read each time -------------------------------------------------------------

// The two ids and the reserved words keep the caller's values.
int xpumlDeviceGetPciInfo(xpumlDevice_t device, xpumlPciInfo_t *pci) {
    int code;
    if (!enter_device(CALL_PCI_INFO, device, &code))
        return code;
    if (pci == NULL)
        return XPUML_DRIVER_NOT_LOADED;
    if (!device->valid)
        return XPUML_INVALID_ARGUMENT;
    const struct unit *unit = ask(device, 1);
    if (unit == NULL)
        return XPUML_UNKNOWN;
    unsigned address = unit_pci(unit);
    pci->domain = address >> 16;
    pci->bus = address >> 8 & 0xff;
    pci->device = address >> 3 & 0x1f;
    pci->function = address & 7;
    snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.%01X", pci->domain, pci->bus,
             pci->device, pci->function);
    fault_spoils(library.machine, CALL_PCI_INFO, unit, pci->busId, sizeof pci->busId);
    return XPUML_SUCCESS;
}

// Processes belong to a half or a VF; without either, to the first unit that computes.
static bool runs_on(const struct process *process, const struct unit *unit) {
    bool computes = unit->vf || unit->card->vfs == 0;
    bool anywhere = process->target.half == UNSET && process->target.vf == UNSET;
    return computes && target_matches(&process->target, unit) && (!anywhere || unit->part == 0);
}

static uint64_t used_memory(const struct unit *unit) {
    uint64_t used = 0;
    for (unsigned i = 0; i < library.machine->process_count; i++)
        if (runs_on(&library.machine->processes[i], unit))
            used += (uint64_t)library.machine->processes[i].memory << 20;
    return used; // may exceed the total, if the machine file has it so
}

// For the PF of a card that was split when the driver was loaded, the driver has no memory table.
// It leaves the record as it was sent: N in the first word, and old stack content behind it. The
// stack is clean for N = 0.
static bool is_unfilled(const struct unit *unit) {
    return !unit->vf && unit->card->vfs > 0 && unit->card->cold_split;
}

static uint64_t stack(const struct unit *unit) {
    static unsigned calls;
    uint64_t word = 133873775ull + 7919ull * calls++;
    return unit->node == 0 ? 0 : word << 20;
}

static int get_memory_info(xpumlDevice_t device, xpumlMemory_t *memory) {
    int code;
    if (!enter_checked(CALL_MEMORY_INFO, device, memory, &code))
        return code;
    const struct unit *unit = ask(device, REQUESTS_OF_MEMORY);
    if (unit == NULL)
        return XPUML_UNKNOWN;
    bool unfilled = is_unfilled(unit);
    memory->pageSizeGlobalMemory = unfilled ? (uint64_t)unit->node : PAGE;
    memory->totalGlobalMemory = unfilled ? stack(unit) : unit_memory(unit);
    memory->usedGlobalMemory = unfilled ? stack(unit) : used_memory(unit);
    memory->freeGlobalMemory = memory->totalGlobalMemory - memory->usedGlobalMemory;
    memory->pageSizeL3Memory = PAGE;
    memory->totalL3Memory = memory->freeL3Memory = engines_of(unit)->l3;
    memory->usedL3Memory = 0;
    return XPUML_SUCCESS;
}

static int get_utilization_rates(xpumlDevice_t device, xpumlUtilization_t *rates) {
    int code;
    if (!enter_checked(CALL_UTILIZATION_RATES, device, rates, &code))
        return code;
    const struct unit *unit = ask(device, REQUESTS_OF_UTILIZATION);
    if (unit == NULL)
        return XPUML_UNKNOWN;
    uint64_t total = unit_memory(unit);
    if (total == 0)
        return crash(SIGFPE);
    rates->xpu = (uint32_t)unit->card->utilization;
    rates->memory = (uint32_t)(used_memory(unit) * 100 / total);
    return XPUML_SUCCESS;
}

// One word of the driver. These calls never check whether the handle is valid.
static int reading(enum call call, xpumlDevice_t device, size_t field, unsigned *output) {
    int code;
    if (!enter_device(call, device, &code))
        return code;
    const struct unit *unit = ask(device, 1);
    if (unit == NULL || output == NULL)
        return XPUML_UNKNOWN;
    *output = (unsigned)*(const int *)((const char *)unit->card + field);
    return XPUML_SUCCESS;
}

// Degrees are 356 - 0.23751 * word, cut off.
static const double ZERO_WORD = 355.5, DEGREES_A_WORD = 0.23751;

static int get_temperature(xpumlDevice_t device, int sensor, unsigned *celsius) {
    (void)sensor;
    int code = reading(CALL_TEMPERATURE, device, offsetof(struct card, temperature), celsius);
    // For an unknown board the library returns the sensor's word in the form of KL2.
    if (code == XPUML_SUCCESS && device->attributes.modelId == UNKNOWN_MODEL)
        *celsius = (unsigned)((ZERO_WORD - *(int *)celsius) / DEGREES_A_WORD);
    return code;
}

static int get_power_usage(xpumlDevice_t device, unsigned *power) {
    return reading(CALL_POWER_USAGE, device, offsetof(struct card, power), power);
}

static int get_clock_info(xpumlDevice_t device, int clock, unsigned *megahertz) {
    (void)clock;
    int code = reading(CALL_CLOCK_INFO, device, offsetof(struct card, clock), megahertz);
    if (code != XPUML_SUCCESS)
        return code;
    if (device->attributes.modelId == UNKNOWN_MODEL)
        return XPUML_UNKNOWN;
    if ((int)*megahertz == UNSET)
        *megahertz = (unsigned)unit_of(device)->card->model->clock;
    return XPUML_SUCCESS;
}

// A failure marks the handle invalid until it is fetched again.
int xpumlDeviceGetState(xpumlDevice_t device, int *state) {
    int code;
    if (!enter_device(CALL_STATE, device, &code)) {
        if (code != XPUML_DRIVER_NOT_LOADED && device != NULL)
            device->valid = false;
        return code;
    }
    if (!device->valid)
        return XPUML_INVALID_ARGUMENT;
    const struct unit *unit = ask(device, 1);
    if (unit == NULL) {
        device->valid = false;
        return XPUML_UNKNOWN;
    }
    if (state != NULL)
        *state = unit->state;
    return XPUML_SUCCESS;
}

static int get_processes(xpumlDevice_t device, unsigned *count, xpumlProcessInfo_t *processes) {
    int code;
    if (!enter_checked(CALL_PROCESSES, device, count, &code))
        return code;
    if (has_quirks() && *count > PROCESSES_AT_MOST)
        return XPUML_INVALID_ARGUMENT;
    const struct unit *unit = ask(device, 1);
    if (unit == NULL)
        return XPUML_UNKNOWN;
    unsigned room = *count;
    *count = 0;
    for (unsigned i = 0; i < library.machine->process_count && *count < room; i++) {
        const struct process *process = &library.machine->processes[i];
        if (!runs_on(process, unit))
            continue;
        xpumlProcessInfo_t *record = &processes[(*count)++];
        record->pid = (uint32_t)process->pid;
        record->usedGlobalMemory = (uint64_t)process->memory << 20;
        record->usedL3Memory = 0;
        if (process->host_pid != UNSET)
            record->root_ns_pid = (uint32_t)process->host_pid;
    }
    return XPUML_SUCCESS;
}

// --- SR-IOV --------------------------------------------------------------------------------------

static int get_host_vxpu_mode(xpumlDevice_t device, int *mode) {
    int code;
    if (!enter_device(CALL_HOST_VXPU_MODE, device, &code))
        return code;
    if (mode == NULL)
        return XPUML_DRIVER_NOT_LOADED;
    const struct unit *unit = ask(device, 1);
    int model = device->attributes.modelId;
    if (unit == NULL) // guessed from the model, without an error
        *mode = model <= 1     ? XPUML_MODE_NON_SRIOV
                : model == 200 ? XPUML_MODE_SRIOV_ON
                               : XPUML_MODE_SRIOV_OFF;
    else if (unit->vf || unit->card->model->max_vfs == 0)
        *mode = XPUML_MODE_NON_SRIOV;
    else
        *mode = unit->card->vfs > 0 ? XPUML_MODE_SRIOV_ON : XPUML_MODE_SRIOV_OFF;
    return XPUML_SUCCESS;
}

static int split(int card, int vfs) {
    struct error error;
    struct site site = library_site();
    bool good = driver_split(&site, card, vfs, &error);
    if (!good)
        fprintf(stderr, "libxpuml simulator: %s\n", error.text);
    library.looked = 0; // the writer sees its own change at once
    library_refresh();
    return good ? XPUML_SUCCESS : XPUML_UNKNOWN;
}

// A delay that the file shortens meanwhile ends then.
static void driver_delay(void) {
    const int step = 10;
    for (int waited = 0; waited < library.machine->settings.vf_delay; waited += step) {
        delay(step);
        library_refresh();
    }
}

// Splits as a slow driver does. The kernel finishes its work even if the calling process ends, so
// another process does the work. It traces the caller: the end of a killed caller stays hidden from
// its parent meanwhile, like that of a process which the driver holds. A listing opens all nodes,
// and makes the driver refuse; but not once the caller is dead, so that tests can have both.
static int split_slowly(int card, int vfs) {
    struct site site = library_site();
    pid_t asker = getpid();
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    pid_t kernel = fork();
    if (kernel < 0)
        return XPUML_UNKNOWN;
    if (kernel == 0) {
        uint64_t opened = driver_opened_at(&site);
        ptrace(PTRACE_SEIZE, asker, NULL, NULL);
        driver_delay();
        bool refused = driver_opened_at(&site) != opened && getppid() == asker;
        _exit(refused || split(card, vfs) != XPUML_SUCCESS);
    }
    int status;
    while (waitpid(kernel, &status, 0) < 0)
        if (errno != EINTR)
            return XPUML_UNKNOWN;
    library.looked = 0;
    library_refresh();
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? XPUML_SUCCESS : XPUML_UNKNOWN;
}

// The driver goes to 0 before it checks whether it can do the request. The reason of a refusal
// never reaches the caller.
static int set_sriov_vf_num(xpumlDevice_t device, int number) {
    int code;
    if (!enter_device(CALL_SET_SRIOV_VF_NUM, device, &code))
        return code;
    const struct unit *unit = ask(device, 1);
    if (unit == NULL)
        return XPUML_UNKNOWN;
    if (unit->vf)
        return number == 0 ? XPUML_SUCCESS : XPUML_UNKNOWN;
    const struct card *card = unit->card;
    int id = card->number;
    bool slow = library.machine->settings.vf_delay > 0;
    bool possible = card_allows(card, number);
    if (card->model->max_vfs == 0)
        return XPUML_UNKNOWN;
    if (number == card->vfs)
        return XPUML_SUCCESS;
    if (card_in_use(library.machine, card))
        return XPUML_UNKNOWN;
    if (number == 0 && slow)
        code = split_slowly(id, 0);
    else
        code = card->vfs > 0 ? split(id, 0) : XPUML_SUCCESS;
    if (code != XPUML_SUCCESS)
        return code;
    // Neither `card` nor `unit` is of this machine any more.
    if (fault_strikes(library.machine, CALL_SET_SRIOV_HALFWAY, unit_of(device), &code))
        return code;
    if (number == 0)
        return XPUML_SUCCESS;
    if (!possible)
        return XPUML_UNKNOWN;
    return slow ? split_slowly(id, number) : split(id, number);
}

// --- functions of later libraries ----------------------------------------------------------------

static int get_serial(xpumlDevice_t device, char *serial, unsigned size) {
    int code;
    if (!enter_checked(CALL_SERIAL, device, serial, &code))
        return code;
    const struct unit *unit = ask(device, 1);
    if (unit == NULL)
        return XPUML_UNKNOWN;
    serial_of(unit, serial, size);
    fault_spoils(library.machine, CALL_SERIAL, unit, serial, size);
    return XPUML_SUCCESS;
}

static int get_id(xpumlDevice_t device, int *number) {
    int code;
    if (!enter_checked(CALL_ID, device, number, &code))
        return code;
    *number = device->number;
    return XPUML_SUCCESS;
}

static int get_minor(xpumlDevice_t device, unsigned *minor) {
    int code;
    if (!enter_checked(CALL_MINOR_NUMBER, device, minor, &code))
        return code;
    const struct unit *unit = ask(device, 1);
    if (unit == NULL)
        return XPUML_UNKNOWN;
    *minor = (unsigned)unit->minor;
    return XPUML_SUCCESS;
}

static int get_name(xpumlDevice_t device, char *name, unsigned size) {
    int code;
    if (!enter_checked(CALL_NAME, device, name, &code))
        return code;
    const struct unit *unit = ask(device, 1);
    if (unit == NULL)
        return XPUML_UNKNOWN;
    const struct model *model = unit->card->model;
    int nominal = card_memory(unit->card) > 16384 ? 32 : 16; // GB, with or without ECC
    if (model->product != NULL)
        snprintf(name, size, "%s", unit->vf ? model->vf_product : model->product);
    else if (unit->vf)
        snprintf(name, size, "%s-VF-%dG", model->name, nominal / unit->card->vfs);
    else
        snprintf(name, size, "%s%s", model->name, unit->card->vfs > 0 ? "-PF" : "");
    fault_spoils(library.machine, CALL_NAME, unit, name, size);
    return XPUML_SUCCESS;
}

// The functions are indirect: at a dlsym the loader calls the resolver, and finds nothing by NULL.
static bool has_later(int function) {
    struct error error;
    return library_load(&error) && library.machine->settings.later_functions & function;
}

#define LATER(name, own, function)                                                                 \
    static __typeof__(name) *find_##own(void) { return has_later(function) ? own : NULL; }         \
    __typeof__(name) name __attribute__((ifunc("find_" #own)));

static bool is_there(int call) {
    struct error error;
    return !library_load(&error) || !(library.machine->settings.missing_functions & 1 << call);
}

#define DISPENSABLE(name, own, call)                                                               \
    static __typeof__(name) *find_##own(void) { return is_there(call) ? own : NULL; }              \
    __typeof__(name) name __attribute__((ifunc("find_" #own)));

DISPENSABLE(xpumlShutdown, shut_down, CALL_SHUTDOWN)
DISPENSABLE(xpumlDeviceGetAttributes, get_attributes, CALL_ATTRIBUTES)
DISPENSABLE(xpumlDeviceGetArchitecture, get_architecture, CALL_ARCHITECTURE)
DISPENSABLE(xpumlDeviceGetBoardId, get_board_id, CALL_BOARD_ID)
DISPENSABLE(xpumlDeviceGetMemoryInfo, get_memory_info, CALL_MEMORY_INFO)
DISPENSABLE(xpumlDeviceGetUtilizationRates, get_utilization_rates, CALL_UTILIZATION_RATES)
DISPENSABLE(xpumlDeviceGetTemperature, get_temperature, CALL_TEMPERATURE)
DISPENSABLE(xpumlDeviceGetPowerUsage, get_power_usage, CALL_POWER_USAGE)
DISPENSABLE(xpumlDeviceGetClockInfo, get_clock_info, CALL_CLOCK_INFO)
DISPENSABLE(xpumlDeviceGetComputeRunningProcesses, get_processes, CALL_PROCESSES)
DISPENSABLE(xpumlDeviceGetHostVxpuMode, get_host_vxpu_mode, CALL_HOST_VXPU_MODE)
DISPENSABLE(xpumlDeviceSetSriovVfNum, set_sriov_vf_num, CALL_SET_SRIOV_VF_NUM)
LATER(xpumlDeviceGetSerial, get_serial, LATER_SERIAL)
LATER(xpumlDeviceGetId, get_id, LATER_ID)
LATER(xpumlDeviceGetMinorNumber, get_minor, LATER_MINOR)
LATER(xpumlDeviceGetName, get_name, LATER_NAME)
