# SPDX-License-Identifier: Apache-2.0
"""The history of each device's answers. Answers become verdicts; the quarantine is recorded."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from xpu_plugin.edges.kubelet.lock import Alone
from xpu_plugin.edges.state.quarantine import QuarantineRecord
from xpu_plugin.log import Message
from xpu_plugin.loops.recorded import Recorded
from xpu_plugin.model.health import Health, History, Rules, begin, cleared, heard, inherited, missed


logger = logging.getLogger(__name__)


class HealthHistory:
    """Histories by device id. A device on the record is in quarantine from its first answer on.

    `run` writes the record, apart from the loop that asks the devices: a disk may hang.
    """

    def __init__(
        self, rules: Rules, record: QuarantineRecord, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rules = rules
        self._clock = clock
        self._histories: dict[str, History] = {}
        self._unsettled: set[str] = set()  # ids of devices with a history that is not settled
        self._quarantine = Recorded(record)

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
        if not self._isolate(id, None):
            return None
        logger.info(Message("quarantine lifted by hand", id=id))
        if id not in self._histories:
            return {}
        self._write(id, cleared(self._histories[id]))
        return {id: self._histories[id].health}

    async def reread(self) -> None:
        """Take the quarantine from the record, which another plugin has written until now."""
        self._inherit(await self._quarantine.reread())

    async def written(self) -> None:
        """Write the quarantine at once, if that is possible."""
        await self._quarantine.written()

    async def run(self, lock: Alone) -> None:
        """Keep the record equal to the quarantine. Never returns. lock: allows to write the record"""
        if (found := await self._quarantine.late(lock)) is not None:
            self._inherit({**found, **self._quarantine.current})  # a quarantine that began meanwhile stays
        await self._quarantine.keep(lock)

    def _inherit(self, quarantine: Mapping[str, str]) -> None:
        self._quarantine.set(quarantine)
        for id, history in self._histories.items():
            self._write(id, inherited(history, quarantine.get(id)))

    def _isolate(self, id: str, reason: str | None) -> bool:
        """Put a device in quarantine, or end its quarantine for None; return whether that is a change."""
        if (before := self._quarantine.current).get(id) == reason:
            return False
        others = {own: why for own, why in before.items() if own != id}
        self._quarantine.set(others if reason is None else {**others, id: reason})
        return True

    def _hear(self, id: str, answer: Health, now: float) -> Health:
        before = self._histories.get(id)
        if before is None:
            after = begin(answer, now, quarantine=self._quarantine.current.get(id))
        else:
            after = heard(before, answer, now, self._rules)
        self._write(id, after)
        if self._isolate(id, after.quarantine) and after.quarantine is None:
            logger.info(Message("quarantine ended", id=id))
        return after.health

    def _write(self, id: str, history: History) -> None:
        self._histories[id] = history
        if history.settled:
            self._unsettled.discard(id)
        else:
            self._unsettled.add(id)
