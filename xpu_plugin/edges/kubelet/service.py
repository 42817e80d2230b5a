# SPDX-License-Identifier: Apache-2.0
"""The DevicePlugin gRPC service of one resource: translates between the kubelet and the picture.

Nothing here waits for the library: every answer comes from the picture as it is. Only root can reach the
socket; but a peer that is broken or worse gets no more than a refusal, and costs the kubelet nothing.
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
from xpu_plugin.log import note
from xpu_plugin.model import allocation
from xpu_plugin.model.allocation import Cause, NodeIdentity, Refusal
from xpu_plugin.model.health import Health
from xpu_plugin.model.histogram import Durations, none_yet
from xpu_plugin.model.inventory import Entry, Inventory
from xpu_plugin.model.timings import USUAL, Timings
from xpu_plugin.proto import deviceplugin_pb2 as api


logger = logging.getLogger(__name__)

NAME = "v1beta1.DevicePlugin"
_FAILED = "the plugin failed, and is started again"
MOST_KEPT = 8192  # devices, serialised
WITHHELD = Health("foreign-plugin", "another plugin may have granted it")
OPTIONS = api.DevicePluginOptions(pre_start_required=True, get_preferred_allocation_available=True)

LONGEST_MESSAGE = 1 << 18  # bytes; ten thousand device ids fit; to look at it takes some 100 times as much
MOST_CONTAINERS = 64  # in one request; a kubelet asks for one at a time
MOST_STREAMS = 64  # calls at once on one connection; a kubelet has its stream and a few more
NOTED_IDS, LONGEST_NOTED_ID = 64, 64  # of a refused request: how many are remembered, and how much of each
LONGEST_REFUSAL = 500  # characters; gRPC may drop an answer whose text has more than 8 KiB once encoded
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
    """A method whose durations are counted, whatever comes of it."""

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
        """The newest inventory, as soon as it is not of that generation."""


class GrantMemory(Protocol):
    """The memory of grants. `granted`, and `started` up to its first wait, take effect at once."""

    @property
    def paths(self) -> Mapping[str, str]:
        """Device id -> the path of its node as it was granted last."""

    @property
    def unread(self) -> bool:
        """Whether the paths that former processes have granted could not be read yet."""

    def granted(self, paths: Mapping[str, str], /) -> None:
        """Allocate is answered with these."""

    async def started(self, paths: Mapping[str, str], /) -> None:
        """A container starts with these."""


class DevicePluginService:
    """One resource's service.

    node: what a device node is, by name; grants: where each grant and each start of a container is written
    listed: set when a list has gone out
    watch: says when no list is to go out, or one without a healthy device; told of each list
    failures: for an unforeseen error of a method; the caller is refused
    """

    def __init__(
        self,
        resource: str,
        picture: Inventories,
        *,
        node: NodeIdentity,
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
        self._node = node
        self._grants = grants
        self._listed = listed or asyncio.Event()
        self._watch = watch or RivalWatch(resource)
        self.failures = failures
        self.lists = 0  # that have gone out
        self.granted = 0  # devices
        self.durations: dict[str, Durations] = {method: none_yet(*_LENGTHS) for method in METHODS}
        self.refusals: dict[tuple[str, str], int] = {}  # by method and gRPC code
        self._closing = asyncio.Event()

    @property
    def streams(self) -> int:
        """How many streams are open; those that were closed from here do not count, ended or not."""
        return len(self._streams)

    def close(self) -> None:
        """End all streams cleanly; the kubelet sees an end, not an error. Take new ones, on a new socket."""
        self._closing.set()
        self._closing, self._streams = asyncio.Event(), set()

    # --- the service ----------------------------------------------------------------------------

    async def GetDevicePluginOptions(  # noqa: N802
        self, request: api.Empty, context: Context
    ) -> api.DevicePluginOptions:
        return OPTIONS

    async def ListAndWatch(  # noqa: N802
        self, request: object, context: Context
    ) -> AsyncGenerator[bytes, None]:
        """The list at once, then again whenever it is another one; a slow reader skips what came between."""
        stream, streams, closing = object(), self._streams, self._closing
        streams.add(stream)
        self.streams_changed.set()
        try:
            sent, generation, change = None, 0, self._watch.change
            while (inventory := await self._next(generation, closing, change)) is not None:
                generation, change = inventory.generation, self._watch.change
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
                if self._watch.rivalry.silent:
                    continue
                self._watch.announce(
                    [entry.id for entry in entries], [entry.id for entry in entries if entry.health.healthy]
                )
                yield answer
                sent = answer
                self.lists += 1
                self._listed.set()
        finally:
            streams.discard(stream)
            self.streams_changed.set()

    @_timed
    async def Allocate(  # noqa: N802
        self, request: api.AllocateRequest, context: Context
    ) -> api.AllocateResponse:
        try:
            _check_containers(request.container_requests)
            requests = [list(container.devices_ids) for container in request.container_requests]
            grants = allocation.grant(self._picture(), self.resource, requests, self._node)
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
                generation=self._picture().generation,
            )
            self._grants.granted({entry.id: entry.device.path for entry in grant.entries})
            self.granted += len(grant.entries)
            # While the answer is on its way: whoever reads our log may be slow.
            asyncio.get_running_loop().call_soon(
                logger.info,
                "granted resource=%s ids=%s paths=%s",
                self.resource,
                ",".join(entry.id for entry in grant.entries),
                ",".join(grant.paths),
            )
        return api.AllocateResponse(container_responses=[_answer(grant) for grant in grants])

    @_timed
    async def GetPreferredAllocation(  # noqa: N802
        self, request: api.PreferredAllocationRequest, context: Context
    ) -> api.PreferredAllocationResponse:
        """An empty preference leaves the choice to the kubelet; an error would fail the pod."""
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
        try:
            paths = allocation.check_start(
                self._picture(),
                self.resource,
                list(request.devices_ids),
                self._grants.paths,
                self._node,
                unread=self._grants.unread,
            )
        except Refusal as refusal:
            asked = request.devices_ids
            await self._refuse(context, "PreStartContainer", "container start", refusal, asked)
        # Whenever it was granted: now it is held, be it by an ordinary init container, which is never listed.
        await self._grants.started(paths)
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

    async def _next(self, generation: int, closing: asyncio.Event, change: asyncio.Event) -> Inventory | None:
        """The newest picture: one not of this generation, or any after a change.

        None when the service closes.
        """
        picture = asyncio.ensure_future(self._inventories.beyond(generation))
        closed = asyncio.ensure_future(closing.wait())
        changed = asyncio.ensure_future(change.wait())
        try:
            await asyncio.wait({picture, closed, changed}, return_when=asyncio.FIRST_COMPLETED)
            if closing.is_set():
                return None
            return picture.result() if picture.done() else self._inventories.current or await picture
        finally:
            picture.cancel()
            closed.cancel()
            changed.cancel()

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
        logger.warning("%s refused resource=%s: %s", what, self.resource, text)
        await context.abort(code, text)


def _parsed(
    method: Callable[[Any, Context], Awaitable[Any]],
    request: Any,
    answer: Any,
    failures: Failures,
) -> Any:
    """A handler that parses its request where an error can be answered: gRPC itself would log a traceback for
    each that is malformed, and answer that something unexpected has happened. `Any`: messages and their types
    are generated."""

    async def handle(raw: bytes, context: Context) -> Any:
        try:
            message = request.FromString(raw)
        except DecodeError:
            path = f"/{NAME}/{method.__name__}"
            logger.warning("a request that is no message of the kubelet's: %s", path)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "malformed request")
        try:
            return await method(message, context)
        except grpc.aio.BaseError:
            raise  # the answer is a refusal
        except Exception as error:  # noqa: BLE001 - whatever it is, gRPC would serve on
            failures.failed(error)
            await context.abort(grpc.StatusCode.INTERNAL, _FAILED)

    return grpc.unary_unary_rpc_method_handler(handle, None, answer.SerializeToString)


def _streamed(service: DevicePluginService) -> Any:
    """The handler of ListAndWatch: nothing could be wrong in its request, and its answers are serialised."""

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
    """A server for the service, which has to be given a port and started."""
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
    """The list as the kubelet reads it: a ListAndWatchResponse, serialised.

    Messages of one kind that are put behind one another are one message. So each device is made once and not
    again with each change of another one.
    """
    return b"".join(_listed(entry.id, str(entry.health), entry.device.numa) for entry in entries)


@lru_cache(maxsize=MOST_KEPT)
def _listed(id: str, health: str, numa: int | None) -> bytes:
    """A list of one device."""
    topology = None if numa is None else api.TopologyInfo(nodes=[api.NUMANode(ID=numa)])
    answer = api.ListAndWatchResponse(devices=[api.Device(ID=id, health=health, topology=topology)])
    return answer.SerializeToString()


def _check_containers(containers: Sized) -> None:
    """Refuse what would take the event loop for seconds; before any of it is looked at."""
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
    )
