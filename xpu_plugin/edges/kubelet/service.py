# SPDX-License-Identifier: Apache-2.0
"""The DevicePlugin gRPC service of one resource: translates between the kubelet and the picture.

No call waits for the library: each answer comes from the present picture. Only root can reach the socket. A
broken or hostile peer gets a refusal, and does not delay the kubelet.
"""

import asyncio
import logging
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
    Sized,
)
from contextlib import aclosing
from dataclasses import replace
from functools import lru_cache, wraps
from itertools import islice
from typing import Any, NoReturn, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError

from xpu_plugin.edges.kubelet.rivals import RivalWatch
from xpu_plugin.errors import UNHEEDED, Failures
from xpu_plugin.frozen import frozen
from xpu_plugin.log import Message, note
from xpu_plugin.model import allocation
from xpu_plugin.model.additions import NOTHING, Additions
from xpu_plugin.model.allocation import Cause, Kept, NodeIdentity, Refusal
from xpu_plugin.model.health import Health
from xpu_plugin.model.histogram import Durations, none_yet
from xpu_plugin.model.inventory import Entry, Inventory
from xpu_plugin.model.timings import USUAL, Timings
from xpu_plugin.observable import Value
from xpu_plugin.proto import deviceplugin_pb2 as api


logger = logging.getLogger(__name__)

NAME = "v1beta1.DevicePlugin"
_FAILED = "the plugin failed, and is started again"
MOST_KEPT = 8192  # devices, serialised
WITHHELD = Health("foreign-plugin", "another plugin may have granted it")
OPTIONS = api.DevicePluginOptions(pre_start_required=True, get_preferred_allocation_available=True)

LONGEST_MESSAGE = 1 << 18  # bytes; ten thousand device ids fit; parsing takes some 100 times as much memory
MOST_CONTAINERS = 64  # in one request; a kubelet sends one at a time
MOST_STREAMS = 64  # calls at a time on one connection; a kubelet has its stream and a few more
NOTED_IDS, LONGEST_NOTED_ID = 64, 64  # refused requests that are remembered, and characters of each
LONGEST_REFUSAL = 500  # characters; gRPC may drop an answer with more than 8 KiB of encoded text
METHODS = ("Allocate", "GetPreferredAllocation", "PreStartContainer")
_LENGTHS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_STATUS = {
    Cause.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Cause.UNKNOWN: grpc.StatusCode.NOT_FOUND,
    Cause.NOT_READY: grpc.StatusCode.FAILED_PRECONDITION,
}
CODES = tuple(status.name for status in _STATUS.values())

Context = grpc.aio.ServicerContext[Any, Any]
Q = TypeVar("Q")
A = TypeVar("A")


def _timed(
    method: Callable[["DevicePluginService", Q, Context], Awaitable[A]],
) -> Callable[["DevicePluginService", Q, Context], Awaitable[A]]:
    """Count the durations of a method, with any result."""

    @wraps(method)
    async def timed(self: "DevicePluginService", request: Q, context: Context) -> A:
        began = time.monotonic()
        try:
            return await method(self, request, context)
        finally:
            name = method.__name__
            self.durations[name] = self.durations[name].with_one(time.monotonic() - began)

    return timed


class Inventories(Protocol):
    """The picture of all devices."""

    @property
    def current(self) -> Inventory | None:
        """None before the first scan."""

    async def beyond(self, generation: int, /) -> Inventory:
        """Return the newest inventory as soon as its generation is not this one."""


class GrantMemory(Protocol):
    """The memory of grants. `granted`, and `started` up to its first await, take effect at once."""

    @property
    def paths(self) -> Mapping[str, str]:
        """Device id -> path of its node at its last grant."""

    @property
    def unread(self) -> bool:
        """Whether the grants of former processes could not be read yet."""

    async def kept(self, resource: str, ids: Sequence[str], /) -> Kept:
        """Return the kubelet's record of the grant of exactly these ids, within a deadline."""

    def granted(self, paths: Mapping[str, str], /) -> None:
        """Take note of an Allocate answer with these devices."""

    async def passed_on(self) -> bool:
        """Wait until another instance that takes over knows all grants; False if it serves already."""

    async def started(self, paths: Mapping[str, str], /) -> None:
        """Take note of a container that starts with these devices."""


class HostFiles(Protocol):
    """Host files that containers get."""

    async def present(self) -> tuple[str, ...]:
        """Return those that the host has, within a deadline."""

    async def absent(self) -> Mapping[str, str]:
        """Return those that the host surely lacks, each with the reason, within a deadline."""


@frozen
class Contents:
    """The sources of a container's contents.

    node: returns the identity of a device node by its name
    """

    node: NodeIdentity
    additions: Additions = NOTHING
    files: HostFiles | None = None


class DevicePluginService:
    """One resource's service.

    grants: takes each grant and each start of a container
    listed: set when a list has been sent
    watch: tells when no list may be sent, or one without a healthy device; learns of each list
    failures: takes the unforeseen error of a method; the caller is refused
    """

    def __init__(
        self,
        resource: str,
        picture: Inventories,
        *,
        contents: Contents,
        grants: GrantMemory,
        listed: asyncio.Event | None = None,
        watch: RivalWatch | None = None,
        failures: Failures = UNHEEDED,
        timings: Timings = USUAL,
    ) -> None:
        self.timings = timings
        self.resource = resource
        self._streams: set[object] = set()
        self.streams_changed = asyncio.Event()
        self._inventories = picture
        self._contents = contents
        self._grants = grants
        self._listed = listed or asyncio.Event()
        self._watch = watch or RivalWatch(resource)
        self.failures = failures
        self.lists = 0  # that have gone out
        self.granted = 0  # devices
        self.durations: dict[str, Durations] = {method: none_yet(*_LENGTHS) for method in METHODS}
        self.refusals: dict[tuple[str, str], int] = {}  # by method and gRPC code
        self._closing = asyncio.Event()
        self._shown: set[object] = set()
        self.shown = Value(0)  # open streams that have had a list
        self.sending = Value(0)  # lists

    @property
    def streams(self) -> int:
        """Number of open streams, without those that `close` is ending."""
        return len(self._streams)

    @property
    def waited_for(self) -> bool:
        """Whether a stream has had no list yet."""
        return bool(self._streams - self._shown)

    def close(self) -> None:
        """End all streams: the kubelet sees an end, not an error. New streams come by a new socket."""
        self._closing.set()
        self._closing, self._streams, self._shown = asyncio.Event(), set(), set()
        self.shown.set(0)

    # --- the service ----------------------------------------------------------------------------

    async def GetDevicePluginOptions(  # noqa: N802
        self, request: api.Empty, context: Context
    ) -> api.DevicePluginOptions:
        return OPTIONS

    async def ListAndWatch(  # noqa: N802
        self, request: object, context: Context
    ) -> AsyncGenerator[bytes, None]:
        """Send the list at once, and again after each change. A slow reader skips lists."""
        stream, streams, shown, closing = object(), self._streams, self._shown, self._closing
        streams.add(stream)
        self.streams_changed.set()
        try:
            sent, generation, change, stage = None, 0, self._watch.change, self._watch.stage.version
            while (inventory := await self._next(generation, closing, change, stage)) is not None:
                generation, change = inventory.generation, self._watch.change
                stage = self._watch.stage.version
                entries = inventory.of(self.resource)
                if self._watch.rivalry.withheld:
                    entries = [replace(entry, health=WITHHELD) for entry in entries]
                answer = listing(entries)
                if answer == sent:
                    continue
                if sent is not None:  # the last list counts, so it must not replace that of another plugin
                    await self._watch.look_before_list()
                if closing.is_set():
                    return
                if self._watch.silent:
                    continue
                self._watch.announce(
                    [entry.id for entry in entries], [entry.id for entry in entries if entry.health.healthy]
                )
                self.sending.set(self.sending.current + 1)
                try:
                    yield answer
                finally:
                    self.sending.set(self.sending.current - 1)
                sent = answer
                self.lists += 1
                self._listed.set()
                if stream not in shown:
                    shown.add(stream)
                    self.shown.set(len(self._shown))
                    self.streams_changed.set()
        finally:
            streams.discard(stream)
            shown.discard(stream)
            self.shown.set(len(self._shown))
            self.streams_changed.set()

    @_timed
    async def Allocate(  # noqa: N802
        self, request: api.AllocateRequest, context: Context
    ) -> api.AllocateResponse:
        try:
            _check_containers(request.container_requests)
            requests = [list(container.devices_ids) for container in request.container_requests]
            files = await self._contents.files.present() if self._contents.files else ()
            grants = allocation.grant(
                self._picture(),
                self.resource,
                requests,
                self._contents.node,
                additions=self._contents.additions,
                files=files,
            )
        except Refusal as refusal:
            containers = request.container_requests
            asked = (id for container in containers for id in container.devices_ids)
            await self._refuse(context, "Allocate", "allocation", refusal, asked)
        for grant in grants:
            note(
                "grant",
                resource=self.resource,
                ids=[entry.id for entry in grant.entries],
                paths=list(grant.paths),
                files=list(grant.files),
                generation=self._picture().generation,
            )
            self._grants.granted({entry.id: entry.device.path for entry in grant.entries})
            self.granted += len(grant.entries)
            # After the answer: the reader of our log may be slow.
            asyncio.get_running_loop().call_soon(
                logger.info,
                "granted resource=%s ids=%s paths=%s",
                self.resource,
                ",".join(entry.id for entry in grant.entries),
                ",".join(grant.paths),
            )
        await self._pass_on(context, "Allocate", "allocation", [id for ids in requests for id in ids])
        return api.AllocateResponse(container_responses=[_answer(grant) for grant in grants])

    @_timed
    async def GetPreferredAllocation(  # noqa: N802
        self, request: api.PreferredAllocationRequest, context: Context
    ) -> api.PreferredAllocationResponse:
        """Prefer devices. An empty preference leaves the choice to the kubelet; an error would fail the
        pod."""
        try:
            _check_containers(request.container_requests)
        except Refusal as refusal:
            await self._refuse(context, "GetPreferredAllocation", "preference", refusal, ())
        return api.PreferredAllocationResponse(
            container_responses=[
                api.ContainerPreferredAllocationResponse(
                    deviceIDs=self._prefer(
                        container.available_deviceIDs,
                        container.must_include_deviceIDs,
                        container.allocation_size,
                    )
                )
                for container in request.container_requests
            ]
        )

    @_timed
    async def PreStartContainer(  # noqa: N802
        self, request: api.PreStartContainerRequest, context: Context
    ) -> api.PreStartContainerResponse:
        ids, kept = list(request.devices_ids), None
        try:
            absent = await self._contents.files.absent() if self._contents.files else {}
            # A plugin that ended between grant and start has written nothing; the kubelet has.
            unrecorded = allocation.unrecorded(self._picture(), ids, self._grants.paths)
            by_kubelet = unrecorded and not self._grants.unread
            if by_kubelet or absent:
                kept = await self._grants.kept(self.resource, ids)
            paths = allocation.check_start(
                self._picture(),
                self.resource,
                ids,
                self._grants.paths,
                self._contents.node,
                unread=self._grants.unread,
                kept=kept,
            )
            if kept is not None:
                allocation.check_files(kept, absent)
        except Refusal as refusal:
            await self._refuse(context, "PreStartContainer", "container start", refusal, ids)
        if by_kubelet:
            note("start", resource=self.resource, ids=ids, paths=list(paths.values()), by="checkpoint")
        # The start proves a holder, also an ordinary init container, which is never listed.
        await self._grants.started(paths)
        await self._pass_on(context, "PreStartContainer", "container start", ids)
        return api.PreStartContainerResponse()

    # --- within ---------------------------------------------------------------------------------

    def _picture(self) -> Inventory:
        inventory = self._inventories.current
        if inventory is None:
            raise Refusal(Cause.NOT_READY, "the devices have not been scanned yet")
        return inventory

    def _prefer(self, available: Sequence[str], must: Sequence[str], size: int) -> list[str]:
        inventory = self._inventories.current
        return allocation.prefer(inventory, self.resource, available, must, size) if inventory else []

    async def _pass_on(self, context: Context, method: str, what: str, ids: list[str]) -> None:
        """Tell another instance of a grant before the kubelet has the answer."""
        if not await self._grants.passed_on():
            refusal = Refusal(Cause.NOT_READY, "another instance of this plugin serves the node")
            await self._refuse(context, method, what, refusal, ids)

    async def _next(
        self, generation: int, closing: asyncio.Event, change: asyncio.Event, stage: int
    ) -> Inventory | None:
        """The newest picture: one not of this generation, or any after a change, or a change of our stage.

        None when the service closes.
        """
        picture = asyncio.ensure_future(self._inventories.beyond(generation))
        closed = asyncio.ensure_future(closing.wait())
        changed = asyncio.ensure_future(change.wait())
        staged = asyncio.ensure_future(self._watch.stage.beyond(stage))
        try:
            await asyncio.wait({picture, closed, changed, staged}, return_when=asyncio.FIRST_COMPLETED)
            if closing.is_set():
                return None
            return picture.result() if picture.done() else self._inventories.current or await picture
        finally:
            picture.cancel()
            closed.cancel()
            changed.cancel()
            staged.cancel()

    async def _refuse(
        self, context: Context, method: str, what: str, refusal: Refusal, ids: Iterable[str]
    ) -> NoReturn:
        code, text = _STATUS[refusal.cause], str(refusal)
        self.refusals[method, code.name] = self.refusals.get((method, code.name), 0) + 1
        if len(text) > LONGEST_REFUSAL:
            text = f"{text[:LONGEST_REFUSAL]}..."
        inventory, asked = self._inventories.current, list(islice(ids, NOTED_IDS))
        note(
            "refusal",
            of=what,
            resource=self.resource,
            ids=[id[:LONGEST_NOTED_ID] for id in asked],
            why=text,
            generation=inventory.generation if inventory else 0,
            granted_as={id: path for id in asked if (path := self._grants.paths.get(id))},
        )
        logger.warning(Message("request refused", request=what, resource=self.resource, error=text))
        await context.abort(code, text)


def _parsed(
    method: Callable[[Any, Context], Awaitable[Any]],
    request: Any,
    answer: Any,
    failures: Failures,
) -> Any:
    """Make a handler that parses its request itself. For a malformed request gRPC would log a traceback, and
    report an unexpected error to the peer. `Any`: messages and their types are generated."""

    async def handle(raw: bytes, context: Context) -> Any:
        try:
            message = request.FromString(raw)
        except DecodeError:
            path = f"/{NAME}/{method.__name__}"
            logger.warning(Message("a request that is no message of the kubelet's", path=path))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "malformed request")
        try:
            return await method(message, context)
        except grpc.aio.BaseError:
            raise  # the answer is a refusal
        except Exception as error:  # noqa: BLE001 - gRPC would serve on
            failures.failed(error)
            await context.abort(grpc.StatusCode.INTERNAL, _FAILED)

    return grpc.unary_unary_rpc_method_handler(handle, None, answer.SerializeToString)


def _streamed(service: DevicePluginService) -> Any:
    """Make the handler of ListAndWatch: its request is empty, and its answers are serialised already."""

    async def handle(request: object, context: Context) -> AsyncIterator[bytes]:
        try:
            async with aclosing(service.ListAndWatch(request, context)) as answers:
                async for answer in answers:
                    yield answer
        except grpc.aio.BaseError:
            raise  # as above
        except Exception as error:  # noqa: BLE001 - as above
            service.failures.failed(error)
            await context.abort(grpc.StatusCode.INTERNAL, _FAILED)

    return grpc.unary_stream_rpc_method_handler(handle)


def server_of(service: DevicePluginService) -> grpc.aio.Server:
    """Make a server for the service. The caller adds a port and starts it."""
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", LONGEST_MESSAGE),
            ("grpc.max_concurrent_streams", MOST_STREAMS),
            ("grpc.server_handshake_timeout_ms", int(1000 * service.timings.handshake)),
            ("grpc.max_connection_idle_ms", int(1000 * service.timings.idle)),
        ),
    )
    unary = (
        (service.GetDevicePluginOptions, api.Empty, api.DevicePluginOptions),
        (service.Allocate, api.AllocateRequest, api.AllocateResponse),
        (service.GetPreferredAllocation, api.PreferredAllocationRequest, api.PreferredAllocationResponse),
        (service.PreStartContainer, api.PreStartContainerRequest, api.PreStartContainerResponse),
    )
    handlers = {
        method.__name__: _parsed(method, request, answer, service.failures)
        for method, request, answer in unary
    }
    handlers["ListAndWatch"] = _streamed(service)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
    return server


def listing(entries: Sequence[Entry]) -> bytes:
    """Return the list as a serialised ListAndWatchResponse.

    Concatenated messages of one type are one message. So each device is serialised once, and not again after
    each change of another device.
    """
    return b"".join(_listed(entry.id, str(entry.health), entry.device.numa) for entry in entries)


@lru_cache(maxsize=MOST_KEPT)
def _listed(id: str, health: str, numa: int | None) -> bytes:
    """Return a serialised list of one device."""
    topology = None if numa is None else api.TopologyInfo(nodes=[api.NUMANode(ID=numa)])
    answer = api.ListAndWatchResponse(devices=[api.Device(ID=id, health=health, topology=topology)])
    return answer.SerializeToString()


def _check_containers(containers: Sized) -> None:
    """Refuse a request that would block the event loop for seconds, before its content is read."""
    if len(containers) > MOST_CONTAINERS:
        raise Refusal(
            Cause.INVALID, f"{len(containers)} containers in one request; accepted: {MOST_CONTAINERS} at most"
        )


def _answer(grant: allocation.ContainerGrant) -> api.ContainerAllocateResponse:
    return api.ContainerAllocateResponse(
        envs=dict(grant.environment),
        devices=[
            api.DeviceSpec(container_path=path, host_path=path, permissions="rw") for path in grant.paths
        ],
        mounts=[api.Mount(container_path=path, host_path=path, read_only=True) for path in grant.files],
    )
