# SPDX-License-Identifier: Apache-2.0
"""Opens device nodes as the library does; a device is "in use" for that instant."""

import errno
import os


# What opening a simulated node answers, as no driver stands behind it.
_DRIVERLESS = frozenset({errno.ENXIO, errno.ENODEV})


def refusal(dev_root: str, number: int, *, simulator: str | None) -> int:
    """The errno that an open of xpuN ends with; 0 when it opens.

    simulator: the library that says so for simulated nodes, where that is the one in use
    """
    if simulator is not None and (told := _simulated(simulator, number)) is not None:
        return told
    try:
        os.close(os.open(f"{dev_root}/xpu{number}", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return 0 if simulator is not None and error.errno in _DRIVERLESS else error.errno or errno.EIO
    return 0


def _simulated(library: str, number: int) -> int | None:
    """What the simulator says; None from another library."""
    import ctypes  # noqa: PLC0415 - for simulations only

    try:
        answer: int = ctypes.CDLL(library).xpumlSimulatorOpen(number)
    except (OSError, AttributeError):
        return None
    return answer
