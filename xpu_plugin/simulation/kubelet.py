# SPDX-License-Identifier: Apache-2.0
"""A small faithful model of the kubelet's device manager over real sockets, for demo, tests and benchmarks.

It follows kubelet 1.20 in all that a plugin can notice: the order of events, the calls and their content,
the survivors of a restart, left-over files, and the wording of refusals. `Release` has the differences of
newer releases. Where the model is stricter, a docstring says so.

It omits CPU and memory management, NUMA alignment, the API server, and init containers that pass devices on.
Its pods API knows the pods of containers with devices, each with its status.
`Kubelet.api_server_away` simulates the API server's absence.

    async with Kubelet(directory, pod_resources_dir=other) as kubelet:
        await kubelet.until(lambda: kubelet.allocatable("baidu.com/xpu") == 4, timeout=10)
        grant = await kubelet.allocate("baidu.com/xpu", 2)

To simulate a faulty kubelet, override one of the small methods under "manners".
"""

import asyncio
import base64
import contextlib
import itertools
import json
import re
import time
import zlib
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc

from xpu_plugin.edges.kubelet.channel import address
from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen
from xpu_plugin.proto import (
    deviceplugin_pb2,
    deviceplugin_pb2_grpc,
    pod_v1_pb2,
    podresources_v1_pb2,
    pods_v1alpha1_pb2,
)


VERSION = "v1beta1"
SOCKET = "kubelet.sock"
PODS_API_SOCKET = "pods-api.sock"
WAITING_EVENTS = 100
"""The events that may wait for a watcher of the pods API; the stream of a slower one is ended."""

CHECKPOINT = "kubelet_internal_checkpoint"
HEALTHY = "Healthy"
UNHEALTHY = "Unhealthy"

WITHOUT_NUMA = -1
"""The NUMA node of devices without topology in a checkpoint."""

DIAL_SECONDS = 10.0
"""Time in which a kubelet tries to reach the endpoint of a registration before it forgets it."""

PRE_START_SECONDS = 30.0
"""The deadline of PreStartContainer, a constant of the API. A real kubelet waits for Allocate and
GetPreferredAllocation without limit; here the same deadline ends them too."""

# The generated gRPC code has no annotations: hence each `no-untyped-call` below.

# A connection of its own for each channel: shared ones keep the back-off and the state of an earlier life.
_CHANNEL_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)

_EXTENDED_RESOURCE = re.compile(r"(?!([^/]*\.)?kubernetes\.io/)(?!requests\.)[a-z0-9.-]+/[A-Za-z0-9_.-]+")

_Answer = TypeVar("_Answer")


class AdmissionError(PluginError):
    """The pod cannot be admitted; the text is the reason in the pod's status."""


class StartError(AdmissionError):
    """The pod was admitted, but the plugin refused in PreStartContainer.

    As with a real kubelet the pod keeps its devices: `grant` can be tried again with `restart_container`, or
    freed.
    """

    def __init__(self, reason: str, grant: "Assignment") -> None:
        super().__init__(reason)
        self.grant = grant


class Release(StrEnum):
    """The kubelet's handling of several plugins of one resource, by release; measured.

    In all releases the plugin that registered last is called, the last list of any plugin counts, and no
    displaced stream is ended.

    V1_20: the end of a displaced stream changes nothing
    V1_36: it cuts the stream of the plugin that is called, as streams are known by their resource alone
    V1_37: the former plugin is called again when the last one ends. A registration at a path with an open
    stream is refused, and that path for ever after, while the open stream is forgotten: its devices stay
    """

    V1_20 = "1.20"
    V1_36 = "1.36"
    V1_37 = "1.37"


@frozen
class ListedDevice:
    """A device in its plugin's list, `Unhealthy` once its plugin's stream has ended."""

    id: str
    health: str
    numa: tuple[int, ...] = ()

    @property
    def healthy(self) -> bool:
        return self.health == HEALTHY


@frozen
class Registration:
    """One accepted call of Register. time: by time.monotonic(); life: number of the kubelet's start, from
    1"""

    time: float
    life: int
    resource: str
    endpoint: str
    version: str
    pre_start_required: bool
    preferred_allocation_available: bool


@frozen
class DeviceNode:
    """A device node for a container."""

    host_path: str
    container_path: str
    permissions: str


@frozen
class Mount:
    """A file or directory of the host for a container."""

    host_path: str
    container_path: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assignment:
    """Devices held by one container of one pod. Two grants are equal only if they are the same object.

    ids_per_numa: the ids again, by NUMA node as in the checkpoint
    env, nodes, mounts: from the plugin's answer; `answer` is that whole answer, serialized
    init_container: the checkpoint names these, PodResources does not
    """

    pod: str
    namespace: str
    container: str
    resource: str
    ids: tuple[str, ...]
    ids_per_numa: Mapping[int, tuple[str, ...]] = field(repr=False)
    env: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[Mount, ...] = ()
    answer: bytes = field(default=b"", repr=False)
    init_container: bool = False

    @property
    def uid(self) -> str:
        return f"uid-of-{self.namespace}-{self.pod}"


@dataclass(kw_only=True)
class PodState:
    """A pod as the pods API shows it.

    exits: container -> its exit code and the time of its end, in seconds since 1970
    sidecars: init containers that are restarted always
    shown: off once the API has it no more, although its containers may run
    silent: on while it is shown as Failed and its containers have no status
    """

    restart_policy: str = "Always"
    phase: str = "Running"
    deleted: bool = False
    grace: int = 30
    exits: dict[str, tuple[int, float]] = field(default_factory=dict)
    sidecars: set[str] = field(default_factory=set)
    shown: bool = True
    silent: bool = False


class Client:
    """The kubelet's end of one connection to a plugin, after a successful dial."""

    def __init__(self, registration: Registration, channel: grpc.aio.Channel) -> None:
        self.registration = registration
        self.channel = channel
        self.stub = deviceplugin_pb2_grpc.DevicePluginStub(channel)  # type: ignore[no-untyped-call]
        self.task = asyncio.current_task()
        self.open = False
        self.stopped = False


class Kubelet:
    """The device manager of one pretend node, serving in `directory`.

    pod_resources_dir: where the pod resources API is served; None: nowhere
    pod_resources_v1: off for a kubelet before 1.20, which has v1alpha1 only
    checkpoint_per_numa: off for the checkpoint of a kubelet before 1.20, which has plain lists of ids
    release: the model for several plugins of one resource
    asks_again: on for a kubelet before 1.25: without a checkpoint it allocates again for pods that run, in
        the order in which they were admitted, once the resource has been listed. Newer ones let such pods
        run and count their devices as free (kubernetes PR 118635)
    dial_timeout, call_timeout: seconds

    One event loop, no locks: every observation below is a plain look at the present state, and
    `until` looks again after each change of it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        pod_resources_dir: Path | None = None,
        pod_resources_v1: bool = True,
        checkpoint_per_numa: bool = True,
        release: Release = Release.V1_20,
        asks_again: bool = False,
        dial_timeout: float = DIAL_SECONDS,
        call_timeout: float = PRE_START_SECONDS,
    ) -> None:
        self.directory = directory
        self.pod_resources_dir = pod_resources_dir
        self.api_server_away = False
        """If set before a *start*, the kubelet knows no pods: PodResources returns none while this stays
        true,
        although containers run and hold devices."""
        self.pods_api_dir: Path | None = None
        """Where the pods API is served from the next start on, as by 1.37; None: nowhere."""
        self.pods: dict[str, PodState] = {}
        """The pods with devices, by UID. `announce` tells the watchers of a change."""
        self.pod_questions = 0
        """The number of requests for the list of the pods API."""
        self.registrations: list[Registration] = []
        self.troubles: list[str] = []
        """The troubles on this side: refused registrations, failed dials, broken streams."""
        self._pod_resources_v1 = pod_resources_v1
        self._checkpoint_per_numa = checkpoint_per_numa
        self._release = release
        self._asks_again = asks_again
        self._dial_timeout = dial_timeout
        self._call_timeout = call_timeout
        self._life = 0
        self._pods_unknown = False
        self._servers: list[grpc.aio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._endpoints: dict[str, Client] = {}  # of the plugins that are called
        self._former: list[Client] = []  # displaced, with an open stream; the last one last
        self._wedged: set[tuple[str, str]] = set()  # (resource, endpoint), refused until a restart
        self._devices: dict[str, dict[str, ListedDevice]] = {}
        self._lists: dict[str, int] = {}
        self._grants: list[Assignment] = []
        self._forgotten: list[Assignment] = []
        self._pod_numbers = itertools.count(1)
        self._watchers: set[asyncio.Queue[bytes | None]] = set()
        self._admission = asyncio.Lock()
        self._change = asyncio.Event()

    # --- observation ---

    @property
    def running(self) -> bool:
        return bool(self._servers)

    @property
    def socket(self) -> Path:
        return self.directory / SOCKET

    @property
    def pod_resources_socket(self) -> Path | None:
        return self.pod_resources_dir / SOCKET if self.pod_resources_dir else None

    @property
    def pods_api_socket(self) -> Path | None:
        return self.pods_api_dir / PODS_API_SOCKET if self.pods_api_dir else None

    @property
    def pod_watchers(self) -> int:
        """The number of open streams of the pods API."""
        return len(self._watchers)

    @property
    def streams_open(self) -> int:
        """The number of open ListAndWatch streams over all resources."""
        return sum(endpoint.open for endpoint in self._endpoints.values())

    @property
    def grants(self) -> tuple[Assignment, ...]:
        return tuple(self._grants)

    @property
    def forgotten(self) -> tuple[Assignment, ...]:
        """The grants of running containers, if this kubelet knows their pods, but not their devices."""
        return tuple(self._forgotten)

    def resources(self) -> tuple[str, ...]:
        """The resources that were listed in this life."""
        return tuple(sorted(self._devices))

    def lists(self, resource: str) -> int:
        """Return the number of received lists of this resource over all lives."""
        return self._lists.get(resource, 0)

    def devices(self, resource: str) -> dict[str, ListedDevice]:
        """Return the last list by id, all Unhealthy once its stream ended; empty before the first list."""
        return dict(self._devices.get(resource, {}))

    def plugin_of(self, resource: str) -> str | None:
        """Return the socket's name of the plugin that is called for this resource, with a stream or not."""
        endpoint = self._endpoints.get(resource)
        return endpoint.registration.endpoint if endpoint else None

    def allocatable(self, resource: str) -> int:
        """Return the number of healthy devices, granted ones included, as in the node's status."""
        return sum(device.healthy for device in self.devices(resource).values())

    def capacity(self, resource: str) -> int:
        """Return the number of devices, unhealthy ones included."""
        return len(self.devices(resource))

    def describe(self) -> str:
        """Return the present state in a few lines, for people."""
        running = "running" if self.running else "stopped"
        numbers = f"{len(self.registrations)} registrations, {self.streams_open} streams open"
        lines = [f"kubelet {running} (life {self._life}), {numbers}"]
        for resource, devices in sorted(self._devices.items()):
            listed = ", ".join(f"{device.id} {device.health}" for device in devices.values())
            lines.append(f"{resource}: {self.lists(resource)} lists, now [{listed}]")
        lines += [f"{grant.pod}/{grant.container} holds {', '.join(grant.ids)}" for grant in self._grants]
        lines += [f"trouble: {trouble}" for trouble in self.troubles[-3:]]
        return "\n".join(lines)

    def changed(self) -> Awaitable[object]:
        """Return an awaitable for the next change of any state above, from this call on.

        Simultaneous changes count as one.
        """
        return self._change.wait()

    async def until(
        self,
        predicate: Callable[[], object],
        *,
        timeout: float,  # noqa: ASYNC109  # its error has more to show than the caller's
        what: str = "",
    ) -> None:
        """Wait until `predicate()` is true. It is evaluated now and after each change, so it must use only
        this object.

        Raises TimeoutError, which names `what` was awaited and the present state, after `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                while not predicate():
                    await self.changed()
        except TimeoutError:
            waited = f"{what or 'no such state'} within {timeout:g} s"
            raise TimeoutError(f"{waited}; present state:\n{self.describe()}") from None

    # --- life ---

    async def start(self) -> None:
        """Clear the directory of everything but directories and the checkpoint, then serve."""
        if self.running:
            raise RuntimeError("this kubelet is running")
        self._life += 1
        self._pods_unknown = self.api_server_away
        self._clear()
        registry = grpc.aio.server()
        deviceplugin_pb2_grpc.add_RegistrationServicer_to_server(_Registry(self._register), registry)  # type: ignore[no-untyped-call]
        await self._serve(registry, self.socket)
        if path := self.pod_resources_socket:
            await self._serve_pod_resources(path)
        if path := self.pods_api_socket:
            await self._serve_pods_api(path)
        self._changed()

    async def stop(self, *, remove_sockets: bool = False) -> None:
        """End all calls and streams at once and forget every list. Grants stay, as their containers do.

        The socket files stay too, without a listener: a kubelet removes them at its start, not at its stop.
        """
        servers, self._servers = self._servers, []
        for watcher in self._watchers:
            watcher.put_nowait(None)
        for server in servers:
            await server.stop(None)
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        self._endpoints.clear()
        self._former.clear()
        self._wedged.clear()
        self._devices.clear()
        if remove_sockets:
            for path in (self.socket, self.pod_resources_socket, self.pods_api_socket):
                if path:
                    path.unlink(missing_ok=True)
        self._changed()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome  # a bug of this model or of a subclass: it must not be missed

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def restart_without_checkpoint(self) -> None:
        """Start anew without knowledge of the containers' devices; the containers run on."""
        await self.stop()
        (self.directory / CHECKPOINT).unlink(missing_ok=True)
        self._forgotten += self._grants
        self._grants = []
        await self.start()

    async def aclose(self) -> None:
        """Stop and leave no socket; a second call has no effect."""
        await self.stop(remove_sockets=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- pods ---

    async def allocate(
        self,
        resource: str,
        count: int,
        *,
        pod: str = "",
        container: str = "main",
        namespace: str = "default",
        init_container: bool = False,
    ) -> Assignment:
        """Call `admit`, and start the container. Raises also StartError when it may not start."""
        held = await self.admit(
            resource,
            count,
            pod=pod,
            container=container,
            namespace=namespace,
            init_container=init_container,
        )
        await self.restart_container(held)
        return held

    async def admit(
        self,
        resource: str,
        count: int,
        *,
        pod: str = "",
        container: str = "main",
        namespace: str = "default",
        init_container: bool = False,
    ) -> Assignment:
        """Admit a pod with one container that asks for `count` devices. The container does not start: a real
        one waits for its image, its volumes and the network.

        A container that holds this resource already gets its grant again, without any call. Raises
        AdmissionError when the pod cannot be admitted. Pods without a name are given one. Pods are admitted
        one after the other.
        """
        async with self._admission:
            name = pod or self._next_pod()
            held = self._held(name, namespace, container, resource)
            if held is None:
                held = await self._admit(
                    resource,
                    count,
                    pod=name,
                    container=container,
                    namespace=namespace,
                    init_container=init_container,
                )
                self._record(held)
            elif len(held.ids) != count:
                raise AdmissionError(
                    f"pod {held.uid!r} container {container!r} changed request for resource {resource!r} "
                    f"from {len(held.ids)} to {count}"
                )
        return held

    async def restart_container(self, grant: Assignment) -> None:
        """Start the grant's container (again): PreStartContainer where announced, else nothing.

        The container gets the cached answer of the grant, even if its devices have changed: Allocate is not
        called. After a restart the kubelet does not know the plugin before it registers, and a container
        starts without a call. Raises StartError when the plugin refuses or its stream has ended.
        """
        endpoint = self._endpoints.get(grant.resource)
        if endpoint is not None and endpoint.registration.pre_start_required:
            request = deviceplugin_pb2.PreStartContainerRequest(devices_ids=grant.ids)
            try:
                await self._ask(endpoint, "PreStartContainer", endpoint.stub.PreStartContainer, request)
            except AdmissionError as error:
                raise StartError(str(error), grant) from error
        if self.pods[grant.uid].exits.pop(grant.container, None) is not None:
            self.announce(grant)

    def free(self, grant: Assignment) -> None:
        """Let the grant's container end. The checkpoint keeps it until the next write: with the next list,
        the next grant, or `write_checkpoint`."""
        if (pod := self.pods.get(grant.uid)) is not None:
            pod.deleted = True
            self.end(grant)
        (self._forgotten if grant in self._forgotten else self._grants).remove(grant)
        if not any(own.uid == grant.uid for own in (*self._grants, *self._forgotten)):
            self._remove_pod(grant)
        self._changed()

    def end(self, grant: Assignment, *, code: int = 0) -> None:
        """Let the grant's container exit. Its pod stays, with its devices in checkpoint and list."""
        pod = self.pods[grant.uid]
        pod.exits.setdefault(grant.container, (code, time.time()))
        self.announce(grant)

    def delete_by_force(self, grant: Assignment) -> None:
        """Delete the grant's pod from the API server. The kubelet's APIs and its next checkpoint have it no
        more, although its container runs until it is killed."""
        self._grants.remove(grant)
        self._remove_pod(grant)
        self._changed()

    def announce(self, grant: Assignment, *, added: bool = False) -> None:
        """Tell the watchers of the pods API the present state of the grant's pod."""
        kind = pods_v1alpha1_pb2.ADDED if added else pods_v1alpha1_pb2.MODIFIED
        self._tell(kind, self._pod(grant.uid))
        self._changed()

    def _remove_pod(self, grant: Assignment) -> None:
        if self.pods.pop(grant.uid, None) is not None:
            metadata = pod_v1_pb2.ObjectMeta(name=grant.pod, namespace=grant.namespace, uid=grant.uid)
            self._tell(pods_v1alpha1_pb2.DELETED, pod_v1_pb2.Pod(metadata=metadata))

    def hold(
        self,
        ids: Sequence[str],
        *,
        resource: str,
        pod: str = "",
        container: str = "main",
        namespace: str = "default",
        init_container: bool = False,
        nodes: Sequence[str] = (),
    ) -> Assignment:
        """Add a container with `ids`, of any form, to PodResources and checkpoint, without a call to a
        plugin:
        the knowledge that a kubelet keeps from a former plugin's time. nodes: paths in that plugin's
        answer"""
        answer = deviceplugin_pb2.ContainerAllocateResponse(
            devices=[
                deviceplugin_pb2.DeviceSpec(container_path=path, host_path=path, permissions="rw")
                for path in nodes
            ]
        )
        grant = Assignment(
            pod=pod or self._next_pod(),
            namespace=namespace,
            container=container,
            resource=resource,
            ids=tuple(ids),
            ids_per_numa={WITHOUT_NUMA: tuple(ids)},
            nodes=_nodes(answer),
            answer=answer.SerializeToString(),
            init_container=init_container,
        )
        self._record(grant)
        return grant

    def cut(self, resource: str) -> None:
        """End the resource's stream from this side, as a network would: the plugin sees it cancelled."""
        endpoint = self._endpoints.get(resource)
        if endpoint and endpoint.task:
            endpoint.task.cancel()

    def expire(self) -> None:
        """Do the kubelet's work of 5 min after the end of a stream: a resource without its last plugin leaves
        the node and the checkpoint, although a displaced plugin still has a stream."""
        for resource in list(self._devices):
            endpoint = self._endpoints.get(resource)
            if endpoint is None or endpoint.stopped:
                self._endpoints.pop(resource, None)
                del self._devices[resource]
        self.write_checkpoint()
        self._changed()

    # --- manners: a subclass may override these to misbehave ---

    def refusal(self, request: deviceplugin_pb2.RegisterRequest) -> str | None:
        """Return why a registration is refused, None to accept it."""
        if request.version != VERSION:
            return (
                f"requested API version {request.version!r} is not supported by kubelet. "
                f"Supported version is [{VERSION!r}]"
            )
        if not _EXTENDED_RESOURCE.fullmatch(request.resource_name):
            return f"the ResourceName {request.resource_name!r} is invalid"
        return None

    async def dial(self, registration: Registration) -> Client:
        """Connect to the plugin's endpoint, after Register was answered; TimeoutError if it is not there."""
        path = self.directory / registration.endpoint
        channel = grpc.aio.insecure_channel(address(path), options=_CHANNEL_OPTIONS)
        try:
            async with asyncio.timeout(self._dial_timeout):
                await channel.channel_ready()
        except BaseException:
            await channel.close(None)
            raise
        return Client(registration, channel)

    async def receive(self, endpoint: Client) -> AsyncGenerator[deviceplugin_pb2.ListAndWatchResponse, None]:
        """Open ListAndWatch and yield its lists; the end of this generator is the end of the stream."""
        call: grpc.aio.UnaryStreamCall[deviceplugin_pb2.Empty, deviceplugin_pb2.ListAndWatchResponse]
        call = endpoint.stub.ListAndWatch(deviceplugin_pb2.Empty())
        try:
            await call.wait_for_connection()
            endpoint.open = True
            self._changed()
            async for response in call:
                yield response
        finally:
            call.cancel()
            await call.code()  # until then gRPC has a task of its own for the call

    def displace(self, former: Client) -> None:
        """Handle a second registration of a resource that `former` has. Its stream stays open, without a
        notice to the plugin."""

    def pod_resources_answer(self) -> bytes:
        """Return the answer of the pod resources API, serialized."""
        return self.pod_resources().SerializeToString()

    def choose(self, available: Collection[str], count: int) -> Iterable[str]:
        """Choose `count` ids if the plugin has no preference. A real kubelet's choice is arbitrary; this one
        is repeatable."""
        return sorted(available)[:count]

    # --- registration and streams ---

    def _register(self, request: deviceplugin_pb2.RegisterRequest) -> Callable[[], None]:
        """Accept a registration; return the function to call after the answer. Raises _RefusedError."""
        reason = self.refusal(request) or self._known(request)
        if reason is not None:
            self._trouble(f"{request.resource_name}: refused: {reason}")
            raise _RefusedError(reason)
        registration = Registration(
            time=time.monotonic(),
            life=self._life,
            resource=request.resource_name,
            endpoint=request.endpoint,
            version=request.version,
            pre_start_required=request.options.pre_start_required,
            preferred_allocation_available=request.options.get_preferred_allocation_available,
        )
        self.registrations.append(registration)
        self._changed()

        def follow() -> None:
            if self.running and registration.life == self._life:
                self._spawn(self._follow(registration))

        return follow

    def _known(self, request: deviceplugin_pb2.RegisterRequest) -> str | None:
        """Return why a kubelet that knows plugins by resource and path refuses; None to accept."""
        if self._release is not Release.V1_37:
            return None
        path = (request.resource_name, request.endpoint)
        connected = [
            endpoint
            for endpoint in (*self._former, *self._endpoints.values())
            if not endpoint.stopped
            and (endpoint.registration.resource, endpoint.registration.endpoint) == path
        ]
        for endpoint in connected:
            self._wedged.add(path)
            self._forget(endpoint)
        return "device plugin already connected" if path in self._wedged else None

    def _forget(self, endpoint: Client) -> None:
        """Remove a client, with or without an open stream."""
        if endpoint in self._former:
            self._former.remove(endpoint)
        elif self._endpoints.get(endpoint.registration.resource) is endpoint:
            del self._endpoints[endpoint.registration.resource]

    async def _follow(self, registration: Registration) -> None:
        """Serve one registration to its end: dial, take the resource over, read lists."""
        resource = registration.resource
        try:
            endpoint = await self.dial(registration)
        except TimeoutError:
            self._trouble(f"{resource}: no answer on {registration.endpoint} for {self._dial_timeout:g} s")
            return
        former = self._endpoints.get(resource)
        self._endpoints[resource] = endpoint
        if former and not former.stopped:
            self._former.append(former)
            self.displace(former)
        try:
            async with contextlib.aclosing(self.receive(endpoint)) as responses:
                async for response in responses:
                    self._take(resource, response)
        except grpc.aio.AioRpcError as error:
            self._trouble(f"{resource}: the stream broke: {_reason(error)}")
        finally:
            endpoint.open, endpoint.stopped = False, True
            endpoint.task = (
                None  # a task refers to its end, and that to this frame: the channel would stay alive
            )
            self._leave(endpoint)
            self._changed()
            await endpoint.channel.close(None)

    def _leave(self, endpoint: Client) -> None:
        """Update a resource after the end of one of its streams."""
        resource = endpoint.registration.resource
        asked = self._endpoints.get(resource)
        if asked is not endpoint:
            displaced = endpoint in self._former
            self._forget(endpoint)
            if displaced and self._release is Release.V1_36 and asked and asked.task:
                asked.task.cancel()
            return
        former = [other for other in self._former if other.registration.resource == resource]
        if self._release is Release.V1_37 and former:
            self._former.remove(former[-1])
            self._endpoints[resource] = former[-1]
            return
        self._devices[resource] = {
            device.id: ListedDevice(id=device.id, health=UNHEALTHY, numa=device.numa)
            for device in self.devices(resource).values()
        }

    def _take(self, resource: str, response: deviceplugin_pb2.ListAndWatchResponse) -> None:
        self._devices[resource] = {
            device.ID: ListedDevice(
                id=device.ID,
                health=device.health,
                numa=tuple(node.ID for node in device.topology.nodes),
            )
            for device in response.devices
        }
        self._lists[resource] = self.lists(resource) + 1
        self.write_checkpoint()
        self._changed()
        if self._asks_again and any(grant.resource == resource for grant in self._forgotten):
            self._spawn(self._admit_again(resource))

    async def _admit_again(self, resource: str) -> None:
        """Allocate for pods that run already. A pod for which that fails is killed."""
        async with self._admission:
            for former in [grant for grant in self._forgotten if grant.resource == resource]:
                if former not in self._forgotten:  # freed meanwhile
                    continue
                try:
                    grant = await self._admit(
                        resource,
                        len(former.ids),
                        pod=former.pod,
                        container=former.container,
                        namespace=former.namespace,
                        init_container=former.init_container,
                    )
                except AdmissionError as error:
                    self._trouble(f"{former.pod} is killed: {error}")
                else:
                    self._record(grant)
                if former in self._forgotten:  # the pod is listed until then
                    self._forgotten.remove(former)

    # --- admission ---

    def _next_pod(self) -> str:
        return f"pod-{next(self._pod_numbers)}"

    def _held(self, pod: str, namespace: str, container: str, resource: str) -> Assignment | None:
        wanted = (pod, namespace, container, resource)
        for grant in self._grants:
            if (grant.pod, grant.namespace, grant.container, grant.resource) == wanted:
                return grant
        return None

    async def _admit(
        self, resource: str, count: int, *, pod: str, container: str, namespace: str, init_container: bool
    ) -> Assignment:
        endpoint = self._endpoints.get(resource)
        if endpoint is None or resource not in self._devices:
            raise AdmissionError(f"can't allocate unregistered device {resource}")
        devices = self.devices(resource)
        in_use = {id_ for grant in self._grants if grant.resource == resource for id_ in grant.ids}
        available = {device.id for device in devices.values() if device.healthy} - in_use
        if len(available) < count:
            raise AdmissionError(
                f"requested number of devices unavailable for {resource}. "
                f"Requested: {count}, Available: {len(available)}"
            )
        preferred: list[str] = []
        if endpoint.registration.preferred_allocation_available:
            preferred = await self._preferred(endpoint, available, count)
        ids = (*preferred, *self.choose(available - set(preferred), count - len(preferred)))
        request = deviceplugin_pb2.AllocateRequest(
            container_requests=[deviceplugin_pb2.ContainerAllocateRequest(devices_ids=ids)]
        )
        answer: deviceplugin_pb2.AllocateResponse
        answer = await self._ask(endpoint, "Allocate", endpoint.stub.Allocate, request)
        if len(answer.container_responses) != 1:
            raise AdmissionError(
                f"Allocate for one container was answered for {len(answer.container_responses)}"
            )
        response = answer.container_responses[0]
        return Assignment(
            pod=pod,
            namespace=namespace,
            container=container,
            resource=resource,
            ids=ids,
            ids_per_numa=_per_numa(devices[id_] for id_ in ids),
            env=dict(response.envs),
            nodes=_nodes(response),
            mounts=tuple(
                Mount(
                    host_path=mount.host_path,
                    container_path=mount.container_path,
                    read_only=mount.read_only,
                )
                for mount in response.mounts
            ),
            answer=response.SerializeToString(),
            init_container=init_container,
        )

    async def _preferred(self, endpoint: Client, available: set[str], count: int) -> list[str]:
        """Ask for the plugin's preference. Missing ids are taken from the rest.

        It is stricter than a real kubelet, which silently drops unusable ids: here they are an error.
        """
        request = deviceplugin_pb2.PreferredAllocationRequest(
            container_requests=[
                deviceplugin_pb2.ContainerPreferredAllocationRequest(
                    available_deviceIDs=sorted(available), allocation_size=count
                )
            ]
        )
        answer: deviceplugin_pb2.PreferredAllocationResponse
        answer = await self._ask(
            endpoint, "GetPreferredAllocation", endpoint.stub.GetPreferredAllocation, request
        )
        if not answer.container_responses:
            return []
        ids = list(answer.container_responses[0].deviceIDs)
        if len(set(ids)) != len(ids) or len(ids) > count or not available.issuperset(ids):
            raise AdmissionError(
                f"GetPreferredAllocation of {count} out of {sorted(available)} was answered with {ids}"
            )
        return ids

    async def _ask(
        self,
        endpoint: Client,
        what: str,
        method: Callable[..., grpc.aio.UnaryUnaryCall[object, _Answer]],
        request: object,
    ) -> _Answer:
        """Make one unary call to the plugin. Raises AdmissionError with the plugin's text."""
        if endpoint.stopped:
            raise AdmissionError(f"{what}: endpoint {endpoint.registration.endpoint} has been stopped")
        call = method(request, timeout=self._call_timeout)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise AdmissionError(f"{what}: {_reason(error)}") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The call was cancelled, not this task: its channel was closed.
            raise AdmissionError(f"{what}: the connection to the plugin was closed meanwhile") from None

    # --- survivors of a kubelet: grants and their checkpoint ---

    def _record(self, grant: Assignment) -> None:
        self._grants.append(grant)
        new = grant.uid not in self.pods
        self.pods.setdefault(grant.uid, PodState())
        self.announce(grant, added=new)
        self.write_checkpoint()
        self._changed()

    def write_checkpoint(self) -> None:
        """Write grants and healthy devices to the checkpoint, atomically."""
        entries = [
            {
                "PodUID": grant.uid,
                "ContainerName": grant.container,
                "ResourceName": grant.resource,
                "DeviceIDs": (
                    {str(numa): list(ids) for numa, ids in grant.ids_per_numa.items()}
                    if self._checkpoint_per_numa
                    else list(grant.ids)
                ),
                "AllocResp": base64.b64encode(grant.answer).decode("ascii"),
            }
            for grant in self._grants
        ]
        registered = {
            resource: [device.id for device in devices.values() if device.healthy]
            for resource, devices in self._devices.items()
        }
        content = {"PodDeviceEntries": entries, "RegisteredDevices": registered}
        # The real checksum covers a Go dump of the structure, which only Go can compute.
        checksum = zlib.crc32(json.dumps(content).encode())
        path = self.directory / CHECKPOINT
        draft = path.with_name(f".{CHECKPOINT}.new")
        draft.write_text(json.dumps({"Data": content, "Checksum": checksum}), encoding="utf-8")
        draft.rename(path)

    def pod_resources(self) -> podresources_v1_pb2.ListPodResourcesResponse:
        """Return the holders by PodResources: without ordinary init containers and forgotten devices; see
        also `api_server_away`."""
        response = podresources_v1_pb2.ListPodResourcesResponse()
        self._pods_unknown &= self.api_server_away
        if self._pods_unknown:
            return response
        pods: dict[tuple[str, str], podresources_v1_pb2.PodResources] = {}
        containers: dict[tuple[str, str, str], podresources_v1_pb2.ContainerResources] = {}
        for grant in (*self._grants, *self._forgotten):
            key = (grant.namespace, grant.pod)
            if key not in pods:
                pods[key] = response.pod_resources.add(name=grant.pod, namespace=grant.namespace)
            if grant.init_container or grant in self._forgotten:
                continue
            if (*key, grant.container) not in containers:
                containers[*key, grant.container] = pods[key].containers.add(name=grant.container)
            for ids in grant.ids_per_numa.values():
                containers[*key, grant.container].devices.add(resource_name=grant.resource, device_ids=ids)
        return response

    # --- the pods API ---

    def pods_refusal(self) -> str | None:
        """Return why the pods API refuses to answer."""
        self._pods_unknown &= self.api_server_away
        return "Kubelet is initializing" if self._pods_unknown else None

    def listed_pods(self) -> list[bytes]:
        """Return the pods of the pods API, serialized."""
        return [self._pod(uid).SerializeToString() for uid, pod in sorted(self.pods.items()) if pod.shown]

    def _pod(self, uid: str) -> pod_v1_pb2.Pod:
        state = self.pods[uid]
        grants = [grant for grant in (*self._grants, *self._forgotten) if grant.uid == uid]
        pod = pod_v1_pb2.Pod()
        pod.metadata.uid = uid
        pod.metadata.name, pod.metadata.namespace = grants[0].pod, grants[0].namespace
        if state.deleted:
            pod.metadata.deletionTimestamp.seconds = int(time.time())
        pod.spec.restartPolicy = state.restart_policy
        pod.spec.terminationGracePeriodSeconds = state.grace
        pod.status.phase = state.phase
        for grant in {grant.container: grant for grant in grants}.values():
            init = grant.init_container
            container = (pod.spec.initContainers if init else pod.spec.containers).add(name=grant.container)
            if grant.container in state.sidecars:
                container.restartPolicy = "Always"
            if state.silent:
                continue
            statuses = pod.status.initContainerStatuses if init else pod.status.containerStatuses
            status = statuses.add(name=grant.container)
            if grant.container in state.exits:
                code, at = state.exits[grant.container]
                end = status.state.terminated
                end.exitCode, end.finishedAt.seconds = code, int(at)
                end.containerID = f"containerd://{uid}-{grant.container}"
            else:
                status.state.running.SetInParent()
        return pod

    def _tell(self, kind: pods_v1alpha1_pb2.EventType, pod: pod_v1_pb2.Pod) -> None:
        event = pods_v1alpha1_pb2.WatchPodsEvent(type=kind, pod=pod.SerializeToString()).SerializeToString()
        for watcher in self._watchers:
            watcher.put_nowait(event if watcher.qsize() < WAITING_EVENTS else None)

    async def _list_pods(self, request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        del request
        self.pod_questions += 1
        self._changed()
        if reason := self.pods_refusal():
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)
        return pods_v1alpha1_pb2.ListPodsResponse(pods=self.listed_pods()).SerializeToString()

    async def _watch_pods(
        self, request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]"
    ) -> AsyncGenerator[bytes, None]:
        del request
        if reason := self.pods_refusal():
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)
        watcher: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._watchers.add(watcher)
        self._changed()
        try:
            added = pods_v1alpha1_pb2.ADDED
            for pod in self.listed_pods():
                yield pods_v1alpha1_pb2.WatchPodsEvent(type=added, pod=pod).SerializeToString()
            complete = pods_v1alpha1_pb2.INITIAL_SYNC_COMPLETE
            yield pods_v1alpha1_pb2.WatchPodsEvent(type=complete).SerializeToString()
            while (event := await watcher.get()) is not None:
                yield event
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "watch client channel closed")
        finally:
            self._watchers.discard(watcher)
            self._changed()

    # --- small parts ---

    def _clear(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in self.directory.iterdir():
            if path.name != CHECKPOINT and (path.is_symlink() or not path.is_dir()):
                path.unlink(missing_ok=True)  # its owner may have removed it
        if socket := self.pod_resources_socket:
            socket.parent.mkdir(parents=True, exist_ok=True)
            socket.unlink(missing_ok=True)
        if socket := self.pods_api_socket:
            socket.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            socket.unlink(missing_ok=True)

    async def _serve(self, server: grpc.aio.Server, path: Path) -> None:
        """Make `path` appear only when it is served, until the end. It has another name first: gRPC binds
        before it serves, and removes the bound name when it stops."""
        draft = path.with_name(f".{path.name}")
        server.add_insecure_port(address(draft))
        await server.start()
        draft.rename(path)
        self._servers.append(server)

    async def _serve_pod_resources(self, path: Path) -> None:
        server = grpc.aio.server()
        versions = ("v1", "v1alpha1") if self._pod_resources_v1 else ("v1alpha1",)
        server.add_generic_rpc_handlers(
            [_pod_resources_lister(version, self.pod_resources_answer) for version in versions]
        )
        await self._serve(server, path)

    async def _serve_pods_api(self, path: Path) -> None:
        server = grpc.aio.server()
        handlers = {
            "ListPods": grpc.unary_unary_rpc_method_handler(self._list_pods),
            "WatchPods": grpc.unary_stream_rpc_method_handler(self._watch_pods),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1alpha1.Pods", handlers),))
        await self._serve(server, path)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            self._tasks.discard(task)
        else:  # it stays, for stop() to raise
            self._trouble(f"{task.exception()!r}")

    def _trouble(self, text: str) -> None:
        self.troubles.append(text)
        self._changed()

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


class _RefusedError(Exception):
    """A refused registration; the text has the reason."""


class _Registry(deviceplugin_pb2_grpc.RegistrationServicer):
    """Answers Register, then starts to follow the registration."""

    def __init__(self, register: Callable[[deviceplugin_pb2.RegisterRequest], Callable[[], None]]) -> None:
        self._register = register

    async def Register(  # noqa: N802  # the API's name
        self,
        request: deviceplugin_pb2.RegisterRequest,
        context: "grpc.aio.ServicerContext[deviceplugin_pb2.RegisterRequest, deviceplugin_pb2.Empty]",
    ) -> deviceplugin_pb2.Empty:
        try:
            follow = self._register(request)
        except _RefusedError as refusal:
            await context.abort(grpc.StatusCode.UNKNOWN, str(refusal))
        # The stubs take the callback's protocol for a base class.
        context.add_done_callback(lambda _: follow())  # type: ignore[arg-type]
        return deviceplugin_pb2.Empty()


def _pod_resources_lister(
    version: str, answer: Callable[[], bytes]
) -> "grpc.GenericRpcHandler[bytes, bytes]":
    """Serves the pod resources API; its versions have the same wire format."""

    async def list_(request: bytes, context: object) -> bytes:
        del request, context
        return answer()

    handlers = {"List": grpc.unary_unary_rpc_method_handler(list_)}
    return grpc.method_handlers_generic_handler(f"{version}.PodResourcesLister", handlers)


def _per_numa(devices: Iterable[ListedDevice]) -> dict[int, tuple[str, ...]]:
    """Group devices by NUMA node; one with several nodes is in each group."""
    ids: dict[int, tuple[str, ...]] = {}
    for device in devices:
        for numa in device.numa or (WITHOUT_NUMA,):
            ids[numa] = (*ids.get(numa, ()), device.id)
    return ids


def _nodes(answer: deviceplugin_pb2.ContainerAllocateResponse) -> tuple[DeviceNode, ...]:
    return tuple(
        DeviceNode(host_path=spec.host_path, container_path=spec.container_path, permissions=spec.permissions)
        for spec in answer.devices
    )


def _reason(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
