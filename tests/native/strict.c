// SPDX-License-Identifier: Apache-2.0
//
// A libxpuml of three devices that writes down each call and tolerates nothing: it dies of an index
// that is none and of a second count, and answers -77 for an output that was not zeroed. What it
// fills in, it fills to the last byte, so that whatever is not zeroed next time shows.
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEVICES = 3, RECORD = 128, ROOM = 99, DIRTY = -77, FILL = 0x41 };

struct device {
    int index;
    bool valid;
};

static struct device devices[DEVICES] = {{0}, {1}, {2}};
static char trace[1 << 16];
static int counts;

// The calls so far, one a line.
const char *strict_trace(void) { return trace; }

static void note(const char *function, int index) {
    size_t length = strlen(trace);
    if (index < 0)
        snprintf(trace + length, sizeof trace - length, "%s\n", function);
    else
        snprintf(trace + length, sizeof trace - length, "%s %d\n", function, index);
}

static bool is(const char *wish) {
    const char *wishes = getenv("STRICT");
    return wishes != NULL && strcmp(wishes, wish) == 0;
}

static int fill(const char *function, const struct device *device, void *output, size_t size) {
    const char *bytes = output;
    note(function, device == NULL ? -1 : device->index);
    if (device != NULL && !device->valid)
        return 2;
    for (size_t i = 0; i < size; i++)
        if (bytes[i] != 0)
            return DIRTY;
    memset(output, FILL, size);
    return 0;
}

#define CALL(name, type) int name(struct device *device, type *output)
#define PLAIN(name, type)                                                                          \
    CALL(name, type) { return fill(#name, device, output, sizeof(type)); }

int xpumlInit(void) {
    note(__func__, -1);
    return 0;
}

int xpumlShutdown(void) {
    note(__func__, -1);
    return 0;
}

const char *xpumlErrorString(int code) { return is("no-text") ? NULL : "Strict Error"; }

int xpumlSystemGetDriverVersion(char *text, unsigned size) {
    return size != 80 ? DIRTY : fill(__func__, NULL, text, size);
}

int xpumlSystemGetXPUMLVersion(char *text, unsigned size) {
    return size != 80 ? DIRTY : fill(__func__, NULL, text, size);
}

int xpumlDeviceGetCount(unsigned *count) {
    int code = fill(__func__, NULL, count, sizeof *count);
    if (counts++ > 0)
        abort();
    *count = is("endless") ? 0x80000000u : DEVICES;
    return code;
}

int xpumlDeviceGetHandleByIndex(unsigned index, struct device **handle) {
    note(__func__, (int)index);
    if (index >= DEVICES)
        abort();
    if (*handle != NULL)
        return DIRTY;
    if (is("null"))
        return 0;
    devices[index].valid = true;
    *handle = &devices[index];
    return 0;
}

typedef struct {
    char bytes[RECORD];
} record;

CALL(xpumlDeviceGetMemoryInfo, record) {
    int code = fill(__func__, device, output, sizeof *output);
    uint64_t *total = (uint64_t *)output + 1;
    if (device->index == 1)
        *total = 0;
    return code;
}

CALL(xpumlDeviceGetUtilizationRates, record) {
    int code = fill(__func__, device, output, sizeof *output);
    if (device->index == 1)
        raise(SIGFPE);
    return code;
}

// The last device fails, and its handle is good for nothing until it is fetched again.
CALL(xpumlDeviceGetState, int) {
    int code = fill(__func__, device, output, sizeof *output);
    *output = 201;
    if (device->index == DEVICES - 1 && code == 0) {
        device->valid = false;
        return 999;
    }
    return code;
}

int xpumlDeviceGetComputeRunningProcesses(struct device *device, unsigned *count, record *records) {
    if (*count > ROOM)
        return 2;
    if (*count < ROOM)
        return DIRTY;
    *count = 1000;
    return fill(__func__, device, records, ROOM * sizeof *records);
}

int xpumlDeviceSetSriovVfNum(struct device *device, int number) {
    note(__func__, device->index);
    note("number", number);
    return 0;
}

static int selected(const char *name, struct device *device, int selector, unsigned *output) {
    return selector != 0 ? DIRTY : fill(name, device, output, sizeof *output);
}

int xpumlDeviceGetTemperature(struct device *device, int sensor, unsigned *output) {
    return selected(__func__, device, sensor, output);
}

int xpumlDeviceGetClockInfo(struct device *device, int clock, unsigned *output) {
    return selected(__func__, device, clock, output);
}

PLAIN(xpumlDeviceGetAttributes, record)
PLAIN(xpumlDeviceGetPciInfo, record)
PLAIN(xpumlDeviceGetArchitecture, unsigned)
PLAIN(xpumlDeviceGetBoardId, unsigned)
PLAIN(xpumlDeviceGetPowerUsage, unsigned)
PLAIN(xpumlDeviceGetHostVxpuMode, int)

#ifdef LATER
// N is said to be -1 before; a library that cannot tell leaves it so.
int xpumlDeviceGetId(struct device *device, int *output) {
    note(__func__, device->index);
    *output = 10 + device->index;
    return 0;
}

int xpumlDeviceGetSerial(struct device *device, char *text, unsigned size) {
    return size != 17 && size != 30 ? DIRTY : fill(__func__, device, text, size);
}

int xpumlDeviceGetName(struct device *device, char *text, unsigned size) {
    return size != 96 ? DIRTY : fill(__func__, device, text, size);
}
#endif
