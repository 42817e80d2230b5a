# SPDX-License-Identifier: Apache-2.0
"""Wiring and signals: builds the parts, gives each what it needs, runs them until told to stop."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from xpu_plugin.config import HOST_ROOT, VF_POLICIES, Config
from xpu_plugin.edges import memory
from xpu_plugin.edges.disk import state_thread
from xpu_plugin.edges.driver import Driver, Target
from xpu_plugin.edges.grants import GrantRecord
from xpu_plugin.edges.host import identity
from xpu_plugin.edges.kubelet import Endpoint, InstanceLock, neighbours, socket_stem
from xpu_plugin.edges.kubelet_view import KubeletView
from xpu_plugin.edges.listener import listen, listening_at
from xpu_plugin.edges.podresources import checkpoint_of, reader
from xpu_plugin.edges.process import WorkerProcess
from xpu_plugin.edges.quarantine import QuarantineRecord
from xpu_plugin.edges.replacing import replace_apart
from xpu_plugin.edges.rivals import RivalWatch
from xpu_plugin.edges.service import DevicePluginService
from xpu_plugin.edges.vf_record import VfRecord
from xpu_plugin.errors import PluginError
from xpu_plugin.log import RingHandler
from xpu_plugin.loops.apply import Apply
from xpu_plugin.loops.endpoints import Endpoints
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.holders import Holders
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.picture import NEVER, Picture
from xpu_plugin.loops.supervision import Run, Supervisor, Vital, described
from xpu_plugin.loops.sweep import InitError, Sweep
from xpu_plugin.loops.verdicts import Verdicts
from xpu_plugin.model.change import Limits
from xpu_plugin.model.events import Event
from xpu_plugin.model.health import Rules
from xpu_plugin.model.holders import Terms
from xpu_plugin.model.inventory import Policy
from xpu_plugin.model.vf import LABEL, UNKNOWN, Outcome, Wish, by_argument
from xpu_plugin.observable import Outbox, Value
from xpu_plugin.simulation import library
from xpu_plugin.waiting import delays, wait_for


if TYPE_CHECKING:
    from xpu_plugin.edges.nodeapi import NodeApi
    from xpu_plugin.loops.node import Node
    from xpu_plugin.model.node_label import Sight

logger = logging.getLogger(__name__)

STUCK_PROBES = (
    2  # workers that asked a device alone and cannot be killed: it is not asked again before they end
)
STUCK_CHANGERS = 2  # workers that asked for VFs and do not end; the last one may just be ending
LISTED_SECONDS = 10.0  # at most until the API server is turned to: that takes the interpreter for a while
SHOWN_SECONDS = 1.0  # at most until there is something to look at: that takes it for a moment
END_SECONDS = 0.7  # for all parts to end; the process does not wait longer for one that hangs


def target(config: Config) -> Target:
    """What a worker is to open by this configuration."""
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
    """What is to be offered by this configuration."""
    return Policy(
        resource=config.resource_name,
        per_profile=config.resource_per_profile,
        allow=config.allow,
        deny=config.deny,
    )


def rules(config: Config) -> Rules:
    """When an answer becomes a verdict by this configuration."""
    return Rules(
        failures=config.health_failures,
        recovery=config.health_recovery,
        flaps=config.health_flaps,
        window=config.health_flap_window,
    )


class AddressError(PluginError):
    """The HTTP server's address cannot be had."""


async def serve(config: Config, worker: WorkerProcess | None = None) -> int:
    """Be the plugin until SIGTERM or SIGINT; returns the exit status. worker: one that was started already"""
    with RingHandler() as decisions:
        return await _serve(config, decisions, worker)


async def _serve(config: Config, decisions: RingHandler, worker: WorkerProcess | None) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    disk = state_thread()

    def end(*_: object) -> None:
        # The loop's own handlers end with the loop; a second signal in the last moments would count.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        loop.call_soon_threadsafe(stop.set)
        disk.give_up()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    os.umask(0o077)  # before any socket or file is made
    reader()  # its thread, while there is one to be had

    lock = InstanceLock(config.device_plugin_dir)
    lock.acquire_at_once()
    driver = Driver(target(config), call_timeout=config.call_timeout, spare=worker)
    picture = Picture(policy(config))
    probes = Driver(target(config), call_timeout=config.call_timeout, most_stuck=STUCK_PROBES)
    changer = Driver(target(config), call_timeout=config.call_timeout, most_stuck=STUCK_CHANGERS)
    view, listed = kubelet_of(config), asyncio.Event()
    record = GrantRecord(config.state_dir, replace_apart)
    grants = Grants(picture, view, record, terms(config), listed=listed)
    sweep = Sweep(
        driver,
        probes,
        picture,
        Verdicts(rules(config), QuarantineRecord(config.state_dir, replace_apart)),
        grants,
        interval=config.health_interval,
        rescan_interval=config.rescan_interval,
        grace=config.health_grace,
        fail_on_init_error=config.fail_on_init_error,
    )
    loop.add_signal_handler(signal.SIGHUP, sweep.rescan)
    supervisor, serving = Supervisor(), Vital()
    parts = asyncio.ensure_future(
        _run(
            config,
            lock,
            driver,
            probes,
            picture,
            changer=changer,
            view=view,
            listed=listed,
            grants=grants,
            sweep=sweep,
            decisions=decisions,
            supervisor=supervisor,
            serving=serving,
        )
    )
    ends = [asyncio.ensure_future(event.wait()) for event in (stop, serving.failed)]
    await asyncio.wait({parts, *ends}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        logger.info("stopping")
    for end_of in (*ends, parts):
        end_of.cancel()
    await asyncio.wait({parts}, timeout=END_SECONDS)
    await asyncio.gather(driver.close(), probes.close(), changer.close())
    # What is not asked for asyncio tells with a traceback.
    raised = parts.exception() if parts.done() and not parts.cancelled() else None
    error = serving.error or raised
    status = 0 if error is None else _failed(error, serving.part)
    if not parts.done():
        _abandon(parts, status)
    return status


def _failed(error: BaseException, part: str) -> int:
    """Say in one line why the plugin ends; the exit status."""
    if isinstance(error, InitError | AddressError):
        logger.error("%s", error)
    else:
        logger.error(
            "the plugin ends with status 1, as an unforeseen error ended a part that serves part=%s: %s",
            part,
            described(error),
        )
        logger.debug("its traceback", exc_info=error)
    return 1


def _abandon(parts: asyncio.Future[None], status: int) -> NoReturn:
    """End the process without the parts that do not end."""
    names = sorted(task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()} - {parts})
    logger.warning("parts that do not end are left behind: %s", ", ".join(names))
    logging.shutdown()
    os._exit(status)


async def _run(
    config: Config,
    lock: InstanceLock,
    driver: Driver,
    probes: Driver,
    picture: Picture,
    *,
    changer: Driver,
    view: KubeletView,
    listed: asyncio.Event,
    grants: Grants,
    sweep: Sweep,
    decisions: RingHandler,
    supervisor: Supervisor,
    serving: Vital,
) -> None:
    """Three groups of parts: those that observe, and within those that serve, the one that changes VFs.

    A part that observes or changes is started again when it fails; one that serves ends them all.
    """

    async def taken_over() -> None:
        """Whoever was before us has granted on, split cards and judged devices while we waited."""
        await grants.reread()
        await apply.inherit()
        await sweep.verdicts.reread()
        await sweep.rescanned()

    async def keep_quarantine() -> None:
        """It is for one plugin to write down."""
        await lock.acquire()
        await sweep.verdicts.run()

    lock.on_waited = taken_over
    started = time.monotonic()
    services: list[DevicePluginService] = []
    sockets: list[Endpoint] = []
    desired, outcome, events = Value(UNKNOWN), Value(Outcome()), Outbox[Event]()
    node = node_of(config, desired, outcome=outcome, events=events, alone=lock.acquire)
    if node is None:
        desired.set(by_argument(config.sriov_num_vfs))
    proof = IdleProof(driver, view, grants)
    holders = Holders(picture, view, grants, proof)
    apply = Apply(
        changer,
        picture,
        sweep,
        grants,
        proof,
        record=VfRecord(config.state_dir, replace_apart),
        limits=Limits(
            settle=config.grant_settle,
            timeout=config.vf_timeout,
            pending=config.wish_pending,
            apply=config.vf_policy == VF_POLICIES[0],
        ),
        desired=desired,
        outcome=outcome,
        events=events,
        alone=lock.acquire,
    )

    def begin_anew() -> None:
        sweep.rescan()
        apply.again()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, begin_anew)

    async def endpoint(resource: str) -> None:
        watch = RivalWatch(
            resource,
            read=partial(checkpoint_of, config.device_plugin_dir),
            neighbours=partial(reader().call, neighbours, config.device_plugin_dir),
            settle=config.grant_settle,
            events=events,
        )
        service = DevicePluginService(
            resource,
            current=lambda: picture.current,
            beyond=picture.beyond,
            node=lambda name: identity(f"{config.dev_root}/{name}", simulated=config.simulated),
            grants=grants,
            on_list=listed.set,
            watch=watch,
            on_error=partial(serving.fail, part=f"endpoint {resource}"),
        )
        services.append(service)
        socket = Endpoint(
            service,
            directory=config.device_plugin_dir,
            stem=socket_stem(resource, config.resource_name),
            lock=lock,
            watch=watch,
            look=holders.before_registration,
        )
        sockets.append(socket)
        await socket.run()

    always = frozenset() if config.resource_per_profile else frozenset({config.resource_name})
    endpoints = Endpoints(picture, endpoint, always=always)

    async def show() -> None:
        await wait_for(listed, SHOWN_SECONDS)
        from xpu_plugin import observability  # noqa: PLC0415 - no pod waits for it

        await observability.run(
            observability.Plugin(
                config=config,
                lock=lock,
                driver=driver,
                probes=probes,
                changer=changer,
                picture=picture,
                sweep=sweep,
                decisions=decisions,
                view=view,
                grants=grants,
                proof=proof,
                holders=holders,
                apply=apply,
                node=node,
                events=events,
                services=services,
                endpoints=sockets,
                listed=listed,
                started=started,
                supervisor=supervisor,
                requests=requests,
                questions=questions,
            )
        )

    async with contextlib.AsyncExitStack() as stack:
        requests = stack.enter_context(requests_at(config.metrics_address))
        questions = stack.enter_context(questions_at(config.status_socket))
        observing = await stack.enter_async_context(asyncio.TaskGroup())
        await stack.enter_async_context(serving)

        def observe(part: str, run: Run) -> None:
            observing.create_task(supervisor.keep(part, run), name=part)

        observe("observability", show)
        observe("openings", sweep.openings.run)
        serving.start("sweep", sweep.run())
        serving.start("probation", sweep.probation.run())
        serving.start("quarantine", keep_quarantine())
        await picture.beyond(NEVER)
        for name in picture.policy.unmatched(picture.facts.devices.values()):
            logger.warning("--allow or --deny names %s, which no device of this node is", name)
        await holders.first_look()  # before the first list goes out
        if lock.held():
            await apply.inherit()
        apply.begin()  # as well
        serving.start("holders", holders.run())
        serving.start("endpoints", endpoints.run())
        serving.start("grants", grants.run(lock.acquire))
        serving.start("virtual functions", supervisor.keep("virtual functions", apply.run))
        if node is not None:
            if config.node_labels:
                observe("node labels", partial(node.describe, picture, sweep.driver_version))
            await wait_for(listed, LISTED_SECONDS)
            observe("node", node.run)


@contextlib.contextmanager
def requests_at(address: tuple[str, int] | None) -> Iterator[socket.socket | None]:
    """The listener for HTTP. Raises AddressError."""
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
    """The listener for sub-commands. Where it cannot be had, as when another plugin is there, the plugin goes
    on without."""
    with contextlib.ExitStack() as stack:
        listener = None
        try:
            listener = stack.enter_context(listening_at(path)) if path is not None else None
        except OSError as error:
            logger.warning("--status-socket: cannot listen at %s: %s", path, error.strerror)
        yield listener


def node_of(
    config: Config,
    desired: Value[Wish],
    *,
    outcome: Value[Outcome] | None = None,
    events: Outbox[Event] | None = None,
    alone: Callable[[], Awaitable[None]] | None = None,
) -> "Node | None":
    """The node in the API server, None where we have no way to it. alone: as `Node` takes it"""
    if not (config.kubeconfig or config.node_name):
        return None
    from xpu_plugin.edges.api import has_credentials  # noqa: PLC0415 - not everybody needs it
    from xpu_plugin.edges.label import LabelRecord  # noqa: PLC0415
    from xpu_plugin.loops.node import Node  # noqa: PLC0415

    if not has_credentials(config.kubeconfig):
        return None
    return Node(
        desired=desired,
        outcome=outcome or Value(Outcome()),
        events=events or Outbox(),
        argument=config.sriov_num_vfs,
        connect=partial(node_api, config),
        record=LabelRecord(config.state_dir, replace_apart),
        alone=alone,
        patience=config.label_timeout,
    )


def node_api(
    config: Config, on_sight: Callable[["Sight"], None], on_denied: Callable[[str], None]
) -> "NodeApi":
    """The node's edge, by a module that is loaded then."""
    from xpu_plugin.edges.nodeapi import NodeApi  # noqa: PLC0415

    return NodeApi(
        node=config.node_name or os.uname().nodename.lower(),
        label=LABEL,
        kubeconfig=config.kubeconfig,
        on_sight=on_sight,
        on_denied=on_denied,
        delays=delays,
        patience=config.label_timeout,
    )


def kubelet_of(config: Config) -> KubeletView:
    """The reader of this node's kubelet."""
    return KubeletView(
        device_plugin_dir=config.device_plugin_dir,
        pod_resources_socket=config.pod_resources_socket,
    )


def terms(config: Config) -> Terms:
    """What proves that a card is idle."""
    return Terms(
        own_pod=config.own_pod,
        settle=config.grant_settle,
        without_pod_resources=config.vf_without_pod_resources,
    )


def run(config: Config, worker: WorkerProcess | None = None) -> int:
    """Run the daemon on an event loop of its own."""
    logger.info("starting %s", config.text())
    gc.freeze()  # no collection looks at modules and classes any more
    gc.enable()
    try:
        return asyncio.run(serve(config, worker))
    except Exception as error:  # noqa: BLE001 - it is said in one line
        return _failed(error, "start")
