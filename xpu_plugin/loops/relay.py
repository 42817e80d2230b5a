# SPDX-License-Identifier: Apache-2.0
"""Grants on their way to another instance, which knows each before the kubelet has the answer."""

import asyncio
from collections import deque
from collections.abc import Mapping

from xpu_plugin.frozen import frozen
from xpu_plugin.waiting import wait_for


PASS_SECONDS = 3.0  # for a line to reach the kernel, or for the lock of an instance that is ending


@frozen(kw_only=False)
class Passed:
    """Devices of one answer, id -> path. started: of a container that starts"""

    paths: Mapping[str, str]
    started: bool


class Relay:
    """A queue of grants while a hand-over is in progress. At other times it takes nothing.

    `Grants` fills it, and the hand-over empties it.
    """

    def __init__(self) -> None:
        self.open = False
        self._cut = False
        self._waiting: deque[Passed] = deque()
        self._put = 0
        self._passed = 0
        self._filled = asyncio.Event()
        self._moved = asyncio.Event()

    def begin(self) -> None:
        """Take grants from now on."""
        self.open, self._cut = True, False

    def end(self, *, refuse: bool = False) -> None:
        """Take no more grants; no caller waits any more.

        refuse: the other instance serves, and ours grants nothing any more
        """
        self.open, self._cut = False, refuse
        self._waiting.clear()
        self._passed = self._put
        self._moved.set()

    def put(self, passed: Passed) -> None:
        if self.open:
            self._waiting.append(passed)
            self._put += 1
            self._filled.set()

    async def get(self) -> Passed:
        """Return the oldest grant, as soon as there is one. `passed` has to follow."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        return self._waiting.popleft()

    def passed(self) -> None:
        """One more grant is with the other instance."""
        self._passed += 1
        self._moved.set()

    async def settled(self) -> bool:
        """Wait until all grants up to now are with the other instance, for a bounded time.

        Return whether we may grant.
        """
        goal = self._put
        while self._passed < goal:
            self._moved.clear()
            if not await wait_for(self._moved, PASS_SECONDS):
                break
        return not self._cut
