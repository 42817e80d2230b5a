# SPDX-License-Identifier: Apache-2.0
"""Wiring of what shows and tells: pages, metrics, status socket, audit, Events. No pod waits for any of it,
so it is loaded after the first list."""

import asyncio
import logging
import socket
import time
from collections.abc import Collection, Sequence
from functools import partial

from xpu_plugin.config import Config
from xpu_plugin.edges.driver import Driver
from xpu_plugin.edges.kubelet import Endpoint, InstanceLock
from xpu_plugin.edges.kubelet_view import KubeletView
from xpu_plugin.edges.service import DevicePluginService
from xpu_plugin.edges.status import StatusServer
from xpu_plugin.frozen import frozen
from xpu_plugin.log import RingHandler
from xpu_plugin.loops.apply import Apply
from xpu_plugin.loops.audit import Audit
from xpu_plugin.loops.faults import Faults
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.holders import Holders
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.metrics import CONTENT_TYPE, GATHER_SECONDS, Metrics, Parts
from xpu_plugin.loops.node import Node
from xpu_plugin.loops.picture import Picture
from xpu_plugin.loops.readings import Meters
from xpu_plugin.loops.status import Status
from xpu_plugin.loops.supervision import Run, Supervisor
from xpu_plugin.loops.sweep import Sweep
from xpu_plugin.model.events import Event
from xpu_plugin.observable import Outbox


logger = logging.getLogger(__name__)

LATEST_SECONDS = 10.0  # until metrics are shown also without a list: the first page takes the interpreter


@frozen
class Plugin:
    """What there is to show.

    listed: set once the kubelet has had a list; started: seconds of the monotonic clock
    requests, questions: listeners of --metrics-address and --status-socket, None where there is none
    """

    config: Config
    lock: InstanceLock
    driver: Driver
    probes: Driver
    changer: Driver
    picture: Picture
    sweep: Sweep
    decisions: RingHandler
    view: KubeletView
    grants: Grants
    proof: IdleProof
    holders: Holders
    apply: Apply
    node: Node | None
    events: Outbox[Event]
    services: Sequence[DevicePluginService]
    endpoints: Sequence[Endpoint]
    listed: asyncio.Event
    started: float
    supervisor: Supervisor
    requests: socket.socket | None
    questions: socket.socket | None

    def left_out(self) -> Collection[int]:
        """Indexes that the worker is not to be asked about."""
        return self.sweep.probation.skip

    def streams(self) -> int:
        """How many the kubelet has open."""
        return sum(service.streams for service in self.services)

    def displaced(self) -> list[str]:
        """A sentence for each resource name that another plugin has registered."""
        return [trouble for endpoint in self.endpoints if (trouble := endpoint.watch.trouble) is not None]

    def obstacles(self) -> list[str]:
        """Why the kubelet's socket, which is there, cannot be used."""
        found = (endpoint.obstacle for endpoint in self.endpoints)
        return sorted({str(obstacle) for obstacle in found if obstacle is not None})

    def ready(self) -> str:
        """What it is waiting for. That is no reason not to be ready: an update would stall at the first node
        without a driver."""
        lines = (
            f"library: {self.sweep.trouble or 'ok'}",
            f"kubelet: open streams: {self.streams()}",
            *(f"kubelet: {trouble}" for trouble in (*self.obstacles(), *self.displaced())),
        )
        return "\n".join(lines)


async def run(plugin: Plugin) -> None:
    """Show and tell until cancelled. Each part fails alone."""
    sweep, picture, node = plugin.sweep, plugin.picture, plugin.node
    meters = Meters(plugin.driver, picture, left_out=plugin.left_out)
    audit = Audit(
        plugin.driver,
        picture,
        plugin.view,
        plugin.grants,
        left_out=plugin.left_out,
        events=plugin.events,
        look=plugin.holders.look,
    )

    async def pages(listener: socket.socket) -> None:
        from xpu_plugin.edges.http import HttpServer, Page, plain  # noqa: PLC0415 - 2 MB not all need

        metrics = metrics_of(plugin, meters, audit)
        server = HttpServer(
            listener,
            {
                "/healthz": plain(lambda: "ok"),
                "/readyz": plain(plugin.ready),
                "/metrics": Page(
                    contents=metrics.contents, content_type=CONTENT_TYPE, seconds=GATHER_SECONDS
                ),
            },
            partial(plugin.supervisor.failed, "pages"),
        )
        try:
            await asyncio.Event().wait()
        finally:
            server.close()

    async def questions(listener: socket.socket) -> None:
        answers = status_of(plugin, meters).answers
        server = StatusServer(answers, partial(plugin.supervisor.failed, "status socket"))
        await server.start(listener)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()

    parts: dict[str, Run] = {"measurements": meters.run, "audit": audit.run}
    if plugin.requests is not None:
        parts["pages"] = partial(pages, plugin.requests)
    if plugin.questions is not None:
        parts["status socket"] = partial(questions, plugin.questions)
    if node is not None:
        parts["events"] = Faults(
            picture, plugin.view, driver_gone=lambda: sweep.driver_gone, events=plugin.events
        ).run
    async with asyncio.TaskGroup() as group:
        for part, run in parts.items():
            group.create_task(plugin.supervisor.keep(part, run), name=part)


def metrics_of(plugin: Plugin, meters: Meters, audit: Audit) -> Metrics:
    """The page of metrics."""
    return Metrics(
        Parts(
            picture=plugin.picture,
            sweep=plugin.sweep,
            drivers=(plugin.driver, plugin.probes, plugin.changer),
            grants=plugin.grants,
            apply=plugin.apply,
            services=plugin.services,
            endpoints=plugin.endpoints,
            meters=meters,
            view=plugin.view,
            audit=audit,
            api=lambda: plugin.node.api if plugin.node else None,
            node=plugin.config.node_name or "",
            supervisor=plugin.supervisor,
            ready=lambda: plugin.listed.is_set() or time.monotonic() - plugin.started > LATEST_SECONDS,
        )
    )


def status_of(plugin: Plugin, meters: Meters) -> Status:
    """What sub-commands may ask."""
    return Status(
        picture=plugin.picture,
        sweep=plugin.sweep,
        apply=plugin.apply,
        proof=plugin.proof,
        driver=plugin.driver,
        meters=meters,
        decisions=plugin.decisions,
        view=plugin.view,
        streams=plugin.streams,
        alone=lambda: not plugin.lock.rival,
        unwritten=lambda: plugin.node.unwritten if plugin.node else None,
        displaced=plugin.displaced,
        supervisor=plugin.supervisor,
        configuration=plugin.config.text(),
    )
