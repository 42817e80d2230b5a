# SPDX-License-Identifier: Apache-2.0
"""The DevicePlugin service over a real socket: what the kubelet is told, granted and refused."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from os import makedev
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.devices import CONTROL, MAJOR, device, found
from tests.support.grants import Memory, kubelet_at
from tests.support.machines import RESOURCE
from tests.support.waiting import SECONDS, until
from xpu_plugin.edges.host_files import HostFiles
from xpu_plugin.edges.kubelet.service import (
    LONGEST_NOTED_ID,
    NOTED_IDS,
    Contents,
    DevicePluginService,
    server_of,
)
from xpu_plugin.edges.state.grants import GrantRecord, Shown
from xpu_plugin.log import RingHandler
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.additions import VARIABLES, Additions
from xpu_plugin.model.allocation import Kept
from xpu_plugin.model.health import CHANGING, HEALTHY, Health
from xpu_plugin.model.inventory import Policy, after_scan, after_verdicts
from xpu_plugin.model.ownership import Terms
from xpu_plugin.proto import deviceplugin_pb2 as api
from xpu_plugin.proto import deviceplugin_pb2_grpc as api_grpc


A, B, C, D = IDS = [f"0000:{bus:02x}:00.0" for bus in (0x3B, 0x3C, 0x3D, 0x3E)]
SICK = Health("state-error", "state 207")
CARDS = [device(id, number=number, index=number, numa=number // 2) for number, id in enumerate(IDS)]

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
NOT_READY = grpc.StatusCode.FAILED_PRECONDITION

pytestmark = pytest.mark.usefixtures("leaves_no_task")


class Plugin:
    """A service on a socket with everything it leans on in reach: picture, nodes, record of grants."""

    def __init__(self, place: Path, resource: str = RESOURCE, policy: Policy | None = None) -> None:
        self.picture = Picture(policy or Policy(resource=RESOURCE))
        self.nodes = {f"xpu{card.node.number}": card.node.identity for card in CARDS} | {
            "xpuctrl": (CONTROL, 1)
        }
        self.place = place
        self.state = place / "state"
        self.socket = place / "plugin.sock"
        self.resource = resource
        self.grants = self.remembered()
        self.service = self.make_service()

    def remembered(self) -> Grants:
        """The memory of a plugin that starts now."""
        self.record = Memory(self.state)
        return Grants(self.picture, kubelet_at(self.state), self.record, Terms())

    @property
    def granted(self) -> set[str]:
        """The devices that this process has granted, by their ids."""
        return {id for id, grant in self.grants.ledger.items() if not grant.inherited}

    def make_service(self) -> DevicePluginService:
        return DevicePluginService(
            self.resource,
            self.picture,
            contents=Contents(node=self.nodes.get),
            grants=self.grants,
        )

    def forget(self) -> None:
        """Be a plugin that was started anew: only what it wrote down is left."""
        self.grants = self.remembered()
        self.service._grants = self.grants

    def scan(self, *cards: Any, control: int | None = CONTROL) -> None:
        self.picture.submit(lambda facts: after_scan(facts, found(*cards, control=control), forget=True))

    def judge(self, **verdicts: Health) -> None:
        """Verdicts by the names A to D."""
        named = {IDS["ABCD".index(name)]: verdict for name, verdict in verdicts.items()}
        self.picture.submit(lambda facts: after_verdicts(facts, named))


@asynccontextmanager
async def served(plugin: Plugin) -> AsyncIterator[api_grpc.DevicePluginStub]:
    server = server_of(plugin.service)
    server.add_insecure_port(f"unix:{plugin.socket}")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{plugin.socket}") as channel:
            yield api_grpc.DevicePluginStub(channel)  # type: ignore[no-untyped-call]  # generated
    finally:
        plugin.service.close()
        await server.stop(1)


@pytest.fixture
def plugin(place: Path) -> Plugin:
    """Four healthy cards, /dev/xpu0 to /dev/xpu3, two on each NUMA node."""
    plugin = Plugin(place)
    plugin.scan(*CARDS)
    return plugin


@pytest.fixture
async def stub(plugin: Plugin, leaves_no_task: None) -> AsyncIterator[api_grpc.DevicePluginStub]:
    async with served(plugin) as stub:
        yield stub


async def read(stream: Any) -> api.ListAndWatchResponse:
    async with asyncio.timeout(SECONDS):
        answer: api.ListAndWatchResponse = await stream.read()
    return answer


def healths(answer: api.ListAndWatchResponse) -> dict[str, str]:
    return {device.ID: device.health for device in answer.devices}


async def refused(call: Awaitable[object], status: grpc.StatusCode = NOT_READY) -> str:
    """Why the call was refused, with that status."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    assert refusal.value.code() is status
    return refusal.value.details() or ""


def allocate(stub: api_grpc.DevicePluginStub, *containers: Sequence[str]) -> Awaitable[api.AllocateResponse]:
    requests = [api.ContainerAllocateRequest(devices_ids=ids) for ids in containers]
    call: Awaitable[api.AllocateResponse] = stub.Allocate(
        api.AllocateRequest(container_requests=requests), timeout=SECONDS
    )
    return call


def start(stub: api_grpc.DevicePluginStub, *ids: str) -> Awaitable[api.PreStartContainerResponse]:
    call: Awaitable[api.PreStartContainerResponse] = stub.PreStartContainer(
        api.PreStartContainerRequest(devices_ids=ids), timeout=SECONDS
    )
    return call


async def prefer(
    stub: api_grpc.DevicePluginStub, available: Sequence[str], must: Sequence[str], size: int
) -> list[str]:
    request = api.ContainerPreferredAllocationRequest(
        available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size
    )
    answer = await stub.GetPreferredAllocation(
        api.PreferredAllocationRequest(container_requests=[request]), timeout=SECONDS
    )
    [container] = answer.container_responses
    return list(container.deviceIDs)


async def test_both_options_are_announced(stub: api_grpc.DevicePluginStub) -> None:
    options = await stub.GetDevicePluginOptions(api.Empty(), timeout=SECONDS)
    assert options.pre_start_required
    assert options.get_preferred_allocation_available


# --- lists ----------------------------------------------------------------------------------------


async def test_the_list_comes_at_once_with_health_and_numa_nodes(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    plugin.judge(B=SICK)
    stream = stub.ListAndWatch(api.Empty())
    answer = await read(stream)
    assert healths(answer) == {A: "Healthy", B: "Unhealthy", C: "Healthy", D: "Healthy"}
    assert [[node.ID for node in device.topology.nodes] for device in answer.devices] == [[0], [0], [1], [1]]
    stream.cancel()


async def test_a_device_whose_numa_node_is_unknown_has_no_topology(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    plugin.scan(replace(CARDS[0], numa=None))
    stream = stub.ListAndWatch(api.Empty())
    [only] = (await read(stream)).devices
    assert not only.HasField("topology")
    stream.cancel()


async def test_a_list_is_sent_only_when_it_is_another_one(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    """What follows a picture that differs in nothing the kubelet sees is the next real change."""
    stream = stub.ListAndWatch(api.Empty())
    await read(stream)
    generation = plugin.picture.current.generation if plugin.picture.current else 0
    for change in range(1, 4):
        plugin.scan(*CARDS, control=CONTROL + change)  # another picture, the same list
        await asyncio.sleep(0)
    plugin.scan(*CARDS)
    assert plugin.picture.current
    assert plugin.picture.current.generation == generation + 4
    plugin.judge(C=SICK)
    assert healths(await read(stream))[C] == "Unhealthy"
    plugin.judge(C=HEALTHY)
    assert healths(await read(stream))[C] == "Healthy"
    stream.cancel()


async def test_one_resources_list_has_nothing_of_anothers(place: Path) -> None:
    plugin = Plugin(place, "baidu.com/R300", Policy(resource=RESOURCE, per_profile=True))
    plugin.scan(*CARDS[:2], replace(CARDS[2], model="R300"))
    async with served(plugin) as stub:
        stream = stub.ListAndWatch(api.Empty())
        assert healths(await read(stream)) == {C: "Healthy"}
        plugin.judge(A=SICK)
        plugin.judge(C=SICK)
        assert healths(await read(stream)) == {C: "Unhealthy"}
        text = await refused(allocate(stub, [A]), NOT_FOUND)
        assert "baidu.com/R200" in text
        plugin.scan(*CARDS[:2])
        assert healths(await read(stream)) == {}
        stream.cancel()


async def test_a_stream_from_before_the_first_scan_gets_its_first_list_with_it(place: Path) -> None:
    plugin = Plugin(place)
    async with served(plugin) as stub:
        stream = stub.ListAndWatch(api.Empty())
        await until(lambda: plugin.service.streams == 1)
        await refused(allocate(stub, [A]))
        await refused(start(stub, A))
        assert await prefer(stub, IDS, [], 2) == []
        plugin.scan()
        assert healths(await read(stream)) == {}
        plugin.scan(CARDS[0])
        assert healths(await read(stream)) == {A: "Healthy"}
        stream.cancel()


async def test_any_number_of_streams_is_told_of_each_change(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    streams = [stub.ListAndWatch(api.Empty()) for _ in range(50)]
    for stream in streams:
        assert len((await read(stream)).devices) == 4
    assert plugin.service.streams == 50
    plugin.judge(A=SICK)
    for stream in streams:
        assert healths(await read(stream))[A] == "Unhealthy"
    for stream in streams[:49]:
        stream.cancel()
    await until(lambda: plugin.service.streams == 1)
    streams[49].cancel()
    await until(lambda: plugin.service.streams == 0)


async def test_a_reader_that_is_slow_holds_up_nobody_and_skips_what_came_between(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    many = [replace(CARDS[0], id=f"{domain:04x}:3b:00.0") for domain in range(1000)]
    plugin.scan(*many)
    narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384)]
    changes = 60
    async with grpc.aio.insecure_channel(f"unix:{plugin.socket}", options=narrow) as channel:
        slow = api_grpc.DevicePluginStub(channel).ListAndWatch(api.Empty())  # type: ignore[no-untyped-call]
        quick = stub.ListAndWatch(api.Empty())
        await until(lambda: plugin.service.streams == 2)
        await read(quick)
        for change in range(changes):
            verdicts = {many[0].id: SICK if change % 2 == 0 else HEALTHY}
            plugin.picture.submit(partial(after_verdicts, verdicts=verdicts))
            await read(quick)
        plugin.scan()
        assert healths(await read(quick)) == {}
        lists = 0
        while (await read(slow)).devices:
            lists += 1
        assert lists < changes
        slow.cancel()
        quick.cancel()


async def test_close_ends_streams_without_an_error(plugin: Plugin, stub: api_grpc.DevicePluginStub) -> None:
    streams = [stub.ListAndWatch(api.Empty()) for _ in range(3)]
    for stream in streams:
        await read(stream)
    plugin.service.close()
    for stream in streams:
        assert await read(stream) is grpc.aio.EOF  # type: ignore[attr-defined]  # its stubs lack it
        assert await stream.code() is grpc.StatusCode.OK
    assert plugin.service.streams == 0


# --- grants ---------------------------------------------------------------------------------------


async def test_each_container_gets_its_nodes_the_control_node_and_its_ids(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    answer = await allocate(stub, [C, A], [D])
    granted = [
        [(spec.host_path, spec.container_path, spec.permissions) for spec in container.devices]
        for container in answer.container_responses
    ]
    assert granted == [
        [(path, path, "rw") for path in ("/dev/xpu2", "/dev/xpu0", "/dev/xpuctrl")],
        [(path, path, "rw") for path in ("/dev/xpu3", "/dev/xpuctrl")],
    ]
    assert [dict(container.envs) for container in answer.container_responses] == [
        {"BAIDU_COM_XPU_DEVICE_IDS": f"{C},{A}"},
        {"BAIDU_COM_XPU_DEVICE_IDS": D},
    ]
    assert plugin.granted == {A, C, D}
    assert plugin.record.paths == {A: "/dev/xpu0", C: "/dev/xpu2", D: "/dev/xpu3"}


async def test_a_container_gets_the_positions_of_its_devices_and_the_hosts_files(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    (plugin.place / "there").touch()
    paths = [str(plugin.place / name) for name in ("there", "missing")]
    plugin.service._contents = replace(
        plugin.service._contents,
        additions=Additions(variables=VARIABLES["both"], library_path="/a/lib:/b/lib"),
        files=HostFiles(paths, root=plugin.place / "no root", seconds=SECONDS),
    )
    both, alone = (await allocate(stub, [C, A], [D])).container_responses
    more = {"LD_LIBRARY_PATH": "/a/lib:/b/lib"}
    assert dict(both.envs) == more | {
        "BAIDU_COM_XPU_DEVICE_IDS": f"{C},{A}",
        "XPU_VISIBLE_DEVICES": "0,1",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }
    assert dict(alone.envs) == more | {
        "BAIDU_COM_XPU_DEVICE_IDS": D,
        "XPU_VISIBLE_DEVICES": "0",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    for container in (both, alone):
        assert [(own.host_path, own.container_path, own.read_only) for own in container.mounts] == [
            (paths[0], paths[0], True)
        ]


@pytest.mark.parametrize(
    ("containers", "code", "words"),
    [
        ([[A, A]], INVALID, A),
        ([[A], [A]], INVALID, A),
        ([[A], []], INVALID, "names no device"),
        ([[A], ["0000:99:00.0"]], NOT_FOUND, "0000:99:00.0"),
        ([[A, "0"]], NOT_FOUND, "device 0 "),
        ([[A, ""]], NOT_FOUND, "does not exist"),
        ([[A, B]], NOT_READY, "state-error"),
        ([[A, C]], NOT_READY, "/dev/xpu2 is gone"),
        ([[A], [D]], NOT_READY, "/dev/xpu3 is another device's node now"),
    ],
)
async def test_a_refusal_says_what_and_why_and_nothing_is_granted_in_part(
    plugin: Plugin,
    stub: api_grpc.DevicePluginStub,
    containers: list[list[str]],
    code: grpc.StatusCode,
    words: str,
) -> None:
    plugin.judge(B=SICK)
    del plugin.nodes["xpu2"]
    plugin.nodes["xpu3"] = (makedev(MAJOR, 77), 1)
    assert words in await refused(allocate(stub, *containers), code)
    assert plugin.granted == set()
    assert plugin.record.paths == {}
    await allocate(stub, [A])


@pytest.mark.parametrize("now", [None, makedev(MAJOR, 1)])
async def test_without_the_control_node_of_the_scan_nothing_is_granted(
    plugin: Plugin, stub: api_grpc.DevicePluginStub, now: int | None
) -> None:
    if now is None:
        del plugin.nodes["xpuctrl"]
    else:
        plugin.nodes["xpuctrl"] = (now, 1)
    assert "/dev/xpuctrl" in await refused(allocate(stub, [A]))


async def test_what_was_asked_granted_and_refused_is_counted(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    await allocate(stub, [A, B], [C])
    await refused(allocate(stub, [A, A]), INVALID)
    await refused(start(stub, D))
    service = plugin.service
    wanted = {"Allocate": 2, "GetPreferredAllocation": 0, "PreStartContainer": 1}
    await until(  # the caller may have the answer before the call has ended
        lambda: {method: durations.number for method, durations in service.durations.items()} == wanted
    )
    assert service.granted == 3
    assert service.refusals == {
        ("Allocate", "INVALID_ARGUMENT"): 1,
        ("PreStartContainer", "FAILED_PRECONDITION"): 1,
    }


async def test_grants_and_refusals_are_noted_with_what_was_asked_for_within_bounds(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    with RingHandler() as decisions:
        await allocate(stub, [A, B])
        await refused(allocate(stub, ["x" * 100] * 100), INVALID)
        await refused(start(stub, D))
    grant, refusal, restart = decisions.all
    assert (grant["what"], grant["ids"], grant["generation"]) == ("grant", [A, B], 1)
    assert (refusal["what"], refusal["of"]) == ("refusal", "allocation")
    assert refusal["ids"] == ["x" * LONGEST_NOTED_ID] * NOTED_IDS
    assert (restart["of"], restart["ids"], restart["granted_as"]) == ("container start", [D], {})
    assert "no record" in str(restart["why"])


async def test_a_vanished_device_is_refused_although_it_is_listed(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    plugin.picture.submit(lambda facts: after_scan(facts, found(*CARDS[1:])))
    assert "lost" in await refused(allocate(stub, [A]))


# --- container starts -----------------------------------------------------------------------------


async def test_a_container_may_start_and_restart_with_what_it_was_granted(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    await allocate(stub, [A, B])
    await start(stub, A, B)
    plugin.judge(A=SICK)
    await start(stub, A, B)  # a restart may be what heals


async def test_the_record_of_grants_outlives_the_plugin_from_the_first_start_on(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    await allocate(stub, [A])
    await start(stub, A)
    await allocate(stub, [B])
    plugin.forget()
    await start(stub, A)
    text = await refused(start(stub, B))
    assert "no record" in text
    assert "delete the pod" in text


@pytest.fixture
def gate(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The kubelet has B and C for a container, as they are; the reading of that waits for this."""
    gate = asyncio.Event()

    async def kept(resource: str, ids: Sequence[str]) -> Kept:
        await gate.wait()
        return Kept(nodes=frozenset({("/dev/xpu1", "/dev/xpu2")} if set(ids) == {B, C} else ()))

    monkeypatch.setattr(plugin.grants, "kept", kept)
    return gate


async def test_a_grant_that_only_the_kubelet_has_on_record_counts_and_is_then_recorded(
    plugin: Plugin, stub: api_grpc.DevicePluginStub, gate: asyncio.Event
) -> None:
    await allocate(stub, [A])
    await start(stub, A)  # nothing is read
    gate.set()
    with RingHandler() as decisions:
        await start(stub, C, B)
    assert [(note["what"], note["ids"], note["by"]) for note in decisions.all] == [
        ("start", [C, B], "checkpoint")
    ]
    assert plugin.granted == {A, B, C}
    assert GrantRecord(plugin.state).paths == {A: "/dev/xpu0", B: "/dev/xpu1", C: "/dev/xpu2"}
    assert "no container with exactly its devices" in await refused(start(stub, D))


@pytest.mark.parametrize("moment", ["changing", "moved", "granted"])
async def test_a_change_while_the_kubelets_record_is_read_counts(
    plugin: Plugin, stub: api_grpc.DevicePluginStub, gate: asyncio.Event, moment: str
) -> None:
    starting = asyncio.ensure_future(start(stub, B, C))
    await allocate(stub, [A])  # the start has been asked for before
    match moment:
        case "changing":
            plugin.judge(C=CHANGING)
            words = "is unhealthy: changing"
        case "moved":
            plugin.scan(CARDS[0], replace(CARDS[1], node=CARDS[3].node), CARDS[2])
            words = "has /dev/xpu1, /dev/xpu2 for /dev/xpu2, /dev/xpu3"
        case _:
            plugin.grants.granted({C: "/dev/xpu9"})
            words = "was granted as /dev/xpu9 and is /dev/xpu2 now"
    gate.set()
    assert words in await refused(starting)


async def test_a_container_starts_again_once_the_record_can_be_read(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    await allocate(stub, [A])
    await start(stub, A)
    [file] = plugin.state.iterdir()
    aside = file.rename(file.with_name("aside"))
    file.symlink_to(file.name)
    plugin.forget()
    assert "cannot be read for now" in await refused(start(stub, A))
    aside.replace(file)
    assert await plugin.record.reread()
    await start(stub, A)


async def test_the_record_keeps_devices_that_are_not_offered_just_now(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    """Their containers run on, and may restart once the devices are back."""
    await allocate(stub, [A], [B])
    await start(stub, A)
    await start(stub, B)
    plugin.scan(*CARDS[1:])
    await allocate(stub, [C])
    await start(stub, C)
    assert set(GrantRecord(plugin.state).paths) == {A, B, C}


async def test_a_start_counts_as_a_grant(plugin: Plugin, stub: api_grpc.DevicePluginStub) -> None:
    """The plugin that granted it may have ended before it recorded that the device is not listed yet."""
    await allocate(stub, [A])
    await start(stub, A)
    plugin.forget()
    assert plugin.granted == set()
    await start(stub, A)
    assert plugin.granted == {A}


async def test_whether_a_starting_container_is_ever_listed_is_open_again(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    """What is on record as listed was a container of before; this may be an init container, which a process
    of before has granted in its last moment."""
    await allocate(stub, [A])
    await start(stub, A)
    await plugin.record.saw(lambda: {A: Shown("default/job/main", "")})
    plugin.forget()
    assert plugin.record.listed == {A}
    await start(stub, A)
    assert plugin.record.listed == set()
    assert GrantRecord(plugin.state).listed == set()


async def test_nothing_starts_on_a_card_that_is_being_split(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    await allocate(stub, [A])
    plugin.judge(A=CHANGING)
    assert f"device {A} is unhealthy: changing" in await refused(start(stub, A))


async def test_a_container_whose_device_moved_to_another_node_may_not_start(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    """It would be given the old path, which may be another device by now."""
    await allocate(stub, [A], [B])
    await start(stub, A)
    moved = [replace(CARDS[0], node=CARDS[1].node), replace(CARDS[1], node=CARDS[0].node)]
    plugin.scan(*moved, *CARDS[2:])
    for id, then, now in ((A, "/dev/xpu0", "/dev/xpu1"), (B, "/dev/xpu1", "/dev/xpu0")):
        text = await refused(start(stub, id))
        assert then in text
        assert now in text


async def test_a_container_whose_device_is_gone_may_not_start(
    plugin: Plugin, stub: api_grpc.DevicePluginStub
) -> None:
    await allocate(stub, [A, B])
    plugin.nodes["xpu1"] = (makedev(MAJOR, 99), 1)
    await refused(start(stub, A, B))
    del plugin.nodes["xpu1"]
    await refused(start(stub, A, B))
    plugin.scan(CARDS[0])
    await refused(start(stub, A, B), NOT_FOUND)
    await start(stub, A)


async def test_an_old_id_is_its_own_record(plugin: Plugin, stub: api_grpc.DevicePluginStub) -> None:
    plugin.picture.submit(lambda facts: replace(facts, held={"2": RESOURCE}))
    await start(stub, "2")
    await refused(start(stub, C), NOT_FOUND)
    await refused(start(stub, "3"), NOT_FOUND)
    answer = await allocate(stub, ["2"])
    assert [spec.host_path for spec in answer.container_responses[0].devices] == ["/dev/xpu2", "/dev/xpuctrl"]
    assert plugin.granted == {"2"}
    assert plugin.service.granted == 1


# --- preference -----------------------------------------------------------------------------------


async def test_the_preference_stays_on_one_numa_node(stub: api_grpc.DevicePluginStub) -> None:
    assert sorted(await prefer(stub, [B, C, D], [], 2)) == [C, D]
    assert sorted(await prefer(stub, IDS, [D], 2)) == [C, D]


@pytest.mark.parametrize(
    ("available", "must", "size"),
    [
        (IDS, [], 5),
        (IDS, [], 0),
        (IDS, [], -1),
        (IDS, ["0000:99:00.0"], 1),
        ([*IDS, "0000:99:00.0"], [], 1),
        ([A, A], [], 1),
        (IDS, [A, B], 1),
        ([], [], 1),
    ],
)
async def test_in_doubt_the_preference_is_empty_and_never_an_error(
    stub: api_grpc.DevicePluginStub, available: list[str], must: list[str], size: int
) -> None:
    assert await prefer(stub, available, must, size) == []


async def test_each_container_has_a_preference_of_its_own(stub: api_grpc.DevicePluginStub) -> None:
    request = api.ContainerPreferredAllocationRequest(available_deviceIDs=IDS, allocation_size=2)
    doubtful = api.ContainerPreferredAllocationRequest(available_deviceIDs=["?"], allocation_size=1)
    answer = await stub.GetPreferredAllocation(
        api.PreferredAllocationRequest(container_requests=[request, doubtful, request]), timeout=SECONDS
    )
    assert [len(container.deviceIDs) for container in answer.container_responses] == [2, 0, 2]
