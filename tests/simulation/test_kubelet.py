# SPDX-License-Identifier: Apache-2.0
"""The kubelet stand-in, against a plugin that does exactly what a test tells it."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest

from xpu_plugin.proto import (
    deviceplugin_pb2 as api,
)
from xpu_plugin.proto import (
    deviceplugin_pb2_grpc as api_grpc,
)
from xpu_plugin.proto import (
    podresources_v1_pb2,
    podresources_v1_pb2_grpc,
    podresources_v1alpha1_pb2,
    podresources_v1alpha1_pb2_grpc,
)
from xpu_plugin.simulation.kubelet import (
    CHECKPOINT,
    AdmissionError,
    Client,
    Kubelet,
    ListedDevice,
    Registration,
    Release,
    StartError,
)


Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

RESOURCE = "example.com/thing"
SECONDS = 5.0


def device(id_: str, health: str = "Healthy", *, numa: int | None = None) -> api.Device:
    topology = None if numa is None else api.TopologyInfo(nodes=[api.NUMANode(ID=numa)])
    return api.Device(ID=id_, health=health, topology=topology)


class ScriptedPlugin(api_grpc.DevicePluginServicer):
    """A plugin with a list that the test `show()`s, and with answers as attributes."""

    def __init__(self, kubelet: Kubelet, *devices: api.Device, endpoint: str = "thing.sock") -> None:
        self.kubelet = kubelet
        self.endpoint = endpoint
        self.devices = devices
        self.calls: list[tuple[str, list[str]]] = []
        self.registered_when_dialled: bool | None = None
        self.prefer: Callable[[list[str], int], Iterable[str]] = lambda available, size: ()
        self.refuse: set[str] = set()
        self.streams = 0
        self._registered = False
        self._closing = False
        self._shown = asyncio.Event()
        self._server = grpc.aio.server()

    async def serve(self) -> None:
        api_grpc.add_DevicePluginServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self._server.add_insecure_port(f"unix:{self.kubelet.directory / self.endpoint}")
        await self._server.start()

    async def register(
        self, *, pre_start: bool = False, preferred: bool = False, version: str = "v1beta1"
    ) -> None:
        async with grpc.aio.insecure_channel(f"unix:{self.kubelet.socket}") as channel:
            await api_grpc.RegistrationStub(channel).Register(  # type: ignore[no-untyped-call]
                api.RegisterRequest(
                    version=version,
                    endpoint=self.endpoint,
                    resource_name=RESOURCE,
                    options=api.DevicePluginOptions(
                        pre_start_required=pre_start, get_preferred_allocation_available=preferred
                    ),
                ),
                timeout=SECONDS,
            )
        self._registered = True

    async def join(self, *, pre_start: bool = False, preferred: bool = False) -> None:
        """Register, and wait until the kubelet offers all three devices."""
        await self.register(pre_start=pre_start, preferred=preferred)
        await listed(self.kubelet, 3)

    def show(self, *devices: api.Device) -> None:
        self.devices = devices
        self._wake()

    async def stop(self) -> None:
        self._closing = True
        self._wake()
        await self._server.stop(None)

    def _wake(self) -> None:
        self._shown.set()
        self._shown = asyncio.Event()

    async def ListAndWatch(  # noqa: N802
        self, request: api.Empty, context: Context
    ) -> AsyncIterator[api.ListAndWatchResponse]:
        self.registered_when_dialled = self._registered
        self.streams += 1
        try:
            while not self._closing:
                shown = self._shown
                yield api.ListAndWatchResponse(devices=self.devices)
                await shown.wait()
        finally:
            self.streams -= 1
            self._wake()

    async def gone(self) -> None:
        """Wait until the list has no reader."""
        async with asyncio.timeout(SECONDS):
            while self.streams:
                await self._shown.wait()

    async def _called(self, context: Context, name: str, ids: Iterable[str]) -> None:
        self.calls.append((name, list(ids)))
        if name in self.refuse:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{name} is refused")

    async def GetPreferredAllocation(  # noqa: N802
        self, request: api.PreferredAllocationRequest, context: Context
    ) -> api.PreferredAllocationResponse:
        wish = request.container_requests[0]
        await self._called(context, "GetPreferredAllocation", wish.available_deviceIDs)
        ids = self.prefer(list(wish.available_deviceIDs), wish.allocation_size)
        answer = api.ContainerPreferredAllocationResponse(deviceIDs=ids)
        return api.PreferredAllocationResponse(container_responses=[answer])

    async def Allocate(  # noqa: N802
        self, request: api.AllocateRequest, context: Context
    ) -> api.AllocateResponse:
        ids = request.container_requests[0].devices_ids
        await self._called(context, "Allocate", ids)
        answer = api.ContainerAllocateResponse(
            envs={"THINGS": ",".join(ids)},
            devices=[
                api.DeviceSpec(container_path=f"/dev/{id_}", host_path=f"/dev/{id_}", permissions="rw")
                for id_ in ids
            ],
        )
        return api.AllocateResponse(container_responses=[answer])

    async def PreStartContainer(  # noqa: N802
        self, request: api.PreStartContainerRequest, context: Context
    ) -> api.PreStartContainerResponse:
        await self._called(context, "PreStartContainer", request.devices_ids)
        return api.PreStartContainerResponse()


def strays() -> list[str]:
    """Tasks of a kubelet that has closed. gRPC's own may take another round of the loop to end."""
    coroutines = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in coroutines if name.startswith("Kubelet.")]


@pytest.fixture
async def kubelet(tmp_path: Path) -> AsyncIterator[Kubelet]:
    async with Kubelet(tmp_path / "plugins", pod_resources_dir=tmp_path / "pods") as kubelet:
        yield kubelet
    assert not strays()


@pytest.fixture
async def plugin(kubelet: Kubelet) -> AsyncIterator[ScriptedPlugin]:
    plugin = ScriptedPlugin(kubelet, device("a", numa=0), device("b", numa=1), device("c"))
    await plugin.serve()
    yield plugin
    await plugin.stop()


async def listed(kubelet: Kubelet, count: int, *, times: int = 1) -> None:
    await kubelet.until(
        lambda: kubelet.lists(RESOURCE) >= times and kubelet.allocatable(RESOURCE) == count, timeout=SECONDS
    )


# --- registration and lists ---


async def test_the_list_of_a_registered_plugin_is_known(kubelet: Kubelet, plugin: ScriptedPlugin) -> None:
    await plugin.join()
    assert plugin.registered_when_dialled, "its registration is answered before"
    assert kubelet.devices(RESOURCE)["b"] == ListedDevice(id="b", health="Healthy", numa=(1,))
    assert kubelet.devices(RESOURCE)["c"].numa == ()
    assert (kubelet.streams_open, kubelet.lists(RESOURCE)) == (1, 1)


async def test_a_registration_is_recorded_with_its_options(kubelet: Kubelet, plugin: ScriptedPlugin) -> None:
    await plugin.register(pre_start=True)
    [registration] = kubelet.registrations
    assert (registration.resource, registration.endpoint) == (RESOURCE, "thing.sock")
    assert (registration.version, registration.life) == ("v1beta1", 1)
    assert registration.pre_start_required
    assert not registration.preferred_allocation_available


async def test_an_unsupported_version_is_refused(kubelet: Kubelet, plugin: ScriptedPlugin) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="is not supported by kubelet"):
        await plugin.register(version="v1alpha")
    assert kubelet.registrations == []
    assert "refused" in kubelet.describe()


async def test_a_changed_list_replaces_the_former_one(kubelet: Kubelet, plugin: ScriptedPlugin) -> None:
    await plugin.join()
    plugin.show(device("a", "Unhealthy"), device("d"))
    await listed(kubelet, 1, times=2)
    assert kubelet.capacity(RESOURCE) == 2
    assert set(kubelet.devices(RESOURCE)) == {"a", "d"}


async def test_devices_are_unhealthy_as_soon_as_their_stream_ends(
    kubelet: Kubelet, plugin: ScriptedPlugin
) -> None:
    await plugin.join()
    await plugin.stop()
    await listed(kubelet, 0)
    assert (kubelet.streams_open, kubelet.capacity(RESOURCE)) == (0, 3)


async def test_a_stream_that_is_cut_is_cancelled_on_the_plugins_side(
    kubelet: Kubelet, plugin: ScriptedPlugin
) -> None:
    await plugin.join()
    kubelet.cut(RESOURCE)
    await plugin.gone()
    await listed(kubelet, 0)


def in_checkpoint(kubelet: Kubelet) -> list[str]:
    """The ids that the kubelet has written down for the resource."""
    document = json.loads((kubelet.directory / CHECKPOINT).read_text())
    ids: list[str] = document["Data"]["RegisteredDevices"][RESOURCE]
    return sorted(ids)


@pytest.fixture
async def pair(
    tmp_path: Path, release: Release
) -> AsyncIterator[tuple[Kubelet, ScriptedPlugin, ScriptedPlugin]]:
    """A kubelet of a release, and two plugins of one resource that have registered in this order."""
    async with Kubelet(tmp_path, release=release) as kubelet:
        first = ScriptedPlugin(kubelet, device("a"))
        second = ScriptedPlugin(kubelet, device("z"), endpoint="second.sock")
        for times, plugin in enumerate((first, second), 1):
            await plugin.serve()
            await plugin.register()
            await listed(kubelet, 1, times=times)
        yield kubelet, first, second
        await first.stop()
        await second.stop()


releases = pytest.mark.parametrize("release", list(Release))


@releases
async def test_a_second_registration_of_a_resource_replaces_the_first_unseen(
    pair: tuple[Kubelet, ScriptedPlugin, ScriptedPlugin],
) -> None:
    """The last one is asked, the last list counts, and no stream ends; only the checkpoint tells."""
    kubelet, first, second = pair
    assert set(kubelet.devices(RESOURCE)) == {"z"}
    assert kubelet.plugin_of(RESOURCE) == second.endpoint
    assert in_checkpoint(kubelet) == ["z"]
    assert (first.streams, second.streams) == (1, 1)
    first.show(device("b"))
    await listed(kubelet, 1, times=3)
    assert set(kubelet.devices(RESOURCE)) == {"b"}
    assert in_checkpoint(kubelet) == ["b"]
    await kubelet.allocate(RESOURCE, 1)
    assert first.calls == []
    assert second.calls == [("Allocate", ["b"])]
    assert kubelet.streams_open == 1


@releases
async def test_the_end_of_a_displaced_plugin(
    pair: tuple[Kubelet, ScriptedPlugin, ScriptedPlugin], release: Release
) -> None:
    kubelet, first, second = pair
    await first.stop()
    if release is Release.V1_36:
        await second.gone()
        assert kubelet.allocatable(RESOURCE) == 0
        return
    await first.gone()
    assert second.streams == 1
    assert kubelet.allocatable(RESOURCE) == 1


@releases
async def test_the_end_of_the_plugin_that_is_asked(
    pair: tuple[Kubelet, ScriptedPlugin, ScriptedPlugin], release: Release
) -> None:
    kubelet, first, second = pair
    await second.stop()
    await second.gone()
    if release is Release.V1_37:
        await kubelet.until(lambda: kubelet.plugin_of(RESOURCE) == first.endpoint, timeout=SECONDS)
        await kubelet.allocate(RESOURCE, 1)
        assert [name for name, _ in first.calls] == ["Allocate"]
        return
    await kubelet.until(lambda: not kubelet.allocatable(RESOURCE), timeout=SECONDS)
    assert first.streams == 1, "nothing tells it that the node has no device"


@pytest.mark.parametrize("release", [Release.V1_37])
async def test_a_path_that_is_known_is_refused_for_ever_and_its_devices_stay(
    pair: tuple[Kubelet, ScriptedPlugin, ScriptedPlugin],
) -> None:
    kubelet, first, second = pair
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError, match="already connected"):
            await second.register()
    assert second.streams == 1
    await second.stop()
    await second.gone()
    await first.stop()
    assert kubelet.allocatable(RESOURCE) == 1, "without any plugin"
    with pytest.raises(AdmissionError):
        await kubelet.allocate(RESOURCE, 1)
    third = ScriptedPlugin(kubelet, device("y"), endpoint="third.sock")
    await third.serve()
    await third.register()
    await kubelet.until(lambda: set(kubelet.devices(RESOURCE)) == {"y"}, timeout=SECONDS)
    await third.stop()


async def test_a_path_whose_stream_has_ended_may_be_registered_again(tmp_path: Path) -> None:
    async with Kubelet(tmp_path, release=Release.V1_37) as kubelet:
        plugin = ScriptedPlugin(kubelet, device("a"))
        await plugin.serve()
        await plugin.register()
        await listed(kubelet, 1)
        kubelet.cut(RESOURCE)
        await plugin.gone()
        await kubelet.until(lambda: not kubelet.allocatable(RESOURCE), timeout=SECONDS)
        await plugin.register()
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1, timeout=SECONDS)
        await plugin.stop()


async def test_an_endpoint_that_is_not_there_is_given_up(tmp_path: Path) -> None:
    async with Kubelet(tmp_path, dial_timeout=0.05) as kubelet:
        await ScriptedPlugin(kubelet, endpoint="nowhere.sock").register()
        await kubelet.until(lambda: kubelet.troubles, timeout=SECONDS)
        assert kubelet.streams_open == 0
        assert "no answer on nowhere.sock" in kubelet.troubles[0]


# --- life ---


def names(directory: Path) -> Iterable[str]:
    return (path.name for path in directory.iterdir())


async def test_start_clears_the_directory_of_all_but_directories_and_the_checkpoint(tmp_path: Path) -> None:
    for name in ("old.sock", CHECKPOINT):
        (tmp_path / name).touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    async with Kubelet(tmp_path):
        assert set(names(tmp_path)) == {"kubelet.sock", CHECKPOINT, "kept"}
    assert set(names(tmp_path)) == {CHECKPOINT, "kept"}


async def test_a_stopped_kubelet_leaves_a_dead_socket(kubelet: Kubelet, plugin: ScriptedPlugin) -> None:
    await kubelet.stop()
    assert kubelet.socket.is_socket()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await plugin.register()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_restarted_kubelet_knows_no_device_until_it_is_registered_again(
    kubelet: Kubelet, plugin: ScriptedPlugin
) -> None:
    await plugin.join()
    grant = await kubelet.allocate(RESOURCE, 1)
    await kubelet.restart()
    await plugin.gone()
    assert kubelet.devices(RESOURCE) == {}
    assert kubelet.grants == (grant,)
    with pytest.raises(AdmissionError, match="can't allocate unregistered device"):
        await kubelet.allocate(RESOURCE, 1)

    async with succeeded(plugin):
        await listed(kubelet, 3, times=2)
        assert [registration.life for registration in kubelet.registrations] == [1, 2]


# --- pods ---


async def test_a_grant_carries_ids_environment_and_nodes(kubelet: Kubelet, plugin: ScriptedPlugin) -> None:
    await plugin.join()
    grant = await kubelet.allocate(RESOURCE, 2, pod="p", container="c")
    assert (grant.pod, grant.container, grant.ids) == ("p", "c", ("a", "b"))
    assert grant.env == {"THINGS": "a,b"}
    assert [(node.host_path, node.container_path, node.permissions) for node in grant.nodes] == [
        ("/dev/a", "/dev/a", "rw"),
        ("/dev/b", "/dev/b", "rw"),
    ]
    assert plugin.calls == [("Allocate", ["a", "b"])]


async def test_granted_and_sick_devices_are_not_granted_again(
    kubelet: Kubelet, plugin: ScriptedPlugin
) -> None:
    plugin.show(device("a"), device("b", "Unhealthy"), device("c"))
    await plugin.register()
    await listed(kubelet, 2)
    first = await kubelet.allocate(RESOURCE, 1)
    assert first.ids == ("a",)
    assert kubelet.allocatable(RESOURCE) == 2
    with pytest.raises(AdmissionError, match="Requested: 2, Available: 1"):
        await kubelet.allocate(RESOURCE, 2)
    kubelet.free(first)
    assert (await kubelet.allocate(RESOURCE, 2)).ids == ("a", "c")


async def test_a_container_that_holds_its_devices_is_not_allocated_twice(
    kubelet: Kubelet, plugin: ScriptedPlugin
) -> None:
    await plugin.join()
    grant = await kubelet.allocate(RESOURCE, 1, pod="p")
    assert await kubelet.allocate(RESOURCE, 1, pod="p") is grant
    assert len(plugin.calls) == 1
    with pytest.raises(AdmissionError, match="changed request"):
        await kubelet.allocate(RESOURCE, 2, pod="p")


@pytest.mark.parametrize("call", ["Allocate", "GetPreferredAllocation"])
async def test_a_refused_call_grants_nothing(kubelet: Kubelet, plugin: ScriptedPlugin, call: str) -> None:
    await plugin.join(preferred=True)
    plugin.refuse.add(call)
    with pytest.raises(AdmissionError, match=f"{call}: FAILED_PRECONDITION: {call} is refused"):
        await kubelet.allocate(RESOURCE, 1)
    assert kubelet.grants == ()


async def test_nothing_is_asked_of_a_plugin_whose_stream_ended(
    kubelet: Kubelet, plugin: ScriptedPlugin
) -> None:
    await plugin.join(pre_start=True)
    grant = await kubelet.allocate(RESOURCE, 1)
    calls = len(plugin.calls)
    kubelet.cut(RESOURCE)
    await listed(kubelet, 0)
    with pytest.raises(StartError, match="has been stopped"):
        await kubelet.restart_container(grant)
    assert len(plugin.calls) == calls


# --- preferences ---


@pytest.mark.parametrize(("answer", "granted"), [(["c"], ("c", "a")), ([], ("a", "b"))])
async def test_a_preference_is_followed_and_filled_up(
    kubelet: Kubelet, plugin: ScriptedPlugin, answer: list[str], granted: tuple[str, ...]
) -> None:
    await plugin.join(preferred=True)
    plugin.prefer = lambda available, size: answer
    assert (await kubelet.allocate(RESOURCE, 2)).ids == granted
    assert plugin.calls[0] == ("GetPreferredAllocation", ["a", "b", "c"])


@pytest.mark.parametrize("answer", [["a", "b"], ["stranger"], ["a", "a"]])
async def test_an_impossible_preference_fails_the_pod(
    kubelet: Kubelet, plugin: ScriptedPlugin, answer: list[str]
) -> None:
    await plugin.join(preferred=True)
    plugin.prefer = lambda available, size: answer
    with pytest.raises(AdmissionError, match="was answered with"):
        await kubelet.allocate(RESOURCE, 1)


# --- containers ---


async def test_each_start_of_a_container_asks_the_plugin_once_and_allocates_never_again(
    kubelet: Kubelet, plugin: ScriptedPlugin
) -> None:
    await plugin.join(pre_start=True)
    grant = await kubelet.allocate(RESOURCE, 1)
    await kubelet.restart_container(grant)
    assert plugin.calls == [
        ("Allocate", ["a"]),
        ("PreStartContainer", ["a"]),
        ("PreStartContainer", ["a"]),
    ]


async def test_a_container_refused_at_its_start_keeps_its_devices(
    kubelet: Kubelet, plugin: ScriptedPlugin
) -> None:
    await plugin.join(pre_start=True)
    plugin.refuse.add("PreStartContainer")
    with pytest.raises(StartError, match="PreStartContainer is refused") as caught:
        await kubelet.allocate(RESOURCE, 1)
    assert kubelet.grants == (caught.value.grant,)
    plugin.refuse.clear()
    await kubelet.restart_container(caught.value.grant)


async def test_before_a_plugin_is_registered_again_containers_start_unasked(
    kubelet: Kubelet, plugin: ScriptedPlugin
) -> None:
    await plugin.join(pre_start=True)
    grant = await kubelet.allocate(RESOURCE, 1)
    await kubelet.restart()
    plugin.calls.clear()
    await kubelet.restart_container(grant)
    assert plugin.calls == []


# --- pod resources ---


V1 = (podresources_v1_pb2_grpc, podresources_v1_pb2)
V1ALPHA1 = (podresources_v1alpha1_pb2_grpc, podresources_v1alpha1_pb2)


async def pods(kubelet: Kubelet, version: tuple[Any, Any] = V1) -> Sequence[Any]:
    service, messages = version
    async with grpc.aio.insecure_channel(f"unix:{kubelet.pod_resources_socket}") as channel:
        stub = service.PodResourcesListerStub(channel)
        answer = await stub.List(messages.ListPodResourcesRequest(), timeout=SECONDS)
    found: Sequence[Any] = answer.pod_resources
    return found


@pytest.mark.parametrize("version", [V1, V1ALPHA1], ids=["v1", "v1alpha1"])
async def test_both_versions_of_pod_resources_tell_who_holds_what(
    kubelet: Kubelet, plugin: ScriptedPlugin, version: tuple[Any, Any]
) -> None:
    await plugin.join()
    await kubelet.allocate(RESOURCE, 2, pod="p", container="c")
    kubelet.hold(["0", "1"], resource="old.example/thing", pod="q", namespace="else")
    first, second = await pods(kubelet, version)
    assert (first.name, first.namespace, first.containers[0].name) == ("p", "default", "c")
    assert sorted(id_ for held in first.containers[0].devices for id_ in held.device_ids) == ["a", "b"]
    assert (second.name, second.namespace) == ("q", "else")
    [held] = second.containers[0].devices
    assert (held.resource_name, list(held.device_ids)) == ("old.example/thing", ["0", "1"])


async def test_an_older_kubelet_serves_v1alpha1_only(tmp_path: Path) -> None:
    async with Kubelet(
        tmp_path / "plugins", pod_resources_dir=tmp_path / "pods", pod_resources_v1=False
    ) as kubelet:
        kubelet.hold(["0"], resource=RESOURCE)
        assert len(await pods(kubelet, V1ALPHA1)) == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pods(kubelet)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_init_containers_are_in_the_checkpoint_but_not_in_pod_resources(kubelet: Kubelet) -> None:
    kubelet.hold(["0"], resource=RESOURCE, pod="p", init_container=True)
    [pod] = await pods(kubelet)
    assert list(pod.containers) == []
    assert [entry["PodUID"] for entry in entries(kubelet)] == [kubelet.grants[0].uid]


async def test_a_kubelet_that_restarts_without_an_api_server_lists_no_pods_but_counts_their_devices(
    kubelet: Kubelet,
) -> None:
    kubelet.hold(["0"], resource=RESOURCE)
    kubelet.api_server_away = True
    assert len(await pods(kubelet)) == 1, "pods known before the outage stay known"
    await kubelet.restart()
    assert list(await pods(kubelet)) == []
    assert len(entries(kubelet)) == 1
    kubelet.api_server_away = False
    assert len(await pods(kubelet)) == 1


# --- checkpoint ---


def checkpoint(kubelet: Kubelet) -> Any:
    return json.loads((kubelet.directory / CHECKPOINT).read_text())


def entries(kubelet: Kubelet) -> Any:
    return checkpoint(kubelet)["Data"]["PodDeviceEntries"]


async def test_a_kubelet_without_its_checkpoint_lists_pods_and_counts_their_devices_as_free(
    kubelet: Kubelet, plugin: ScriptedPlugin
) -> None:
    await plugin.join()
    held = await kubelet.allocate(RESOURCE, 2, pod="train")
    await kubelet.restart_without_checkpoint()
    assert not (kubelet.directory / CHECKPOINT).exists()
    assert (kubelet.grants, kubelet.forgotten) == ((), (held,))
    (pod,) = kubelet.pod_resources().pod_resources
    assert (pod.name, len(pod.containers)) == ("train", 0)

    async with succeeded(plugin):
        await listed(kubelet, 3, times=2)
        assert set((await kubelet.allocate(RESOURCE, 3, pod="next")).ids) > set(held.ids)
        kubelet.free(held)
        assert kubelet.forgotten == ()


async def test_an_older_kubelet_without_its_checkpoint_allocates_again_in_order(tmp_path: Path) -> None:
    async with Kubelet(tmp_path / "plugins", asks_again=True) as kubelet:
        plugin = ScriptedPlugin(kubelet, device("a"), device("b"), device("c"))
        await plugin.serve()
        await plugin.join()
        for pod in ("first", "second", "third"):
            await kubelet.allocate(RESOURCE, 1, pod=pod)
        await kubelet.restart_without_checkpoint()
        plugin.show(device("a", "Unhealthy"), device("b"), device("c"))
        async with succeeded(plugin):
            await kubelet.until(lambda: len(kubelet.grants) == 2, timeout=SECONDS)
            await kubelet.until(lambda: not kubelet.forgotten, timeout=SECONDS)
            assert [(grant.pod, grant.ids) for grant in kubelet.grants] == [
                ("first", ("b",)),
                ("second", ("c",)),
            ]
            assert kubelet.troubles[-1].startswith("third is killed: requested number of devices unavailable")


@asynccontextmanager
async def succeeded(plugin: ScriptedPlugin) -> AsyncIterator[None]:
    """The same plugin at a new socket, as the kubelet's start has removed the old one."""
    await plugin.stop()
    successor = ScriptedPlugin(plugin.kubelet, *plugin.devices)
    await successor.serve()
    await successor.register()
    try:
        yield
    finally:
        await successor.stop()


async def test_the_checkpoint_has_a_grant_before_its_container_starts(
    kubelet: Kubelet, plugin: ScriptedPlugin
) -> None:
    await plugin.join(pre_start=True)
    grant = await kubelet.admit(RESOURCE, 1, pod="p")
    former = kubelet.hold(["z"], resource=RESOURCE, nodes=["/dev/z"])
    assert plugin.calls == [("Allocate", ["a"])]
    entries = checkpoint(kubelet)["Data"]["PodDeviceEntries"]
    assert [entry["DeviceIDs"] for entry in entries] == [{"0": ["a"]}, {"-1": ["z"]}]
    answers = [
        api.ContainerAllocateResponse.FromString(base64.b64decode(entry["AllocResp"])) for entry in entries
    ]
    given = [tuple(spec.host_path for spec in answer.devices) for answer in answers]
    assert given == [tuple(node.host_path for node in own.nodes) for own in (grant, former)]
    assert given[1] == ("/dev/z",)
    await kubelet.restart_container(grant)
    assert plugin.calls[1:] == [("PreStartContainer", ["a"])]


async def test_the_checkpoint_has_the_shape_of_kubelet_1_20(kubelet: Kubelet, plugin: ScriptedPlugin) -> None:
    await plugin.join()
    await kubelet.allocate(RESOURCE, 3, pod="p", container="c")
    written = checkpoint(kubelet)
    assert set(written) == {"Data", "Checksum"}
    assert isinstance(written["Checksum"], int)
    assert written["Data"]["RegisteredDevices"] == {RESOURCE: ["a", "b", "c"]}
    [entry] = written["Data"]["PodDeviceEntries"]
    answer = api.ContainerAllocateResponse.FromString(base64.b64decode(entry.pop("AllocResp")))
    assert answer.envs == {"THINGS": "a,b,c"}
    assert entry == {
        "PodUID": "uid-of-default-p",
        "ContainerName": "c",
        "ResourceName": RESOURCE,
        "DeviceIDs": {"0": ["a"], "1": ["b"], "-1": ["c"]},
    }


async def test_an_older_kubelets_checkpoint_has_plain_lists(tmp_path: Path) -> None:
    async with Kubelet(tmp_path, checkpoint_per_numa=False) as kubelet:
        kubelet.hold(["0", "1"], resource=RESOURCE)
        assert entries(kubelet)[0]["DeviceIDs"] == ["0", "1"]


async def test_a_freed_grant_stays_in_the_checkpoint_until_it_is_written_again(
    kubelet: Kubelet, plugin: ScriptedPlugin
) -> None:
    await plugin.join()
    kubelet.free(await kubelet.allocate(RESOURCE, 1))
    assert len(entries(kubelet)) == 1
    plugin.show(device("a"))
    await listed(kubelet, 1, times=2)
    assert entries(kubelet) == []


# --- waiting and manners ---


async def test_a_wait_in_vain_tells_what_there_is(kubelet: Kubelet, plugin: ScriptedPlugin) -> None:
    await plugin.join()
    with pytest.raises(TimeoutError, match=r"(?s)nine devices within 0.01 s.*a Healthy") as caught:
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 9, timeout=0.01, what="nine devices")
    assert "1 registrations, 1 streams open" in str(caught.value)


class Broken(Kubelet):
    """Has a bug."""

    async def dial(self, registration: Registration) -> Client:
        raise ZeroDivisionError


async def test_a_bug_of_the_stand_in_does_not_go_unseen(tmp_path: Path) -> None:
    kubelet = Broken(tmp_path)
    await kubelet.start()
    await ScriptedPlugin(kubelet).register()
    await kubelet.until(lambda: kubelet.troubles, timeout=SECONDS)
    with pytest.raises(ZeroDivisionError):
        await kubelet.aclose()
