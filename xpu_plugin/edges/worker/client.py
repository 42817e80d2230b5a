# SPDX-License-Identifier: Apache-2.0
"""The client of the worker: starts it, asks it with a deadline, replaces it.

The caller gets an answer or one error within the deadline. A worker that hangs, dies or answers nonsense is
killed and never waited for: a process that is stuck in the driver cannot die. The progress word then names
the call and the device.
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
from xpu_plugin.log import Message
from xpu_plugin.model.devices import CONTROL_NODE, Gauges, Host, Process, Scan, Usage
from xpu_plugin.observable import Signal
from xpu_plugin.xpuml import Call, StateAnswer, WrongDeviceError, error


logger = logging.getLogger(__name__)

MOST_STUCK = 8  # killed workers that still exist; 9 MB each
LOOKS = 8  # between looks at the progress word; a deadline may end that much later
REAP_SECONDS = 0.1  # between a kill and the check that the process is gone
START_SECONDS = 30.0  # for a fresh interpreter on a loaded machine, without the library's calls
WEIGH_SECONDS = 0.1  # between looks at the memory of a worker that takes long to answer
_LONGEST_NONSENSE = 200  # quoted characters of a text
CAUSES = ("rescan", "hung", "died", "malformed", "failed", "cancelled", "grown")
"""Why a worker is replaced: a scan needs a fresh one; it missed a deadline, ended, or answered malformed
data; the library failed as a whole; the caller was cancelled; it took too much memory."""

T = TypeVar("T")


class WorkerError(PluginError):
    """The worker could not answer. It has been killed, and the next request starts a fresh one.

    call: the native call in flight, if any
    """

    def __init__(self, text: str, call: Call | None = None) -> None:
        super().__init__(f"{text} in {call}" if call else text)
        self.call = call


class WorkerHungError(WorkerError):
    """No answer before the deadline."""


class WorkerDiedError(WorkerError):
    """The process ended, or did not send an answer."""


class WorkerGrownError(WorkerError):
    """The worker exceeded its memory. It was killed before the kernel would kill the whole container."""


class TooManyStuckError(WorkerError):
    """No fresh worker is started while so many killed ones still exist."""


class BusyError(WorkerError):
    """The worker was not asked, as only states may be asked now."""


class LibraryError(PluginError):
    """No usable libxpuml. The text names the paths that were tried, each with its error."""


@frozen
class Target:
    """The files and directories of a worker.

    libraries: paths; the first usable one is opened
    environment: added to the worker's own
    host_root: directory below which links are followed as on the host
    most_bytes: memory limit of the worker; None for no limit
    """

    libraries: tuple[str, ...]
    host_root: Path | None = None
    most_bytes: int | None = None
    dev_root: Path
    sysfs_root: Path
    simulated: bool = False
    environment: Mapping[str, str]


class WorkerClient:
    """Asks the worker, one request at a time; starts it if there is none.

    call_timeout: seconds without progress after which a request fails. Each native call has this time, so a
        round of many slow calls may take longer.
    spare: a worker that was started already, for the first scan
    most_stuck: number of killed workers that still exist at which no further one is started
    ended: fired when the worker of the last scan ends while no request is in progress
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
        """Scan with a fresh worker, as the library lists devices correctly only once in a process.

        skip: indexes not to touch
        only: the one index to touch
        seconds: limit without progress, in place of `call_timeout`

        Return None if device nodes came or went meanwhile. Raises WorkerError, LibraryError, XpumlError.
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
        """Ask the worker of the last scan for all states, by index; None for skipped indexes.

        Equal answers return the same list object, so that a caller sees at once that nothing has changed.

        Raises WorkerError, also if that worker has ended: its indexes are valid for no other.
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
        """Return the present facts of the host, to compare with those of the last scan: the same object while
        they are equal. Raises WorkerError."""
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
        """Return the identity of the library's present file, "" for none; None while it is the file that the
        worker has open, or if that is unknown. Raises WorkerError."""
        async with self._turn():
            return await self._ask(self._scanned(), self.call_timeout, "replaced", mark_of)

    async def trial(self) -> Mapping[str, str]:
        """Open the library with another fresh worker, and end that one. Return path and version of the
        library. The worker of the last scan goes on.

        Raises WorkerError, LibraryError, XpumlError.
        """
        other = WorkerClient(self._target, call_timeout=self.call_timeout)
        try:
            await other._start()
        finally:
            await other.close()
        return other._opened

    async def usage(self, indexes: Collection[int], card: str) -> Usage:
        """Return the users of a card, as far as library and sysfs know them.

        indexes: of the card and its VFs in the last scan; no other device is touched
        card: its PCI address

        Ask the worker of the last scan. Raises WorkerError, also if that worker has ended; WrongDeviceError
        for an unknown index; XpumlError; LibraryError if sysfs cannot be read.
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
        """Ask the worker of the last scan for the measurements of each device but the skipped ones.

        Raises WorkerError, also if that worker has ended.
        """
        async with self._turn():
            return await self._ask(self._scanned(), self.call_timeout, "gauges", gauges_of, skip=sorted(skip))

    async def processes(self, skip: Collection[int] = ()) -> Mapping[str, tuple[Process, ...] | None]:
        """Ask the worker of the last scan for the processes at each PCI address, as in `Usage`.

        Raises WorkerError, also if that worker has ended.
        """
        async with self._turn():
            return await self._ask(
                self._scanned(), self.call_timeout, "processes", processes_of, skip=sorted(skip)
            )

    async def set_sriov_vf_num(self, index: int, number: int, pci: str, *, seconds: float) -> None:
        """Set the number of VFs of the card at an index of the last scan; 0 removes them.

        pci: the card's address
        seconds: time limit of each native call of this request

        WrongDeviceError (the index is another device, or none), ValueError (more VFs than the device can
        have, or no valid number) and "there is no worker that has scanned" mean that nothing has changed.
        After XpumlError (the driver refuses: a process uses the card, or the board cannot) and any other
        WorkerError the number of VFs is unknown until a scan. A scan is due after success, too: the indexes
        of VFs are no longer valid, while the index of the card is.
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
        """Return whether the node xpuN can be opened, tried by a fresh worker that opens nothing else.

        The worker of the last scan ends. Raises WorkerError.
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
        """Kill the worker, and wait a moment for its end."""
        self._process = self._process or self._spare
        self._discard(None)
        for _ in range(20):
            if not self._stuck():
                return
            await asyncio.sleep(0.01)
        logger.warning(Message("a worker is stuck in the driver and stays behind", pid=self._dying[0].pid))

    @contextlib.asynccontextmanager
    async def states_only(self) -> AsyncIterator[None]:
        """Allow only `sweep` within this context; any other request raises BusyError at once.

        It begins after the answer to the request in progress. A listing or a scan opens all nodes, and makes
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
        """Whether only states may be asked now."""
        return self._states_only

    @property
    def stuck(self) -> bool:
        """Whether a killed worker still exists: the driver holds it."""
        return bool(self._stuck())

    @property
    def restarts(self) -> Mapping[str, int]:
        """Number of replaced workers, by each of CAUSES."""
        return dict(self._restarts)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def control_denied(self) -> bool:
        """Whether the driver's control node exists and the kernel refuses to open it."""
        node = os.fspath(self._target.dev_root / CONTROL_NODE)
        return os.path.exists(node) and not os.access(node, os.R_OK | os.W_OK)  # noqa: PTH110 - never raises

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Hold the turn of one request that is no sweep."""
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
        """Return the worker of the last scan: its indexes are valid for no other."""
        if self._process is None:
            raise WorkerDiedError("there is no worker that has scanned")
        return self._process

    async def _start(self) -> WorkerProcess:
        """Start a worker that has opened the library."""
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
        assert self._connection is not None  # noqa: S101 - for the type checker: a process has one
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
            self._discard("cancelled")  # its late answer would count for the next request
            raise
        self._discard("failed")  # a library that failed as a whole is opened again
        raise failure

    @contextlib.contextmanager
    def _weighed(self, process: WorkerProcess) -> Iterator[None]:
        """End the worker if it has too much memory, checked after a request and during a long one. An earlier
        answer counts; the next request fails."""
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
        """Return the worker's answer. Raises TimeoutError if its progress word does not change for `seconds`.

        A request makes no native call twice for a device. So a call that lasts shows as an unchanged word.
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
        """Return how a worker ended after its socket closed."""
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
