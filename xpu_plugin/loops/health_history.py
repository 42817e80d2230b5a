# SPDX-License-Identifier: Apache-2.0
"""The history of each device's answers. Answers become verdicts; the quarantine is recorded."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from xpu_plugin.edges.kubelet.lock import Alone
from xpu_plugin.edges.state.quarantine import QuarantineRecord
from xpu_plugin.log import Message
from xpu_plugin.model.health import Health, History, Rules, begin, cleared, heard, inherited, missed
from xpu_plugin.waiting import delays


logger = logging.getLogger(__name__)

RETRY_SECONDS = (10.0, 300.0)  # between attempts to write the record: first, most


class HealthHistory:
    """Histories by device id. A device on the record is in quarantine from its first answer on.

    `run` writes the record, apart from the loop that asks the devices: a disk may hang.
    """

    def __init__(
        self, rules: Rules, record: QuarantineRecord, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rules = rules
        self._record = record
        self._clock = clock
        self._histories: dict[str, History] = {}
        self._unsettled: set[str] = set()  # ids of devices with a history that is not settled
        self._quarantine: dict[str, str] = dict(record.reasons)
        self._changed = asyncio.Event()  # the quarantine

    def hear(self, answers: Mapping[str, Health]) -> dict[str, Health]:
        """Record one answer for each device; return the resulting verdicts."""
        now = self._clock()
        return {id: self._hear(id, answer, now) for id, answer in answers.items()}

    @property
    def settled(self) -> bool:
        """Whether the same answers, at any later time, would change nothing."""
        return not self._unsettled

    def miss(self, ids: Iterable[str]) -> dict[str, Health]:
        """Record that these devices could not be asked; return the verdicts that exist."""
        known = [id for id in ids if id in self._histories]
        for id in known:
            self._write(id, missed(self._histories[id]))
        return {id: self._histories[id].health for id in known}

    def keep(self, ids: Collection[str]) -> None:
        """Forget all other devices. A quarantine stays for a device that comes back."""
        for id in self._histories.keys() - set(ids):
            del self._histories[id]
        self._unsettled &= self._histories.keys()

    def clear(self, id: str) -> dict[str, Health] | None:
        """Lift a quarantine; return the device's verdict, {} for an absent device, None without a
        quarantine."""
        if self._quarantine.pop(id, None) is None:
            return None
        self._changed.set()
        logger.info(Message("quarantine lifted by hand", id=id))
        if id not in self._histories:
            return {}
        self._write(id, cleared(self._histories[id]))
        return {id: self._histories[id].health}

    async def reread(self) -> None:
        """Take the quarantine from the record, which another plugin has written until now."""
        self._inherit(dict(await self._record.reread()))

    def _inherit(self, quarantine: dict[str, str]) -> None:
        self._quarantine = quarantine
        for id, history in self._histories.items():
            self._write(id, inherited(history, self._quarantine.get(id)))

    async def written(self) -> None:
        """Write the quarantine at once, if that is possible."""
        if not self._record.unread and self._quarantine != self._record.reasons:
            await self._record.write(dict(self._quarantine))

    async def run(self, lock: Alone) -> None:
        """Keep the record equal to the quarantine. Never returns.

        lock: allows to write the record
        """
        async with lock.work():
            pass  # nothing is read earlier
        pauses = delays(*RETRY_SECONDS)
        while self._record.unread:
            await asyncio.sleep(next(pauses))
            await self._record.reread()
            if not self._record.unread:  # a quarantine that began meanwhile stays
                self._inherit({**self._record.reasons, **self._quarantine})
        while True:
            self._changed.clear()
            async with lock.work():
                wanted = dict(self._quarantine)
                if wanted != self._record.reasons:
                    await self._record.write(wanted)
            if wanted == self._record.reasons:
                pauses = delays(*RETRY_SECONDS)
                await self._changed.wait()
            else:
                await asyncio.sleep(next(pauses))

    def _hear(self, id: str, answer: Health, now: float) -> Health:
        before = self._histories.get(id)
        if before is None:
            after = begin(answer, now, quarantine=self._quarantine.get(id))
        else:
            after = heard(before, answer, now, self._rules)
        self._write(id, after)
        if after.quarantine != self._quarantine.get(id):
            self._changed.set()
        if after.quarantine is not None:
            self._quarantine[id] = after.quarantine
        elif self._quarantine.pop(id, None) is not None:
            logger.info(Message("quarantine ended", id=id))
        return after.health

    def _write(self, id: str, history: History) -> None:
        self._histories[id] = history
        if history.settled:
            self._unsettled.discard(id)
        else:
            self._unsettled.add(id)
