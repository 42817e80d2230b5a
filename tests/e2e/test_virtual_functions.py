# SPDX-License-Identifier: Apache-2.0
"""Virtual functions on a real node: cards follow the node's label or the argument, and only idle ones.

The plugin has the rights of its own service account and no others. It knows a small pod as its own, as it
would in a DaemonSet: what the kubelet lists is believed only while that pod is on the list.
"""

from collections.abc import Mapping

import pytest

from .access import STRANGER, Access
from .cluster import LABEL, Amount, Cluster
from .hooks import Hooks, require_restart, require_stop
from .machine import CARDS, Machine, granted
from .outages import restart_kubelet, without_api_server
from .plugin import Plugin, Start
from .waiting import wait_until, watch_that


pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.usefixtures("no_marks")]

CHANGE_SECONDS = 60
PATIENCE_SECONDS = 5
"""How long something is watched that is not to happen: a change would follow after SETTLE_SECONDS."""
LOOKS_SECONDS = 12
REPORTS_PODS = (1, 37)
"""The first release with the pods API."""
"""For two more looks at who uses the cards, 5 s apart, and a change after the second."""
KILLS = 5
KUBELET_RESTARTS = 3

BY_ARGUMENT = r'desired VF count value="?{}"? origin="argument --sriov-num-vfs"\n'
BY_LABEL = r'desired VF count value="?{}"? origin="label baidu\.com/sriov-num-vfs"\n'
BY_LABEL_LAST_SEEN = r'desired VF count value="?{}"? origin="label baidu\.com/sriov-num-vfs as last seen"\n'


def split(machine: Machine, *vfs: int) -> None:
    """Split the cards before the plugin runs, as an earlier one has."""
    for card, number in enumerate(vfs):
        machine.set_card(card, vfs=number)
    assert tuple(machine.vfs().values()) == vfs


def every(
    machine: Machine, vfs: int, state: str = "success", *, desired: int | str | None = None
) -> dict[str, tuple[int | str, int, str]]:
    """What the node is to say where it says the same of each card. wished: None means `vfs`."""
    return dict.fromkeys(machine.vfs(), (vfs if desired is None else desired, vfs, state))


def wait_for_vfs(machine: Machine, vfs: Mapping[str, int]) -> None:
    wait_until(f"the cards have {vfs} VFs", machine.vfs, lambda seen: seen == vfs, seconds=CHANGE_SECONDS)


def test_the_service_account_may_do_what_it_has_to_and_nothing_else(access: Access) -> None:
    for verb, resource in (
        *((verb, "nodes") for verb in ("get", "list", "watch", "patch")),
        *((verb, "events") for verb in ("create", "patch")),
    ):
        assert access.may(verb, resource), f"{verb} {resource}"
    assert not access.may("create", "events", "--namespace=kube-system")

    for question in (
        *((verb, "nodes") for verb in ("create", "update", "delete", "deletecollection")),
        *((verb, "events") for verb in ("get", "list", "update", "delete")),
        *((verb, "nodes", "--subresource=status") for verb in ("patch", "update")),
        ("get", "nodes", "--subresource=proxy"),
        *((verb, "pods") for verb in ("get", "list", "create", "patch", "delete")),
        ("create", "pods", "--subresource=exec"),
        *((verb, "secrets") for verb in ("get", "list")),
        *((verb, "configmaps") for verb in ("get", "patch")),
        ("create", "serviceaccounts", "--subresource=token"),
        ("patch", "daemonsets.apps"),
        ("create", "clusterrolebindings.rbac.authorization.k8s.io"),
        ("escalate", "clusterroles.rbac.authorization.k8s.io"),
        ("impersonate", "users"),
    ):
        for where in ("--namespace=default", "--namespace=kube-system"):
            assert not access.may(*question, where), f"{' '.join(question)} {where}"

    everybodys = access.rights(STRANGER)
    assert [line for line in access.rights() if line not in everybodys] == [
        "events [] [] [create patch]",
        "nodes [] [] [get list watch patch]",
    ]


@pytest.mark.compatibility
def test_idle_cards_follow_the_label_and_a_pod_gets_one_vf(
    cluster: Cluster, machine: Machine, daemon: Plugin, start: Start
) -> None:
    start(0)
    cluster.wait_for_amount(Amount(CARDS, CARDS))
    cluster.wait_for_report("success", every(machine, 0))

    cluster.set_vfs("2")
    cluster.wait_for_report("success", every(machine, 2))
    cluster.wait_for_amount(Amount(2 * CARDS, 2 * CARDS))
    assert cluster.described_amount() == Amount(2 * CARDS, 2 * CARDS)
    assert machine.vfs() == dict.fromkeys(machine.vfs(), 2)
    assert daemon.registered_ids() == machine.ids().keys()
    assert sorted(daemon.asked_of_the_driver()) == [(card, 2) for card in machine.vfs()]
    daemon.wait_for_log(BY_LABEL.format(2))
    for card in machine.vfs():
        cluster.wait_for_event("Normal", "VFApplied", f"{card} has 2 VFs now, 0 before")

    pod = cluster.run_pod("user", devices=1)
    (vf,) = granted(machine, pod, 1)
    assert vf.endswith("-of2")


@pytest.mark.compatibility
def test_a_card_in_use_waits_for_its_pod_and_then_follows(
    cluster: Cluster, machine: Machine, daemon: Plugin, start: Start
) -> None:
    split(machine, *[2] * CARDS)
    cluster.set_vfs("2")
    start(0)
    cluster.wait_for_amount(Amount(2 * CARDS, 2 * CARDS))
    pod = cluster.run_pod("user", devices=1)
    ids, before = granted(machine, pod, 1), pod.state().identity
    (held,) = map(machine.address_of_card_of, ids)

    cluster.set_vfs("3")
    blocked = every(machine, 3) | {held: (3, 2, "blocked")}
    report = cluster.wait_for_report("blocked", blocked)
    holder = f"{cluster.namespace}/{pod.name}/main"
    assert report.cards[held]["holders"] == [holder]
    assert report.cards[held]["reason"] == f"held by {holder}"
    cluster.wait_for_event("Warning", "VFBlocked", f"{held}: held by {holder}")
    cluster.wait_for_amount(Amount(3 * CARDS - 1, 3 * CARDS - 1))
    assert granted(machine, pod, 1) == ids
    assert pod.state().identity == before
    assert held not in dict(daemon.asked_of_the_driver())

    pod.delete()
    cluster.wait_for_report("success", every(machine, 3))
    cluster.wait_for_amount(Amount(3 * CARDS, 3 * CARDS))
    cluster.wait_for_event("Normal", "VFApplied", f"{held} has 3 VFs now, 2 before")
    assert machine.vfs() == dict.fromkeys(machine.vfs(), 3)


@pytest.mark.compatibility
def test_without_the_label_the_argument_counts_again(
    cluster: Cluster, machine: Machine, daemon: Plugin, start: Start
) -> None:
    split(machine, *[2] * CARDS)
    cluster.set_vfs("2")
    start(0)
    cluster.wait_for_report("success", every(machine, 2))
    assert daemon.asked_of_the_driver() == []

    cluster.set_vfs(None)
    cluster.wait_for_report("success", every(machine, 0))
    cluster.wait_for_amount(Amount(CARDS, CARDS))
    daemon.wait_for_log(BY_ARGUMENT.format(0))
    assert sorted(daemon.asked_of_the_driver()) == [(card, 0) for card in machine.vfs()]
    pod = cluster.run_pod("user", devices=1)
    assert granted(machine, pod, 1) < machine.vfs().keys()


def test_a_bad_label_changes_nothing_and_says_so(
    cluster: Cluster, machine: Machine, daemon: Plugin, start: Start
) -> None:
    problem = (
        "label baidu.com/sriov-num-vfs: 'abc' is not accepted; accepted: a whole number from 0 to 63, or keep"
    )
    split(machine, *[2] * CARDS)

    def says_so(desired: int | str) -> None:
        report = cluster.wait_for_report("failed", every(machine, 2, desired=desired))
        assert report.detail["problem"] == problem
        nothing_is_changed(machine, daemon)
        assert cluster.amount() == Amount(2 * CARDS, 2 * CARDS)

    cluster.set_vfs("abc")
    start(0)
    daemon.wait_for_log(f'reason=VFFailed card=null detail="{problem}; the last valid desired VF count stays')
    cluster.wait_for_amount(Amount(2 * CARDS, 2 * CARDS))
    says_so("keep")

    cluster.set_vfs("2")
    report = cluster.wait_for_report("success", every(machine, 2))
    assert "problem" not in report.detail
    cluster.set_vfs("abc")
    says_so(2)  # as before


def test_the_label_last_seen_or_the_argument_counts_where_the_label_may_not_be_read(
    cluster: Cluster, machine: Machine, daemon: Plugin, access: Access, start: Start
) -> None:
    split(machine, *[2] * CARDS)
    cluster.set_vfs("2")
    start("keep")
    daemon.wait_for_log(BY_LABEL.format(2))
    daemon.terminate()

    access.take()
    cluster.set_vfs("3")  # without a notice
    start(0, "--label-timeout=1")
    daemon.wait_for_log(r"the API server does not let us list nodes \(HTTP 403\)")
    daemon.wait_for_log("the label last seen counts, as the node's label may not be read")
    daemon.wait_for_log(BY_LABEL_LAST_SEEN.format(2))
    nothing_is_changed(machine, daemon)
    daemon.terminate()

    # A plugin that has never seen a label.
    start(2, "--label-timeout=1", f"--state-dir={machine.file.with_name('unseen')}")
    daemon.wait_for_log("the argument --sriov-num-vfs counts, as the node's label may not be read")
    daemon.wait_for_log(BY_ARGUMENT.format(2))
    daemon.wait_for_log(r"the API server does not let us patch nodes \(HTTP 403\)")
    nothing_is_changed(machine, daemon)
    cluster.wait_for_amount(Amount(2 * CARDS, 2 * CARDS))

    cluster.set_vfs("keep")
    access.give()
    daemon.wait_for_log(BY_LABEL.format("keep"))
    cluster.wait_for_report("success", every(machine, 2, desired="keep"))
    assert daemon.asked_of_the_driver() == []


def test_a_plugin_that_starts_while_the_api_server_is_away_changes_nothing(
    hooks: Hooks, cluster: Cluster, machine: Machine, daemon: Plugin, start: Start
) -> None:
    require_stop(hooks)
    split(machine, *[2] * CARDS)
    cluster.set_vfs("2")
    start(0)
    cluster.wait_for_report("success", every(machine, 2))

    with without_api_server(hooks, cluster):
        daemon.kill()
        daemon.wait_for_no_process()
        start(0)
        daemon.wait_for_log('everything stays as it is error="list nodes: ')
        nothing_is_changed(machine, daemon)
        assert daemon.registered_ids() == machine.ids().keys()

    daemon.wait_for_log(BY_LABEL.format(2), times=2)
    daemon.wait_for_log("the API server answers again")
    cluster.wait_for_report("success", every(machine, 2))
    cluster.wait_for_amount(Amount(2 * CARDS, 2 * CARDS))
    nothing_is_changed(machine, daemon)


def test_a_kubelet_that_has_not_heard_from_the_api_server_proves_nothing(
    hooks: Hooks, cluster: Cluster, machine: Machine, daemon: Plugin, start_by_argument: Start
) -> None:
    require_restart(hooks)
    require_stop(hooks)
    start_by_argument(0)
    cluster.wait_for_amount(Amount(CARDS, CARDS))
    pod = cluster.run_pod("user", devices=1)
    ids, before = granted(machine, pod, 1), pod.state().identity
    (held,) = ids
    own_pod = f"{cluster.namespace}/{LABEL}-own"
    doubt = f"the kubelet's list of pods does not name this plugin's own pod {own_pod};"
    if cluster.version() >= REPORTS_PODS:
        doubt = "the kubelet does not report its pods yet"

    with without_api_server(hooks, cluster):
        daemon.terminate()
        restart_kubelet(hooks)
        # A plugin that has lost its record: only what the kubelet says is left.
        start_by_argument(2, f"--state-dir={machine.file.with_name('lost')}")
        daemon.wait_for_log(
            f'reason=VFBlocked card={held} detail="held by a container that was granted {held} and'
        )
        for card in machine.vfs().keys() - {held}:
            daemon.wait_for_log(f'reason=VFBlocked card={card} detail="cannot prove idle: {doubt}')
        nothing_is_changed(machine, daemon, seconds=LOOKS_SECONDS)

    wait_for_vfs(machine, dict.fromkeys(machine.vfs(), 2) | {held: 0})
    cluster.wait_for_amount(Amount(2 * CARDS - 1, 2 * CARDS - 1))
    assert held not in dict(daemon.asked_of_the_driver())
    assert granted(machine, pod, 1) == ids
    assert pod.state().identity == before


def test_storms_of_restarts_change_nothing_that_is_as_desired(
    hooks: Hooks, cluster: Cluster, machine: Machine, daemon: Plugin, start: Start
) -> None:
    require_restart(hooks)
    split(machine, *[2] * CARDS)
    cluster.set_vfs("2")
    start(0)
    cluster.wait_for_amount(Amount(2 * CARDS, 2 * CARDS))
    pod = cluster.run_pod("user", devices=1)
    ids, before = granted(machine, pod, 1), pod.state().identity

    for kill in range(KILLS):
        if kill % 2:
            daemon.terminate()
        else:
            daemon.kill()
        daemon.wait_for_no_process()
        start(0)
        daemon.wait_for_log(BY_LABEL.format(2), times=kill + 2)
    for _ in range(KUBELET_RESTARTS):
        streams = daemon.streams()
        restart_kubelet(hooks)
        daemon.wait_for_new_stream(streams)

    nothing_is_changed(machine, daemon)
    cluster.wait_for_amount(Amount(2 * CARDS, 2 * CARDS))
    cluster.wait_for_report("success", every(machine, 2))
    assert granted(machine, pod, 1) == ids
    assert pod.state().identity == before


@pytest.mark.parametrize("argument", ["keep", "99"])
def test_keep_leaves_every_card_as_it_is(
    cluster: Cluster, machine: Machine, daemon: Plugin, start: Start, argument: str
) -> None:
    split(machine, 0, 1, 2, 3)
    start(argument)
    cluster.wait_for_amount(Amount(7, 7))
    daemon.wait_for_log(BY_ARGUMENT.format("keep"))
    cluster.wait_for_report(
        "success", {card: ("keep", vfs, "success") for card, vfs in machine.vfs().items()}
    )
    nothing_is_changed(machine, daemon)


def nothing_is_changed(machine: Machine, daemon: Plugin, *, seconds: float = PATIENCE_SECONDS) -> None:
    """No process has asked the driver for anything, and none does."""
    before = machine.vfs()
    watch_that(
        "the cards stay as they are",
        lambda: (daemon.asked_of_the_driver(), machine.vfs()),
        lambda seen: seen == ([], before),
        seconds=seconds,
    )
