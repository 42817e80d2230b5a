# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed, each by a function of any bytes that raises when what must hold does not.

answers     what a worker says -> a scan and the devices in it, or one of the driver's errors
label       the node's label -> a wish
options     arguments and environment -> a configuration, or a usage error of one line
allocate    the kubelet's requests -> what may be granted, or a refusal
pods        the pods API of the kubelet -> pods, and the containers that have ended
record      the file of grants -> id by path; and the kubelet's checkpoint -> holders and nodes, or "unknown"
"""

import asyncio
import base64
import contextlib
import io
import json
import mmap
import random
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from tests.support.devices import CONTROL, device, found
from tests.support.grants import Memory
from xpu_plugin.config import UsageError, read_config
from xpu_plugin.edges.kubelet.pod_resources import CHECKPOINT, UnknownHoldersError, read_checkpoint, read_kept
from xpu_plugin.edges.kubelet.pods import parsed
from xpu_plugin.edges.kubelet.service import Contents, DevicePluginService
from xpu_plugin.edges.worker.client import LibraryError, Target, WorkerClient, WorkerError
from xpu_plugin.edges.worker.connection import Connection
from xpu_plugin.edges.worker.decoding import scan_of
from xpu_plugin.edges.worker.frames import HEADER
from xpu_plugin.edges.worker.process import WorkerProcess
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.devices import Scan, identify
from xpu_plugin.model.health import HEALTHY, Health, judge
from xpu_plugin.model.inventory import Facts, Policy, after_scan, after_verdicts, entries
from xpu_plugin.model.ownership import Holding
from xpu_plugin.model.pods import ends
from xpu_plugin.model.roster import after_event, after_list, open_holders
from xpu_plugin.model.vf_plan import ACCEPTED, KEEP, MOST_VFS, UNKNOWN, by_label, cards, parse
from xpu_plugin.proto import deviceplugin_pb2 as api
from xpu_plugin.proto import pod_v1_pb2 as core
from xpu_plugin.xpuml import StateAnswer, WrongDeviceError, XpumlError


POLICY = Policy(resource="baidu.com/xpu")


@cache
def loop() -> asyncio.AbstractEventLoop:
    """One for all runs: making one takes longer than a run."""
    return asyncio.new_event_loop()


# --- what a worker says ---------------------------------------------------------------------------

SCAN: dict[str, Any] = {
    "stable": True,
    "readings": [
        {
            "index": index,
            "pci": f"0000:3b:0{index}.0",
            "model": 200 + index,
            "arch": 2,
            "board": 1,
            "max_vfs": 3,
            "memory_bytes": 1 << 34,
            "mode": 1,
            "state": 201,
            "serial": "01K0",
            "name": None,
            "number": None,
            "minor": None,
            "failures": [{"function": "xpumlDeviceGetState", "code": 999, "text": "Unknown Error"}] * index,
        }
        for index in range(2)
    ],
    "usable": [0, 1],
    "refused": {},
    "driver_version": "4.0",
    "driver_release": None,
    "host": {
        "nodes": [
            {"number": number, "major": 240, "minor": 2 * number, "inode": 7 + number} for number in range(2)
        ],
        "control": 240 << 8 | 128,
        "addresses": {"0": "0000:3b:00.0", "1": "0000:3b:01.0"},
        "functions": {
            "0000:3b:00.0": {"vendor": 0x1D22, "device": 0x3684, "subsystem": 1, "numa": 0, "num_vfs": 1},
            "0000:3b:01.0": {"vendor": 0x1D22, "device": 0x3685, "physfn": "0000:3b:00.0"},
        },
    },
}
STATES: list[Any] = [[0, 201], None, [999, 0]]
USAGE: dict[str, Any] = {
    "devices": [{"index": 0, "pci": "0000:3b:00.0", "processes": [{"pid": 7, "root_ns_pid": None}]}],
    "drivers": {"0000:3b:00.0": "kunlun"},
}
ERROR = {"kind": "xpuml", "code": 9, "function": "xpumlInit", "library_text": "no driver", "text": ""}
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 1 << 31, 1 << 64, -(1 << 70), 1.5, "", "0", "x", "0000:3b:00.0",
    "\ud800", [], [0], {}, {"": None}, [[]], "1" * 5000,
)  # fmt: skip
"""What may stand where something else is meant to."""


def answers(data: bytes) -> None:
    """By the driver's own code over a socket, as it would come from a worker that its library has damaged."""
    kind, body = (data[0] % 6, data[1:]) if data else (0, b"")
    chance = random.Random(body)
    if kind < 2:
        raw = body if kind else HEADER.pack(len(body)) + body
        asked = chance.randrange(4)
    else:
        asked = kind - 2
        result = garbled((SCAN, STATES, USAGE, None)[asked], chance)
        answer = (
            {"id": 1, "result": result}
            if chance.random() < 0.8
            else {"id": 1, "error": garbled(ERROR, chance)}
        )
        text = json.dumps(answer).encode()
        raw = HEADER.pack(len(text)) + text
    with contextlib.suppress(WorkerError, LibraryError, XpumlError, WrongDeviceError):
        decoded = loop().run_until_complete(_driven(raw, asked))
        _used(decoded)


class _Dead:
    """The process, which does not exist here."""

    pid = 1

    def kill(self) -> None:
        pass

    def poll(self) -> int:
        return 0


class _Worker(WorkerProcess):
    def __init__(self, heard: bytes) -> None:
        ours, other = socket.socketpair()
        ours.setblocking(False)
        self.socket = ours
        with other, contextlib.suppress(OSError):
            other.setblocking(False)
            other.send(heard)
            other.shutdown(socket.SHUT_WR)
            self._kept = other.dup()  # so that a request has a reader
        self._progress = mmap.mmap(-1, 8)
        self._child: Any = _Dead()
        self.pid = 1

    def kill(self) -> None:
        super().kill()
        self._kept.close()
        self._progress.close()

    def in_flight(self) -> None:
        return None


async def _driven(raw: bytes, asked: int) -> object:
    client = WorkerClient(
        Target(libraries=(), dev_root=Path("/dev"), sysfs_root=Path("/sys"), environment={}),
        call_timeout=60.0,
    )
    worker = client._process = _Worker(raw)
    connection = client._connection = await Connection.over(worker.take_socket(), client.ended)
    client._opened = {"library": "", "library_version": ""}
    try:
        match asked:
            case 0:
                return await client._ask(worker, 60.0, "scan", lambda answer: scan_of(answer, client._opened))
            case 1:
                return await client.sweep()
            case 2:
                return await client.usage([0], "0000:3b:00.0")
        await client.set_sriov_vf_num(0, 1, "0000:3b:00.0", seconds=60.0)
    except ValueError:  # the driver's refusal of a number, or XpumlError 2
        return None
    else:
        return None
    finally:
        connection.close()
        if client._process is not None:
            worker.kill()
        client._dying.clear()


def _used(decoded: object) -> None:
    """What the loops do with it."""
    if isinstance(decoded, Scan):
        found = identify(decoded, identify(decoded))
        facts = after_scan(Facts(), found, forget=False)
        offered = entries(facts, POLICY)
        assert all(min(entry.device.node.identity) >= 0 for entry in offered.values())
        cards(facts, POLICY)
        hash((decoded.usable, decoded.host.nodes))
    elif isinstance(decoded, list):
        for state in decoded:
            assert state is None or isinstance(state, StateAnswer)
            if state is not None:
                after_verdicts(Facts(), {"x": judge(state.code, state.state, 2)})


def garbled(value: Any, chance: random.Random, *, odds: float = 0.03) -> Any:
    """The value, here and there with something odd in it, something missing, or something twice."""
    if chance.random() < odds:
        return chance.choice(ODD)
    if isinstance(value, dict):
        kept = {key: garbled(own, chance) for key, own in value.items() if chance.random() > odds / 2}
        if chance.random() < odds:
            kept[str(chance.choice(ODD))] = chance.choice(ODD)
        return kept
    if isinstance(value, list):
        kept_items = [garbled(own, chance) for own in value if chance.random() > odds / 2]
        return kept_items * 2 if chance.random() < odds / 2 else kept_items
    return value


# --- label and options ----------------------------------------------------------------------------


def label(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    desired = by_label(UNKNOWN, text, None)
    if desired.problem:
        assert desired.number is None
        assert ACCEPTED in desired.problem
    else:
        assert text == KEEP if desired.number is None else str(desired.number) == text
        assert desired.number is None or 0 <= desired.number <= MOST_VFS
        assert parse(text) == desired.number
    after = by_label(by_label(UNKNOWN, "2", None), text, 3)
    assert after.number == (2 if desired.problem else desired.number), "a bad label leaves the wish as it was"


def options(data: bytes) -> None:
    """The bytes are arguments, each behind a zero; those with a = before any - are the environment."""
    words = [word.decode(errors="surrogateescape") for word in data.split(b"\0") if word]
    arguments = [word for word in words if word.startswith("-") or "=" not in word]
    environment = dict(word.split("=", 1) for word in words if word not in arguments)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            config, _, warnings = read_config(arguments, environment)
    except UsageError as error:
        if len(str(error).splitlines()) != 1:
            raise
        return
    except SystemExit as end:
        assert not end.code, "for --help only"  # noqa: PT017 - it is not what is tested
        return
    assert config.health_interval > 0
    assert config.text()
    assert all(warnings)


# --- the kubelet's requests -----------------------------------------------------------------------

HEALTHY_IDS = ("0000:3b:00.0", "0000:3c:00.0", "0000:3d:00.0-half1")
SICK_ID = "0000:3e:00.0"


class _AbortError(Exception):
    """The call ends with a status."""


class _Context:
    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        assert code in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.FAILED_PRECONDITION,
        )
        assert details
        assert len(details.encode(errors="replace")) <= 8192 // 3, "percent-encoded it is three times as long"
        raise _AbortError


@cache
def _service() -> tuple[DevicePluginService, dict[str, str]]:
    picture = Picture(POLICY)
    devices = [device(id, number=number, index=number) for number, id in enumerate((*HEALTHY_IDS, SICK_ID))]
    picture.submit(lambda facts: after_scan(facts, found(*devices), forget=True))
    verdicts = {**dict.fromkeys(HEALTHY_IDS, HEALTHY), SICK_ID: Health("state-error", "state 207")}
    picture.submit(lambda facts: after_verdicts(facts, verdicts))
    nodes = {f"xpu{own.node.number}": own.node.identity for own in devices} | {"xpuctrl": (CONTROL, 1)}
    service = DevicePluginService(
        POLICY.resource,
        picture,
        contents=Contents(node=nodes.get),
        grants=Memory(_directory() / "state"),
    )
    return service, {own.id: own.path for own in devices}


def allocate(data: bytes) -> None:
    """The first byte chooses the call, the rest is its message."""
    service, paths = _service()
    context: Any = _Context()
    with contextlib.suppress(DecodeError, _AbortError):
        match data[0] % 2 if data else 0:
            case 0:
                request = api.AllocateRequest.FromString(data[1:])
                answer = loop().run_until_complete(service.Allocate(request, context))
                given = [
                    one.host_path for container in answer.container_responses for one in container.devices
                ]
                asked = [id for container in request.container_requests for id in container.devices_ids]
                assert set(asked) <= set(HEALTHY_IDS)
                assert len(set(asked)) == len(asked), "nothing is given twice"
                containers = len(request.container_requests)
                assert sorted(given) == sorted([paths[id] for id in asked] + ["/dev/xpuctrl"] * containers)
            case 1:
                wanted = api.PreferredAllocationRequest.FromString(data[1:])
                preferred = loop().run_until_complete(service.GetPreferredAllocation(wanted, context))
                for own, chosen in zip(wanted.container_requests, preferred.container_responses, strict=True):
                    ids = list(chosen.deviceIDs)
                    assert len(set(ids)) == len(ids)
                    assert not ids or len(ids) == own.allocation_size
                    assert set(ids) <= set(own.available_deviceIDs)
                    assert not ids or set(ids) >= set(own.must_include_deviceIDs)


# --- pods -----------------------------------------------------------------------------------------


def pods(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        pod = parsed(data)
        over = ends(pod)
        assert over.keys() <= pod.containers.keys()
        assert all(pod.containers[name].exit == end for name, end in over.items())
        known = after_list(
            {}, {pod.uid: pod}, [Holding(container=f"{pod.uid}/c", resource="r", ids=("a",))], 1.0, began=1.0
        )
        hash(open_holders(after_event(known, pod.uid, None, 2.0)))


# --- files ----------------------------------------------------------------------------------------


@cache
def _directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="xpu-fuzz-"))


def record(data: bytes) -> None:
    directory = _directory()
    (directory / "grants.json").write_bytes(data)
    grants = Memory(directory)
    assert all(isinstance(text, str) for pair in grants.paths.items() for text in pair)
    assert all(isinstance(id, str) for id in grants.listed)
    (directory / CHECKPOINT).write_bytes(data)
    with contextlib.suppress(UnknownHoldersError):
        for holding in read_checkpoint(directory).holdings:
            assert all(isinstance(id, str) for id in holding.ids)
            hash(holding)
    kept = read_kept(directory, "r", ["a"])
    assert kept.trouble is None or not kept.nodes
    for nodes in kept.nodes:
        assert nodes is None or all(path.removeprefix("/dev/xpu").isdecimal() for path in nodes)


# --- all of them ----------------------------------------------------------------------------------

TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "answers": answers,
    "label": label,
    "options": options,
    "allocate": allocate,
    "record": record,
    "pods": pods,
}
RUNS = {
    "answers": 15_000,
    "label": 100_000,
    "options": 8_000,
    "allocate": 300_000,
    "pods": 30_000,
    "record": 10_000,
}
"""By default: about a minute for all."""


def seeds(target: str) -> Iterator[bytes]:
    """Good input, which a search begins with."""
    match target:
        case "answers":
            for kind, result in ((0, SCAN), (0, STATES), (0, USAGE), (0, None)):
                yield bytes([kind]) + json.dumps({"id": 1, "result": result}).encode()
            yield b"\0" + json.dumps({"id": 1, "error": ERROR}).encode()
            yield from (bytes([kind]) + b"seed" for kind in range(2, 6))
        case "label":
            yield from (b"0", b"2", b"63", b"64", b"keep", b"-1", "\N{FULLWIDTH DIGIT TWO}".encode())
        case "options":
            yield b"--sriov-num-vfs=2\0--health-interval=.5\0--allow=R200\0XPU_PLUGIN_LOG_LEVEL=debug"
            yield b"-rename-dev=true\0--metrics-address\0[::1]:9476\0--resource-name=baidu.com/xpu\0--help"
            yield b"--xpuml-library=simulator\0--simulator-file=/m\0NODE_NAME=a.b\0--use-detail-resName"
        case "allocate":
            for ids in (HEALTHY_IDS, (SICK_ID,), ("x", "x")):
                container = api.ContainerAllocateRequest(devices_ids=ids)
                yield b"\0" + api.AllocateRequest(container_requests=[container] * 2).SerializeToString()
                preference = api.ContainerPreferredAllocationRequest(
                    available_deviceIDs=ids, must_include_deviceIDs=ids[:1], allocation_size=2
                )
                yield (
                    b"\1"
                    + api.PreferredAllocationRequest(container_requests=[preference]).SerializeToString()
                )
        case "pods":
            end = core.ContainerStateTerminated(
                exitCode=1, containerID="containerd://1", finishedAt=core.Time(seconds=7)
            )
            status = core.ContainerStatus(name="c", state=core.ContainerState(terminated=end))
            for policy in ("Always", "OnFailure", "Never"):
                spec = core.PodSpec(
                    restartPolicy=policy,
                    containers=[core.Container(name="c")],
                    initContainers=[core.Container(name="i", restartPolicy="Always")],
                )
                pod = core.Pod(
                    metadata=core.ObjectMeta(name="p", namespace="n", uid="u"),
                    spec=spec,
                    status=core.PodStatus(phase="Running", containerStatuses=[status]),
                )
                yield pod.SerializeToString()
        case "record":
            yield json.dumps({"grants": {"a": "/dev/xpu0"}, "listed": ["a"]}).encode()
            entry = {"PodUID": "u", "ContainerName": "c", "ResourceName": "r", "DeviceIDs": {"0": ["a"]}}
            answer = api.ContainerAllocateResponse(devices=[api.DeviceSpec(host_path="/dev/xpu0")])
            given = {**entry, "AllocResp": base64.b64encode(answer.SerializeToString()).decode()}
            yield json.dumps({"Data": {"PodDeviceEntries": [given, {**entry, "DeviceIDs": ["b"]}]}}).encode()


WORDS: Mapping[str, tuple[str, ...]] = {
    "answers": (*SCAN, *SCAN["host"], *SCAN["readings"][0], *ERROR, "null", "true", "1e9", "result", "error"),
    "label": (KEEP, "99"),
    "options": ("--", "=", "\\x00", "true", "XPU_PLUGIN_", "keep", "simulator", "/", "[::]:"),
    "allocate": (*HEALTHY_IDS, SICK_ID, "\\x0a", "\\x18"),
    "pods": ("Always", "OnFailure", "Never", "Failed", "Succeeded", "\\x0a", "\\xa2\\x01"),
    "record": ("grants", "listed", "Data", "PodDeviceEntries", "DeviceIDs", "AllocResp", "null", "[]", "{}"),
}
"""What a search may put anywhere."""
