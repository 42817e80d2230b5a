# SPDX-License-Identifier: Apache-2.0
"""The only writer of the picture: takes facts from the loops, publishes whole inventories.

Single-threaded: everything here runs on the event loop, and nothing waits for a reader.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager

from xpu_plugin.log import Message, note
from xpu_plugin.model.inventory import Entry, Facts, Inventory, Policy, entries
from xpu_plugin.model.topology import NO_LINKS, Links
from xpu_plugin.observable import Value


logger = logging.getLogger(__name__)

NEVER = 0
"""Generation of no inventory; those published count from 1."""


class Picture:
    """Turns facts into inventories. `current` is None until the first facts are submitted."""

    def __init__(self, policy: Policy, links: Links = NO_LINKS) -> None:
        self.policy = policy
        self.facts = Facts(links=links)
        self._published: Value[Inventory | None] = Value(None)  # its version is the generation
        self.turns: Mapping[
            str, tuple[int, int]
        ] = {}  # of each offered device: changes to Healthy, to Unhealthy

    @property
    def current(self) -> Inventory | None:
        return self._published.current

    def submit(self, change: Callable[[Facts], Facts]) -> None:
        """Apply a pure change to the facts; publish unless the picture stays the same."""
        before, facts = self.facts, change(self.facts)
        if facts is before and self.current is not None:
            return  # a sweep without news, for example
        self.facts = facts
        for turn in _verdicts_changed(before, facts):
            note("verdict", **turn)
        offered, control, links = entries(self.facts, self.policy), self.facts.control, self.facts.links
        last = self.current
        if last is not None and (offered, control, links) == (last.entries, last.control, last.links):
            return
        _log_changes(last.entries if last else {}, offered, expected=before.lingering)
        self.turns = _turns(self.turns, last.entries if last else {}, offered)
        generation = self._published.version + 1
        self._published.set(Inventory(generation=generation, control=control, entries=offered, links=links))

    def amend(self, change: Callable[[Facts], Facts]) -> None:
        """Do the same with facts that mean nothing without devices: before the first scan nothing is
        published."""
        if self.current is None:
            self.facts = change(self.facts)
        else:
            self.submit(change)

    async def beyond(self, generation: int) -> Inventory:
        """Return the newest inventory as soon as its generation is not this one. Inventories between are
        skipped."""
        inventory = await self._published.beyond(generation if self.current else NEVER)
        assert inventory is not None  # noqa: S101 - none has the version NEVER alone
        return inventory

    async def changes(self) -> AsyncIterator[Inventory]:
        """Yield the inventory as soon as there is one, then newer ones. A slow reader skips some. Never
        ends."""
        generation = NEVER
        while True:
            inventory = await self.beyond(generation)
            generation = inventory.generation
            yield inventory

    def waking(self, event: asyncio.Event) -> AbstractContextManager[None]:
        """Set the event at once, and at each new inventory within this context."""
        return self._published.waking(event)


def _turns(
    turns: Mapping[str, tuple[int, int]], old: Mapping[str, Entry], new: Mapping[str, Entry]
) -> dict[str, tuple[int, int]]:
    """Count how often each device became Healthy and Unhealthy for the kubelet; forget absent devices."""
    was = {entry.device.id: entry.health.healthy for entry in old.values()}
    counted = {}
    for entry in new.values():
        id, healthy = entry.device.id, entry.health.healthy
        well, ill = turns.get(id, (0, 0))
        turned = was.get(id, healthy) != healthy
        counted[id] = (well + (turned and healthy), ill + (turned and not healthy))
    return counted


def _verdicts_changed(before: Facts, after: Facts) -> Iterator[dict[str, object]]:
    """Yield each changed verdict in plain values. A new device that is healthy is no change."""
    for id, now in after.verdicts.items():
        was = before.verdicts.get(id)
        device = after.devices.get(id) or after.lost.get(id)
        if now != was and device is not None and (was is not None or not now.healthy):
            yield {
                "id": id,
                "path": device.path,
                "index": device.index,
                "was": None if was is None else was.reason or str(was),
                "now": now.reason or str(now),
                "why": now.text,
            }


def _log_changes(
    old: Mapping[str, Entry], new: Mapping[str, Entry], *, expected: Collection[str] = ()
) -> None:
    """expected: devices of which the end is no trouble"""
    then = {entry.device.id: entry for entry in old.values()}
    now = {entry.device.id: entry for entry in new.values()}
    for id in sorted(then.keys() - now.keys()):
        logger.log(
            logging.INFO if then[id].health.in_change or id in expected else logging.WARNING,
            Message("device no longer offered", id=id),
        )
    for id, entry in now.items():
        before, device, health = then.get(id), entry.device, entry.health
        if before is None:
            logger.info(
                Message(
                    "device offered",
                    id=id,
                    model=device.model,
                    path=device.path,
                    resource=entry.resource,
                    health=health,
                    **({} if health.healthy else {"reason": health.reason, "detail": health.text}),
                )
            )
            continue
        if (before.id, before.resource) != (entry.id, entry.resource):
            logger.info(
                Message("device offered otherwise", id=id, offered_as=entry.id, resource=entry.resource)
            )
        if before.device.path != device.path:
            logger.warning(Message("device moved", id=id, former_path=before.device.path, path=device.path))
        if before.health != health and health.well and before.health.well:
            if health.healthy:
                logger.info(Message("device not withheld any more", id=id))
            else:
                level = logging.WARNING if health.held else logging.INFO
                logger.log(
                    level,
                    Message("device withheld from new pods", id=id, reason=health.reason, detail=health.text),
                )
        elif before.health != health and health.healthy:
            logger.info(Message("device healthy again", id=id))
        elif before.health != health:
            logger.warning(
                Message("device unhealthy", id=id, path=device.path, reason=health.reason, detail=health.text)
            )
