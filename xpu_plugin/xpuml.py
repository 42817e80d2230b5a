# SPDX-License-Identifier: Apache-2.0
"""The contract with the vendor library libxpuml, in pure Python: numbers, records, errors.

What the numbers mean was taken from the vendor's public headers (API version 1) and from the behaviour
of libxpuml 4.0.12.1. A library or driver newer than this page may answer other numbers, so a number that
is not listed here is never an error: enumerations are for comparing, not for decoding.
"""

from collections.abc import Collection
from dataclasses import field
from enum import IntEnum
from typing import Protocol

from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen


# The order is the numbering of calls in the progress word (see `Call`); append, never reorder.
REQUIRED_FUNCTIONS = (
    "xpumlInit",
    "xpumlShutdown",
    "xpumlErrorString",
    "xpumlSystemGetDriverVersion",
    "xpumlSystemGetXPUMLVersion",
    "xpumlDeviceGetCount",
    "xpumlDeviceGetHandleByIndex",
    "xpumlDeviceGetAttributes",
    "xpumlDeviceGetArchitecture",
    "xpumlDeviceGetBoardId",
    "xpumlDeviceGetPciInfo",
    "xpumlDeviceGetMemoryInfo",
    "xpumlDeviceGetUtilizationRates",
    "xpumlDeviceGetTemperature",
    "xpumlDeviceGetPowerUsage",
    "xpumlDeviceGetClockInfo",
    "xpumlDeviceGetState",
    "xpumlDeviceGetComputeRunningProcesses",
    "xpumlDeviceGetHostVxpuMode",
    "xpumlDeviceSetSriovVfNum",
)
# Declared by later headers only; looked up one by one.
OPTIONAL_FUNCTIONS = (
    "xpumlDeviceGetSerial",
    "xpumlDeviceGetId",
    "xpumlDeviceGetMinorNumber",
    "xpumlDeviceGetName",
)
OLDEST_LIBRARY = (4, 0, 11)
"""Releases before it are not supported."""

FUNCTIONS = REQUIRED_FUNCTIONS + OPTIONAL_FUNCTIONS

WITHOUT_DEVICE = 0xFFFF_FFFF
"""The index written in the progress word by calls that concern no single device."""


class ReturnCode(IntEnum):
    """xpumlReturn_t. The library examined answers only 0, 2, 9, 999 and negative errno values."""

    SUCCESS = 0
    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    ALREADY_INITIALIZED = 5
    NOT_FOUND = 6
    INSUFFICIENT_SIZE = 7
    INSUFFICIENT_POWER = 8
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    IRQ_ISSUE = 11
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    CORRUPTED_INFOROM = 14
    XPU_IS_LOST = 15
    RESET_REQUIRED = 16
    OPERATING_SYSTEM = 17
    LIB_RM_VERSION_MISMATCH = 18
    IN_USE = 19
    MEMORY = 20
    NO_DATA = 21
    VXPU_ECC_NOT_SUPPORTED = 22
    INSUFFICIENT_RESOURCES = 23
    FREQ_NOT_SUPPORTED = 24
    UNKNOWN = 999


class State(IntEnum):
    """xpumlDeviceState_t as KL2 drivers number it; KL1 cards use other numbers for everything but 201."""

    UNUSED = 0
    RUNNING = 201
    IN_RESET = 205
    ERROR = 207
    IN_EXCEPTION = 208


class VxpuMode(IntEnum):
    """xpumlHostVxpuMode_t. A K-series card *and* a VF answer NON_SRIOV."""

    NON_SRIOV = 0
    SRIOV_OFF = 1
    SRIOV_ON = 2


class Arch(IntEnum):
    """Architecture numbers of xpumlDeviceAttributes_t."""

    UNKNOWN = 0
    KL1 = 1
    KL2 = 2
    KL3 = 3


UNKNOWN_MODEL = 9999
"""modelId of every board that libxpuml 4.0.12.1 does not know (R300 and R200-8F in SR-IOV among them)."""


class XpumlError(PluginError):
    """A call to the library failed; carries the return code, the function's C name and the library's text."""

    def __init__(self, code: int, function: str, text: str) -> None:
        super().__init__(code, function, text)
        self.code = code
        self.function = function
        self.text = text

    def __str__(self) -> str:
        return f"{self.function}: {self.text} ({self.code})"


class DriverNotLoadedError(XpumlError):
    """Code 9: the control node is missing, or may not be opened, or is not a driver's."""


class InvalidArgumentError(XpumlError, ValueError):
    """Code 2."""


class LibraryNotFoundError(PluginError):
    """No libxpuml could be opened; the text names each path tried and why it failed."""


class LibraryUnusableError(PluginError):
    """A file was opened but is not a usable libxpuml; the text names the path and the missing symbol."""


class WrongDeviceError(PluginError):
    """An index is not the device that the caller takes it for; nothing was done to either."""


_ERRORS: dict[int, type[XpumlError]] = {
    ReturnCode.DRIVER_NOT_LOADED: DriverNotLoadedError,
    ReturnCode.INVALID_ARGUMENT: InvalidArgumentError,
}


def error(code: int, function: str, text: str) -> XpumlError:
    """Return the exception for a return code: a subclass where a caller tells it apart, else XpumlError."""
    return _ERRORS.get(code, XpumlError)(code, function, text)


def is_too_old(version: str) -> bool:
    """Whether a library's version text ("4.0.12.1 commit: ...") is below what is supported."""
    numbers = version.split(" ", maxsplit=1)[0].split(".")[: len(OLDEST_LIBRARY)]
    if len(numbers) < len(OLDEST_LIBRARY) or not all(number.isdecimal() for number in numbers):
        return False
    return tuple(map(int, numbers)) < OLDEST_LIBRARY


@frozen(kw_only=False)
class Call:
    """A call that was in flight, as read from the progress word: the function's C name and the device's
    index, None for calls that concern no single device."""

    function: str
    index: int | None

    @classmethod
    def from_word(cls, word: int) -> "Call | None":
        """Decode the 64-bit progress word: 0 is idle, else (number of the function + 1) << 32 | index."""
        number, index = word >> 32, word & 0xFFFF_FFFF
        if not 0 < number <= len(FUNCTIONS):
            return None
        return cls(FUNCTIONS[number - 1], None if index == WITHOUT_DEVICE else index)

    def __str__(self) -> str:
        return self.function if self.index is None else f"{self.function} of device index {self.index}"


@frozen
class Failure:
    """A call that failed for one device during a batch."""

    function: str
    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.function}: {self.text} ({self.code})"


@frozen
class Reading:
    """Everything the library says about one device in a scan. A field is None where its call failed
    (see `failures`), was not made, or does not exist in this library.

    index: the library's rank of the device, valid in the process that scanned and nowhere else
    pci: address as in sysfs, lower case, `dddd:bb:ss.f`
    model, arch, board: raw numbers
    max_vfs: VFs the driver would allow; 3 also on some boards that then refuse
    memory_bytes: main memory, 0 for an unfilled record
    mode: VxpuMode; state: State or a number of an older card; serial: "" where the card has none
    name, number (N of /dev/xpuN), minor: from libraries with the later functions only
    """

    index: int
    pci: str | None = None
    model: int | None = None
    arch: int | None = None
    board: int | None = None
    max_vfs: int | None = None
    memory_bytes: int | None = None
    mode: int | None = None
    state: int | None = None
    serial: str | None = None
    name: str | None = None
    number: int | None = None
    minor: int | None = None
    failures: tuple[Failure, ...] = field(default=())


@frozen(kw_only=False)
class StateAnswer:
    """One device's answer in a sweep: the return code, and the raw state where the code is 0."""

    code: int
    state: int


class Xpuml(Protocol):
    """What a library satisfies; `xpu_plugin._xpuml.Library` does over the real one.

    Calls are made from one thread. Plain values only, so that they can travel as JSON: a record is a
    dict with the field names of the dataclass it becomes.
    """

    path: str

    def library_version(self) -> str: ...
    def driver_version(self) -> str: ...

    def count(self) -> int:
        """How many devices there are. Asked at most once in the life of a process, as asking again may
        invalidate handles: a second call raises RuntimeError."""

    def scan(self, skip: Collection[int] = ()) -> list[dict[str, object]]:
        """A dict with the fields of `Reading` for each index, all fields None for skipped ones."""

    def sweep(self, skip: Collection[int] = ()) -> list[tuple[int, int] | None]:
        """(return code, state) for each index, None for skipped ones. The very same list, which nobody may
        change, as the last time when they are the same."""

    def readings(self, skip: Collection[int] = ()) -> list[dict[str, object]]:
        """For each index: memory (bytes), utilization (per cent), temperature (degrees Celsius), clock
        (MHz), power (the driver's number; whether watts or milliwatts differs between releases)."""

    def processes(self, skip: Collection[int] = ()) -> list[dict[str, object]]:
        """For each index: its address `pci`, and the processes that compute on it, 99 at most. `pid` counts
        in the process's own pid namespace; `root_ns_pid` names it on the host, None from older libraries.
        Each is missing where its call failed (see `failures`)."""

    def set_sriov_vf_num(self, index: int, number: int, pci: str) -> None:
        """Split the card at `index` into `number` VFs, or take them away with 0.

        pci: the address that the caller believes the index to be, as in sysfs

        What is wrong is refused before the driver hears of it, as libxpuml 4.0.12.1 and its driver take
        present VFs away before they look at the number: TypeError, IndexError, WrongDeviceError for another
        address, ValueError for more than the device's maximum (which is 3 also on some boards that then
        refuse, and 0 on a VF). Raises XpumlError when a call fails, as when the driver refuses because
        somebody has the card or a VF of it open; the reason never gets through, and the VFs may be gone.
        With the number that there is already nothing changes.
        """
