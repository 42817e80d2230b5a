# SPDX-License-Identifier: Apache-2.0
"""The first moments of the program: signals and descriptors, before its other modules are loaded.

`python -m xpu_plugin` is `xpu-device-plugin`.
"""

import os
import signal
import sys


def main() -> int:
    """Run the program; returns the exit status."""
    if not sys.argv[1:] or sys.argv[1].startswith("-"):  # the daemon, not a sub-command
        _take_signals()
    _take_descriptors()
    from xpu_plugin import cli  # noqa: PLC0415 - it takes 50 ms

    cli.take_streams()
    return cli.main(sys.argv[1:])


def _take_signals() -> None:
    """Replace the default actions, and unblock signals that the parent has blocked.

    SIGHUP would end the plugin. The kernel delivers the others to the first process of a container only if it
    has a handler.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it requests a scan, and the first one is still to come
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _take_descriptors() -> None:
    """Open the null device at 0, 1 and 2 where they are closed.

    Else the next file or socket would have that number and receive the printed text. Standard output still
    refuses writes.
    """
    for name in ("stdin", "stdout", "stderr"):  # open returns the lowest free number
        if getattr(sys, name) is None:
            writable = name == "stderr"
            descriptor = os.open(os.devnull, os.O_WRONLY if writable else os.O_RDONLY)
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())
