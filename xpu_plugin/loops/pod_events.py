# SPDX-License-Identifier: Apache-2.0
"""Events on pods that hold a device which becomes unhealthy or recovers: soon, and never many."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from xpu_plugin.model.device_events import DeviceReason
from xpu_plugin.model.ownership import Listing
from xpu_plugin.model.pod_events import pod_events, pods
from xpu_plugin.waiting import Cooldown, wait_for


if TYPE_CHECKING:
    from xpu_plugin.plugin import Plugin

TOGETHER_SECONDS = 0.2  # for changes of one time to share one Event
PAUSE_SECONDS = (10.0, 600.0)  # between two reports on one pod: first, most
QUIET_SECONDS = 1200.0  # without a report on a pod, until its pauses begin anew
AGAIN_SECONDS = 2.0  # before the next look, where the kubelet does not answer or there are too many Events
MOST_AT_ONCE = 64  # Events; as many may wait to be sent
_SHARE = 16  # of them between two turns of the event loop, which takes them on

Pod = tuple[str, str]
"""Namespace and name."""


class PodEvents:
    """Compares the health of each pod's devices with the last report on that pod, after each change."""

    def __init__(self, plugin: "Plugin", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._picture = plugin.picture
        self._view = plugin.view
        self._events = plugin.exchange.events
        self._tenures = plugin.tenures
        self._own_pod = plugin.config.own_pod
        self._clock = clock
        self._wake = asyncio.Event()
        self._told: dict[Pod, Mapping[str, DeviceReason]] = {}
        self._pauses: Cooldown[Pod] = Cooldown(*PAUSE_SECONDS, clock=clock)
        self._looked: Mapping[str, str | None] = {}  # the devices that were not well at the last look

    async def run(self) -> None:
        """Never returns."""
        with self._picture.waking(self._wake):
            due: float | None = None  # time of the next look, if something is to be reported later
            while True:
                if due is None:
                    await self._wake.wait()
                else:
                    await wait_for(self._wake, max(due - self._clock(), 0.0))
                self._wake.clear()
                if self._sick() != self._looked or (due is not None and self._clock() >= due):
                    await asyncio.sleep(TOGETHER_SECONDS)
                    due = await self._report()

    def _sick(self) -> dict[str, str | None]:
        entries = self._picture.current.entries.values() if self._picture.current else ()
        return {entry.device.id: entry.health.reason for entry in entries if not entry.health.well}

    async def _report(self) -> float | None:
        """Report what is new; return the time of the next look, None if all is reported."""
        listed = await self._view.listing(oldest=0.0)
        written = await self._view.checkpoint(oldest=0.0)
        now, picture = self._clock(), self._picture
        if listed.listing is None or picture.current is None or not self._whole(listed.listing):
            return now + AGAIN_SECONDS
        self._looked = self._sick()
        entries = {entry.device.id: entry for entry in picture.current.entries.values()}
        recorded = written.checkpoint.holdings if written.checkpoint else ()
        held = pods(listed.listing.holdings, recorded, picture.facts, picture.policy)
        self._pauses.forget_all_but({(pod.namespace, pod.name) for pod in held})
        told: dict[Pod, Mapping[str, DeviceReason]] = {}
        later: list[float] = []
        sent = 0
        for pod, ids in held.items():
            key = (pod.namespace, pod.name)
            before = self._told.get(key, {})
            own = [entries[id] for id in sorted(ids & entries.keys())]
            sick, events = pod_events(pod, before, own)
            if self._tenures.aside:
                events = ()  # the other instance reports it
            if events and (key in self._pauses or sent + len(events) > MOST_AT_ONCE):
                later.append(max(self._pauses.until(key), now + (AGAIN_SECONDS if sent else 0.0)))
                sick = dict(before)
            elif events:
                self._pause(key, now)
                for event in events:
                    self._events.put(event)
                    sent += 1
                    if sent % _SHARE == 0:
                        await asyncio.sleep(0)
            if sick:
                told[key] = sick
        self._told = told
        return min(later, default=None)

    def _whole(self, listing: Listing) -> bool:
        """Return whether the list names our own pod: a kubelet that has just started may list no pod."""
        return self._own_pod is None or self._own_pod in listing.pods

    def _pause(self, key: Pod, now: float) -> None:
        """Leave a pod alone for a while, longer each time."""
        if now - self._pauses.until(key) > QUIET_SECONDS:
            self._pauses.forget(key)
        self._pauses.begin(key)
