# SPDX-License-Identifier: Apache-2.0
"""A value that a record in --state-dir is kept equal to."""

import asyncio
from typing import TypeVar

from xpu_plugin.edges.kubelet.lock import Alone
from xpu_plugin.edges.state.record import Record
from xpu_plugin.observable import Value
from xpu_plugin.waiting import delays


RETRY_SECONDS = (10.0, 300.0)  # between attempts to read or write the record: first, most

T = TypeVar("T")


class Recorded(Value[T]):
    """The value on record, and each later one. `keep` writes it apart from its writer: a disk may hang."""

    def __init__(self, record: Record[T]) -> None:
        super().__init__(record.content)
        self._record = record

    async def reread(self) -> T:
        """Return the record as another plugin has written it; the former one if it cannot be read."""
        await self._record.read()
        return self._record.content

    async def late(self, lock: Alone) -> T | None:
        """Return the record once it can be read and is ours; None if it was read before."""
        async with lock.work():
            pass  # nothing is read earlier
        if not self._record.unread:
            return None
        for pause in delays(*RETRY_SECONDS):
            await asyncio.sleep(pause)
            if await self._record.read():
                break
        return self._record.content

    async def written(self) -> None:
        """Write the value at once, if that is possible."""
        if not self._record.unread and self.current != self._record.content:
            await self._record.write(self.current)

    async def keep(self, lock: Alone) -> None:
        """Keep the record equal to the value. Never returns. lock: allows to write the record"""
        pauses = delays(*RETRY_SECONDS)
        while True:
            async with lock.work():
                version, wanted = self.version, self.current
                await self.written()
            if wanted == self._record.content:
                pauses = delays(*RETRY_SECONDS)
                await self.beyond(version)
            else:
                await asyncio.sleep(next(pauses))
