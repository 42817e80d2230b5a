# SPDX-License-Identifier: Apache-2.0
"""The plugin: `build` makes each long-lived part once, `run` supervises them."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from xpu_plugin.config import HOST_ROOT, KERNEL_LOG, VF_POLICIES, Config
from xpu_plugin.edges import memory, topology_file
from xpu_plugin.edges.handover import Door
from xpu_plugin.edges.haste import Haste
from xpu_plugin.edges.host import identity
from xpu_plugin.edges.host_files import HostFiles
from xpu_plugin.edges.kernel_log import KernelLog
from xpu_plugin.edges.kubelet.directory import PluginDirectory, socket_stem
from xpu_plugin.edges.kubelet.endpoint import Endpoint
from xpu_plugin.edges.kubelet.lock import Alone, InstanceLock
from xpu_plugin.edges.kubelet.rivals import RivalWatch
from xpu_plugin.edges.kubelet.service import Contents, DevicePluginService
from xpu_plugin.edges.kubelet.view import KubeletView
from xpu_plugin.edges.listeners import listen, listening_at
from xpu_plugin.edges.state.driver_errors import DriverErrorRecord
from xpu_plugin.edges.state.grants import GrantRecord
from xpu_plugin.edges.state.handover import HandoverRecord
from xpu_plugin.edges.state.quarantine import QuarantineRecord
from xpu_plugin.edges.state.vf_request import VfRecord
from xpu_plugin.edges.worker.client import Target, WorkerClient
from xpu_plugin.edges.worker.process import WorkerProcess
from xpu_plugin.edges.xpu_smi import XpuSmi
from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen
from xpu_plugin.log import Message, RingHandler
from xpu_plugin.loops.aliases import Aliases
from xpu_plugin.loops.driver_errors import DriverErrors
from xpu_plugin.loops.endpoints import Endpoints
from xpu_plugin.loops.exchange import Exchange, exchange
from xpu_plugin.loops.giver import Giver
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.handover import Means, State
from xpu_plugin.loops.health_history import HealthHistory
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.monitor import Cadence, Monitor
from xpu_plugin.loops.picture import NEVER, Picture
from xpu_plugin.loops.supervision import PartOf, Run, Supervisor, Vital
from xpu_plugin.loops.taker import Taker
from xpu_plugin.loops.tenure import Tenures
from xpu_plugin.loops.vf_reconciler import Orders, VfReconciler
from xpu_plugin.model.additions import VARIABLES, Additions
from xpu_plugin.model.health import Rules
from xpu_plugin.model.inventory import Policy, unlinked
from xpu_plugin.model.ownership import Terms
from xpu_plugin.model.timings import USUAL, Timings
from xpu_plugin.model.vf_plan import LABEL, UNKNOWN, by_argument
from xpu_plugin.model.vf_reconcile import Limits
from xpu_plugin.simulation import library
from xpu_plugin.waiting import delays, wait_for


if TYPE_CHECKING:
    from xpu_plugin.edges.apiserver.node_watcher import Follower, NodeWatcher
    from xpu_plugin.loops.node_sync import NodeSync
    from xpu_plugin.loops.probe import Probes

logger = logging.getLogger(__name__)

# Killed workers that do not end, at which a client starts no further one.
STUCK_PROBES = 2  # of those that asked one device alone
STUCK_CHANGERS = 2  # of those that asked for VFs; the last one may just be ending


RANDOM_BYTES = 16  # of an id instead of a pod's UID


class AddressError(PluginError):
    """The HTTP server cannot listen at its address."""


@frozen
class Plugin:
    """Every long-lived part of a running plugin, once. Observers take this record and nothing else."""

    config: Config
    timings: Timings
    started: float
    """In seconds of the monotonic clock."""
    decisions: RingHandler
    supervisor: Supervisor
    serving: Vital

    # Values and memories, each with one writer.
    picture: Picture
    listed: asyncio.Event
    """Set once the kubelet has had a list."""
    exchange: Exchange
    view: KubeletView
    grants: Grants
    tenures: Tenures
    giver: Giver
    taker: Taker
    kernel_log: KernelLog | None
    """None if it is not followed."""
    driver_errors: DriverErrors

    # The workers: for all devices, for one device alone, for a change of VFs.
    worker: WorkerClient
    prober: WorkerClient
    changer: WorkerClient

    # Loops.
    history: HealthHistory
    monitor: Monitor
    proof: IdleProof
    aliases: Aliases
    reconciler: VfReconciler
    probes: "Probes | None"
    """None without a program for it."""
    endpoints: Endpoints
    node_sync: "NodeSync | None"
    """None without a way to the API server."""

    @property
    def workers(self) -> tuple[WorkerClient, ...]:
        return (self.worker, self.prober, self.changer)

    @property
    def streams(self) -> int:
        """Streams that the kubelet has open."""
        return sum(endpoint.service.streams for endpoint in self.endpoints.all)

    @property
    def displaced(self) -> list[str]:
        """A sentence for each resource name that another plugin has registered."""
        return [trouble for endpoint in self.endpoints.all if (trouble := endpoint.watch.trouble) is not None]

    @property
    def obstacles(self) -> list[str]:
        """Reasons why the kubelet's socket exists and cannot be used."""
        found = (endpoint.obstacle for endpoint in self.endpoints.all)
        return sorted({str(obstacle) for obstacle in found if obstacle is not None})

    def begin_anew(self) -> None:
        """Scan at once, and change and probe cards again that are left alone, as the administrator asks."""
        self.monitor.rescan()
        self.reconciler.again()
        if self.probes is not None:
            self.probes.again()

    async def close(self) -> None:
        """End all workers."""
        await asyncio.gather(*(worker.close() for worker in self.workers))


# --- parts ----------------------------------------------------------------------------------------


def build(config: Config, *, timings: Timings = USUAL, spare: WorkerProcess | None = None) -> Plugin:
    """Make all parts, and start none. spare: a worker that was started already"""
    lock = InstanceLock(config.device_plugin_dir)
    lock.acquire_at_once()  # before any record is read that another plugin may change
    tenures = Tenures(lock)
    supervisor, serving = Supervisor(timings.part), Vital()

    opened = target(config)
    worker = WorkerClient(opened, call_timeout=config.call_timeout, spare=spare)
    prober = WorkerClient(opened, call_timeout=config.call_timeout, most_stuck=STUCK_PROBES)
    changer = WorkerClient(opened, call_timeout=config.call_timeout, most_stuck=STUCK_CHANGERS)

    picture, listed = Picture(policy(config), topology_file.read(config.topology_file)), asyncio.Event()
    between = exchange(UNKNOWN if has_api_server(config) else by_argument(config.sriov_num_vfs))
    view = kubelet_of(config)
    grants = Grants(
        picture,
        view,
        GrantRecord(config.state_dir, apart=True, patience=timings.grant),
        terms(config),
        listed=listed,
    )
    history = HealthHistory(rules(config), QuarantineRecord(config.state_dir, apart=True))
    driver_errors = DriverErrors(
        picture, DriverErrorRecord(config.state_dir, apart=True), acts=config.acts_on_kernel_log
    )
    monitor = Monitor(
        worker,
        prober,
        picture,
        history,
        grants,
        cadence=cadence(config, timings),
    )
    proof = IdleProof(worker, view, grants)
    aliases = Aliases(picture, view, grants, proof, between=timings.holders, before=timings.before)
    node_sync = node_of(config, between, tenures, timings)
    orders = Orders(changer=changer, record=VfRecord(config.state_dir, apart=True), lock=tenures)
    reconciler = VfReconciler(
        orders, picture, monitor, grants, proof, exchange=between, limits=limits(config, timings)
    )

    plugins, haste = PluginDirectory(config.device_plugin_dir), Haste()
    files = HostFiles(config.container_files, root=HOST_ROOT, seconds=timings.files)
    contents = Contents(
        node=lambda name: identity(f"{config.dev_root}/{name}", simulated=config.simulated),
        additions=additions(config),
        files=files if files.paths else None,
    )

    def endpoint(resource: str) -> Endpoint:
        watch = RivalWatch(
            resource,
            plugins=plugins,
            settle=config.pod_list_delay,
            events=between.events,
            pace=timings.rivalry,
            stage=tenures.stage,
        )
        service = DevicePluginService(
            resource,
            picture,
            contents=contents,
            grants=grants,
            listed=listed,
            watch=watch,
            failures=PartOf(serving, f"endpoint {resource}"),
            timings=timings,
        )
        return Endpoint(
            service,
            directory=config.device_plugin_dir,
            stem=socket_stem(resource, config.resource_name),
            turn=tenures,
            watch=watch,
            holders=aliases,
            again=timings.again,
            haste=haste,
        )

    always = frozenset() if config.resource_per_profile else frozenset({config.resource_name})
    endpoints = Endpoints(picture, endpoint, always=always)
    means = Means(
        tenures=tenures,
        endpoints=endpoints,
        state=State(
            grants=grants,
            history=history,
            driver_errors=driver_errors,
            reconciler=reconciler,
            monitor=monitor,
        ),
        record=HandoverRecord(config.state_dir, apart=True),
        door=Door(config.state_dir),
        pod=config.pod_uid or os.urandom(RANDOM_BYTES).hex(),
        pace=timings.handover,
        vf_timeout=config.vf_timeout,
    )
    giver = Giver(means)
    return Plugin(
        config=config,
        timings=timings,
        started=time.monotonic(),
        decisions=RingHandler(),
        supervisor=supervisor,
        serving=serving,
        picture=picture,
        listed=listed,
        exchange=between,
        view=view,
        grants=grants,
        tenures=tenures,
        giver=giver,
        taker=Taker(means, giver, picture, desired=between.desired, patience=config.vf_decision_wait),
        kernel_log=kernel_log_of(config),
        driver_errors=driver_errors,
        worker=worker,
        prober=prober,
        changer=changer,
        history=history,
        monitor=monitor,
        proof=proof,
        aliases=aliases,
        reconciler=reconciler,
        probes=probes_of(
            config,
            timings,
            tenures=tenures,
            picture=picture,
            proof=proof,
            driver_errors=driver_errors,
            between=between,
        ),
        endpoints=endpoints,
        node_sync=node_sync,
    )


def target(config: Config) -> Target:
    """Return the files and directories of a worker."""
    return Target(
        libraries=(str(library.shipped()),) if config.simulated else config.libraries,
        host_root=HOST_ROOT,
        most_bytes=memory.for_a_worker(memory.limit()),
        dev_root=config.dev_root,
        sysfs_root=config.sysfs_root,
        simulated=config.simulated,
        environment=config.worker_environment,
    )


def policy(config: Config) -> Policy:
    """Return the rules for the offered devices."""
    return Policy(
        resource=config.resource_name,
        per_profile=config.resource_per_profile,
        allow=config.allow,
        deny=config.deny,
        handles=config.vf_handle_limit,
    )


def additions(config: Config) -> Additions:
    """Return the additions to each container."""
    return Additions(
        variables=VARIABLES[config.container_env],
        library_path=config.container_library_path,
    )


def xpu_smi(config: Config) -> XpuSmi | None:
    """Return the program that reports the link groups; None where it is not asked."""
    if config.xpu_smi is None or config.topology_file is not None:
        return None
    return XpuSmi(path=config.xpu_smi, host_root=HOST_ROOT)


def rules(config: Config) -> Rules:
    """Return the rules by which answers become verdicts."""
    return Rules(
        failures=config.health_failures,
        recovery=config.health_recovery,
        flaps=config.health_flaps,
        window=config.health_flap_window,
    )


def cadence(config: Config, timings: Timings) -> Cadence:
    """Return the intervals of the health rounds."""
    return Cadence(
        interval=config.health_interval,
        rescan_interval=config.rescan_interval,
        grace=config.health_grace,
        fail_on_init_error=config.fail_on_init_error,
        timings=timings,
    )


def terms(config: Config) -> Terms:
    """Return the conditions of a proof that a card is idle."""
    return Terms(
        own_pod=config.own_pod,
        settle=config.pod_list_delay,
        without_pod_resources=config.vf_without_pod_resources,
    )


def limits(config: Config, timings: Timings) -> Limits:
    """Return the limits of a change of VFs."""
    return Limits(
        settle=config.pod_list_delay,
        timeout=config.vf_timeout,
        pending=config.vf_decision_wait,
        apply=config.vf_policy == VF_POLICIES[0],
        pace=timings.vfs,
    )


def probes_of(
    config: Config,
    timings: Timings,
    *,
    tenures: Tenures,
    picture: Picture,
    proof: IdleProof,
    driver_errors: DriverErrors,
    between: Exchange,
) -> "Probes | None":
    """Make the part that probes devices with a driver error; None without a program, or without verdicts."""
    if not config.probe or not config.acts_on_kernel_log:
        return None
    from xpu_plugin.loops.probe import ProbePace, Probes, Program  # noqa: PLC0415 - for one option only

    return Probes(
        Program(command=config.probe, seconds=config.probe_timeout),
        tenures,
        picture,
        proof,
        driver_errors,
        events=between.events,
        pace=ProbePace(settle=config.pod_list_delay, look=timings.vfs.look, pause=timings.probe),
    )


def kernel_log_of(config: Config) -> KernelLog | None:
    """Make the reader of the kernel's log; None if it is off, or if a simulated machine has none."""
    path = config.dev_root / "kmsg"
    if config.kernel_log == KERNEL_LOG[0] or (config.simulated and not path.exists()):
        return None
    return KernelLog(path)


def kubelet_of(config: Config) -> KubeletView:
    """Make the reader of this node's kubelet."""
    return KubeletView(
        device_plugin_dir=config.device_plugin_dir,
        pod_resources_socket=config.pod_resources_socket,
        pods_api_socket=config.pods_api_socket,
    )


def has_api_server(config: Config) -> bool:
    """Return whether there are credentials for the API server."""
    if not (config.kubeconfig or config.node_name):
        return False
    from xpu_plugin.edges.apiserver.client import has_credentials  # noqa: PLC0415 - without an API server it is not needed

    return has_credentials(config.kubeconfig)


def node_of(
    config: Config, between: Exchange, lock: Alone | None = None, timings: Timings = USUAL
) -> "NodeSync | None":
    """Make the sync with the Node object; None without an API server. lock: as for `NodeSync`"""
    if not has_api_server(config):
        return None
    from xpu_plugin.edges.state.label import LabelRecord  # noqa: PLC0415 - without an API server it is not needed
    from xpu_plugin.loops.node_sync import NodeSync  # noqa: PLC0415

    return NodeSync(
        exchange=between,
        argument=config.sriov_num_vfs,
        connect=partial(node_api, config),
        record=LabelRecord(config.state_dir, apart=True),
        lock=lock,
        patience=config.label_timeout,
        between=timings.record,
    )


def node_api(config: Config, follower: "Follower") -> "NodeWatcher":
    """Make the watcher of the Node, and import its module."""
    from xpu_plugin.edges.apiserver.node_watcher import NodeWatcher  # noqa: PLC0415

    return NodeWatcher(
        node=config.node_name or os.uname().nodename.lower(),
        label=LABEL,
        kubeconfig=config.kubeconfig,
        follower=follower,
        delays=delays,
        patience=config.label_timeout,
        taint=config.startup_taint,
        condition=config.node_condition,
    )


# --- their lives ----------------------------------------------------------------------------------


async def run(plugin: Plugin) -> None:
    """Run three groups of parts: those that observe, within that those that serve, and the one that changes
    VFs.

    A part that observes or changes is restarted when it fails; one that serves ends all. Parts that write
    wait for a tenure.
    """
    config, serving, tenures = plugin.config, plugin.serving, plugin.tenures
    if plugin.node_sync is None:
        _warn_without_api_server(config)
    if config.probe and plugin.probes is None:
        logger.warning(
            Message("--probe has no effect without --kernel-log act", kernel_log=config.kernel_log)
        )
    picture, monitor = plugin.picture, plugin.monitor

    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(plugin.decisions)
        requests = stack.enter_context(requests_at(config.metrics_address))
        questions = stack.enter_context(questions_at(config.status_socket))
        observing = await stack.enter_async_context(asyncio.TaskGroup())
        await stack.enter_async_context(serving)

        def observe(part: str, run: Run) -> None:
            observing.create_task(plugin.supervisor.keep(part, run), name=part)

        observe("observability", partial(_show, plugin, requests, questions))
        observe("openings", monitor.openings.run)
        gated = bool(config.startup_taint or config.node_condition) and plugin.node_sync is not None
        if gated:  # also on a node without a driver or without cards
            observe("readiness", partial(_watch_readiness, plugin))
            observe("node", partial(_follow_node, plugin))
        serving.start("tenures", _take_over(plugin))
        observe("hand-over", plugin.giver.run)
        serving.start("monitor", monitor.run())
        serving.start("unresponsive devices", monitor.unresponsive.run())
        serving.start("quarantine", plugin.history.run(tenures))
        serving.start("driver errors", plugin.driver_errors.run(tenures))
        await picture.beyond(NEVER)
        for name in picture.policy.unmatched(picture.facts.devices.values()):
            logger.warning(Message("--allow or --deny names no device of this node", name=name))
        for card in unlinked(picture.facts):
            logger.warning(Message("--topology-file names no card of this node", card=card))
        await plugin.aliases.first_look()  # before the first list goes out
        if tenures.held:
            await plugin.reconciler.inherit()
        plugin.reconciler.begin()  # as well
        serving.start("aliases", plugin.aliases.run())
        serving.start("endpoints", plugin.endpoints.run())
        if (program := xpu_smi(config)) is not None:
            observe("links", partial(_find_links, plugin, program))
        if plugin.kernel_log is not None:
            observe("kernel log", partial(_follow_kernel_log, plugin, plugin.kernel_log))
        plugin.taker.begin()
        serving.start("grants", plugin.grants.run(tenures))
        if plugin.probes is not None:
            serving.start("probe", plugin.supervisor.keep("probe", plugin.probes.run))
        serving.start("virtual functions", plugin.supervisor.keep("virtual functions", plugin.reconciler.run))
        if plugin.node_sync is not None:
            if config.node_labels:
                observe(
                    "node labels", partial(plugin.node_sync.describe, picture, monitor.scanner.driver_version)
                )
            if not gated:
                observe("node", partial(_follow_node, plugin))


async def _follow_node(plugin: Plugin) -> None:
    """Turn to the API server, after the first list if one goes out soon."""
    assert plugin.node_sync is not None  # noqa: S101 - or it was not started
    if plugin.tenures.held:  # an instance that waits has to know the label before it serves
        await wait_for(plugin.listed, plugin.timings.listed)
    await plugin.node_sync.run()


async def _find_links(plugin: Plugin, program: XpuSmi) -> None:
    await wait_for(plugin.listed, plugin.timings.listed)  # no pod waits for it
    from xpu_plugin.loops.links import LinkFinder  # noqa: PLC0415 - for one option only

    await LinkFinder(program, plugin.picture, pauses=plugin.timings.links).run()


async def _follow_kernel_log(plugin: Plugin, log: KernelLog) -> None:
    await wait_for(plugin.listed, plugin.timings.listed)  # the verdicts on record count from the start on
    from xpu_plugin.edges.kernel_log_rules import read_rules  # noqa: PLC0415 - no pod waits for them
    from xpu_plugin.loops.kernel_log import KernelLogWatch  # noqa: PLC0415

    await KernelLogWatch(plugin, log, read_rules(plugin.config.kernel_log_rules)).run()


async def _watch_readiness(plugin: Plugin) -> None:
    from xpu_plugin.loops.readiness import ReadinessWatch  # noqa: PLC0415 - for two options only

    await ReadinessWatch(plugin).run()


def _warn_without_api_server(config: Config) -> None:
    given = {
        "--startup-taint": config.startup_taint is not None,
        "--node-condition": config.node_condition,
        "--pod-events": config.pod_events,
    }
    if options := [name for name, own in given.items() if own]:
        logger.warning(
            Message(
                "options without effect, as they need the API server: give --node-name, and a service "
                "account or --kubeconfig",
                options=options,
            )
        )


async def _take_over(plugin: Plugin) -> None:
    """Take over the state of the plugin that worked while this one waited."""
    async for _ in plugin.tenures.begin(plugin.taker.wait):
        await plugin.taker.take_over()


async def _show(plugin: Plugin, requests: socket.socket | None, questions: socket.socket | None) -> None:
    await wait_for(plugin.listed, plugin.timings.shown)
    from xpu_plugin import observability  # noqa: PLC0415 - loaded after the first list

    await observability.run(plugin, requests=requests, questions=questions)


@contextlib.contextmanager
def requests_at(address: tuple[str, int] | None) -> Iterator[socket.socket | None]:
    """Listen for HTTP. Raises AddressError."""
    if address is None:
        yield None
        return
    try:
        listener = listen(address)
    except OSError as error:
        host, port = address
        raise AddressError(f"--metrics-address: cannot listen at {host}:{port}: {error.strerror}") from None
    with listener:
        yield listener


@contextlib.contextmanager
def questions_at(path: Path | None) -> Iterator[socket.socket | None]:
    """Listen for sub-commands. If that fails, for example beside another plugin, the plugin goes on
    without."""
    with contextlib.ExitStack() as stack:
        listener = None
        try:
            listener = stack.enter_context(listening_at(path)) if path is not None else None
        except OSError as error:
            logger.warning(Message("--status-socket: cannot listen", path=path, error=error.strerror))
        yield listener
