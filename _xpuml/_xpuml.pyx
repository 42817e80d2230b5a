# SPDX-License-Identifier: Apache-2.0
# cython: auto_pickle=False, autotestdict=False
"""Open libxpuml by its path, call it, and check its answers.

The library crashes on a bad index or handle, keeps handles of a list that a second count may free, and leaves
output records partly unfilled. This layer prevents all that: it counts once, compares every index with that
count, fetches a handle for each use and zeroes each record. It decides nothing else.
"""

import os

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memset

from xpuml cimport *

from xpu_plugin import xpuml


cdef extern from "<dlfcn.h>" nogil:
    void *dlopen(const char *path, int flags)
    void *dlsym(void *handle, const char *name)
    char *dlerror()
    int RTLD_NOW
    int RTLD_LOCAL

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    void *MAP_FAILED
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long argument)
    int PR_SET_PDEATHSIG


# Positions in xpuml.FUNCTIONS, which has the names.
cdef enum:
    INIT, SHUTDOWN, ERROR_STRING, DRIVER_VERSION, XPUML_VERSION, COUNT, HANDLE, ATTRIBUTES, ARCHITECTURE, \
        BOARD_ID, PCI_INFO, MEMORY, UTILIZATION, TEMPERATURE, POWER, CLOCK, STATE, PROCESSES, MODE, \
        SET_SRIOV, SERIAL, ID, MINOR, NAME

cdef enum:
    VERSION_SIZE = 80       # the vendor's buffer sizes
    NAME_SIZE = 96
    SERIAL_SIZE = 30
    ROOM = 99               # process records in one request; libxpuml 4.0.12.1 refuses 100
    MOST_DEVICES = 65535
    SRIOV_ON = 2            # of xpumlHostVxpuMode_t

cdef uint32_t NO_DEVICE = 0xFFFFFFFF

cdef struct Api:
    xpumlInit_t init
    xpumlErrorString_t error_string
    xpumlSystemGetVersion_t driver_version
    xpumlSystemGetVersion_t xpuml_version
    xpumlDeviceGetCount_t count
    xpumlDeviceGetHandleByIndex_t handle
    xpumlDeviceGetAttributes_t attributes
    xpumlDeviceGetPciInfo_t pci_info
    xpumlDeviceGetMemoryInfo_t memory
    xpumlDeviceGetUtilizationRates_t utilization
    xpumlDeviceGetSelected_t temperature
    xpumlDeviceGetUnsigned_t power
    xpumlDeviceGetSelected_t clock
    xpumlDeviceGetInt_t state
    xpumlDeviceGetProcesses_t processes
    xpumlDeviceGetInt_t mode
    xpumlDeviceSetSriovVfNum_t set_sriov
    xpumlDeviceGetText_t serial
    xpumlDeviceGetInt_t id
    xpumlDeviceGetUnsigned_t minor
    xpumlDeviceGetText_t name


cdef struct Answer:  # of a device in a sweep
    bint asked
    int code
    int state


# libxpuml keeps its state in globals, so a process has one library and one count for its lifetime.
cdef bint opened = False


def die_with_parent(int signal):
    """Make the kernel send `signal` to this process when the thread that started it ends."""
    return prctl(PR_SET_PDEATHSIG, signal)


cdef class Library:
    """One opened and initialised libxpuml.

    path: the argument of dlopen; the loader searches a bare file name
    progress_fd: a file of at least 8 bytes, shared with the process that watches this one. During a native
        call its first 8 bytes hold the word for xpuml.Call.from_word, else 0

    Raises LibraryNotFoundError (dlopen failed), LibraryUnusableError (a required function is missing),
    XpumlError (xpumlInit failed), RuntimeError (a second library in one process).
    """

    cdef Api api
    cdef volatile uint64_t *progress
    cdef uint64_t unwatched
    cdef int counted
    cdef bytearray kept     # the handle of each device
    cdef bytearray heard    # the answer of each device to the last sweep
    cdef list swept         # the same, as returned
    cdef readonly str path

    def __cinit__(self):
        self.progress = &self.unwatched
        self.counted = -1

    def __init__(self, str path, int progress_fd=-1):
        global opened
        if opened:
            raise RuntimeError("a process can open libxpuml once only")
        self.path = path
        if progress_fd >= 0:
            self._share(progress_fd)
        self._resolve()
        opened = True
        self._enter(INIT, NO_DEVICE)
        cdef int code = self.api.init()
        self._check(code, INIT)

    cdef _share(self, int fd):
        cdef void *page = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if page == MAP_FAILED:
            raise OSError(f"cannot map the progress word of descriptor {fd}")
        self.progress = <volatile uint64_t *>page

    cdef _resolve(self):
        # Never dlclose: a vendor library may leave threads behind. Never RTLD_DEFAULT look-ups: they would
        # find other libraries of the process.
        cdef void *handle = dlopen(os.fsencode(self.path), RTLD_NOW | RTLD_LOCAL)
        if handle == NULL:
            raise xpuml.LibraryNotFoundError(os.fsdecode(dlerror()))
        cdef void *found[24]
        cdef int number
        missing = []
        for number, name in enumerate(xpuml.FUNCTIONS):
            found[number] = dlsym(handle, name.encode())
            if found[number] == NULL and name in xpuml.REQUIRED_FUNCTIONS:
                missing.append(name)
        if missing:
            raise xpuml.LibraryUnusableError(f"{self.path} is not a libxpuml: it lacks {', '.join(missing)}")
        self.api.init = <xpumlInit_t>found[INIT]
        self.api.error_string = <xpumlErrorString_t>found[ERROR_STRING]
        self.api.driver_version = <xpumlSystemGetVersion_t>found[DRIVER_VERSION]
        self.api.xpuml_version = <xpumlSystemGetVersion_t>found[XPUML_VERSION]
        self.api.count = <xpumlDeviceGetCount_t>found[COUNT]
        self.api.handle = <xpumlDeviceGetHandleByIndex_t>found[HANDLE]
        self.api.attributes = <xpumlDeviceGetAttributes_t>found[ATTRIBUTES]
        self.api.pci_info = <xpumlDeviceGetPciInfo_t>found[PCI_INFO]
        self.api.memory = <xpumlDeviceGetMemoryInfo_t>found[MEMORY]
        self.api.utilization = <xpumlDeviceGetUtilizationRates_t>found[UTILIZATION]
        self.api.temperature = <xpumlDeviceGetSelected_t>found[TEMPERATURE]
        self.api.power = <xpumlDeviceGetUnsigned_t>found[POWER]
        self.api.clock = <xpumlDeviceGetSelected_t>found[CLOCK]
        self.api.state = <xpumlDeviceGetInt_t>found[STATE]
        self.api.processes = <xpumlDeviceGetProcesses_t>found[PROCESSES]
        self.api.mode = <xpumlDeviceGetInt_t>found[MODE]
        self.api.set_sriov = <xpumlDeviceSetSriovVfNum_t>found[SET_SRIOV]
        self.api.serial = <xpumlDeviceGetText_t>found[SERIAL]
        self.api.id = <xpumlDeviceGetInt_t>found[ID]
        self.api.minor = <xpumlDeviceGetUnsigned_t>found[MINOR]
        self.api.name = <xpumlDeviceGetText_t>found[NAME]

    # --- every native call is between _enter and the check of its return code ---------------------

    cdef inline void _enter(self, int function, uint32_t index) noexcept:
        self.progress[0] = (<uint64_t>(function + 1) << 32) | index

    cdef inline void _leave(self) noexcept:
        self.progress[0] = 0

    cdef str _text(self, int code):
        self._enter(ERROR_STRING, NO_DEVICE)
        cdef const char *text = self.api.error_string(code)
        self._leave()
        return "" if text == NULL else text.decode(errors="replace")

    cdef _check(self, int code, int function):
        self._leave()
        if code != 0:
            raise xpuml.error(code, xpuml.FUNCTIONS[function], self._text(code))

    cdef bint _failed(self, int code, int function, list failures):
        """Return whether a call of a batch failed, and record the failure."""
        self._leave()
        if code == 0:
            return False
        failures.append({"function": xpuml.FUNCTIONS[function], "code": code, "text": self._text(code)})
        return True

    cdef int _known(self) except -1:
        """Return the count; each use of an index must pass here."""
        if self.counted < 0:
            raise RuntimeError("the devices have not been counted")
        return self.counted

    cdef inline int _handle(self, uint32_t index, xpumlDevice_t *handle) noexcept:
        """Fetch a handle; `index` is below the count. A failed state query invalidates it."""
        handle[0] = NULL
        self._enter(HANDLE, index)
        cdef int code = self.api.handle(index, handle)
        if code == 0 and handle[0] == NULL:
            code = 999
        return code

    cdef inline int _pci_info(self, uint32_t index, xpumlDevice_t device, xpumlPciInfo_t *pci) noexcept:
        memset(pci, 0, sizeof(pci[0]))
        self._enter(PCI_INFO, index)
        return self.api.pci_info(device, pci)

    # --- the library as a whole ----------------------------------------------------------------

    def error_string(self, int code):
        return self._text(code)

    def library_version(self):
        return self._version(self.api.xpuml_version, XPUML_VERSION)

    def driver_version(self):
        return self._version(self.api.driver_version, DRIVER_VERSION)

    cdef str _version(self, xpumlSystemGetVersion_t call, int function):
        cdef char text[VERSION_SIZE + 1]
        memset(text, 0, sizeof(text))
        self._enter(function, NO_DEVICE)
        self._check(call(text, VERSION_SIZE), function)
        return text.decode(errors="replace")

    def count(self):
        if self.counted >= 0:
            raise RuntimeError("a process can count the devices once only: a recount may free the handles")
        cdef unsigned int number = 0
        self._enter(COUNT, NO_DEVICE)
        self._check(self.api.count(&number), COUNT)
        if number > MOST_DEVICES:
            raise xpuml.error(999, xpuml.FUNCTIONS[COUNT], f"{number} devices are not plausible")
        self.kept = bytearray(number * sizeof(xpumlDevice_t))  # of NULL
        self.heard = bytearray(number * sizeof(Answer))
        self.counted = <int>number
        return number

    # --- batches: one call from Python each ----------------------------------------------------

    def scan(self, skip=()):
        skip = frozenset(skip)
        return [self._scan(index, index in skip) for index in range(self._known())]

    cdef dict _scan(self, uint32_t index, bint skip):
        cdef list failures = []
        cdef dict record = {"index": index, "failures": failures}
        cdef xpumlDevice_t device = NULL
        if skip or self._failed(self._handle(index, &device), HANDLE, failures):
            return record

        cdef xpumlPciInfo_t pci
        if not self._failed(self._pci_info(index, device, &pci), PCI_INFO, failures):
            record["pci"] = _address(&pci)

        cdef xpumlDeviceAttributes_t attributes
        cdef char serial[SERIAL_SIZE + 1]
        memset(&attributes, 0, sizeof(attributes))
        memset(serial, 0, sizeof(serial))
        if self.api.attributes != NULL:
            self._enter(ATTRIBUTES, index)
            if not self._failed(self.api.attributes(device, &attributes), ATTRIBUTES, failures):
                record["arch"] = attributes.archId
                record["board"] = attributes.boardId
                record["model"] = attributes.modelId
                record["max_vfs"] = attributes.maxVFCount
                record["serial"] = _printable(attributes.sn[:sizeof(attributes.sn)])
        if self.api.serial != NULL:
            self._enter(SERIAL, index)
            if not self._failed(self.api.serial(device, serial, SERIAL_SIZE), SERIAL, failures):
                record["serial"] = _printable(serial[:SERIAL_SIZE])

        cdef xpumlMemory_t memory
        memset(&memory, 0, sizeof(memory))
        if self.api.memory != NULL:
            self._enter(MEMORY, index)
            if not self._failed(self.api.memory(device, &memory), MEMORY, failures):
                record["memory_bytes"] = memory.totalGlobalMemory

        cdef int number = 0
        cdef unsigned int minor = 0
        cdef char name[NAME_SIZE + 1]
        memset(name, 0, sizeof(name))
        if self.api.mode != NULL:
            self._enter(MODE, index)
            if not self._failed(self.api.mode(device, &number), MODE, failures):
                record["mode"] = number
        if self.api.id != NULL:
            number = -1
            self._enter(ID, index)
            if not self._failed(self.api.id(device, &number), ID, failures):
                record["number"] = number
        if self.api.minor != NULL:
            self._enter(MINOR, index)
            if not self._failed(self.api.minor(device, &minor), MINOR, failures):
                record["minor"] = minor
        if self.api.name != NULL:
            self._enter(NAME, index)
            if not self._failed(self.api.name(device, name, NAME_SIZE), NAME, failures):
                record["name"] = _printable(name[:NAME_SIZE])

        # Last, as a failure makes the handle invalid.
        number = 0
        self._enter(STATE, index)
        if not self._failed(self.api.state(device, &number), STATE, failures):
            record["state"] = number
        return record

    def sweep(self, skip=()):
        skip = frozenset(skip)
        cdef int count = self._known()
        cdef uint32_t index
        cdef xpumlDevice_t device
        cdef xpumlDevice_t *kept = <xpumlDevice_t *><char *>self.kept
        cdef Answer *heard = <Answer *><char *>self.heard
        cdef Answer answer
        cdef bint same = self.swept is not None
        for index in range(count):
            answer.asked = not (skip and index in skip)
            answer.state = answer.code = 0
            if answer.asked:
                # Kept while the device answers. Only a failure ends it, as there is no second count.
                device, kept[index] = kept[index], NULL
                if device == NULL:
                    answer.code = self._handle(index, &device)
                if answer.code == 0:
                    self._enter(STATE, index)
                    answer.code = self.api.state(device, &answer.state)
                if answer.code == 0:
                    kept[index] = device
            same = same and memcmp(&answer, &heard[index], sizeof(answer)) == 0
            heard[index] = answer
        self._leave()
        if not same:
            self.swept = [
                (heard[index].code, heard[index].state) if heard[index].asked else None
                for index in range(count)
            ]
        return self.swept

    def readings(self, skip=()):
        skip = frozenset(skip)
        return [self._readings(index, index in skip) for index in range(self._known())]

    cdef dict _readings(self, uint32_t index, bint skip):
        cdef list failures = []
        cdef dict record = {"index": index, "failures": failures}
        cdef xpumlDevice_t device = NULL
        if skip or self._failed(self._handle(index, &device), HANDLE, failures):
            return record

        cdef xpumlMemory_t memory
        cdef xpumlUtilization_t utilization
        cdef int mode = 0
        memset(&memory, 0, sizeof(memory))
        memset(&utilization, 0, sizeof(utilization))
        if self.api.memory != NULL:
            self._enter(MEMORY, index)
            if not self._failed(self.api.memory(device, &memory), MEMORY, failures):
                record["memory_total_bytes"] = memory.totalGlobalMemory
                record["memory_used_bytes"] = memory.usedGlobalMemory
        # The library divides by the total, which it reads again: SIGFPE if that is 0. For the PF of a card
        # that was split when the driver was loaded it is uninitialised memory, another each time. A PF that
        # has VFs computes nothing, so its utilization is not needed.
        if self.api.utilization != NULL and self.api.mode != NULL and memory.totalGlobalMemory > 0:
            self._enter(MODE, index)
            if self.api.mode(device, &mode) != 0:
                mode = 0
            self._leave()
            if mode != SRIOV_ON:
                self._enter(UTILIZATION, index)
                if not self._failed(self.api.utilization(device, &utilization), UTILIZATION, failures):
                    record["utilization_percent"] = utilization.xpu

        cdef unsigned int value = 0
        if self.api.temperature != NULL:
            self._enter(TEMPERATURE, index)
            if not self._failed(self.api.temperature(device, 0, &value), TEMPERATURE, failures):
                record["temperature_celsius"] = value
        value = 0
        if self.api.power != NULL:
            self._enter(POWER, index)
            if not self._failed(self.api.power(device, &value), POWER, failures):
                record["power"] = value
        value = 0
        if self.api.clock != NULL:
            self._enter(CLOCK, index)
            if not self._failed(self.api.clock(device, 0, &value), CLOCK, failures):
                record["clock_mhz"] = value
        return record

    def processes(self, skip=()):
        skip = frozenset(skip)
        return [self._processes(index, index in skip) for index in range(self._known())]

    cdef dict _processes(self, uint32_t index, bint skip):
        cdef list failures = []
        cdef dict record = {"index": index, "failures": failures}
        cdef xpumlDevice_t device = NULL
        if skip or self._failed(self._handle(index, &device), HANDLE, failures):
            return record
        cdef xpumlPciInfo_t pci
        if not self._failed(self._pci_info(index, device, &pci), PCI_INFO, failures):
            record["pci"] = _address(&pci)
        cdef xpumlProcessInfo_t found[ROOM]
        cdef unsigned int room = ROOM
        cdef unsigned int entry
        memset(found, 0, sizeof(found))
        if self.api.processes == NULL:
            return record
        self._enter(PROCESSES, index)
        if not self._failed(self.api.processes(device, &room, found), PROCESSES, failures):
            record["processes"] = [
                {
                    "pid": found[entry].pid,
                    "root_ns_pid": found[entry].root_ns_pid or None,
                    "memory_bytes": found[entry].usedGlobalMemory,
                }
                for entry in range(min(room, <unsigned int>ROOM))
            ]
        return record

    # --- the one call that changes hardware -----------------------------------------------------

    def set_sriov_vf_num(self, index, number, pci):
        # Compared as Python integers: a value that does not fit must not become another one.
        if not (isinstance(index, int) and isinstance(number, int) and isinstance(pci, str)):
            raise TypeError(
                f"index and number are integers, pci is a text, not {index!r}, {number!r} and {pci!r}"
            )
        if not 0 <= index < self._known():
            raise IndexError(f"device index {index} is not one of {self.counted}")
        if not 0 <= number <= 63:
            raise ValueError(f"{number} VFs: accepted are 0 to 63")
        if self.api.attributes == NULL or self.api.set_sriov == NULL:
            raise xpuml.error(
                xpuml.ReturnCode.FUNCTION_NOT_FOUND,
                xpuml.FUNCTIONS[SET_SRIOV],
                f"the library lacks it or {xpuml.FUNCTIONS[ATTRIBUTES]}",
            )
        cdef xpumlDevice_t device = NULL
        cdef uint32_t position = index
        self._check(self._handle(position, &device), HANDLE)

        # Checked here, not by the caller: nothing can come between the check and the change.
        cdef xpumlPciInfo_t there
        self._check(self._pci_info(position, device, &there), PCI_INFO)
        found = _address(&there)
        if found != pci:
            raise xpuml.WrongDeviceError(f"device index {index} is {found}, not {pci}")
        cdef xpumlDeviceAttributes_t attributes
        memset(&attributes, 0, sizeof(attributes))
        self._enter(ATTRIBUTES, position)
        self._check(self.api.attributes(device, &attributes), ATTRIBUTES)
        if <uint32_t>number > attributes.maxVFCount:
            raise ValueError(f"{pci} can have {attributes.maxVFCount} VFs at most, not {number}")

        self._enter(SET_SRIOV, position)
        self._check(self.api.set_sriov(device, number), SET_SRIOV)


cdef str _address(const xpumlPciInfo_t *pci):
    """Return the address as in sysfs."""
    return f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.{pci.function:x}"


cdef str _printable(bytes text):
    """Return the text before the first zero byte; a buffer that the library filled completely has none."""
    decoded = text.split(b"\0", 1)[0].decode("ascii", errors="replace")
    return "".join(letter if letter.isprintable() else "?" for letter in decoded).strip()
