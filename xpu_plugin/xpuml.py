# SPDX-License-Identifier: Apache-2.0
"""The contract with the vendor library libxpuml, in pure Python: numbers, records, errors.

The meanings of the numbers are from the vendor's public headers (API version 1) and from libxpuml 4.0.12.1.
A newer library or driver may return other numbers. So a number that is not listed here is never an error:
enumerations are for comparing, not for decoding.
"""

from collections.abc import Collection
from dataclasses import field
from enum import IntEnum
from typing import Protocol

from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen


# Of the header of release 4.0.11. The order numbers the calls in the progress word (see `Call`): append only.
OLD_FUNCTIONS = (
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
# Declared by later headers only.
LATER_FUNCTIONS = (
    "xpumlDeviceGetSerial",
    "xpumlDeviceGetId",
    "xpumlDeviceGetMinorNumber",
    "xpumlDeviceGetName",
)
OLDEST_LIBRARY = (4, 0, 11)
"""The oldest supported release."""

FUNCTIONS = OLD_FUNCTIONS + LATER_FUNCTIONS

REQUIRED_FUNCTIONS = frozenset(
    {
        "xpumlInit",
        "xpumlErrorString",
        "xpumlSystemGetDriverVersion",
        "xpumlSystemGetXPUMLVersion",
        "xpumlDeviceGetCount",
        "xpumlDeviceGetHandleByIndex",
        "xpumlDeviceGetPciInfo",
        "xpumlDeviceGetState",
    }
)
"""Functions that the offer of whole devices needs. The facts of any other one are unknown without it. No card
is split without those about VFs and processes."""

WITHOUT_DEVICE = 0xFFFF_FFFF
"""The index in the progress word for a call about no single device."""


class ReturnCode(IntEnum):
    """xpumlReturn_t. Library 4.0.12.1 returns only 0, 2, 9, 999 and negative errno values."""

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
    """xpumlDeviceState_t of KL2 drivers; KL1 cards have other numbers, except for 201."""

    UNUSED = 0
    RUNNING = 201
    IN_RESET = 205
    ERROR = 207
    IN_EXCEPTION = 208


class VxpuMode(IntEnum):
    """xpumlHostVxpuMode_t. Both a K-series card and a VF report NON_SRIOV."""

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
    """A failed call of the library, with return code, C name of the function, and the library's text."""

    def __init__(self, code: int, function: str, text: str) -> None:
        super().__init__(code, function, text)
        self.code = code
        self.function = function
        self.text = text

    def __str__(self) -> str:
        return f"{self.function}: {self.text} ({self.code})"


class DriverNotLoadedError(XpumlError):
    """Code 9: the control node is missing, may not be opened, or is not a driver's."""


class InvalidArgumentError(XpumlError, ValueError):
    """Code 2."""


class LibraryNotFoundError(PluginError):
    """No libxpuml could be opened; the text names each path with the reason."""


class LibraryUnusableError(PluginError):
    """An opened file is not a usable libxpuml; the text names the path and the missing symbol."""


class WrongDeviceError(PluginError):
    """An index is not the caller's device; neither device was changed."""


_ERRORS: dict[int, type[XpumlError]] = {
    ReturnCode.DRIVER_NOT_LOADED: DriverNotLoadedError,
    ReturnCode.INVALID_ARGUMENT: InvalidArgumentError,
}


def error(code: int, function: str, text: str) -> XpumlError:
    """Return the exception for a return code: a subclass where callers need it, else XpumlError."""
    return _ERRORS.get(code, XpumlError)(code, function, text)


def is_too_old(version: str) -> bool:
    """Return whether a library's version text ("4.0.12.1 commit: ...") is below OLDEST_LIBRARY."""
    numbers = version.split(" ", maxsplit=1)[0].split(".")[: len(OLDEST_LIBRARY)]
    if len(numbers) < len(OLDEST_LIBRARY) or not all(number.isdecimal() for number in numbers):
        return False
    return tuple(map(int, numbers)) < OLDEST_LIBRARY


@frozen(kw_only=False)
class Call:
    """A call in progress, decoded from the progress word."""

    function: str  # its C name
    index: int | None  # of the device; None for calls about no single device

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
    """One device's part of a scan by the library.

    A field is None if its call failed (see `failures`), was not made, or does not exist in this library.
    """

    index: int  # the library's rank of the device, valid only in the process that scanned
    pci: str | None = None  # address as in sysfs, lower case, `dddd:bb:ss.f`
    model: int | None = None  # raw
    arch: int | None = None  # raw
    board: int | None = None  # raw
    max_vfs: int | None = None  # the driver's maximum of VFs; 3 also on some boards that refuse every split
    memory_bytes: int | None = None  # main memory; 0 for an empty record
    mode: int | None = None  # VxpuMode
    state: int | None = None  # State, or a number of an older card
    serial: str | None = None  # "" if the card has none
    name: str | None = None  # this and the next two: only from libraries with the later functions
    number: int | None = None  # N of /dev/xpuN
    minor: int | None = None
    failures: tuple[Failure, ...] = field(default=())


@frozen(kw_only=False)
class StateAnswer:
    """One device's answer in a sweep."""

    code: int  # the return code
    state: int  # the raw state, if the code is 0


class Xpuml(Protocol):
    """The interface of a library; `xpu_plugin._xpuml.Library` implements it.

    All calls are made from one thread. All values are plain, so that they can travel as JSON: a record is a
    dict with the field names of its dataclass.
    """

    path: str

    def library_version(self) -> str: ...
    def driver_version(self) -> str: ...

    def count(self) -> int:
        """Return the number of devices.

        A second call in a process raises RuntimeError: another query may invalidate the handles.
        """

    def scan(self, skip: Collection[int] = ()) -> list[dict[str, object]]:
        """Return a dict with the fields of `Reading` for each index; all are None for skipped indexes."""

    def sweep(self, skip: Collection[int] = ()) -> list[tuple[int, int] | None]:
        """Return (return code, state) for each index, None for skipped ones.

        Without a change it is the same list object as last time; callers must not change it.
        """

    def readings(self, skip: Collection[int] = ()) -> list[dict[str, object]]:
        """Return for each index: memory (bytes), utilization (per cent), temperature (degrees Celsius), clock
        (MHz), power (the driver's number: watts or milliwatts, by release)."""

    def processes(self, skip: Collection[int] = ()) -> list[dict[str, object]]:
        """Return for each index its address `pci` and its computing processes, 99 at most.

        `pid` is in the process's own pid namespace; `root_ns_pid` is on the host, None from older libraries.
        A value is missing if its call failed (see `failures`).
        """

    def set_sriov_vf_num(self, index: int, number: int, pci: str) -> None:
        """Split the card at `index` into `number` VFs; 0 removes them. The present number changes nothing.

        pci: the address that the caller expects at the index, as in sysfs

        Bad input is refused before the driver is called, as libxpuml 4.0.12.1 and its driver remove the
        present VFs before they check the number. Raises TypeError; IndexError; WrongDeviceError for another
        address; ValueError for more than the device's maximum (3 also on some boards that then refuse, 0 on
        a VF). Raises XpumlError if a call fails, for instance if the driver refuses because a process has
        the card or a VF open. The library does not pass on the reason, and the VFs may be gone.
        """
