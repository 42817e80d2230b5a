# SPDX-License-Identifier: Apache-2.0
"""The server's end of the worker: start it, ask it with a deadline, replace it.

Whatever the library does to the worker, the caller here gets an answer or one error, and soon: a worker
that hangs, dies or talks nonsense is killed and never waited for, as one that is stuck in the driver
cannot die. The progress word then tells which call of which device it was.
"""

import asyncio
import contextlib
import json
import logging
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from xpu_plugin.edges.answers import (
    NONSENSE,
    gauges_of,
    host_of,
    nothing_of,
    processes_of,
    scan_of,
    states_of,
    truth_of,
    usage_of,
)
from xpu_plugin.edges.wire import HEADER, LONGEST_ANSWER
from xpu_plugin.model.devices import Gauges, Host, Process, Scan, Usage
from xpu_plugin.xpuml import Call, StateAnswer, WrongDeviceError, error


logger = logging.getLogger(__name__)

MOST_STUCK = 8  # workers that were killed and are still there; 9 MB each
REAP_SECONDS = 0.1  # after a kill, to look whether the process is gone
START_SECONDS = 30.0  # for a fresh interpreter on a loaded machine; the library's own calls are apart
_WORD = 8  # bytes of the progress word
_LONGEST_NONSENSE = 200  # characters that are quoted
CAUSES = ("rescan", "hung", "died", "nonsense", "failed", "cancelled")
"""Why a worker is replaced: a scan wants a fresh one; it missed a deadline, ended, or talked nonsense; the
library failed as a whole; whoever asked has gone."""

T = TypeVar("T")


class WorkerError(Exception):
    """The worker could not answer; it has been killed, the next request starts a fresh one.

    call: the native call that was in flight, if one was
    """

    def __init__(self, text: str, call: Call | None = None) -> None:
        super().__init__(f"{text} in {call}" if call else text)
        self.call = call


class WorkerHungError(WorkerError):
    """No answer before the deadline."""


class WorkerDiedError(WorkerError):
    """The process ended, or what it said was no answer."""


class TooManyStuckError(WorkerError):
    """No fresh worker is started while so many killed ones have not gone."""


class LibraryError(Exception):
    """No usable libxpuml; the text says which paths were tried and what was wrong with each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a worker opens, and where it looks.

    libraries: paths, the first usable one is taken; environment: added to the worker's own
    """

    libraries: tuple[str, ...]
    dev_root: Path
    sysfs_root: Path
    simulated: bool = False
    environment: Mapping[str, str]


class _Process:
    """One worker process with its socket and its progress word."""

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
                [sys.executable, "-P", "-m", "xpu_plugin.edges.worker", *map(str, inherited)],
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,  # descriptor 0 must be taken: the library takes 0 for "not open"
                stdout=subprocess.DEVNULL,  # the library prints
                env={**os.environ, **environment},
            )
            on_failure.pop_all()
        ours.setblocking(False)
        self.pid = self._child.pid
        self._socket: socket.socket | None = ours

    async def exchange(self, request: bytes) -> bytes:
        """Send a request and read its answer. Raises EOFError or OSError when the worker is gone."""
        loop = asyncio.get_running_loop()
        if self._socket is None:
            raise EOFError
        loop.remove_reader(self._socket)
        await loop.sock_sendall(self._socket, HEADER.pack(len(request)) + request)
        (length,) = HEADER.unpack(await self._read(HEADER.size))
        if length > LONGEST_ANSWER:
            raise ValueError(f"an answer of {length} bytes")
        return await self._read(length)

    def watch(self, on_end: Callable[[], None]) -> None:
        """Until the next request: call `on_end` once when the worker ends, or speaks unasked."""
        loop, ours = asyncio.get_running_loop(), self._socket

        def stirs() -> None:
            if ours is not None:
                loop.remove_reader(ours)
            on_end()

        if ours is not None:
            loop.add_reader(ours, stirs)

    async def _read(self, length: int) -> bytes:
        assert self._socket is not None  # noqa: S101 - exchange saw to it
        loop = asyncio.get_running_loop()
        buffer = bytearray(length)
        view, got = memoryview(buffer), 0
        while got < length:
            count = await loop.sock_recv_into(self._socket, view[got:])
            if count == 0:
                raise EOFError
            got += count
        return bytes(buffer)

    def in_flight(self) -> Call | None:
        return Call.from_word(int.from_bytes(self._progress[:_WORD], sys.byteorder))

    def kill(self) -> None:
        """Kill it and let go of it; whether it ends is `ended`'s to tell."""
        self._child.kill()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def ended(self) -> str | None:
        """How the process ended; None while it has not. Reaps it, never waits."""
        status = self._child.poll()
        if status is None:
            return None
        if status < 0:
            return f"killed by signal {-status}"
        return f"exit status {status}"


class Driver:
    """Asks the worker, one request at a time; starts it when there is none.

    call_timeout: seconds for a request that makes one round of native calls
    most_stuck: workers that were killed and are still there, at which no further one is started
    on_end: called when the worker of the last scan ends while nobody asks it
    """

    def __init__(self, target: Target, *, call_timeout: float, most_stuck: int = MOST_STUCK) -> None:
        self._target = target
        self.call_timeout = call_timeout
        self._most_stuck = most_stuck
        self.on_end: Callable[[], None] = lambda: None
        self._lock = asyncio.Lock()
        self._process: _Process | None = None
        self._dying: list[_Process] = []
        self._opened: dict[str, str] = {}
        self._restarts = dict.fromkeys(CAUSES, 0)
        self._requests = 0

    # --- requests -------------------------------------------------------------------------------

    async def scan(
        self, skip: Collection[int] = (), *, only: int | None = None, seconds: float | None = None
    ) -> Scan | None:
        """Scan with a fresh worker, as a library lists devices honestly only once.

        skip: indexes not to touch; only: the one index to touch, where all others are to be left out
        seconds: the deadline, if it is to be another one than that of all requests

        None when device nodes came or went meanwhile. Raises WorkerError, LibraryError, XpumlError.
        """
        async with self._lock:
            self._discard("rescan")
            return await self._ask(
                await self._start(),
                seconds or self.call_timeout,
                "scan",
                lambda answer: scan_of(answer, self._opened) if answer["stable"] else None,
                skip=sorted(skip),
                only=only,
                **self._places(),
            )

    async def sweep(self, skip: Collection[int] = ()) -> list[StateAnswer | None]:
        """Ask the worker of the last scan for all states, by index; None for skipped ones.

        Raises WorkerError, also when that worker is gone: its indexes mean nothing to another.
        """
        async with self._lock:
            return await self._ask(self._scanned(), self.call_timeout, "sweep", states_of, skip=sorted(skip))

    async def host(self) -> Host:
        """The host's facts as they are now, to compare with those of the last scan. Raises WorkerError."""
        async with self._lock:
            return await self._ask(self._scanned(), self.call_timeout, "host", host_of, **self._places())

    async def replaced(self) -> bool:
        """Whether the file of the library that the worker has open is another one by now, or gone. False
        where that cannot be told. Raises WorkerError."""
        async with self._lock:
            return await self._ask(self._scanned(), self.call_timeout, "replaced", truth_of)

    async def usage(self, indexes: Collection[int], card: str) -> Usage:
        """Who uses a card, as far as library and sysfs tell.

        indexes: of the last scan, those of the card and its VFs; no other device is touched
        card: its PCI address

        Asks the worker of the last scan; raises WorkerError, also when that is gone, WrongDeviceError for an
        index that it does not have, XpumlError, and LibraryError when sysfs cannot be read.
        """
        async with self._lock:
            return await self._ask(
                self._scanned(),
                self.call_timeout,
                "usage",
                usage_of,
                indexes=sorted(set(indexes)),
                card=card,
                sysfs_root=str(self._target.sysfs_root),
            )

    async def gauges(self, skip: Collection[int] = ()) -> list[Gauges]:
        """Ask the worker of the last scan for what each device measures; skipped ones are left out.

        Raises WorkerError, also when that worker is gone.
        """
        async with self._lock:
            return await self._ask(self._scanned(), self.call_timeout, "gauges", gauges_of, skip=sorted(skip))

    async def processes(self, skip: Collection[int] = ()) -> Mapping[str, tuple[Process, ...] | None]:
        """Ask the worker of the last scan who computes where: by PCI address, as in `Usage`.

        Raises WorkerError, also when that worker is gone.
        """
        async with self._lock:
            return await self._ask(
                self._scanned(), self.call_timeout, "processes", processes_of, skip=sorted(skip)
            )

    async def set_sriov_vf_num(self, index: int, number: int, pci: str, *, seconds: float) -> None:
        """Split the card at an index of the last scan into `number` VFs; 0 takes them away.

        pci: the card's address; seconds: the deadline of this request, whatever others have

        Nothing was changed after WrongDeviceError (the index is another device, or none), ValueError (more
        VFs than the device can have, or no number of VFs) and "there is no worker that has scanned". After
        XpumlError (the driver refuses: somebody uses the card, the board cannot) and any other WorkerError
        the VFs may be there, gone, or others: only a scan tells. It is due after success, too, as the
        worker's indexes of VFs hold no longer; that of the card does.
        """
        async with self._lock:
            await self._ask(
                self._scanned(),
                seconds,
                "set_sriov_vf_num",
                nothing_of,
                index=index,
                number=number,
                pci=pci,
            )

    def dismiss(self) -> None:
        """Kill the worker; the next scan starts a fresh one."""
        self._discard(None)

    async def close(self) -> None:
        """Kill the worker; give it a moment to go, for a tidy exit."""
        self._discard(None)
        for _ in range(20):
            if not self._stuck():
                return
            await asyncio.sleep(0.01)
        logger.warning("worker %s is stuck in the driver and stays behind", self._dying[0].pid)

    @property
    def stuck(self) -> bool:
        """Whether a worker that was killed is still there: the driver holds it."""
        return bool(self._stuck())

    @property
    def restarts(self) -> Mapping[str, int]:
        """How many workers have been replaced, by each of CAUSES."""
        return dict(self._restarts)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def _places(self) -> dict[str, object]:
        return {
            "dev_root": str(self._target.dev_root),
            "sysfs_root": str(self._target.sysfs_root),
            "simulated": self._target.simulated,
        }

    # --- the process ----------------------------------------------------------------------------

    def _scanned(self) -> _Process:
        """The worker of the last scan: its indexes mean nothing to another."""
        if self._process is None:
            raise WorkerDiedError("there is no worker that has scanned")
        return self._process

    async def _start(self) -> _Process:
        if len(stuck := self._stuck()) >= self._most_stuck:
            pids = ", ".join(str(process.pid) for process in stuck)
            raise TooManyStuckError(f"workers {pids} were killed and do not end: the driver holds them")
        try:
            process = self._process = _Process(self._target.environment)
        except OSError as error:  # out of memory, descriptors or processes
            raise WorkerDiedError(f"no worker can be started: {error.strerror}") from None
        await self._ask(process, START_SECONDS, "ready", bool)
        self._opened = await self._ask(
            process, self.call_timeout, "open", dict, paths=list(self._target.libraries)
        )
        return process

    async def _ask(
        self,
        process: _Process,
        seconds: float,
        call: str,
        decode: Callable[[Any], T],
        **arguments: object,
    ) -> T:
        self._requests += 1
        request = json.dumps({"id": self._requests, "call": call, **arguments}).encode()
        try:
            async with asyncio.timeout(seconds):
                answer = json.loads(await process.exchange(request))
            if answer["id"] != self._requests:
                raise ValueError(f"an answer to request {answer['id']}, not to {self._requests}")
            if "error" not in answer:
                result = decode(answer["result"])
                process.watch(self.on_end)
                return result
            failure = _error(answer["error"])
        except TimeoutError:
            in_flight = process.in_flight()
            self._discard("hung")
            raise WorkerHungError(f"no answer within {seconds:g} s", in_flight) from None
        except (EOFError, OSError):
            how = await self._bury(process)
            raise WorkerDiedError(f"the worker ended ({how})", process.in_flight()) from None
        except NONSENSE as nonsense:
            self._discard("nonsense")
            text = str(nonsense)[:_LONGEST_NONSENSE]
            raise WorkerDiedError(f"the worker talked nonsense: {text}", process.in_flight()) from None
        except asyncio.CancelledError:
            self._discard("cancelled")  # its answer would be taken for the next one's
            raise
        self._discard("failed")  # a library that failed as a whole is opened anew
        raise failure

    async def _bury(self, process: _Process) -> str:
        """How a worker whose socket closed ended; it is as good as dead already."""
        for _ in range(20):
            if (how := process.ended()) is not None:
                break
            await asyncio.sleep(0.005)
        self._discard("died")
        return how or "its socket closed"

    def _discard(self, cause: str | None) -> None:
        if self._process is not None:
            if cause is not None:
                self._restarts[cause] += 1
            self._process.kill()
            self._dying.append(self._process)
            self._process = None
            asyncio.get_running_loop().call_later(REAP_SECONDS, self._stuck)

    def _stuck(self) -> list[_Process]:
        self._dying = [process for process in self._dying if process.ended() is None]
        return self._dying


def _error(fields: dict[str, Any]) -> Exception:
    match fields:
        case {"kind": "xpuml", "code": int(code), "function": str(function), "library_text": str(text)}:
            return error(code, function, text)
        case {"kind": "library" | "system", "text": str(text)}:
            return LibraryError(text)
        case {"kind": "device", "text": str(text)}:
            return WrongDeviceError(text)
        case {"kind": "value", "text": str(text)}:
            return ValueError(text)
    raise ValueError(f"an error of no known kind: {fields}")
