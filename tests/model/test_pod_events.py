# SPDX-License-Identifier: Apache-2.0
"""Events on pods: the pods of the kubelet's list with the UIDs of its checkpoint, and what each is told."""

from tests.support.devices import device, found
from xpu_plugin.model.device_events import MOST_NAMED, DeviceReason
from xpu_plugin.model.events import PodReference
from xpu_plugin.model.health import HEALTHY, LOST, Health, quarantined
from xpu_plugin.model.inventory import Entry, Facts, Policy, after_scan
from xpu_plugin.model.ownership import Holding
from xpu_plugin.model.pod_events import pod_events, pods


A, B = "0000:3b:00.0", "0000:3c:00.0"
XPU = "baidu.com/xpu"
SICK = Health("state-error", "state 207 (state-error), running is 201")
POLICY = Policy(resource=XPU)
FACTS = after_scan(Facts(), found(device(A), device(B, number=1)))
TRAIN = PodReference(namespace="research", name="train", uid="uid-1")


def held(container: str, *ids: str) -> Holding:
    return Holding(container=container, resource=XPU, ids=ids)


def entry(id: str, health: Health = HEALTHY, number: int = 0) -> Entry:
    return Entry(id=id, resource=XPU, device=device(id, number=number), health=health)


def test_a_pod_has_its_name_from_the_list_and_its_uid_from_the_checkpoint() -> None:
    listed = [held("research/train/main", A), held("research/train/side", B), held("default/bare/main", "x")]
    checkpoint = [held("uid-1/main", A), held("uid-1/side", B), held("uid-2/init", A)]
    assert pods(listed, checkpoint, FACTS, POLICY) == {TRAIN: frozenset({A, B})}


def test_a_uid_that_is_not_clear_is_left_out() -> None:
    nameless = PodReference(namespace="research", name="train")
    listed = [held("research/train/main", A)]
    for checkpoint in ([], [held("uid-1/another", A)], [held("uid-1/main", A), held("uid-2/main", A)]):
        assert pods(listed, checkpoint, FACTS, POLICY) == {nameless: frozenset({A})}


def test_a_pod_is_told_each_change_once_with_the_reason() -> None:
    sick, [event] = pod_events(TRAIN, {}, [entry(A, SICK), entry(B, number=1)])
    assert (event.kind, event.reason, event.pod) == ("Warning", "XPUUnhealthy", TRAIN)
    assert event.text == f"{A} at /dev/xpu0: state-error, state 207 (state-error), running is 201"
    assert pod_events(TRAIN, sick, [entry(A, LOST)]) == (sick, ())
    sick, [event] = pod_events(TRAIN, sick, [entry(A, quarantined("state-error"))])
    assert event.reason == "XPUQuarantined"
    assert event.text.startswith(f"{A} at /dev/xpu0: quarantined, ")
    sick, [event] = pod_events(TRAIN, sick, [entry(A)])
    assert (event.kind, event.reason) == ("Normal", "XPURecovered")
    assert sick == {}


def test_many_devices_are_one_event() -> None:
    entries = [entry(f"0000:{bus:02x}:00.0", SICK, bus) for bus in range(MOST_NAMED + 2)]
    sick, [event] = pod_events(TRAIN, {}, entries)
    assert set(sick.values()) == {DeviceReason.UNHEALTHY}
    assert event.text.count("0000:") == MOST_NAMED
    assert event.text.endswith(" | and 2 more")
