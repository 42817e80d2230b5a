# SPDX-License-Identifier: Apache-2.0
"""The means and the connection of a hand-over, at both sides (`giver`, `taker`)."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Generic, TypeVar

from xpu_plugin.edges.handover import Door, Line, LostError, Peer
from xpu_plugin.edges.state.handover import HandoverRecord
from xpu_plugin.frozen import frozen
from xpu_plugin.loops.driver_errors import DriverErrors
from xpu_plugin.loops.endpoints import Endpoints
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.health_history import HealthHistory
from xpu_plugin.loops.monitor import Monitor
from xpu_plugin.loops.relay import Passed
from xpu_plugin.loops.tenure import Tenures
from xpu_plugin.loops.vf_reconciler import VfReconciler
from xpu_plugin.model.handover import Do, Event, Giving, HandoverPace, Taking


GRANTED = "granted"  # the line of a grant, which either side may send
LONGEST_REASON = 200  # characters of a text from the other side

P = TypeVar("P", bound=Giving | Taking)


@frozen
class State:
    """The state of a node that passes from one instance to the next."""

    grants: Grants
    history: HealthHistory
    driver_errors: DriverErrors
    reconciler: VfReconciler
    monitor: Monitor

    async def take_over(self) -> None:
        """Read the records that another instance has written, and scan."""
        await self.grants.reread()
        await self._begin_anew()

    async def go_on(self) -> None:
        """Do the same after a hand-over that failed; no grant is forgotten."""
        await self.grants.complete()
        await self._begin_anew()

    async def _begin_anew(self) -> None:
        await self.reconciler.inherit()
        await self.history.reread()
        await self.driver_errors.reread()
        await self.monitor.scanner.rescanned()

    async def written(self) -> None:
        """Write all records."""
        await self.grants.written()
        await self.history.written()
        await self.driver_errors.written()


@frozen
class Means:
    """The parts that both sides of a hand-over use."""

    tenures: Tenures
    endpoints: Endpoints
    state: State
    record: HandoverRecord
    door: Door
    pod: str
    """The UID of our pod, or a random id of this process."""
    pace: HandoverPace
    vf_timeout: float
    """Seconds that a request to the driver may take."""

    @property
    def serving(self) -> bool:
        """Whether the kubelet has a stream of ours."""
        return any(endpoint.service.streams for endpoint in self.endpoints.all)


class Session(Generic[P]):
    """One connection with its phase, and the events that move it on."""

    def __init__(
        self,
        peer: Peer,
        phase: P,
        step: Callable[[P, Event], tuple[P, tuple[Do, ...]]],
        act: Callable[["Session[P]", Do, Line | None], Awaitable[None]],
        *,
        grants: Grants,
        deadlines: Mapping[P, float],
    ) -> None:
        self.peer = peer
        self.phase = phase
        self._step = step
        self._act = act
        self._grants = grants
        self._deadlines = deadlines
        self._deadline: float | None = None
        self._events: asyncio.Queue[tuple[str, Line | None]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self.line: Line | None = None  # the last one that was no grant

    async def run(self, ends: frozenset[P], event: Event, line: Line | None = None) -> P:
        """Begin with an event, and return the phase of the end. The connection is closed then."""
        try:
            await self._on(event, line)
            self.spawn(self._read())
            while self.phase not in ends:
                word, line = await self._next()
                if word == GRANTED:
                    await self._learn(line)
                else:
                    await self._on(Event(word), line)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self.peer.close()
        return self.phase

    def spawn(self, work: Coroutine[Any, Any, Event | None], event: Event | None = None) -> None:
        """Do work beside. Its result is an event; or its end is the given one."""

        async def done() -> None:
            try:
                happened = await work or event
            except Exception as error:  # noqa: BLE001 - raised where the events are awaited
                self._failure = error
                self.put(Event.LOST)
            else:
                if happened is not None:
                    self.put(happened)

        task = asyncio.create_task(done(), name="hand-over")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def put(self, event: Event) -> None:
        """Let an event happen."""
        self._events.put_nowait((event, None))

    async def send_grants(self, *, until_ended: bool) -> None:
        """Send each grant that the relay takes. A failed connection holds no grant up.

        until_ended: send none to a side that sends no more; the grant then waits for the end of the relay
        """
        relay = self._grants.relay
        while True:
            passed = await relay.get()
            with contextlib.suppress(LostError):
                await self.peer.send(GRANTED, {"grants": dict(passed.paths), "started": passed.started})
            if until_ended and self.peer.ended:
                return
            relay.passed()

    async def _on(self, event: Event, line: Line | None) -> None:
        before, self.line = self.phase, line or self.line
        self.phase, actions = self._step(self.phase, event)
        if self.phase is not before and self.phase in self._deadlines:
            self._deadline = time.monotonic() + self._deadlines[self.phase]
        elif self.phase is not before and self.phase is not Giving.YIELDING:
            self._deadline = None
        for do in actions:
            try:
                await self._act(self, do, line)
            except LostError:
                self.peer.shut()  # the reader comes to the end, after the lines of before
                return

    async def _next(self) -> tuple[str, Line | None]:
        if self._failure is not None:
            raise self._failure
        try:
            async with asyncio.timeout_at(self._at_loop()):
                return await self._events.get()
        except TimeoutError:
            self._deadline = None
            return Event.LATE, None

    def _at_loop(self) -> float | None:
        if self._deadline is None:
            return None
        return asyncio.get_running_loop().time() + max(0.0, self._deadline - time.monotonic())

    async def _read(self) -> None:
        while True:
            try:
                line = await self.peer.receive()
            except LostError:
                self.put(Event.LOST)
                return
            known = line.say in _LINES
            if line.descriptor is not None and line.say != Event.DONE:
                os.close(line.descriptor)
            self._events.put_nowait((line.say, line) if known else (Event.LOST, None))

    async def _learn(self, line: Line | None) -> None:
        if line is not None and (passed := grants_in(line.fields)) is not None:
            await self._grants.learn(passed)


_LINES = frozenset(
    {
        GRANTED,
        *(Event.HELLO, Event.READY, Event.REGISTERING, Event.STREAMING),
        *(Event.REFUSED, Event.QUIET, Event.FROZEN, Event.DONE),
    }
)


def grants_in(fields: Mapping[str, Any]) -> Passed | None:
    """Return the grants of a line; None for a malformed line."""
    grants = fields.get("grants")
    if not isinstance(grants, dict) or not all(isinstance(path, str) for path in grants.values()):
        return None
    return Passed(grants, started=bool(fields.get("started")))
