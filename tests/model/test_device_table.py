# SPDX-License-Identifier: Apache-2.0
"""Devices as sub-commands show them, and who holds them."""

import json
from dataclasses import asdict, replace

from tests.support.devices import device, found
from xpu_plugin.model.device_table import holders, rows
from xpu_plugin.model.devices import DeviceKind
from xpu_plugin.model.health import LOST, VF_CHANGE_PLANNED, Health
from xpu_plugin.model.inventory import Facts, Policy, after_scan, after_verdicts
from xpu_plugin.model.ownership import Holding


A, B, C = (f"0000:{bus}:00.0" for bus in ("3b", "3c", "3d"))
POLICY = Policy(resource="baidu.com/xpu")
FACTS = after_scan(Facts(), found(device(A), device(B, number=1), device(C, number=2)))


def held(resource: str, *ids: str, by: str = "default/train/main") -> Holding:
    return Holding(container=by, resource=resource, ids=ids)


def test_a_row_shows_what_is_offered_and_how_it_is() -> None:
    facts = after_verdicts(FACTS, {B: Health("state-error", "state 207")})
    facts = replace(facts, held={"2": "baidu.com/xpu"}, kept_back={A: VF_CHANGE_PLANNED})
    shown = {row.id: row for row in rows(facts, replace(POLICY, deny=(B,)))}
    assert list(shown) == [A, B, C]
    assert (shown[A].offered_as, shown[A].reason) == (A, "vf-change-planned")
    assert (shown[B].offered_as, shown[B].reason, shown[B].text) == (None, "state-error", "state 207")
    assert (shown[C].offered_as, shown[C].path, shown[C].reason) == ("2", "/dev/xpu2", None)
    assert shown[B].resource == "baidu.com/xpu", "what it would be offered as"


def test_a_row_shows_what_a_device_is() -> None:
    vf = device("0000:3b:01.0-of2", number=10, index=4, numa=1, memory_bytes=5, state=202)
    (row,) = rows(after_scan(Facts(), found(vf)), POLICY)
    assert (row.card, row.kind, row.model, row.path, row.index) == (A, "vf", "R200", "/dev/xpu10", 4)
    assert (row.numa, row.memory_bytes, row.state, row.max_vfs) == (1, 5, 202, 0)


def test_a_device_that_is_lost_keeps_its_row() -> None:
    facts = after_scan(FACTS, found(device(A)))
    assert [(row.id, row.reason) for row in rows(facts, POLICY)] == [
        (A, None),
        (B, LOST.reason),
        (C, LOST.reason),
    ]
    denied = rows(facts, replace(POLICY, deny=(B,)))
    assert (denied[1].health, denied[1].reason) == ("Unhealthy", LOST.reason)


def test_rows_are_made_of_what_json_knows() -> None:
    for row in rows(FACTS, POLICY):
        assert json.loads(json.dumps(asdict(row))) == asdict(row) | {"vf_counts": list(row.vf_counts)}


def test_holders_by_own_and_former_ids() -> None:
    holdings = (
        held("baidu.com/xpu", A, "2"),
        held("vendor.com/other", A, "1", by="lab/other/main"),
        held("baidu.com/xpu", "0000:99:00.0", "77", by="lab/gone/main"),
    )
    assert holders(holdings, FACTS, POLICY) == {
        A: ("default/train/main", "lab/other/main"),
        C: ("default/train/main",),
    }


def test_whoever_is_at_a_node_now_goes_before_who_was() -> None:
    facts = after_scan(FACTS, found(device(B, number=2)))
    assert holders([held("baidu.com/xpu", "2")], facts, POLICY) == {B: ("default/train/main",)}


def test_who_holds_a_card_as_it_was_split_before_holds_all_that_it_is_now() -> None:
    vfs = [device(f"0000:3b:01.{n}-of2", number=10 + n) for n in range(2)]
    card = replace(device(A), kind=DeviceKind.PF, split="of2")
    facts = after_scan(Facts(), found(card, *vfs, device(B, number=1)), claimed=["0000:3b:01.2-of3", A])
    holdings = [
        held("baidu.com/xpu", "0000:3b:01.2-of3"),
        held("baidu.com/xpu", A, by="default/eval/main"),
        held("baidu.com/xpu", B, by="default/else/main"),
    ]
    both = ("default/eval/main", "default/train/main")
    assert holders(holdings, facts, POLICY) == {
        A: both,
        vfs[0].id: both,
        vfs[1].id: both,
        B: ("default/else/main",),
    }
