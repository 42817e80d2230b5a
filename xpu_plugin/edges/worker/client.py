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
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from xpu_plugin.edges.worker.connection import Connection
from xpu_plugin.edges.worker.decoding import (
    NONSENSE,
    gauges_of,
    host_of,
    mark_of,
    nothing_of,
    processes_of,
    scan_of,
    states_of,
    truth_of,
    usage_of,
)
from xpu_plugin.edges.worker.process import WorkerProcess
from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import CONTROL_NODE, Gauges, Host, Process, Scan, Usage
from xpu_plugin.observable import Signal
from xpu_plugin.xpuml import Call, StateAnswer, WrongDeviceError, error


logger = logging.getLogger(__name__)

MOST_STUCK = 8  # workers that were killed and are still there; 9 MB each
LOOKS = 8  # at the progress word within a deadline, which may end that much later than it should
REAP_SECONDS = 0.1  # after a kill, to look whether the process is gone
START_SECONDS = 30.0  # for a fresh interpreter on a loaded machine; the library's own calls are apart
WEIGH_SECONDS = 0.1  # between looks at the memory of a worker that takes long to answer
_LONGEST_NONSENSE = 200  # characters that are quoted
CAUSES = ("rescan", "hung", "died", "malformed", "failed", "cancelled", "grown")
"""Why a worker is replaced: a scan needs a fresh one; it missed a deadline, ended, or answered malformed
data; the library failed as a whole; the caller was cancelled; it took too much memory."""

T = TypeVar("T")


class WorkerError(PluginError):
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


class WorkerGrownError(WorkerError):
    """It took more memory than it may have, and was ended before the kernel would end the whole container."""


class TooManyStuckError(WorkerError):
    """No fresh worker is started while so many killed ones have not gone."""


class BusyError(WorkerError):
    """Nothing was asked, as it was not the time."""


class LibraryError(PluginError):
    """No usable libxpuml; the text says which paths were tried and what was wrong with each."""


@frozen
class Target:
    """What a worker opens, and where it looks.

    libraries: paths, the first usable one is taken; environment: added to the worker's own
    host_root: the directory below which links lead where they lead on the host
    most_bytes: of memory that the worker may have; None for as many as it likes
    """

    libraries: tuple[str, ...]
    host_root: Path | None = None
    most_bytes: int | None = None
    dev_root: Path
    sysfs_root: Path
    simulated: bool = False
    environment: Mapping[str, str]


class WorkerClient:
    """Asks the worker, one request at a time; starts it when there is none.

    call_timeout: seconds without progress after which a request fails: each native call has as long, so that
        a round of many slow calls may take longer
    spare: a worker that has been started already, for the first scan
    most_stuck: workers that were killed and are still there, at which no further one is started
    ended: fired when the worker of the last scan ends while no request is under way
    """

    def __init__(
        self,
        target: Target,
        *,
        call_timeout: float,
        most_stuck: int = MOST_STUCK,
        spare: WorkerProcess | None = None,
    ) -> None:
        self._target = target
        self.call_timeout = call_timeout
        self._most_stuck = most_stuck
        self.ended = Signal()
        self._lock = asyncio.Lock()
        self._states_only = False
        self._process: WorkerProcess | None = None
        self._connection: Connection | None = None  # to it
        self._spare = spare
        self._dying: list[WorkerProcess] = []
        self._opened: dict[str, str] = {}
        self._restarts = dict.fromkeys(CAUSES, 0)
        self._requests = 0
        self._told: Host | None = None  # by the present worker
        self._swept: tuple[list[int], list[StateAnswer | None]] | None = None  # by the present worker

    # --- requests -------------------------------------------------------------------------------

    async def scan(
        self, skip: Collection[int] = (), *, only: int | None = None, seconds: float | None = None
    ) -> Scan | None:
        """Scan with a fresh worker, as a library lists devices honestly only once.

        skip: indexes not to touch; only: the one index to touch, where all others are to be left out
        seconds: without progress, if that is to be another limit than that of all requests

        None when device nodes came or went meanwhile. Raises WorkerError, LibraryError, XpumlError.
        """
        async with self._turn():
            self._discard("rescan")
            scan = await self._ask(
                await self._start(),
                seconds or self.call_timeout,
                "scan",
                lambda answer: scan_of(answer, self._opened) if answer["stable"] else None,
                skip=sorted(skip),
                only=only,
                **self._places(),
            )
            self._told = scan.host if scan else None
            return scan

    async def sweep(self, skip: Collection[int] = ()) -> list[StateAnswer | None]:
        """Ask the worker of the last scan for all states, by index; None for skipped ones.

        While it answers alike, the very same list is returned: thousands of devices need not be looked at
        again to find out that nothing has changed.

        Raises WorkerError, also when that worker is gone: its indexes mean nothing to another.
        """
        async with self._lock:
            process, left_out = self._scanned(), sorted(skip)
            last = self._swept if self._swept and self._swept[0] == left_out else None
            answer = await self._ask(
                process,
                self.call_timeout,
                "sweep",
                lambda answer: last[1] if answer is None and last else states_of(answer),
                skip=left_out,
                changed=last is not None,
            )
            self._swept = (left_out, answer)
            return answer

    async def host(self) -> Host:
        """The host's facts as they are now, to compare with those of the last scan: the very same object
        while they are the same. Raises WorkerError."""
        async with self._turn():
            last = self._told
            host = await self._ask(
                self._scanned(),
                self.call_timeout,
                "host",
                lambda answer: last if answer is None and last else host_of(answer),
                changed=last is not None,
                **self._places(),
            )
            self._told = host
            return host

    async def replaced(self) -> str | None:
        """None while the file of the library that the worker has open is the same, or where that cannot be
        told; else a mark of the file that is there now, "" for none. Raises WorkerError."""
        async with self._turn():
            return await self._ask(self._scanned(), self.call_timeout, "replaced", mark_of)

    async def trial(self) -> Mapping[str, str]:
        """Open the library as a fresh worker would, and end that one: path and version of what it opened. The
        worker of the last scan goes on.

        Raises WorkerError, LibraryError, XpumlError.
        """
        other = WorkerClient(self._target, call_timeout=self.call_timeout)
        try:
            await other._start()
        finally:
            await other.close()
        return other._opened

    async def usage(self, indexes: Collection[int], card: str) -> Usage:
        """Who uses a card, as far as library and sysfs tell.

        indexes: of the last scan, those of the card and its VFs; no other device is touched
        card: its PCI address

        Asks the worker of the last scan; raises WorkerError, also when that is gone, WrongDeviceError for an
        index that it does not have, XpumlError, and LibraryError when sysfs cannot be read.
        """
        async with self._turn():
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
        async with self._turn():
            return await self._ask(self._scanned(), self.call_timeout, "gauges", gauges_of, skip=sorted(skip))

    async def processes(self, skip: Collection[int] = ()) -> Mapping[str, tuple[Process, ...] | None]:
        """Ask the worker of the last scan who computes where: by PCI address, as in `Usage`.

        Raises WorkerError, also when that worker is gone.
        """
        async with self._turn():
            return await self._ask(
                self._scanned(), self.call_timeout, "processes", processes_of, skip=sorted(skip)
            )

    async def set_sriov_vf_num(self, index: int, number: int, pci: str, *, seconds: float) -> None:
        """Split the card at an index of the last scan into `number` VFs; 0 takes them away.

        pci: the card's address; seconds: for each native call of this request, whatever others have

        Nothing was changed after WrongDeviceError (the index is another device, or none), ValueError (more
        VFs than the device can have, or no number of VFs) and "there is no worker that has scanned". After
        XpumlError (the driver refuses: somebody uses the card, the board cannot) and any other WorkerError
        the VFs may be there, gone, or others: only a scan tells. It is due after success, too, as the
        worker's indexes of VFs hold no longer; that of the card does.
        """
        async with self._turn():
            await self._ask(
                self._scanned(),
                seconds,
                "set_sriov_vf_num",
                nothing_of,
                index=index,
                number=number,
                pci=pci,
            )

    async def opens(self, number: int) -> bool:
        """Whether the node xpuN can be opened: tried by a worker of its own that opens nothing else.

        A worker of a former scan ends. Raises WorkerError.
        """
        async with self._turn():
            self._discard(None)
            process = await self._spawn()
            try:
                return await self._ask(
                    process,
                    self.call_timeout,
                    "opens",
                    truth_of,
                    dev_root=str(self._target.dev_root),
                    number=number,
                    simulator=self._target.libraries[0] if self._target.simulated else None,
                )
            finally:
                self._discard(None)

    def dismiss(self) -> None:
        """Kill the worker; the next scan starts a fresh one."""
        self._discard(None)

    async def close(self) -> None:
        """Kill the worker; give it a moment to go, for a tidy exit."""
        self._process = self._process or self._spare
        self._discard(None)
        for _ in range(20):
            if not self._stuck():
                return
            await asyncio.sleep(0.01)
        logger.warning("worker %s is stuck in the driver and stays behind", self._dying[0].pid)

    @contextlib.asynccontextmanager
    async def states_only(self) -> AsyncIterator[None]:
        """Allow no request but `sweep` until the end: any other raises BusyError at once.

        Begins when the request under way has been answered. A listing or a scan opens all nodes, and makes
        the driver refuse to change the VFs of a card.
        """
        self._states_only = True
        try:
            async with self._lock:
                pass
            yield
        finally:
            self._states_only = False

    @property
    def busy(self) -> bool:
        """Whether states alone may be asked just now."""
        return self._states_only

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

    @property
    def control_denied(self) -> bool:
        """Whether the driver's control node is there, and the kernel lets this process not open it."""
        node = os.fspath(self._target.dev_root / CONTROL_NODE)
        return os.path.exists(node) and not os.access(node, os.R_OK | os.W_OK)  # noqa: PTH110 - never raises

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """The time of one request that is no sweep."""
        async with self._lock:
            if self._states_only:
                raise BusyError("the driver changes the VFs of a card, and only states are asked meanwhile")
            yield

    def _places(self) -> dict[str, object]:
        return {
            "dev_root": str(self._target.dev_root),
            "sysfs_root": str(self._target.sysfs_root),
            "simulated": self._target.simulated,
        }

    # --- the process ----------------------------------------------------------------------------

    def _scanned(self) -> WorkerProcess:
        """The worker of the last scan: its indexes mean nothing to another."""
        if self._process is None:
            raise WorkerDiedError("there is no worker that has scanned")
        return self._process

    async def _start(self) -> WorkerProcess:
        """A worker that has opened the library."""
        process, root = await self._spawn(), self._target.host_root
        self._opened = await self._ask(
            process,
            self.call_timeout,
            "open",
            dict,
            paths=list(self._target.libraries),
            root=str(root) if root else None,
        )
        return process

    async def _spawn(self) -> WorkerProcess:
        if len(stuck := self._stuck()) >= self._most_stuck:
            pids = ", ".join(str(process.pid) for process in stuck)
            raise TooManyStuckError(f"workers {pids} were killed and do not end: the driver holds them")
        try:
            process = self._process = self._spare or WorkerProcess(self._target.environment)
        except OSError as error:  # out of memory, descriptors or processes
            raise WorkerDiedError(f"no worker can be started: {error.strerror}") from None
        self._spare = None
        self._connection = await Connection.over(process.take_socket(), self.ended)
        await self._ask(process, START_SECONDS, "ready", bool)
        return process

    async def _ask(
        self,
        process: WorkerProcess,
        seconds: float,
        call: str,
        decode: Callable[[Any], T],
        **arguments: object,
    ) -> T:
        assert self._connection is not None  # noqa: S101 - for the type checker: whoever has a process has one
        self._requests += 1
        request = json.dumps({"id": self._requests, "call": call, **arguments}).encode()
        try:
            with self._weighed(process):
                answer = json.loads(await self._exchange(self._connection, process, request, seconds))
            if answer["id"] != self._requests:
                raise ValueError(f"an answer to request {answer['id']}, not to {self._requests}")
            if "error" not in answer:
                return decode(answer["result"])
            failure = _error(answer["error"])
        except TimeoutError:
            in_flight = process.in_flight()
            self._discard("hung")
            raise WorkerHungError(f"no answer within {seconds:g} s", in_flight) from None
        except (EOFError, OSError):
            how, grown = await self._bury(process), process.grown
            if grown is not None:
                raise WorkerGrownError(
                    f"the worker had {grown >> 20} MiB of memory, more than its share, and was ended",
                    process.in_flight(),
                ) from None
            raise WorkerDiedError(f"the worker ended ({how})", process.in_flight()) from None
        except NONSENSE as nonsense:
            self._discard("malformed")
            text = str(nonsense)[:_LONGEST_NONSENSE]
            raise WorkerDiedError(
                f"the worker answered malformed data: {text}", process.in_flight()
            ) from None
        except asyncio.CancelledError:
            self._discard("cancelled")  # its answer would be taken for the next one's
            raise
        self._discard("failed")  # a library that failed as a whole is opened anew
        raise failure

    @contextlib.contextmanager
    def _weighed(self, process: WorkerProcess) -> Iterator[None]:
        """End the worker when it has too much memory: looked at after a request, and during a long one. An
        answer that came before that counts; the next request is told."""
        most, loop = self._target.most_bytes, asyncio.get_running_loop()
        if most is None:
            yield
            return

        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            if not process.outgrows(most):
                timer = loop.call_later(WEIGH_SECONDS, look)

        timer = loop.call_later(WEIGH_SECONDS, look)
        try:
            yield
        finally:
            timer.cancel()
        process.outgrows(most)

    @staticmethod
    async def _exchange(
        connection: Connection, process: WorkerProcess, request: bytes, seconds: float
    ) -> bytes:
        """The worker's answer. Raises TimeoutError when its progress word stays as it is for `seconds`.

        Within a request no native call is made twice for a device, so that a call which lasts shows as the
        same word.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds) as deadline:
            seen = process.progress
            timer: asyncio.TimerHandle

            def look() -> None:
                nonlocal seen, timer
                if seen != (seen := process.progress) and not deadline.expired():
                    deadline.reschedule(loop.time() + seconds)
                timer = loop.call_later(seconds / LOOKS, look)

            timer = loop.call_later(seconds / LOOKS, look)
            try:
                return await connection.exchange(request)
            finally:
                timer.cancel()

    async def _bury(self, process: WorkerProcess) -> str:
        """How a worker whose socket closed ended; it is as good as dead already."""
        for _ in range(20):
            if (how := process.ended()) is not None:
                break
            await asyncio.sleep(0.005)
        self._discard("died" if process.grown is None else "grown")
        return how or "its socket closed"

    def _discard(self, cause: str | None) -> None:
        if self._process is not None:
            if cause is not None:
                self._restarts[cause] += 1
            if self._connection is not None:
                self._connection.close()
            self._process.kill()
            self._dying.append(self._process)
            self._process = self._connection = self._told = self._swept = None
            asyncio.get_running_loop().call_later(REAP_SECONDS, self._stuck)

    def _stuck(self) -> list[WorkerProcess]:
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
