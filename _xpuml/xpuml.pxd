# SPDX-License-Identifier: Apache-2.0
"""The ABI of libxpuml, API version 1: records, handle, signatures. C names as the vendor writes them.

Sizes and offsets were compared with the debug information of libxpuml 4.0.12.1 (x86-64); every public
record is 128 bytes. tests/native/test_abi.py compiles this page's records and checks each offset.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t


ctypedef int xpumlReturn_t
ctypedef void *xpumlDevice_t

ctypedef struct xpumlPciInfo_t:
    uint32_t domain
    uint32_t bus
    uint32_t device
    uint32_t function
    uint32_t pciDeviceId        # left untouched by the library
    uint32_t pciSubSystemId     # left untouched by the library
    char busId[32]
    uint64_t reserved[9]

ctypedef struct xpumlUtilization_t:
    uint32_t xpu                # per cent
    uint32_t memory             # per cent: occupancy, not bandwidth
    uint64_t reserved[15]

ctypedef struct xpumlMemory_t:  # bytes
    uint64_t pageSizeGlobalMemory
    uint64_t totalGlobalMemory
    uint64_t freeGlobalMemory
    uint64_t usedGlobalMemory
    uint64_t pageSizeL3Memory
    uint64_t totalL3Memory
    uint64_t freeL3Memory
    uint64_t usedL3Memory
    uint64_t reserved[8]

ctypedef struct xpumlProcessInfo_t:
    uint32_t pid                # in the process's own pid namespace
    uint64_t usedGlobalMemory
    uint64_t usedL3Memory
    uint32_t root_ns_pid        # later headers; zero from the older library, as the buffer was zeroed
    uint32_t reserved32
    uint64_t reserved[12]

ctypedef struct xpumlDeviceAttributes_t:
    int32_t archId
    int32_t boardId
    int32_t modelId
    uint32_t clusterCount
    uint32_t sdnnCount
    uint32_t dmaEngineCount
    uint32_t decoderCount
    uint32_t encoderCount
    uint32_t imgProcCount
    uint32_t maxVFCount
    uint64_t globalMemorySizeMB
    uint64_t l3MemorySizeMB
    char sn[16]                 # later headers; zero from the older library
    uint64_t reserved[7]

# The 20 functions every library has ...
ctypedef xpumlReturn_t (*xpumlInit_t)() noexcept nogil
ctypedef const char *(*xpumlErrorString_t)(xpumlReturn_t) noexcept nogil
ctypedef xpumlReturn_t (*xpumlSystemGetVersion_t)(char *, unsigned int) noexcept nogil
ctypedef xpumlReturn_t (*xpumlDeviceGetCount_t)(unsigned int *) noexcept nogil
ctypedef xpumlReturn_t (*xpumlDeviceGetHandleByIndex_t)(unsigned int, xpumlDevice_t *) noexcept nogil
ctypedef xpumlReturn_t (*xpumlDeviceGetAttributes_t)(xpumlDevice_t, xpumlDeviceAttributes_t *) noexcept nogil
ctypedef xpumlReturn_t (*xpumlDeviceGetUnsigned_t)(xpumlDevice_t, unsigned int *) noexcept nogil
ctypedef xpumlReturn_t (*xpumlDeviceGetPciInfo_t)(xpumlDevice_t, xpumlPciInfo_t *) noexcept nogil
ctypedef xpumlReturn_t (*xpumlDeviceGetMemoryInfo_t)(xpumlDevice_t, xpumlMemory_t *) noexcept nogil
ctypedef xpumlReturn_t (*xpumlDeviceGetUtilizationRates_t)(xpumlDevice_t, xpumlUtilization_t *) noexcept nogil
ctypedef xpumlReturn_t (*xpumlDeviceGetSelected_t)(xpumlDevice_t, int, unsigned int *) noexcept nogil
ctypedef xpumlReturn_t (*xpumlDeviceGetInt_t)(xpumlDevice_t, int *) noexcept nogil
ctypedef xpumlReturn_t (*xpumlDeviceGetProcesses_t)(
    xpumlDevice_t, unsigned int *, xpumlProcessInfo_t *) noexcept nogil
ctypedef xpumlReturn_t (*xpumlDeviceSetSriovVfNum_t)(xpumlDevice_t, int) noexcept nogil

# ... and the four that only later headers declare.
ctypedef xpumlReturn_t (*xpumlDeviceGetText_t)(xpumlDevice_t, char *, unsigned int) noexcept nogil
