# SPDX-License-Identifier: Apache-2.0
"""The limit of our container by both versions of cgroups, and what a process has taken."""

import mmap
import os
from pathlib import Path

import pytest

from xpu_plugin.edges.memory import LEAST_BYTES, for_a_worker, limit, taken


MIB = 1 << 20
POD = "kubepods.slice/kubepods-pod1.slice"
OWN = f"{POD}/cri-containerd-2.scope"


def files(root: Path, **values: str) -> None:
    """Write control files; `own_max` is the one of our own cgroup, and so on."""
    v1 = root / "memory"
    places = {
        "own_max": root / OWN / "memory.max",
        "pod_max": root / POD / "memory.max",
        "top_max": root / "memory.max",
        "own_v1": v1 / OWN / "memory.limit_in_bytes",
        "top_v1": v1 / "memory.limit_in_bytes",
    }
    for name, value in values.items():
        places[name].parent.mkdir(parents=True, exist_ok=True)
        places[name].write_text(f"{value}\n")


NO_LIMIT = "9223372036854771712"  # as version 1 writes it


@pytest.mark.parametrize(
    ("own", "values", "expected"),
    [
        (f"0::/{OWN}", {"own_max": "268435456"}, 256),
        (f"0::/{OWN}", {"own_max": "268435456", "pod_max": "134217728"}, 128),
        (f"0::/{OWN}", {"own_max": "max", "pod_max": "134217728"}, 128),
        (f"0::/{OWN}", {"own_max": "max", "pod_max": "max"}, None),
        (f"0::/{OWN}", {}, None),
        # In a cgroup namespace of our own, or with nothing but our own cgroup mounted.
        ("0::/", {"top_max": "268435456"}, 256),
        ("0::/../../other", {"top_max": "268435456"}, 256),
        (f"0::/{OWN}", {"top_max": "268435456"}, 256),
        (f"11:memory:/{OWN}\n1:cpu,cpuacct:/x\n0::/{OWN}", {"own_v1": "268435456", "top_v1": NO_LIMIT}, 256),
        (f"11:memory:/{OWN}", {"top_v1": "268435456"}, 256),
        (f"11:memory:/{OWN}", {"top_v1": NO_LIMIT}, None),
        (f"11:memory:/{OWN}", {"own_v1": "no number"}, None),
        ("3:cpu,cpuacct:/", {"top_max": "268435456", "top_v1": "268435456"}, None),
        ("", {"top_max": "268435456"}, None),
    ],
)
def test_the_limit_is_the_least_of_ours_and_of_those_around_it(
    tmp_path: Path, own: str, values: dict[str, str], expected: int | None
) -> None:
    files(tmp_path, **values)
    file = tmp_path / "own"
    file.write_text(own)
    assert limit(tmp_path, file) == (expected * MIB if expected else None)


def test_without_proc_there_is_no_limit_to_be_told(tmp_path: Path) -> None:
    files(tmp_path, top_max="268435456")
    assert limit(tmp_path, tmp_path / "nonexistent") is None


def test_a_worker_may_have_a_third_but_as_much_as_it_needs() -> None:
    assert for_a_worker(None) is None
    assert for_a_worker(300 * MIB) == 100 * MIB
    assert for_a_worker(MIB) == LEAST_BYTES


def test_memory_that_was_touched_is_taken() -> None:
    before = taken(os.getpid())
    assert before
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        untouched = taken(os.getpid())
        assert untouched
        assert untouched < before + 8 * MIB, "what is only reserved is not"
        for page in range(0, 64 * MIB, 4096):
            memory[page] = 1
        after = taken(os.getpid())
        assert after
        assert after > before + 60 * MIB


def test_a_process_that_is_gone_has_none() -> None:
    assert taken(1 << 22) is None
