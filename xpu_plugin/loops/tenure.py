# SPDX-License-Identifier: Apache-2.0
"""Tenures: the times in which this plugin alone may work on the node."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from xpu_plugin.edges.kubelet.lock import InstanceLock
from xpu_plugin.model.handover import Stage
from xpu_plugin.observable import Signal, Value, until


class Tenures:
    """Lets parts serve and work once the lock is ours and the state of the previous plugin is taken over.

    A hand-over passes through the stages between, so that one instance serves at any time (`giver`, `taker`).

    stage: the present rights; each endpoint follows it
    anew: fires when all resources have to be registered anew
    """

    def __init__(self, lock: InstanceLock) -> None:
        self.lock = lock
        self._wanted = asyncio.Event()
        self._works = Value(0)
        self.anew = Signal()
        # With the lock no record was read before, so there is nothing to take over.
        self.stage = Value(Stage.WORKING if lock.held() else Stage.WAITING)

    @property
    def held(self) -> bool:
        return self.lock.held()

    @property
    def rival(self) -> bool:
        """Whether another plugin had the lock at the last attempt."""
        return self.lock.rival

    @property
    def aside(self) -> bool:
        """Whether another instance works on the node, and this one has no part in it."""
        return self.stage.current is Stage.WAITING and self.rival

    async def acquire(self) -> None:
        """Wait until we may register."""
        while True:
            version = self.stage.version
            if self.look() >= Stage.QUIET:
                return
            self._wanted.set()
            await self.stage.beyond(version)

    @asynccontextmanager
    async def work(self) -> AsyncIterator[None]:
        """Wait until a tenure of ours has begun. It does not end within this context, except with the
        lock."""
        while True:
            version = self.stage.version
            if self.look() is Stage.WORKING:
                break
            self._wanted.set()
            await self.stage.beyond(version)
        self._works.set(self._works.current + 1)
        try:
            yield
        finally:
            self._works.set(self._works.current - 1)

    def look(self) -> Stage:
        """Return the present stage. With its directory the lock is gone, too."""
        if self.stage.current is Stage.WORKING and not self.lock.held():
            self.stage.set(Stage.WAITING)
            self._wanted.set()
        return self.stage.current

    async def idle(self) -> None:
        """Wait for the end of all work in progress."""
        await until(self._works, 0)

    async def begin(self, wait: Callable[[], Awaitable[None]] | None = None) -> AsyncIterator[None]:
        """Yield each time that the lock was taken after a wait. The tenure begins with the request for the
        next.

        `acquire` and `work` take the lock, and nothing takes it earlier. For one reader.

        wait: waits until the next attempt; it may begin a tenure itself
        """
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self.look() is Stage.WAITING and not self.lock.attempt():
                await (wait or self.lock.pause)()
            if self.look() is Stage.WAITING:
                yield
                self.stage.set(Stage.WORKING)
