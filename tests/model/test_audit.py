# SPDX-License-Identifier: Apache-2.0
"""Contradictions about who has what; and above all, what is none."""

from dataclasses import replace
from typing import Any

import pytest

from tests.support.devices import device
from xpu_plugin.model.audit import AuditFinding, AuditKind, AuditView, findings
from xpu_plugin.model.devices import Process
from xpu_plugin.model.health import HEALTHY
from xpu_plugin.model.inventory import Entry
from xpu_plugin.model.ownership import Holding, Listing


A, B = "0000:3b:00.0", "0000:3c:00.0"
FIRST = "0000:3d:01.0-of2"
HALF = "0000:3e:00.0-half0"
XPU = "baidu.com/xpu"
PROCESS = Process(pid=7, host_pid=4711)
NAMELESS = Process(pid=7, host_pid=None)


def entry(id: str, number: int, listed_as: str = "", resource: str = XPU) -> Entry:
    return Entry(id=listed_as or id, resource=resource, device=device(id, number=number), health=HEALTHY)


ENTRIES = {id: entry(id, number) for number, id in enumerate((A, B, FIRST, HALF))}


def holding(container: str, *ids: str, resource: str = XPU) -> Holding:
    return Holding(container=f"default/{container}/main", resource=resource, ids=ids)


def evidence(*holdings: Holding, **given: Any) -> AuditView:
    """All that is listed was granted, and nothing else is known."""
    return AuditView(
        **{
            "listing": Listing(
                pods=frozenset(own.container.rpartition("/")[0] for own in holdings), holdings=holdings
            ),
            "checkpoint": frozenset(),
            "entries": ENTRIES,
            "recorded": frozenset(id for own in holdings for id in own.ids),
            **given,
        }
    )


def only(evidence: AuditView) -> AuditFinding:
    (finding,) = findings(evidence)
    return finding


def test_where_all_agree_there_is_nothing_to_find() -> None:
    assert findings(evidence()) == frozenset()
    processes = {A: (PROCESS,), B: (NAMELESS,)}
    assert findings(evidence(holding("a", A, FIRST), holding("b", B), processes=processes)) == frozenset()


# --- two holders ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "resource"),
    [
        (A, XPU),
        # By any name, also one that is not on our list.
        ("0", XPU),
        ("0", "baidu.com/R200"),
        (A, "baidu.com/R200"),
        (A, "other.com/card"),
        ("2", XPU),  # the id of the former plugin
    ],
)
def test_a_device_with_two_holders_is_found_with_both_named(id: str, resource: str) -> None:
    finding = only(
        evidence(
            holding("b", id, resource=resource),
            holding("a", A),
            ours=frozenset({XPU, "baidu.com/R200"}),
            entries={**ENTRIES, "2": entry(A, 2, listed_as="2")},
        )
    )
    assert (finding.kind, finding.device, finding.certain) == (AuditKind.DOUBLE_HOLDER, A, True)
    assert finding.text == (
        f"{A} is held by default/a/main as {A} of {XPU} and by default/b/main as {id} of {resource}"
    )


def test_a_vf_is_known_by_its_address_however_many_its_card_has() -> None:
    finding = only(evidence(holding("a", FIRST), holding("b", "0000:3d:01.0-of3")))
    assert (finding.kind, finding.device) == (AuditKind.DOUBLE_HOLDER, "0000:3d:01.0")


@pytest.mark.parametrize(
    "holdings",
    [
        (holding("a", A), holding("a", A)),  # listed by NUMA node
        (holding("a", "0000:3e:00.0-half0"), holding("b", "0000:3e:00.0-half1")),
        (holding("a", A), holding("b", "0", resource="other.com/card")),  # numbers are anybody's ids
        (holding("a", A), holding("b", "2", resource="other.com/card")),
        (holding("a", A), holding("b", "GPU-0", resource="other.com/card")),
    ],
)
def test_what_is_not_held_twice(holdings: tuple[Holding, ...]) -> None:
    entries = {**ENTRIES, "2": entry(A, 2, listed_as="2")}
    assert findings(evidence(*holdings, entries=entries)) == frozenset()


# --- a holder without a grant ---------------------------------------------------------------------


def test_a_holder_that_was_granted_nothing_is_found() -> None:
    own = evidence(holding("a", A), recorded=())
    assert only(own).kind is AuditKind.WITHOUT_GRANT
    assert only(own).text == f"{A} is held by default/a/main, and this plugin has not granted it"
    assert findings(replace(own, before={A})) == frozenset(), "it held it before our record begins"
    assert findings(evidence(holding("a", A, resource="other.com/card"), recorded=())) == frozenset()


def test_a_process_that_can_be_named_and_was_granted_nothing_is_found() -> None:
    finding = only(evidence(processes={A: (PROCESS,)}))
    assert (finding.kind, finding.device) == (AuditKind.WITHOUT_GRANT, A)
    assert finding.text == f"{A} at /dev/xpu0 is used by process 4711, and no container was granted it"


@pytest.mark.parametrize(
    "given",
    [
        {"processes": {A: (NAMELESS,)}},  # its pid is one of a namespace of its own
        {"processes": {A: (PROCESS,)}, "recorded": {A}},  # an init container's, perhaps
        {"processes": {A: (PROCESS,)}, "before": {A}},
        {"processes": {A: (PROCESS,)}, "checkpoint": {A}},
        {"processes": {A: (PROCESS,)}, "checkpoint": None},
        {"processes": {A: None}},
        {"processes": {"0000:3e:00.0": (PROCESS,)}},  # of which half, the library does not tell
    ],
)
def test_a_process_that_may_be_anybodys_is_no_finding(given: dict[str, Any]) -> None:
    assert findings(evidence(**given)) == frozenset()


# --- a grant that the kubelet does not know -------------------------------------------------------


def test_a_grant_that_the_kubelet_does_not_know_is_found_when_somebody_uses_it() -> None:
    finding = only(evidence(recorded={A}, settled={A}, processes={A: (NAMELESS,)}))
    assert finding.kind is AuditKind.UNKNOWN_GRANT
    assert "was granted by this plugin, the kubelet does not know" in finding.text
    assert "1 processes compute at /dev/xpu0" in finding.text


@pytest.mark.parametrize(
    "given",
    [
        {"settled": {A}},  # it has ended, as far as known
        {"settled": {A}, "processes": {A: (NAMELESS,)}, "checkpoint": {A}},  # an init container
        {"settled": {A}, "processes": {A: (NAMELESS,)}, "checkpoint": None},
        {"settled": {}, "processes": {A: (NAMELESS,)}},  # given just now
        {"settled": {A}, "processes": {A: None}},
        {"settled": {A}, "processes": {}},
    ],
)
def test_silence_alone_is_no_finding(given: dict[str, Any]) -> None:
    assert findings(evidence(recorded={A}, **given)) == frozenset()


def test_a_kubelet_that_has_forgotten_at_its_restart_is_found() -> None:
    listing = Listing(pods=frozenset({"default/a"}), holdings=())
    own = evidence(listing=listing, recorded={A}, former={A: "default/a/main"})
    finding = only(own)
    assert (finding.kind, finding.device) == (AuditKind.UNKNOWN_GRANT, A)
    assert finding.text.startswith(f"{A} was held by default/a/main before the kubelet was restarted")
    assert findings(replace(own, listing=replace(listing, pods=frozenset()))) == frozenset(), "the pod ended"
    assert findings(replace(own, checkpoint={A})) == frozenset()
    beside = replace(own, former={B: "default/a/main"}, listing=replace(listing, holdings=(holding("b", A),)))
    assert only(beside).device == B, "also behind a device that the kubelet lists"


# --- what another plugin has granted --------------------------------------------------------------


def test_a_former_id_that_was_not_granted_here_is_found_with_its_device() -> None:
    finding = only(evidence(holding("b", "1"), recorded=frozenset()))
    assert (finding.kind, finding.device) == (AuditKind.WITHOUT_GRANT, B)
    assert finding.text == "1 is held by default/b/main, and this plugin has not granted it"
    assert findings(evidence(holding("b", "1"), recorded=frozenset(), before={"1"})) == frozenset()


def test_an_id_under_our_name_that_nobody_can_place_is_found() -> None:
    finding = only(evidence(holding("b", "xpu-7"), recorded=frozenset(), ours={XPU}))
    assert (finding.kind, finding.device) == (AuditKind.WITHOUT_GRANT, "xpu-7")
    assert finding.text.startswith(
        "default/b/main holds xpu-7 of baidu.com/xpu, which this plugin neither has"
    )
    assert findings(evidence(holding("b", "xpu-7"), recorded=frozenset())) == frozenset()


def test_a_holder_that_is_listed_without_its_device_is_certain() -> None:
    gone = evidence(former={A: "default/a/main"}, listing=Listing(pods=frozenset({"default/a"}), holdings=()))
    assert only(gone).certain
    by_its_number = replace(
        gone,
        listing=Listing(pods=frozenset({"default/a"}), holdings=(holding("a", "0"),)),
        recorded=frozenset({"0"}),
    )
    assert findings(by_its_number) == frozenset()
