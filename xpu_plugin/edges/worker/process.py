# SPDX-License-Identifier: Apache-2.0
"""The worker as a process: its start, its end, and the two descriptors that it inherits.

This module imports little: the daemon starts a worker first, and both load the rest at the same time.
"""

import contextlib
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Mapping

from xpu_plugin.edges.haste import unhurried
from xpu_plugin.edges.memory import taken
from xpu_plugin.xpuml import Call


_WORD = 8  # bytes of the progress word


class WorkerProcess:
    """One worker process with its socket and its progress word.

    environment: added to our own. Raises OSError for a lack of memory, descriptors or processes.
    """

    grown: int | None = None  # its memory in bytes when it was too much

    def __init__(self, environment: Mapping[str, str]) -> None:
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as always:
            ours, theirs = socket.socketpair()
            on_failure.callback(ours.close)
            always.callback(theirs.close)
            progress_fd = os.memfd_create("xpu-progress")
            always.callback(os.close, progress_fd)
            os.ftruncate(progress_fd, _WORD)
            self._progress = mmap.mmap(progress_fd, _WORD)
            inherited = (theirs.fileno(), progress_fd)
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "xpu_plugin.edges.worker.server", *map(str, inherited)],
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,  # descriptor 0 must be in use: the library takes 0 for "not open"
                stdout=subprocess.DEVNULL,  # the library prints
                env={**os.environ, **environment},
            )
            unhurried(self._child.pid)
            on_failure.pop_all()
        ours.setblocking(False)
        self.pid = self._child.pid
        self.socket: socket.socket | None = ours

    @property
    def progress(self) -> int:
        """The progress word. It changes with each native call that begins or ends."""
        return int.from_bytes(self._progress[:_WORD], sys.byteorder)

    def in_flight(self) -> Call | None:
        return Call.from_word(self.progress)

    def take_socket(self) -> socket.socket:
        """Return our end of the socket; the caller closes it."""
        assert self.socket is not None  # noqa: S101 - for the type checker: it is taken once
        own, self.socket = self.socket, None
        return own

    def outgrows(self, most: int) -> bool:
        """Kill the worker if it has more than `most` bytes of memory; return whether it has."""
        bytes = taken(self.pid)
        if bytes is not None and bytes > most:
            self.grown = bytes
            self.kill()
        return self.grown is not None

    def kill(self) -> None:
        """Kill the worker without a wait; `ended` tells whether it has ended."""
        self._child.kill()
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def ended(self) -> str | None:
        """Return how the process ended; None while it runs. Reap it; never wait."""
        status = self._child.poll()
        if status is None:
            return None
        if status < 0:
            return f"killed by signal {-status}"
        return f"exit status {status}"
