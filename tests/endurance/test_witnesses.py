# SPDX-License-Identifier: Apache-2.0
"""How the long proofs judge what they saw."""

import json
from pathlib import Path

import pytest

from tests.e2e.cluster import RESOURCE
from tests.endurance.rollouts import Use, shared
from tests.endurance.witnesses import Gaps, Watch, gaps, granted_twice, registered
from tests.support.waiting import PROMPT_SECONDS


LONG_SECONDS = 100.0


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([(1, 4)], Gaps(4, ())),
        ([(1, 4), (2, 0), (5, 4)], Gaps(0, (3,))),
        ([(1, 4), (2, 0), (3, 2), (5, 4), (6, 3), (7, 8)], Gaps(0, (3, 1))),
        ([(1, 4), (2, 3)], Gaps(3, (8,))),
        ([(1, 0), (2, 4), (3, 2), (4, 4)], Gaps(2, (1,))),
        ([(1, 0), (2, 3)], Gaps(0, (9,))),
    ],
)
def test_gaps_last_until_the_number_is_whole_again(counts: list[tuple[float, int]], expected: Gaps) -> None:
    assert gaps(counts, 4, end=10) == expected


@pytest.mark.parametrize("per_numa", [False, True])
def test_a_checkpoint_tells_what_two_containers_have(per_numa: bool) -> None:
    def entry(*ids: str, resource: str = RESOURCE) -> dict[str, object]:
        return {"ResourceName": resource, "DeviceIDs": {"-1": [*ids]} if per_numa else [*ids]}

    devices = {RESOURCE: ["a", "b"], "other": ["c"]}
    checkpoint = {
        "RegisteredDevices": devices,
        "PodDeviceEntries": [entry("a"), entry("b", "a"), entry("b", resource="other")],
    }
    assert registered(checkpoint) == 2
    assert granted_twice(checkpoint) == {"a"}
    assert granted_twice(checkpoint | {"PodDeviceEntries": None}) == set()


def test_a_watch_keeps_each_state_and_does_not_wait_beyond_its_end(tmp_path: Path) -> None:
    events = [
        {"type": type, "object": {"metadata": {"uid": uid}, "number": number}}
        for type, uid, number in (
            ("ADDED", "a", 1),
            ("MODIFIED", "a", 2),
            ("ADDED", "b", 3),
            ("DELETED", "a", 2),
        )
    ]
    lines = tmp_path / "lines"
    lines.write_text("".join(json.dumps(event) + "\n" for event in events))
    with Watch(("sh", "-c", f"cat {lines}"), "/nodes?all=1", lambda own: own["number"]) as watch:
        watch.until("a is gone", lambda: watch.present == {"b": 3}, seconds=PROMPT_SECONDS)
        assert [state for _, state in watch.changes] == [1, 2, 3]
        with pytest.raises(AssertionError, match="the watch has ended"):
            watch.until("b is gone", lambda: not watch.present, seconds=LONG_SECONDS)


def test_a_node_that_two_containers_have_at_once_is_shared() -> None:
    one = Use("one", frozenset({"xpu0", "xpu1"}), 1, 3)
    assert (
        shared([one, Use("after", frozenset({"xpu1"}), 3, 5), Use("beside", frozenset({"xpu2"}), 1, 3)]) == []
    )
    assert shared([one, Use("within", frozenset({"xpu1"}), 2, 2.5)]) == ["xpu1: one, within"]
