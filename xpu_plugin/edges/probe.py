# SPDX-License-Identifier: Apache-2.0
"""The administrator's program for a suspected device: one run, in a session of its own.

A file that hangs is opened on a thread; a process that hangs is looked at now and then. Nothing waits for
either without a bound.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

from xpu_plugin.edges.haste import unhurried
from xpu_plugin.edges.state.disk import DiskThread
from xpu_plugin.log import printable


POLL_SECONDS = 0.05  # between looks at the process
LONGEST_LINE = 256  # bytes of output that are kept
_PIPE_BYTES = 1 << 16  # that are read at once
_INHERITED = ("PATH", "LD_LIBRARY_PATH")  # of our variables


def environment(id: str, path: str, address: str) -> dict[str, str]:
    """Return the environment of a run. id: as in `list`; path: of the device's node; address: of its PCI
    function"""
    ours = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return ours | {"XPU_ID": id, "XPU_PATH": path, "XPU_PCI_ADDRESS": address}


class ProbeProcess:
    """One run. It begins at once; `end` has to be called, and `gone` until it is true."""

    def __init__(self, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._command = command
        self._environment = environment
        self._child: subprocess.Popen[bytes] | None = None
        self._unwanted = False
        self._gone = False
        self._output = b""
        self._starting = asyncio.ensure_future(_thread().call(self._start))
        # Its error is raised by `status`, if that still waits for it.
        self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def status(self) -> int:
        """Return the exit status, or the negative number of a signal, once the program has ended by itself.
        Raises OSError if it cannot be started."""
        await asyncio.shield(self._starting)
        assert self._child is not None  # noqa: S101 - it was started
        await _until(partial(self._has_ended, self._child))
        self._kill(self._child)  # its children
        return self._child.wait()

    async def end(self, seconds: float) -> bool:
        """Kill the program and its children; return whether they are gone within so many seconds."""
        self._unwanted = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await _until(self.gone)
        return self.gone()

    def gone(self) -> bool:
        """Return whether nothing of the run is left. It is killed again, in case that it is."""
        if self._gone or not self._starting.done():
            return self._gone
        child = self._child
        if child is not None:
            self._kill(child)
            if child.poll() is None or _has_members(child.pid):
                return False
            self._read(child)
            assert child.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
            child.stdout.close()
        self._gone = True  # its number may be that of another process from now on
        return True

    @property
    def line(self) -> str:
        """The last line of the output so far, of printable characters."""
        lines = [line for line in self._output.decode(errors="replace").splitlines() if line.strip()]
        return printable(lines[-1].strip()) if lines else ""

    def _start(self) -> None:
        with open(self._command[0], "rb") as program:  # noqa: PTH123 - as bytes
            program.read(1)  # a dead mount hangs here, and not while the interpreter waits for the child
        if self._unwanted:
            return
        child = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=self._environment,
            start_new_session=True,
        )
        unhurried(child.pid)
        assert child.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        os.set_blocking(child.stdout.fileno(), False)
        self._child = child
        if self._unwanted:
            self._kill(child)

    def _has_ended(self, child: subprocess.Popen[bytes]) -> bool:
        """Return whether the program has ended. It is not reaped, so its group's number stays its own."""
        self._read(child)
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _read(self, child: subprocess.Popen[bytes]) -> None:
        """Read what is there; keep the end of it."""
        assert child.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        with contextlib.suppress(BlockingIOError):
            self._output = (self._output + os.read(child.stdout.fileno(), _PIPE_BYTES))[-LONGEST_LINE:]

    @staticmethod
    def _kill(child: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


async def _until(met: Callable[[], bool]) -> None:
    while not met():  # noqa: ASYNC110 - a process of another parent gives no notice
        await asyncio.sleep(POLL_SECONDS)


def _has_members(group: int) -> bool:
    """Return whether a process of a group lives, after its leader was reaped. A zombie has no device open.
    Those that are our children by now are reaped: a plugin may be the first process of a container."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return any(_lives_in(group, process) for process in Path("/proc").glob("[0-9]*"))


def _lives_in(group: int, process: Path) -> bool:
    try:
        state, _, own = (process / "stat").read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return False  # it has ended meanwhile
    return int(own) == group and state not in ("Z", "X")


@cache
def _thread() -> DiskThread:
    return DiskThread("probe")
