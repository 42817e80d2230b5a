# SPDX-License-Identifier: Apache-2.0
"""The metrics page: the state of the parts at the moment of a scrape, in the format of Prometheus.

The event loop gathers plain values, and the thread of the request formats them. Nothing is counted here:
counters are values of the parts. A device that has left has no series.
"""

import asyncio
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from xpu_plugin import log
from xpu_plugin.edges.kubelet.service import CODES, METHODS
from xpu_plugin.edges.worker.client import CAUSES
from xpu_plugin.loops.audit import Audit
from xpu_plugin.loops.supervision import Supervisor
from xpu_plugin.loops.telemetry import Readings, Telemetry
from xpu_plugin.model.device_table import holders
from xpu_plugin.model.devices import Device
from xpu_plugin.model.histogram import Durations
from xpu_plugin.model.metric_families import FAMILIES
from xpu_plugin.model.ownership import Listing
from xpu_plugin.model.probe import ProbeResult
from xpu_plugin.model.vf_plan import VfAction, VfState, described


if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from xpu_plugin.edges.apiserver.node_watcher import NodeWatcher
    from xpu_plugin.plugin import Plugin

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GATHER_SECONDS = 8.0  # the default timeout of Prometheus is 10


Value = float | Durations
Samples = dict[str, dict[tuple[str, ...], Value]]
"""Family -> the values of its labels, in order -> value."""


class Metrics:
    """The content of `/metrics`."""

    def __init__(
        self,
        plugin: "Plugin",
        meters: Telemetry,
        audit: Audit,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plugin = plugin
        self._meters = meters
        self._audit = audit
        self._clock = clock

    async def contents(self) -> Callable[[], str] | None:
        """Gather the present samples, which any thread can format; None before the parts are ready."""
        plugin, listed_for = self._plugin, self._clock() - self._plugin.started
        if not plugin.listed.is_set() and listed_for <= plugin.timings.metrics:
            return None
        samples: Samples = {family.name: {} for family in FAMILIES}
        readings, listed = await asyncio.gather(self._meters.read(), plugin.view.listing())
        # No await from here on: all samples are of one moment.
        _devices(samples, plugin)
        if readings is not None:
            samples["xpu_plugin_readings_age_seconds"][()] = self._clock() - readings.at
            _readings(samples, plugin, readings)
        _impossible(samples, plugin, self._meters)
        _holders(samples, plugin, listed.listing)
        _audit(samples, self._audit)
        _kubelet(samples, plugin)
        _library(samples, plugin)
        _kernel_log(samples, plugin)
        if plugin.probes is not None:
            for result in ProbeResult:
                samples["xpu_probe_runs_total"][(result,)] = plugin.probes.results[result]
        _virtual_functions(samples, plugin)
        if plugin.node_sync is not None and (api := plugin.node_sync.api) is not None:
            _api(samples, api)
        _plugin(samples, plugin.supervisor)
        return partial(text, samples, plugin.config.node_name or "")


# --- what there is --------------------------------------------------------------------------------


def _named(device: Device) -> tuple[str, ...]:
    return (device.id, device.card, device.model, device.path)


def _devices(samples: Samples, plugin: "Plugin") -> None:
    entries = plugin.picture.current.entries.values() if plugin.picture.current else ()
    kinds: Counter[tuple[str, ...]] = Counter()
    for entry in entries:
        device, health = entry.device, entry.health
        own, numa = _named(device), "" if device.numa is None else str(device.numa)
        kinds[device.model, device.kind, str(health), health.reason or ""] += 1
        samples["xpu_device_info"][*own, device.kind, entry.resource, numa, device.serial] = 1
        samples["xpu_device_healthy"][own] = health.healthy
        if not health.healthy:
            samples["xpu_device_unhealthy"][*own, health.reason or ""] = 1
        well, ill = plugin.picture.turns.get(device.id, (0, 0))
        samples["xpu_device_transitions_total"][*own, "Healthy"] = well
        samples["xpu_device_transitions_total"][*own, "Unhealthy"] = ill
        granted = entry.id in plugin.grants.ledger or device.id in plugin.grants.ledger
        samples["xpu_device_granted"][own] = granted
    samples["xpu_devices"].update(kinds)


def _readings(samples: Samples, plugin: "Plugin", readings: Readings) -> None:
    for id, device in plugin.picture.facts.devices.items():
        gauges = readings.gauges.get(id)
        if gauges is None:
            continue
        for name, value, unit in (
            ("memory_used_bytes", gauges.memory_used_bytes, 1),
            ("memory_total_bytes", gauges.memory_total_bytes, 1),
            ("utilization_ratio", gauges.utilization_percent, 0.01),
            ("temperature_celsius", gauges.temperature_celsius, 1),
            ("power_reported", gauges.power, 1),
            ("clock_hertz", gauges.clock_mhz, 1e6),
            ("processes", gauges.processes, 1),
        ):
            if value is not None:
                samples[f"xpu_device_{name}"][_named(device)] = value * unit


def _impossible(samples: Samples, plugin: "Plugin", meters: Telemetry) -> None:
    devices = plugin.picture.facts.devices
    for (id, name), number in meters.impossible.items():
        if id in devices:
            samples["xpu_device_impossible_readings_total"][*_named(devices[id]), name] = number


def _holders(samples: Samples, plugin: "Plugin", listing: Listing | None) -> None:
    entries = plugin.picture.current.entries.values() if plugin.picture.current else ()
    samples["xpu_plugin_pod_resources_up"][()] = listing is not None
    held = holders(listing.holdings, plugin.picture.facts, plugin.picture.policy) if listing else {}
    for entry in entries:
        for container in held.get(entry.device.id, ()):
            samples["xpu_device_holder"][*_named(entry.device), *container.split("/", 2)] = 1


def _audit(samples: Samples, audit: Audit) -> None:
    for kind, number in audit.counts.items():
        samples["xpu_plugin_audit_findings"][(kind,)] = number
    if audit.age is not None:
        samples["xpu_plugin_audit_age_seconds"][()] = audit.age


def _kubelet(samples: Samples, plugin: "Plugin") -> None:
    for endpoint in plugin.endpoints.all:
        service = endpoint.service
        own = (service.resource,)
        samples["xpu_plugin_granted_devices_total"][own] = service.granted
        samples["xpu_plugin_streams"][own] = service.streams
        samples["xpu_plugin_lists_sent_total"][own] = service.lists
        for method, durations in service.durations.items():
            samples["xpu_plugin_request_duration_seconds"][*own, method] = durations
        refused = {(method, code): 0 for method in METHODS for code in CODES}
        for (method, code), number in {**refused, **service.refusals}.items():
            samples["xpu_plugin_request_errors_total"][*own, method, code] = number
    for endpoint in plugin.endpoints.all:
        samples["xpu_plugin_registrations_total"][(endpoint.resource,)] = endpoint.registrations
        samples["xpu_plugin_registration_failures_total"][(endpoint.resource,)] = endpoint.failures
        samples["xpu_plugin_displaced"][(endpoint.resource,)] = endpoint.watch.away
        samples["xpu_plugin_displacements_total"][(endpoint.resource,)] = endpoint.watch.displacements


def _library(samples: Samples, plugin: "Plugin") -> None:
    monitor = plugin.monitor
    samples["xpu_plugin_library_up"][()] = monitor.trouble is None
    if (scan := monitor.scanner.last) is not None:
        samples["xpu_plugin_library_outdated"][()] = monitor.trial.older
        samples["xpu_plugin_library_info"][
            scan.library, scan.library_version, monitor.scanner.driver_version()
        ] = 1
    for node in monitor.scanner.unlisted:
        samples["xpu_plugin_unlisted_nodes"][(node.path,)] = 1
    samples["xpu_plugin_sweep_duration_seconds"][()] = monitor.durations
    samples["xpu_plugin_sweep_age_seconds"][()] = monitor.age
    samples["xpu_plugin_scans_total"][()] = monitor.scanner.scans
    samples["xpu_plugin_worker_stuck"][()] = any(worker.stuck for worker in plugin.workers)
    for cause in CAUSES:
        restarts = sum(worker.restarts[cause] for worker in plugin.workers)
        samples["xpu_plugin_worker_restarts_total"][(cause,)] = restarts


def _kernel_log(samples: Samples, plugin: "Plugin") -> None:
    if plugin.kernel_log is None:
        return
    samples["xpu_plugin_kernel_log_up"][()] = plugin.kernel_log.following
    samples["xpu_plugin_kernel_log_overruns_total"][()] = plugin.kernel_log.lost
    for own, number in plugin.driver_errors.incidents.items():
        samples["xpu_driver_incidents_total"][own] = number
    for device in plugin.picture.facts.devices.values():
        if plugin.driver_errors.is_sick(device):
            samples["xpu_device_driver_error"][_named(device)] = 1


def _virtual_functions(samples: Samples, plugin: "Plugin") -> None:
    for step, said in zip(
        plugin.reconciler.report.steps, described(plugin.reconciler.report.steps), strict=True
    ):
        if step.desired is not None:
            samples["xpu_vf_desired"][(step.card,)] = step.desired
        samples["xpu_vf_actual"][(step.card,)] = step.actual
        for state in (*VfState, VfAction.UNSUPPORTED):
            samples["xpu_vf_state"][step.card, state] = said["state"] == state
        samples["xpu_vf_drifts_total"][(step.card,)] = plugin.reconciler.drifts.get(step.card, 0)


def _api(samples: Samples, api: "NodeWatcher") -> None:
    samples["xpu_plugin_api_watching"][()] = api.watching
    for (what, status), number in api.failures.items():
        code = "none" if status is None else str(status)
        samples["xpu_plugin_api_errors_total"][what, code] = number


def _plugin(samples: Samples, supervisor: Supervisor) -> None:
    for part, number in supervisor.failures.items():
        samples["xpu_plugin_part_failures_total"][(part,)] = number
        samples["xpu_plugin_part_down"][(part,)] = part in supervisor.down
    samples["xpu_plugin_log_lines_dropped_total"][()] = log.dropped()


# --- text -----------------------------------------------------------------------------------------


def text(samples: Samples, node: str) -> str:
    """Return the page. Not for the event loop: the first call imports Prometheus's client."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest  # noqa: PLC0415

    samples["xpu_plugin_build_info"][version(), platform.python_version(), node] = 1
    registry = CollectorRegistry()
    registry.register(_Collector(samples))
    ProcessCollector(registry=registry)
    return generate_latest(registry).decode()


def version() -> str:
    """Return the version of this plugin; empty if it is not installed."""
    from importlib import metadata  # noqa: PLC0415 - not needed before

    try:
        return metadata.version("xpu-device-plugin")
    except metadata.PackageNotFoundError:
        return ""


class _Collector:
    """Hands the samples over, family by family."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.core import (  # noqa: PLC0415 - as above
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        for family in FAMILIES:
            own = self._samples[family.name]
            if family.type == "histogram":
                histogram = HistogramMetricFamily(family.name, family.meaning, labels=family.labels)
                for labels, value in own.items():
                    assert isinstance(value, Durations)  # noqa: S101 - for the type checker
                    buckets = [(f"{bound:g}", number) for bound, number in value.cumulated()]
                    histogram.add_metric(labels, [*buckets, ("+Inf", value.number)], value.total)
                yield histogram
                continue
            kind = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
            metric = kind(family.name, family.meaning, labels=family.labels)
            for labels, value in own.items():
                assert not isinstance(value, Durations)  # noqa: S101 - as above
                metric.add_metric(labels, value)
            yield metric
