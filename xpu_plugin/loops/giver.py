# SPDX-License-Identifier: Apache-2.0
"""The instance with the lock: hands the node over to an instance that asks for it."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from xpu_plugin.edges.handover import Line, LostError, Peer
from xpu_plugin.edges.state.handover import Handover
from xpu_plugin.log import Message, Once
from xpu_plugin.loops.handover import LONGEST_REASON, Means, Session
from xpu_plugin.model import handover as model
from xpu_plugin.model.handover import PROTOCOL, Do, Event, Giving, Stage
from xpu_plugin.observable import Value, until
from xpu_plugin.waiting import delays


logger = logging.getLogger(__name__)

DOOR_SECONDS = (1.0, 60.0)  # between attempts to listen: first, most
RECORD_SECONDS = 1.0  # for the disk, at the end of a hand-over


class Giver:
    """Listens while the lock is ours, and hands the node over to an instance that asks for it."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._trouble = Once()
        self._lock: int | None = None  # the descriptor that has it, once our streams are ending
        self._taker = ""
        self.given = False  # the node was handed over, and has not come back
        self.parting = Value(False)  # the lock is on its way

    async def run(self) -> None:
        """Never returns."""
        pauses = delays(*DOOR_SECONDS)
        while True:
            async with self._means.tenures.work():
                self.given = False
            try:
                await self._means.door.open()
            except OSError as error:
                if self._trouble.changed(error.strerror):
                    logger.warning(
                        Message(
                            "cannot listen for a hand-over; an update interrupts this node for a moment",
                            path=self._means.door.path,
                            error=error.strerror or "the disk does not answer",
                        )
                    )
                await asyncio.sleep(next(pauses))
                continue
            self._trouble.healed()
            pauses = delays(*DOOR_SECONDS)
            try:
                await self._receive()
            finally:
                await self._means.door.close()

    async def _receive(self) -> None:
        """Receive one caller after the other until the lock is not ours any more."""
        async with _tasks() as begin:
            over = begin(until(self._means.tenures.stage, Stage.WAITING))
            calling, session = begin(self._means.door.caller()), None
            while True:
                awaited = {calling, session or over}
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if session is not None and session.done():
                    if session.result():
                        return
                    session = None
                if session is None and over.done():
                    return
                if calling.done():
                    peer, calling = calling.result(), begin(self._means.door.caller())
                    if session is None:
                        session = begin(self._session(peer))
                    else:
                        begin(self._refuse(peer, "another hand-over is in progress"))

    async def _refuse(self, peer: Peer, why: str) -> None:
        try:
            with contextlib.suppress(LostError):
                await peer.send(Event.REFUSED, {"why": why, "serving": self._means.serving})
        finally:
            peer.close()

    async def _session(self, peer: Peer) -> bool:
        """Answer one caller; return whether the node was handed over."""
        try:
            async with asyncio.timeout(self._means.pace.end):
                line = await peer.receive()
        except (LostError, TimeoutError):
            peer.close()
            return False
        if (why := self._objection(line)) is not None:
            await self._refuse(peer, why)
            return False
        self._taker = str(line.fields.get("pod", ""))[:LONGEST_REASON]
        version = str(line.fields.get("version", ""))[:LONGEST_REASON]
        logger.info(Message("another instance asks for this node", pod=self._taker, version=version))
        session = Session(
            peer, Giving.IDLE, _give, self._act, grants=self._means.state.grants, deadlines=self._deadlines()
        )
        try:
            return await session.run(frozenset({Giving.IDLE, Giving.GIVEN}), Event.HELLO) is Giving.GIVEN
        except Exception:
            if session.phase not in (Giving.IDLE, Giving.GIVEN):
                await self._resume(anew=True)
            raise
        finally:
            self.parting.set(False)

    def _deadlines(self) -> dict[Giving, float]:
        pace = self._means.pace
        return {
            Giving.STOPPING: self._means.vf_timeout + pace.stop,
            Giving.QUIET: pace.prepare,
            Giving.HOLDING: pace.end,
            Giving.FROZEN: pace.show,  # and YIELDING, together
            Giving.ENDING: pace.end,
        }

    def _objection(self, line: Line) -> str | None:
        if line.say != Event.HELLO:
            return "the first line is no hello"
        if line.fields.get("protocol") != PROTOCOL:
            return f"protocol {PROTOCOL} is accepted"
        if not line.fields.get("able"):
            return "the caller does not know all devices yet"
        if self._means.tenures.look() is not Stage.WORKING:
            return "this instance is taking over itself"
        return None

    async def _act(self, session: Session[Giving], do: Do, _: Line | None) -> None:
        means, peer = self._means, session.peer
        match do:
            case Do.QUIETEN:
                means.tenures.stage.set(Stage.QUIET)
                session.spawn(self._stop(), Event.STOPPED)
            case Do.SAY_QUIET:
                await peer.send(Event.QUIET, {"serving": means.serving})
            case Do.FREEZE:
                means.tenures.stage.set(Stage.FROZEN)
                session.spawn(self._hold(), Event.HELD)
            case Do.SAY_FROZEN:
                given, due = means.state.grants.share()
                await peer.send(Event.FROZEN, {"grants": dict(given.paths), "due": dict(due.paths)})
                session.spawn(session.send_grants(until_ended=False))
            case Do.END:
                self.given = True
                self.parting.set(True)
                self._lock = means.tenures.lock.part_with()
                means.tenures.stage.set(Stage.WAITING)
                means.state.reconciler.leave()
                session.spawn(self._end(), Event.ENDED)
            case Do.SAY_DONE:
                if self._lock is None:
                    raise LostError("the lock was lost with its directory")
                await peer.send(Event.DONE, descriptor=self._lock)
                self._release()
                session.put(Event.SENT)
            case Do.TRY_LOCK:
                session.put(Event.LOCKED if means.tenures.lock.attempt() else Event.RIVAL)
            case Do.FORGET:
                means.state.grants.disown()
                logger.info(Message("the node is handed over; this instance waits", pod=self._taker))
            case Do.RESUME:
                await self._resume(anew=False)
            case Do.RESUME_ANEW:
                await self._resume(anew=True)
            case Do.HANG_UP:
                peer.hang_up()

    async def _stop(self) -> None:
        await self._means.tenures.idle()
        await self._means.state.written()

    async def _hold(self) -> None:
        await self._means.endpoints.held()
        await self._means.state.grants.hold()

    async def _end(self) -> None:
        means = self._means
        await means.endpoints.ended()
        await means.door.hide()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECORD_SECONDS):
                await means.record.write(Handover(means.pod, self._taker))

    async def _resume(self, *, anew: bool) -> None:
        """Work again. anew: the other instance may have registered, and may have granted devices"""
        tenures, state = self._means.tenures, self._means.state
        logger.warning(
            Message("the hand-over failed; this instance goes on", pod=self._taker, registers_anew=anew)
        )
        if self._lock is not None:
            tenures.lock.adopt(self._lock)
            self._lock = None
        self.given = False
        if not anew:
            await state.grants.keep()
            tenures.stage.set(Stage.WORKING)
            return
        tenures.stage.set(Stage.QUIET)
        tenures.anew.fire()
        await state.grants.keep()
        await state.go_on()
        tenures.stage.set(Stage.WORKING)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _give(phase: Giving, event: Event) -> tuple[Giving, tuple[Do, ...]]:
    given = model.give(phase, event)
    return given.phase, given.actions


@contextlib.asynccontextmanager
async def _tasks() -> AsyncIterator[Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]]:
    """Begin tasks that end with the context."""
    tasks: set[asyncio.Task[Any]] = set()

    def begin(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name="hand-over")
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    try:
        yield begin
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
