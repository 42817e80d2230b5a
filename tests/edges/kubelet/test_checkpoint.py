# SPDX-License-Identifier: Apache-2.0
"""The kubelet's checkpoint as a second witness: understood, or said to be not."""

import base64
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpu_plugin.edges.kubelet.pod_resources import (
    CHECKPOINT,
    LONGEST_GRANT,
    MOST_IDS,
    UnknownHoldersError,
    read_checkpoint,
    read_kept,
)
from xpu_plugin.model.allocation import Kept
from xpu_plugin.model.ownership import Checkpoint, Holding
from xpu_plugin.proto import deviceplugin_pb2 as api


XPU = "baidu.com/xpu"
# As a kubelet 1.20 writes it: ids by NUMA node, -1 where there is none; the answer in base64.
NEW = {
    "Data": {
        "PodDeviceEntries": [
            {
                "PodUID": "7b5d2d3c-9f0a-4a55-8a0c-5ce1a1f3c001",
                "ContainerName": "train",
                "ResourceName": XPU,
                "DeviceIDs": {"-1": ["2"], "0": ["0000:3b:00.0", "0000:3c:00.0"]},
                "AllocResp": "CgsKBFhQVVMSAzAsMQ==",
            },
            {
                "PodUID": "7b5d2d3c-9f0a-4a55-8a0c-5ce1a1f3c001",
                "ContainerName": "sidecar",
                "ResourceName": "example.com/other",
                "DeviceIDs": {"1": ["x"]},
                "AllocResp": "",
            },
        ],
        "RegisteredDevices": {XPU: ["0000:3b:00.0", "0000:3c:00.0", "2"]},
    },
    "Checksum": 1457319023,
}


def write(directory: Path, document: object) -> Path:
    (directory / CHECKPOINT).write_text(json.dumps(document))
    return directory


def entry(ids: object) -> dict[str, Any]:
    entries = [{"PodUID": "u", "ContainerName": "c", "ResourceName": XPU, "DeviceIDs": ids, "AllocResp": ""}]
    return {"Data": {"PodDeviceEntries": entries, "RegisteredDevices": {}}, "Checksum": 0}


def test_the_kubelets_name_of_the_file() -> None:
    assert CHECKPOINT == "kubelet_internal_checkpoint"


def test_ids_by_numa_node_as_from_1_20_on(tmp_path: Path) -> None:
    pod = "7b5d2d3c-9f0a-4a55-8a0c-5ce1a1f3c001"
    assert read_checkpoint(write(tmp_path, NEW)).holdings == (
        Holding(container=f"{pod}/train", resource=XPU, ids=("2", "0000:3b:00.0", "0000:3c:00.0")),
        Holding(container=f"{pod}/sidecar", resource="example.com/other", ids=("x",)),
    )


def test_ids_in_a_list_as_before_1_20(tmp_path: Path) -> None:
    (holding,) = read_checkpoint(write(tmp_path, entry(["0", "1"]))).holdings
    assert holding == Holding(container="u/c", resource=XPU, ids=("0", "1"))


@pytest.mark.parametrize("ids", [None, [], {}, {"0": []}])
def test_a_container_may_hold_no_id(ids: object, tmp_path: Path) -> None:
    (holding,) = read_checkpoint(write(tmp_path, entry(ids))).holdings
    assert holding.ids == ()


def test_no_file_is_nobody_as_before_the_first_grant(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path) == Checkpoint()
    assert read_checkpoint(tmp_path / "none") == Checkpoint()


@pytest.mark.parametrize("entries", [None, []])
def test_a_file_without_entries_is_nobody(entries: object, tmp_path: Path) -> None:
    """Go writes an empty list as null."""
    document = {"Data": {"PodDeviceEntries": entries, "RegisteredDevices": None}, "Checksum": 1}
    assert read_checkpoint(write(tmp_path, document)).holdings == ()


GARBAGE = {
    "empty": b"",
    "cut off": json.dumps(NEW).encode()[:200],
    "no text": b"\xff\xfe\x00",
    "null": b"null",
    "a list": b"[]",
    "other keys": b'{"Data": {"Entries": []}}',
    "no data": b'{"Data": null}',
    "a number for entries": b'{"Data": {"PodDeviceEntries": 7}}',
    "entries of another shape": b'{"Data": {"PodDeviceEntries": [{"UID": "u"}]}}',
    "a text for an entry": b'{"Data": {"PodDeviceEntries": ["x"]}}',
    "a number for ids": json.dumps(entry(7)).encode(),
    "a text for ids": json.dumps(entry("0000:3b:00.0")).encode(),
    "a text for ids of a NUMA node": json.dumps(entry({"0": "0000:3b:00.0"})).encode(),
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_what_is_not_understood_is_never_taken_for_nobody(garbage: bytes, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(garbage)
    with pytest.raises(UnknownHoldersError, match=CHECKPOINT):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 1_000_000, json.dumps(entry("x" * 1_000_000)).encode()], ids=["no text", "a text"]
)
def test_what_is_said_of_it_is_short(garbage: bytes, tmp_path: Path) -> None:
    """Python's errors quote what they are about, which goes into logs, Events and answers."""
    (tmp_path / CHECKPOINT).write_bytes(garbage)
    with pytest.raises(UnknownHoldersError) as raised:
        read_checkpoint(tmp_path)
    assert len(str(raised.value)) < len(str(tmp_path)) + 400


@pytest.mark.parametrize("id", ["x" * 300, "a\nb", "\ud800", "9" * 5000])
def test_an_id_that_no_plugin_of_ours_gives_is_left_out_for_others_and_a_doubt_under_our_names(
    id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    foreign = entry([id, "x"])
    foreign["Data"]["PodDeviceEntries"][0]["ResourceName"] = f"example.com/{len(id)}-{ord(id[0])}"
    for _ in range(2):
        (holding,) = read_checkpoint(write(tmp_path, foreign)).holdings
        assert holding.ids == ("x",)
    assert len(caplog.records) == 1, "it is said once"
    with pytest.raises(UnknownHoldersError, match=XPU):
        read_checkpoint(write(tmp_path, entry([id])))


@pytest.mark.parametrize("resource", ["example.com/gpu", XPU])
def test_of_very_many_ids_only_those_are_looked_at_that_may_be_ours(resource: str, tmp_path: Path) -> None:
    """The event loop looks at each of them. Another plugin may share its devices in many pieces."""
    ours = ["0000:3b:00.0", "0000:3b:01.0-of2", "7", "0000:3b:00.0"]
    document = entry([*ours, *(f"piece-{number}" for number in range(MOST_IDS)), "20240101"])
    document["Data"]["PodDeviceEntries"][0]["ResourceName"] = resource
    write(tmp_path, document)
    if resource == XPU:
        with pytest.raises(UnknownHoldersError, match=f"more than {MOST_IDS} device ids"):
            read_checkpoint(tmp_path)
    else:
        (holding,) = read_checkpoint(tmp_path).holdings
        assert holding.ids == ("0000:3b:00.0", "0000:3b:01.0-of2", "7")


def huge(file: Path) -> None:
    with file.open("wb") as stream:
        os.truncate(stream.fileno(), 1 << 40)


@pytest.mark.parametrize("make", [os.mkfifo, huge, Path.mkdir])
def test_a_checkpoint_that_is_not_a_file_or_too_long_is_a_doubt(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / CHECKPOINT)
    with pytest.raises(UnknownHoldersError, match=CHECKPOINT):
        read_checkpoint(tmp_path)


def test_the_devices_that_the_kubelet_has_from_a_plugin(tmp_path: Path) -> None:
    write(tmp_path, NEW)
    os.utime(tmp_path / CHECKPOINT, ns=(7, 7))
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.registered == {XPU: frozenset({"0000:3b:00.0", "0000:3c:00.0", "2"})}
    assert checkpoint.written_ns == 7


# --- Allocate answers -----------------------------------------------------------------------------


def answer(*paths: str, inside: str | None = None, files: Sequence[str] = ()) -> str:
    """An answer with these nodes and mounts, as a kubelet writes it."""
    specs = [api.DeviceSpec(host_path=path, container_path=inside or path) for path in paths]
    mounts = [api.Mount(host_path=path, container_path=path) for path in files]
    message = api.ContainerAllocateResponse(devices=specs, mounts=mounts)
    return base64.b64encode(message.SerializeToString()).decode()


def granted(*entries: tuple[object, object], resource: str = XPU) -> dict[str, Any]:
    """A checkpoint with these ids and answers."""
    return {
        "Data": {
            "PodDeviceEntries": [
                {
                    "PodUID": f"u{number}",
                    "ContainerName": "c",
                    "ResourceName": resource,
                    "DeviceIDs": ids,
                    "AllocResp": given,
                }
                for number, (ids, given) in enumerate(entries)
            ]
        }
    }


def kept(document: object, *ids: str, directory: Path) -> Kept:
    return read_kept(write(directory, document), XPU, ids)


def test_a_container_surely_mounts_the_files_that_all_its_answers_have(tmp_path: Path) -> None:
    """One of them may be of an ended container."""
    document = granted(
        (["a"], answer(files=["/x", "/y"])),
        (["b"], answer(files=["/x", "/y"])),
        (["b"], answer(files=["/y", "/z"])),
        (["c"], answer(files=["/x"])),
        (["c"], "?"),
    )
    expected = {"a": {"/x", "/y"}, "b": {"/y"}, "c": set(), "d": set()}
    for id, files in expected.items():
        assert kept(document, id, directory=tmp_path).files == files


def test_the_answer_for_a_container_is_that_for_exactly_its_devices(tmp_path: Path) -> None:
    document = granted(
        ({"0": ["a"], "1": ["b"]}, answer("/dev/xpu1", "/dev/xpu0", "/dev/xpuctrl", "/dev/null")),
        ({"0": ["a"]}, answer("/dev/xpu7", inside="/dev/xpu0")),
        (["c"], answer("/dev/xpu2")),
        ({"-1": ["c"]}, answer("/dev/xpu3")),
        ({"0": ["d"], "1": ["d"]}, answer()),
    )
    expected: dict[tuple[str, ...], set[tuple[str, ...]]] = {
        ("b", "a"): {("/dev/xpu0", "/dev/xpu1")},
        ("a",): {("/dev/xpu7",)},
        ("c",): {("/dev/xpu2",), ("/dev/xpu3",)},
        ("d",): {()},
        ("a", "c"): set(),
        ("b",): set(),
    }
    for ids, nodes in expected.items():
        assert kept(document, *ids, directory=tmp_path) == Kept(nodes=frozenset(nodes))


def test_the_answer_for_another_resource_does_not_count(tmp_path: Path) -> None:
    document = granted((["a"], answer("/dev/xpu1")), resource="example.com/xpu")
    assert kept(document, "a", directory=tmp_path) == Kept()


def test_without_a_checkpoint_there_is_no_answer(tmp_path: Path) -> None:
    assert read_kept(tmp_path, XPU, ["a"]) == Kept()


DAMAGED = {
    "no base64": "CgsKB!FhQVVMSAzAsMQ==",
    "cut off": answer("/dev/xpu0")[:-4],
    "no message": base64.b64encode(b"\xff" * 20).decode(),
    "not ASCII": "\u00e9\ud800",
    "a number": 7,
    "null": None,
    "a list": ["/dev/xpu0"],
    "too long": answer(*["/dev/xpu0"] * (LONGEST_GRANT // 20)),
}


@pytest.mark.parametrize("given", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_answer_is_a_doubt_for_its_own_devices_alone(given: object, tmp_path: Path) -> None:
    document = granted((["a"], given), (["b"], answer("/dev/xpu1")))
    assert kept(document, "a", directory=tmp_path).nodes == {None}
    assert kept(document, "b", directory=tmp_path).nodes == {("/dev/xpu1",)}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_checkpoint_that_is_not_understood_has_a_reason_and_no_answer(
    garbage: bytes, tmp_path: Path
) -> None:
    (tmp_path / CHECKPOINT).write_bytes(garbage)
    result = read_kept(tmp_path, XPU, ["0000:3b:00.0"])
    assert result.nodes == frozenset()
    assert CHECKPOINT in (result.trouble or "")


# --- anything -------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    document=ANYTHING
    | st.builds(entry, ANYTHING)
    | st.builds(lambda entries: {"Data": {"PodDeviceEntries": entries}}, ANYTHING)
)
def test_any_document_is_understood_or_said_to_be_not(
    document: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = write(tmp_path_factory.mktemp("checkpoint"), document)
    try:
        holdings = read_checkpoint(directory).holdings
    except UnknownHoldersError:
        return
    assert all(isinstance(holding, Holding) for holding in holdings)
    assert all(isinstance(id, str) for holding in holdings for id in holding.ids)


@settings(deadline=None)
@given(document=st.builds(lambda ids, given: granted((ids, given)), ANYTHING | st.just(["a"]), ANYTHING))
def test_any_answer_is_nodes_or_a_doubt(document: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    result = kept(document, "a", directory=tmp_path_factory.mktemp("checkpoint"))
    assert all(nodes in (None, ()) for nodes in result.nodes), "no text of these is a grant"
