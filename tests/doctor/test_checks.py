# SPDX-License-Identifier: Apache-2.0
"""The checks of `doctor`: each is content with a healthy node, and each can be made to fail."""

import errno
from dataclasses import replace
from typing import Any

import pytest

from xpu_plugin.doctor.checks.cluster import RIGHTS
from xpu_plugin.doctor.evidence import (
    ClusterEvidence,
    Evidence,
    HostEvidence,
    KubeletEvidence,
    LibraryEvidence,
    NodeFile,
    PluginEvidence,
)
from xpu_plugin.doctor.finding import Verdict, error, exit_status, ok, skipped, warning
from xpu_plugin.doctor.registry import CHECKS, diagnose
from xpu_plugin.model.device_table import Row
from xpu_plugin.model.devices import Function
from xpu_plugin.model.obstacles import Obstacle
from xpu_plugin.model.ownership import Holding
from xpu_plugin.model.unlisted import Unlisted


A, B = "0000:3b:00.0", "0000:3c:00.0"
VFS = tuple(f"0000:3c:01.{n}" for n in range(2))


def row(id: str, number: int, **fields: Any) -> Row:
    whole = Row(
        id=id,
        card=id.partition("-")[0],
        kind="whole",
        model="R200",
        path=f"/dev/xpu{number}",
        index=number,
        numa=0,
        memory_bytes=16 << 30,
        state=201,
        health="Healthy",
        reason=None,
        resource="baidu.com/xpu",
        text="",
        offered_as=id,
        max_vfs=3,
        vf_counts=(1, 2, 3),
        serial="",
    )
    return replace(whole, **fields)


def sick(reason: str, text: str = "") -> Row:
    return row(A, 0, health="Unhealthy", reason=reason, text=text)


def function(**fields: Any) -> Function:
    return replace(Function(vendor=0x1D22, device=0x3684, num_vfs=0, total_vfs=3), **fields)


# A card that is whole, and one that is split in two.
HOST = HostEvidence(
    control=NodeFile(name="xpuctrl", major=242, minor=128),
    nodes=tuple(NodeFile(name=f"xpu{n}", major=242, minor=2 * n) for n in range(4)),
    majors={1: "mem", 242: "xpu"},
    functions={
        A: function(),
        B: function(num_vfs=2),
        **dict.fromkeys(VFS, function(device=0x3685, num_vfs=None, total_vfs=None, physfn=B)),
    },
    linked_vfs={B: 2},
    addresses={0: A, 1: B, 2: VFS[0], 3: VFS[1]},
    cgroup_drivers=frozenset({"systemd"}),
)
LIBRARY = LibraryEvidence(
    path="/usr/local/xpu/lib64/libxpuml.so.1",
    version="4.33.1.1 commit: 0",
    driver_version="4.33.third_unknown.1 commit: 0",
    driver_release="4.33.0",
    rows=(
        row(A, 0),
        row(B, 1, kind="pf", offered_as=None),
        *(row(f"{vf}-of2", 2 + n, card=B, kind="vf", max_vfs=0, vf_counts=()) for n, vf in enumerate(VFS)),
    ),
)
PLUGIN = PluginEvidence(
    streams=1, alone=True, worker=4711, replaced=False, files={"/usr/local/xpu": None}, unwritten=()
)
KUBELET = KubeletEvidence(
    age=3600.0,
    pods=frozenset({"kube-system/plugin", "default/train"}),
    holdings=(Holding(container="default/train/main", resource="baidu.com/xpu", ids=(A,)),),
)
CLUSTER = ClusterEvidence(label="2", ahead=0.4)
ALL_DENIED = tuple(f"{verb} {resource}" for verb, resource in RIGHTS)
HEALTHY = Evidence(
    desired=2,
    own_pod="kube-system/plugin",
    ours=frozenset({"baidu.com/xpu"}),
    host=HOST,
    library=LIBRARY,
    plugin=PLUGIN,
    expected=True,
    kubelet=KUBELET,
    cluster=CLUSTER,
)
NO_XPU = Evidence(
    library=LibraryEvidence(trouble="no usable libxpuml"), kubelet=KubeletEvidence(pods=frozenset())
)


def host(**fields: Any) -> Evidence:
    return replace(HEALTHY, host=replace(HOST, **fields))


def nodes(position: int, **fields: Any) -> Evidence:
    changed = list(HOST.nodes)
    changed[position] = replace(changed[position], **fields)
    return host(nodes=tuple(changed))


def control(**fields: Any) -> Evidence:
    assert HOST.control
    return host(control=replace(HOST.control, **fields))


def library(**fields: Any) -> Evidence:
    return replace(HEALTHY, library=replace(LIBRARY, **fields))


def with_row(other: Row) -> Evidence:
    return library(rows=(other, *LIBRARY.rows[1:]))


def plugin(**fields: Any) -> Evidence:
    return replace(HEALTHY, plugin=replace(PLUGIN, **fields))


def kubelet(**fields: Any) -> Evidence:
    return replace(HEALTHY, kubelet=replace(KUBELET, **fields))


def cluster(**fields: Any) -> Evidence:
    return replace(HEALTHY, cluster=replace(CLUSTER, **fields))


W, E, S = Verdict.WARNING, Verdict.ERROR, Verdict.SKIPPED
# Check, evidence in which one thing is broken, the verdict, and words of what is said.
BROKEN: list[tuple[str, Evidence, Verdict, str]] = [
    ("control-node", host(control=None), E, "4 XPU functions on the bus"),
    ("control-node", control(character=False), E, "not a character device"),
    ("control-node", control(major=240), E, "no driver has major 240"),
    ("control-node", control(mode=0o600), W, "mode 0600"),
    ("device-nodes", host(nodes=()), E, "no xpuN"),
    ("device-nodes", nodes(1, character=False), E, "xpu1"),
    ("device-nodes", nodes(2, major=240), E, "xpu2 240:4"),
    ("device-nodes", nodes(3, mode=0o660), W, "xpu3"),
    ("char-links", nodes(1, linked=False), W, "242:2"),
    ("char-links", control(linked=False), W, "242:128"),
    ("library", library(trouble="/x: no such file"), E, "/x: no such file"),
    ("library", library(trouble="not asked until then", unwatched=True), W, "not asked until then"),
    ("library", library(trouble="/x is not a libxpuml: it lacks xpumlInit"), E, "lacks xpumlInit"),
    ("library", library(version="4.0.10.1"), W, "4.0.10.1"),
    ("driver-match", library(version="4.0.12.1 commit: 0"), W, "driver 4.33.0"),
    ("driver-match", library(driver_release=None, driver_version="5.0.1"), W, "driver 5.0.1"),
    ("worker-library", plugin(replaced=True), W, "replaced"),
    ("worker-library", plugin(replaced=True, replacement_trouble="cut off"), W, "cannot be used: cut off"),
    ("devices-answer", library(hung=("no answer within 5 s in xpumlDeviceGetState",)), E, "no answer"),
    ("devices-answer", with_row(sick("state-error", "state 207")), E, "state 207"),
    ("devices-answer", with_row(sick("quarantined")), W, "quarantined"),
    ("devices-answer", library(rows=()), E, "lists no device"),
    ("listed-nodes", library(unlisted=(Unlisted(number=3, errno=5),)), E, "xpu3: it cannot be opened (Input"),
    ("listed-nodes", library(unlisted=(Unlisted(number=3, errno=13),)), E, "Permission denied"),
    ("listed-nodes", library(unlisted=(Unlisted(number=99, beyond=True),)), W, "99 nodes at most"),
    ("ranking", library(problems=("device index 0: two minds",)), E, "two minds"),
    (
        "ranking",
        host(addresses={**HOST.addresses, 0: B}),
        E,
        f"/dev/xpu0 is {A} by the library, {B} by sysfs",
    ),
    ("ranking", host(addresses={}), W, "no class xpu"),
    ("functions", host(linked_vfs={B: 1}), E, "sriov_numvfs is 2, and 1 are linked"),
    ("functions", host(functions={VFS[0]: HOST.functions[VFS[0]]}), E, f"its card {B} is not there"),
    ("functions", library(rows=LIBRARY.rows[:3]), W, "2 VFs by sysfs, 1 by the library"),
    ("vf-capability", replace(HEALTHY, desired=4), E, "desired: 4"),
    ("vf-capability", with_row(row(A, 0, max_vfs=0, vf_counts=())), W, "desired: 2"),
    ("vf-capability", with_row(row(A, 0, max_vfs=4, vf_counts=(1, 4))), E, f"{A}: 1, 4, "),
    ("driver-unload", host(open_elsewhere=("xpu_smi (77): /dev/xpu0",)), W, "xpu_smi (77)"),
    ("cgroup-driver", nodes(0, linked=False), E, "daemon-reload"),
    ("cgroup-driver", host(cgroup_drivers=frozenset({"systemd", "cgroupfs"})), W, "cgroupfs"),
    (
        "container-files",
        plugin(files={"/a/b": None, "/c/d": "no such file"}),
        W,
        "without /c/d: no such file",
    ),
    ("kernel-log", host(kernel_log_trouble="/dev/kmsg: refused"), W, "not noticed"),
    ("kernel-log", plugin(kernel_log="act", kernel_log_trouble="/dev/kmsg: refused"), W, "refused"),
    ("kernel-log", plugin(kernel_log="act", sick={"0000:3b:00.0": "a line"}), W, "0000:3b:00.0: a line"),
    ("kubelet-directory", kubelet(directory_trouble="/x is not there"), E, "/x"),
    ("kubelet-socket", kubelet(socket=Obstacle(path="/x", code=errno.ECONNREFUSED)), E, "refused"),
    ("kubelet-socket", kubelet(socket=Obstacle(path="/x", code=errno.EACCES)), E, "EACCES"),
    ("control-node", control(usable=False), E, "may not be opened"),
    ("registration", plugin(streams=0), E, "no stream"),
    ("registration", replace(HEALTHY, plugin="none answers at /x"), W, "none answers"),
    ("plugin-parts", plugin(down={"audit": "ValueError: x (audit.py:1)"}), E, "audit: ValueError"),
    ("second-plugin", plugin(alone=False), E, "another one works"),
    ("second-plugin", plugin(displaced=("another plugin has registered x/y",)), E, "has registered x/y"),
    ("second-plugin", kubelet(strangers=("vxpu.sock",)), W, "vxpu.sock"),
    ("pod-resources", kubelet(list_trouble="/x: UNAVAILABLE"), E, "UNAVAILABLE"),
    ("pod-resources", kubelet(checkpoint_trouble="/x: bad"), E, "/x: bad"),
    ("pod-resources", kubelet(pods=None), W, "no pod resources API"),
    ("pod-resources", kubelet(pods=frozenset()), W, "kube-system/plugin"),
    ("pods-api", kubelet(ends_trouble="/x: UNAVAILABLE"), W, "UNAVAILABLE"),
    (
        "former-ids",
        kubelet(holdings=(Holding(container="a/b/c", resource="baidu.com/xpu", ids=("2",)),)),
        W,
        "a/b/c (device 2)",
    ),
    (
        "xpuctrl-exposure",
        kubelet(holdings=(Holding(container="a/b/c", resource="baidu.com/xpu", ids=(f"{VFS[0]}-of2",)),)),
        W,
        f"a/b/c could split {A}",
    ),
    ("node-label", cluster(label="lots"), E, "'lots' is not accepted"),
    ("node-label", cluster(trouble="list nodes: refused"), W, "list nodes: refused"),
    ("rbac", cluster(denied=("patch nodes",)), W, "patch nodes"),
    ("node-writes", plugin(unwritten=("label a: refused", "b")), W, "label a: refused; b"),
    ("clock", cluster(ahead=-90.0), W, "90 s behind"),
    ("clock", kubelet(age=-5.0), W, "5 s in the future"),
]
# Where there is nothing to look at.
ABSENT: list[tuple[str, Evidence]] = [
    *((name, NO_XPU) for name in ("control-node", "device-nodes", "char-links", "library", "devices-answer")),
    *((name, NO_XPU) for name in ("functions", "ranking", "vf-capability", "driver-match", "cgroup-driver")),
    *((name, NO_XPU) for name in ("worker-library", "registration", "second-plugin", "node-label", "rbac")),
    *((name, NO_XPU) for name in ("listed-nodes", "clock", "plugin-parts")),
    ("registration", replace(NO_XPU, plugin=replace(PLUGIN, streams=0), expected=True)),
    ("char-links", replace(HEALTHY, simulated=True)),
    ("worker-library", plugin(replaced=None)),
    ("driver-match", library(version=None)),
    ("rbac", cluster(rights_unknown="HTTP 503")),
    ("rbac", cluster(denied=ALL_DENIED)),
    ("node-label", cluster(denied=ALL_DENIED)),
    ("node-writes", NO_XPU),
    ("node-writes", plugin(unwritten=None)),
    ("container-files", NO_XPU),
    ("container-files", plugin(files={})),
]


def verdict(name: str, evidence: Evidence) -> Any:
    (finding,) = (finding for check, finding in diagnose(evidence) if check.name == name)
    return finding


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_healthy_node_passes_it(check: Any) -> None:
    finding = check.judge(HEALTHY)
    assert (finding.verdict, finding.advice) == (Verdict.OK, ""), finding


@pytest.mark.parametrize(("name", "evidence", "expected", "words"), BROKEN, ids=lambda value: str(value)[:24])
def test_what_is_broken_is_found_with_evidence_and_a_next_step(
    name: str, evidence: Evidence, expected: Verdict, words: str
) -> None:
    finding = verdict(name, evidence)
    assert finding.verdict == expected, finding
    assert words in finding.evidence
    assert finding.advice
    assert "\n" not in finding.evidence + finding.advice


def test_every_check_can_fail() -> None:
    assert {name for name, *_ in BROKEN} == {check.name for check in CHECKS}
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize(("name", "evidence"), ABSENT, ids=lambda value: str(value)[:24])
def test_where_there_is_nothing_to_look_at_it_is_skipped(name: str, evidence: Evidence) -> None:
    finding = verdict(name, evidence)
    assert finding.verdict == S
    assert finding.evidence


def test_a_node_without_xpus_has_no_error() -> None:
    assert exit_status(finding for _, finding in diagnose(NO_XPU)) == 0


@pytest.mark.parametrize("reason", ["vf-undecided", "vf-change-planned", "changing", "change-unknown"])
def test_a_card_kept_back_is_no_sick_card(reason: str) -> None:
    assert verdict("devices-answer", with_row(sick(reason))).verdict == Verdict.OK


def test_a_desired_count_for_nothing_needs_no_capability() -> None:
    none = replace(with_row(row(A, 0, max_vfs=0, vf_counts=())), desired=0)
    assert verdict("vf-capability", none).verdict == Verdict.OK
    assert verdict("vf-capability", replace(none, desired=None)).verdict == Verdict.OK


def test_the_exit_status_is_that_of_the_worst() -> None:
    assert exit_status([]) == 0
    assert exit_status([ok(""), skipped("")]) == 0
    assert exit_status([ok(""), warning("", ""), skipped("")]) == 1
    assert exit_status([error("", ""), warning("", "")]) == 3
