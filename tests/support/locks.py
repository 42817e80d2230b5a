# SPDX-License-Identifier: Apache-2.0
"""Locks as a test wants them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


async def _at_once() -> None:
    await asyncio.sleep(0)


class Lock:
    """No other plugin may work as soon as `acquire` returns."""

    def __init__(self, acquire: Callable[[], Awaitable[None]] = _at_once) -> None:
        self._acquire = acquire

    @asynccontextmanager
    async def work(self) -> AsyncIterator[None]:
        await self._acquire()
        yield
