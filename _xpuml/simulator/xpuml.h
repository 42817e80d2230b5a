// SPDX-License-Identifier: Apache-2.0
//
// The ABI of libxpuml (API version 1), declared independently: the functions of 4.0.12.1, four
// functions of later libraries, and their records. Every public record is 128 bytes; words marked
// reserved belong to the caller.
#ifndef XPUML_H
#define XPUML_H

#include <stddef.h>
#include <stdint.h>

#define XPUML_API __attribute__((visibility("default")))

typedef struct xpuml_device *xpumlDevice_t;

enum {
    XPUML_SUCCESS = 0,
    XPUML_INVALID_ARGUMENT = 2,
    XPUML_DRIVER_NOT_LOADED = 9,
    XPUML_UNKNOWN = 999,
};

enum { XPUML_STATE_RUNNING = 201 };

enum { XPUML_MODE_NON_SRIOV = 0, XPUML_MODE_SRIOV_OFF = 1, XPUML_MODE_SRIOV_ON = 2 };

typedef struct {
    int32_t archId;
    int32_t boardId;
    int32_t modelId;
    uint32_t clusterCount;
    uint32_t sdnnCount;
    uint32_t dmaEngineCount;
    uint32_t decoderCount;
    uint32_t encoderCount;
    uint32_t imgProcCount;
    uint32_t maxVFCount;
    uint64_t globalMemorySizeMB;
    uint64_t l3MemorySizeMB;
    char sn[16]; // reserved in the first generation of the header
    uint64_t reserved[7];
} xpumlDeviceAttributes_t;

typedef struct {
    uint32_t domain;
    uint32_t bus;
    uint32_t device;
    uint32_t function;
    uint32_t pciDeviceId;
    uint32_t pciSubSystemId;
    char busId[32];
    uint64_t reserved[9];
} xpumlPciInfo_t;

typedef struct {
    uint64_t pageSizeGlobalMemory;
    uint64_t totalGlobalMemory;
    uint64_t freeGlobalMemory;
    uint64_t usedGlobalMemory;
    uint64_t pageSizeL3Memory;
    uint64_t totalL3Memory;
    uint64_t freeL3Memory;
    uint64_t usedL3Memory;
    uint64_t reserved[8];
} xpumlMemory_t;

typedef struct {
    uint32_t xpu;
    uint32_t memory;
    uint64_t reserved[15];
} xpumlUtilization_t;

typedef struct {
    uint32_t pid;
    uint64_t usedGlobalMemory;
    uint64_t usedL3Memory;
    uint32_t root_ns_pid; // of later libraries; others leave it unchanged
    uint32_t reserved32;
    uint64_t reserved[12];
} xpumlProcessInfo_t;

_Static_assert(sizeof(xpumlDeviceAttributes_t) == 128, "attributes");
_Static_assert(offsetof(xpumlDeviceAttributes_t, maxVFCount) == 36, "attributes");
_Static_assert(offsetof(xpumlDeviceAttributes_t, globalMemorySizeMB) == 40, "attributes");
_Static_assert(offsetof(xpumlDeviceAttributes_t, sn) == 56, "attributes");
_Static_assert(sizeof(xpumlPciInfo_t) == 128, "PCI");
_Static_assert(offsetof(xpumlPciInfo_t, busId) == 24, "PCI");
_Static_assert(offsetof(xpumlPciInfo_t, reserved) == 56, "PCI");
_Static_assert(sizeof(xpumlMemory_t) == 128, "memory");
_Static_assert(offsetof(xpumlMemory_t, usedL3Memory) == 56, "memory");
_Static_assert(sizeof(xpumlUtilization_t) == 128, "utilization");
_Static_assert(offsetof(xpumlUtilization_t, reserved) == 8, "utilization");
_Static_assert(sizeof(xpumlProcessInfo_t) == 128, "process");
_Static_assert(offsetof(xpumlProcessInfo_t, usedGlobalMemory) == 8, "process");
_Static_assert(offsetof(xpumlProcessInfo_t, root_ns_pid) == 24, "process");

XPUML_API int xpumlInit(void);
XPUML_API int xpumlShutdown(void);
XPUML_API const char *xpumlErrorString(int code);
XPUML_API int xpumlSystemGetDriverVersion(char *version, unsigned size);
XPUML_API int xpumlSystemGetXPUMLVersion(char *version, unsigned size);
XPUML_API int xpumlDeviceGetCount(unsigned *count);
XPUML_API int xpumlDeviceGetHandleByIndex(unsigned index, xpumlDevice_t *device);
XPUML_API int xpumlDeviceGetAttributes(xpumlDevice_t device, xpumlDeviceAttributes_t *attributes);
XPUML_API int xpumlDeviceGetArchitecture(xpumlDevice_t device, unsigned *architecture);
XPUML_API int xpumlDeviceGetBoardId(xpumlDevice_t device, unsigned *board);
XPUML_API int xpumlDeviceGetPciInfo(xpumlDevice_t device, xpumlPciInfo_t *pci);
XPUML_API int xpumlDeviceGetMemoryInfo(xpumlDevice_t device, xpumlMemory_t *memory);
XPUML_API int xpumlDeviceGetUtilizationRates(xpumlDevice_t device, xpumlUtilization_t *rates);
XPUML_API int xpumlDeviceGetTemperature(xpumlDevice_t device, int sensor, unsigned *celsius);
XPUML_API int xpumlDeviceGetPowerUsage(xpumlDevice_t device, unsigned *power);
XPUML_API int xpumlDeviceGetClockInfo(xpumlDevice_t device, int clock, unsigned *megahertz);
XPUML_API int xpumlDeviceGetState(xpumlDevice_t device, int *state);
XPUML_API int xpumlDeviceGetComputeRunningProcesses(xpumlDevice_t device, unsigned *count,
                                                    xpumlProcessInfo_t *processes);
XPUML_API int xpumlDeviceGetHostVxpuMode(xpumlDevice_t device, int *mode);
XPUML_API int xpumlDeviceSetSriovVfNum(xpumlDevice_t device, int number);

// Of later libraries. Here dlsym finds those that the machine's library has.
XPUML_API int xpumlDeviceGetSerial(xpumlDevice_t device, char *serial, unsigned size);
XPUML_API int xpumlDeviceGetId(xpumlDevice_t device, int *number);
XPUML_API int xpumlDeviceGetMinorNumber(xpumlDevice_t device, unsigned *minor);
XPUML_API int xpumlDeviceGetName(xpumlDevice_t device, char *name, unsigned size);

#endif
