# SPDX-License-Identifier: Apache-2.0
"""The devices that are sick by the kernel's log: their cases, the picture's part of them, and the record."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from xpu_plugin.edges.kubelet.lock import Alone
from xpu_plugin.edges.state.driver_errors import DriverErrorRecord
from xpu_plugin.log import Message, note
from xpu_plugin.loops.picture import Picture
from xpu_plugin.loops.recorded import Recorded
from xpu_plugin.model.devices import Device
from xpu_plugin.model.health import Health
from xpu_plugin.model.incidents import Case, Ending, Memory, Sickness, ended, merged
from xpu_plugin.observable import Value


logger = logging.getLogger(__name__)


class DriverErrors:
    """The memory of incidents, by its own methods only. A device on the record is sick from the start on.

    acts: a sick device is Unhealthy; else it is only reported

    sick: the sick devices; they may be read and awaited
    incidents: number of incidents by card and reason
    """

    def __init__(
        self,
        picture: Picture,
        record: DriverErrorRecord,
        *,
        acts: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._picture = picture
        self._acts = acts
        self._clock = clock
        self._memory = Recorded(record)
        self.sick: Value[Mapping[str, Sickness]] = Value({})
        self.incidents: Counter[tuple[str, str]] = Counter()
        self._show()

    @property
    def number(self) -> int:
        """The last record of the log that was taken in, by this process or a former one."""
        return self._memory.current.number

    @property
    def incidents_by_card(self) -> dict[str, int]:
        """Number of incidents of each card that had one."""
        numbers: Counter[str] = Counter()
        for (card, _), number in self.incidents.items():
            numbers[card] += number
        return dict(numbers)

    def case(self, id: str) -> Case:
        return self._memory.current.cases.get(id, Case())

    def is_sick(self, device: Device) -> bool:
        """Return whether there is a verdict on a device, or on its card from before it was split."""
        return device.id in self.sick.current or device.card in self.sick.current

    def become(self, id: str, case: Case, number: int = 0) -> None:
        """Take in the new case of a device, and the record of the log that has led to it."""
        if case == self.case(id):
            return
        before = self.case(id).sickness
        cases = {**self._memory.current.cases, id: case}
        self._take(Memory(cases=cases, number=max(self._memory.current.number, number)))
        if case.sickness is not None and before is None:
            logger.warning(
                Message(
                    "a device is sick by the kernel's log",
                    id=id,
                    line=case.sickness.line,
                    why=case.sickness.why,
                    withheld=self._acts,
                )
            )
            note("driver error", id=id, line=case.sickness.line, why=case.sickness.why)

    def clear(self, id: str) -> bool:
        """End the verdict on a device by hand, or that on its whole card; return whether there was one."""
        devices = {**self._picture.facts.lost, **self._picture.facts.devices}
        card = devices[id].card if id in devices else id
        had = [self.end(own, Ending.CLEARED) for own in dict.fromkeys((id, card)) if self.case(own).counts]
        return any(had)

    def end(self, id: str, ending: Ending, *, at: float | None = None, number: int = 0) -> bool:
        """End the verdict on a device; return whether there was one. Its count of incidents starts anew.

        at: time of the end, or now; number: the record of the log that shows it
        """
        was = self.case(id).sickness
        self.become(id, ended(self.case(id), self._clock() if at is None else at), number)
        if was is None or self.case(id).sickness is not None:
            return False
        logger.info(Message("a driver error has ended", id=id, how=ending))
        note("driver error ended", id=id, how=str(ending))
        return True

    def took(self, number: int) -> None:
        """Take note of a record of the log that was reported."""
        if number > self._memory.current.number:
            self._take(replace(self._memory.current, number=number))

    async def reread(self) -> None:
        """Add the record, which another plugin has written until now."""
        self._take(merged(self._memory.current, await self._memory.reread()))

    async def written(self) -> None:
        """Write the record at once, if that is possible."""
        await self._memory.written()

    async def run(self, lock: Alone) -> None:
        """Keep the record equal to the memory. Never returns. lock: allows to write the record"""
        if (found := await self._memory.late(lock)) is not None:
            self._take(merged(self._memory.current, found))
        await self._memory.keep(lock)

    def _take(self, memory: Memory) -> None:
        self._memory.set(memory)
        self._show()

    def _show(self) -> None:
        self.sick.set(self._memory.current.sick)
        shown: Mapping[str, Health] = {id: own.health for id, own in self.sick.current.items()}
        if self._acts and shown != self._picture.facts.driver_errors:
            self._picture.amend(lambda facts: replace(facts, driver_errors=shown))
