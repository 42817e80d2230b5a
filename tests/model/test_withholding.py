# SPDX-License-Identifier: Apache-2.0
"""Devices that are kept from new pods as the kubelet counts them as free and a container holds them."""

import pytest

from tests.support.devices import device, found
from xpu_plugin.model.health import HEALTHY, VF_UNDECIDED
from xpu_plugin.model.inventory import Facts, Policy, after_scan, device_of, entries
from xpu_plugin.model.ownership import Grant, Holding
from xpu_plugin.model.withholding import withheld


A, B = "0000:3b:00.0", "0000:5e:00.0"
FOREIGN = "example.com/accelerator"
POLICY = Policy(resource="baidu.com/xpu")
FACTS = after_scan(Facts(), found(device(A), device(B, number=1, index=1)))


def holding(id: str, resource: str = POLICY.resource, container: str = "default/job/main") -> Holding:
    return Holding(container=container, resource=resource, ids=(id,))


@pytest.mark.parametrize(
    ("holdings", "granted", "forgotten", "expected"),
    [
        ([], [A], [], {}),
        ([holding(A)], [A], [], {}),
        # The kubelet has lost its checkpoint.
        ([], [A], [A], {A: "forgotten-holder"}),
        ([], ["1"], ["1"], {B: "forgotten-holder"}),
        ([], ["99"], ["99"], {}),
        # Another program may make it again.
        ([], [f"{A}-of3"], [f"{A}-of3"], {f"{A}-of3": "forgotten-holder"}),
        # The former plugin has granted N: listed as N, the kubelet counts it.
        ([holding("0")], [], [], {}),
        ([holding("0")], [B], [], {}),
        # The same card has been granted by its own id too.
        ([holding("0")], [A], [], {A: "held-otherwise"}),
        ([holding("1")], [A, B], [], {B: "held-otherwise"}),
        ([holding("0", "baidu.com/R200")], [A], [], {A: "held-otherwise"}),
        # Another plugin offers the hardware under a name that is not ours.
        ([holding(A, FOREIGN)], [], [], {A: "held-otherwise"}),
        ([holding("0", FOREIGN)], [A], [], {}),
        # Others' devices.
        ([holding("GPU-7", FOREIGN), holding("0000:99:00.0", FOREIGN)], [A], [], {}),
        ([holding("99"), holding("GPU-7")], [A], [], {}),
    ],
)
def test_withheld_is_what_is_held_and_not_counted(
    holdings: list[Holding], granted: list[str], forgotten: list[str], expected: dict[str, str]
) -> None:
    ledger = {id: Grant(at=0.0) for id in granted}
    closed = withheld(holdings, ledger, forgotten, facts=FACTS, policy=POLICY)
    assert {id: health.reason for id, health in closed.items()} == expected


def test_both_reasons_say_who_holds_the_device_and_what_to_do() -> None:
    ledger = {A: Grant(at=0.0, holder="default/train/main"), B: Grant(at=0.0)}
    closed = withheld([holding("1")], ledger, [A], facts=FACTS, policy=POLICY)
    assert closed[A].text.startswith("default/train/main was granted it, and the kubelet has lost its record")
    assert closed[B].text.startswith("default/job/main holds it as 1 of baidu.com/xpu")
    (unknown,) = withheld([], {A: Grant(at=0.0)}, [A], facts=FACTS, policy=POLICY).values()
    assert unknown.text.startswith("a container was granted it")


@pytest.mark.parametrize("id", [A, "0"])
def test_a_withheld_device_is_listed_by_its_own_id_and_not_given_away(id: str) -> None:
    closed = withheld([], {A: Grant(at=0.0)}, [A], facts=FACTS, policy=POLICY)
    facts = after_scan(
        Facts(held={"0": POLICY.resource} if id == "0" else {}, withheld=closed, kept_back={A: VF_UNDECIDED}),
        found(device(A), device(B, number=1, index=1)),
    )
    offered = entries(facts, POLICY)
    assert list(offered) == [A, B]
    health = offered[A].health
    assert (str(health), health.reason) == ("Unhealthy", "forgotten-holder")
    assert health.well
    assert not health.grantable
    assert offered[B].health == HEALTHY


@pytest.mark.parametrize(
    ("id", "expected"), [(A, A), ("0", A), ("1", B), ("7", None), ("01", None), ("GPU-1", None)]
)
def test_n_stands_for_the_device_at_dev_xpu_n(id: str, expected: str | None) -> None:
    assert device_of(id, FACTS) == expected
