# SPDX-License-Identifier: Apache-2.0
"""How the long proofs judge what they saw."""

import pytest

from tests.e2e.cluster import RESOURCE
from tests.endurance.rollouts import Use, shared
from tests.endurance.witnesses import Gaps, gaps, granted_twice, registered


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


def test_a_node_that_two_containers_have_at_once_is_shared() -> None:
    one = Use("one", frozenset({"xpu0", "xpu1"}), 1, 3)
    assert (
        shared([one, Use("after", frozenset({"xpu1"}), 3, 5), Use("beside", frozenset({"xpu2"}), 1, 3)]) == []
    )
    assert shared([one, Use("within", frozenset({"xpu1"}), 2, 2.5)]) == ["xpu1: one, within"]
