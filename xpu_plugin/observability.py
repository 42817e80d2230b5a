# SPDX-License-Identifier: Apache-2.0
"""The observers: pages, metrics, status socket, audit, Events.

They are loaded after the first list, as no pod waits for them."""

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING

from xpu_plugin.edges.control_socket import ControlServer
from xpu_plugin.loops.audit import Audit
from xpu_plugin.loops.control import Control
from xpu_plugin.loops.device_events import DeviceEvents
from xpu_plugin.loops.metrics import CONTENT_TYPE, GATHER_SECONDS, Metrics
from xpu_plugin.loops.pod_events import PodEvents
from xpu_plugin.loops.supervision import PartOf, Run
from xpu_plugin.loops.telemetry import Telemetry


if TYPE_CHECKING:
    from xpu_plugin.plugin import Plugin


async def run(
    plugin: "Plugin", *, requests: socket.socket | None = None, questions: socket.socket | None = None
) -> None:
    """Run all observers until cancelled. Each part fails alone.

    requests, questions: listeners of --metrics-address and --status-socket
    """
    meters, audit = Telemetry(plugin), Audit(plugin)
    parts: dict[str, Run] = {"measurements": meters.run, "audit": audit.run}
    if requests is not None:
        parts["pages"] = partial(_pages, plugin, requests, meters, audit)
    if questions is not None:
        parts["status socket"] = partial(_questions, plugin, questions, meters)
    if plugin.node_sync is not None:
        parts["events"] = DeviceEvents(plugin).run
        if plugin.config.pod_events:
            parts["pod events"] = PodEvents(plugin).run
    async with asyncio.TaskGroup() as group:
        for part, run in parts.items():
            group.create_task(plugin.supervisor.keep(part, run), name=part)


async def _pages(plugin: "Plugin", listener: socket.socket, meters: Telemetry, audit: Audit) -> None:
    from xpu_plugin.edges.http import HttpServer, Page, plain  # noqa: PLC0415 - 2 MB not all need

    metrics = Metrics(plugin, meters, audit)
    server = HttpServer(
        listener,
        {
            "/healthz": plain(lambda: "ok"),
            "/readyz": plain(partial(_ready, plugin)),
            "/metrics": Page(contents=metrics.contents, content_type=CONTENT_TYPE, seconds=GATHER_SECONDS),
        },
        PartOf(plugin.supervisor, "pages"),
    )
    try:
        await asyncio.Event().wait()
    finally:
        server.close()


async def _questions(plugin: "Plugin", listener: socket.socket, meters: Telemetry) -> None:
    server = ControlServer(Control(plugin, meters).answers, PartOf(plugin.supervisor, "status socket"))
    await server.start(listener)
    try:
        await asyncio.Event().wait()
    finally:
        server.close()


def _ready(plugin: "Plugin") -> str:
    """Return the state for `/readyz`. Raises UnreadyError while another instance serves that can hand over.

    A missing driver does not make the pod unready: an update would stall at the first node without a driver.
    """
    from xpu_plugin.edges.http import UnreadyError  # noqa: PLC0415 - as above

    waits = plugin.taker.waits
    lines = (
        f"library: {plugin.monitor.trouble or 'ok'}",
        f"kubelet: open streams: {plugin.streams}",
        *(f"kubelet: {trouble}" for trouble in (*plugin.obstacles, *plugin.displaced)),
    )
    text = "\n".join((*lines, *(() if waits is None else (f"node: {waits}",))))
    if waits is not None:
        raise UnreadyError(text)
    return text
