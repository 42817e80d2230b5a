# SPDX-License-Identifier: Apache-2.0
"""Tenures: the times in which this plugin alone may work on the node."""

import asyncio
from collections.abc import AsyncIterator

from xpu_plugin.edges.kubelet.lock import InstanceLock


class Tenures:
    """Lets parts work once the lock is ours and the state of the previous plugin is taken over."""

    def __init__(self, lock: InstanceLock) -> None:
        self._lock = lock
        self._wanted = asyncio.Event()
        self._begun = asyncio.Event()
        if lock.held():
            self._begun.set()  # no record was read before that, so there is nothing to take over

    @property
    def held(self) -> bool:
        return self._lock.held()

    @property
    def rival(self) -> bool:
        """Whether another plugin had the lock at the last attempt."""
        return self._lock.rival

    async def acquire(self) -> None:
        """Wait until a tenure of ours has begun."""
        while not (self._begun.is_set() and self._lock.held()):
            self._begun.clear()
            self._wanted.set()
            await self._begun.wait()

    async def begin(self) -> AsyncIterator[None]:
        """Yield each time that the lock was taken after a wait. The tenure begins with the request for the
        next.

        `acquire` takes the lock, and nothing takes it earlier. For one reader.
        """
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if not (self._begun.is_set() and self._lock.held()):
                await self._lock.acquire()
                yield
                self._begun.set()
