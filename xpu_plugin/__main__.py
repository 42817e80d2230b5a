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
    """Replace the default actions, and let in what the parent has blocked. SIGHUP would end the plugin; and
    without a handler the kernel keeps the others from the first process of a container."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it asks for a scan, and the first one is still to come
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _take_descriptors() -> None:
    """Occupy 0, 1 and 2 where they are closed: else the next file or socket has that number, and what is
    printed goes into it. Standard output goes on to refuse what is written."""
    for name in ("stdin", "stdout", "stderr"):  # the lowest number that is free comes first
        if getattr(sys, name) is None:
            writable = name == "stderr"
            descriptor = os.open(os.devnull, os.O_WRONLY if writable else os.O_RDONLY)
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())
