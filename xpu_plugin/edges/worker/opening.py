# SPDX-License-Identifier: Apache-2.0
"""Opens a device node as the library does. The device is "in use" for that moment."""

import errno
import os


# The result of opening a simulated node, which has no driver.
_DRIVERLESS = frozenset({errno.ENXIO, errno.ENODEV})


def refusal(dev_root: str, number: int, *, simulator: str | None) -> int:
    """Return the errno of an open of xpuN; 0 if it opens.

    simulator: library that gives the result for simulated nodes, if it is in use
    """
    if simulator is not None and (told := _simulated(simulator, number)) is not None:
        return told
    try:
        os.close(os.open(f"{dev_root}/xpu{number}", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return 0 if simulator is not None and error.errno in _DRIVERLESS else error.errno or errno.EIO
    return 0


def _simulated(library: str, number: int) -> int | None:
    """Return the simulator's result; None from another library."""
    import ctypes  # noqa: PLC0415 - for simulations only

    try:
        answer: int = ctypes.CDLL(library).xpumlSimulatorOpen(number)
    except (OSError, AttributeError):
        return None
    return answer
