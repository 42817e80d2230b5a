# SPDX-License-Identifier: Apache-2.0
"""A server with eight P800 cards: devices, virtual functions, and cards that the kernel's log shows as sick.

The cards are simulated, in the form that users report (docs/p800.md). No such card was ever seen by us.
The kernel's log is the node's own. The lines there are of the facility `user`, and of a driver that does not
exist: no rule but the one of the test takes them for a card's.
"""

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import free_port

from .cluster import LABEL, Amount, Cluster, Json, Pod, container, pod_manifest
from .hooks import Hooks, leave_out
from .machine import CONTROL, P800_MAJOR, Machine, device_nodes, granted, majors_in_use, present
from .metrics import wait_for
from .plugin import Plugin, Start, serve
from .waiting import wait_until, watch_that


pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.usefixtures("no_marks")]

CARDS = 8
HANDLES = 32
REPORT_SECONDS = 120
"""For eight cards to be changed one after the other, and for the node to say so."""
ALL = Amount(CARDS, CARDS)
WITHOUT_ONE = Amount(CARDS, CARDS - 1)
RUNNING = 201

KERNEL_LOG = Path("/dev/kmsg")
FOLLOWED = "the kernel's log is followed"
USER = 1  # a facility; the kernel lets no process write as 0
INFO = 6
REASON = "simulated-hang"
RULES = r"""
facility = {facility}
together_seconds = 0.1
pods = 2
window_seconds = 3600
idle_seconds = 3600
address = '{driver}: \(PCI:(?P<card>[0-9a-f:]+)\)'
process = 'pid=(?P<pid>[0-9]+)'
[[pattern]]
reason = "{reason}"
text = 'does not answer'
sick = ["pods"]
"""
PATIENCE_SECONDS = 2
"""For a verdict that is not to come, and longer than the second to which a kubelet rounds an end down."""
END_SECONDS = 30
EVENT_SECONDS = 45
COMMAND_SECONDS = 30


@pytest.fixture
def machine(hooks: Hooks, cluster: Cluster, tmp_path: Path) -> Iterator[Machine]:
    """Eight healthy cards."""
    with present(Machine(hooks.plugin, tmp_path, model="P800", cards=CARDS)) as machine:
        yield machine


# --- devices --------------------------------------------------------------------------------------


def test_each_pod_reaches_its_two_of_eight_cards_and_no_other(
    cluster: Cluster, machine: Machine, daemon: Plugin
) -> None:
    nodes = device_nodes()
    majors = {major for major, _ in nodes.values()}
    assert majors == {P800_MAJOR} or P800_MAJOR in majors_in_use()
    minors = {f"xpu{number}": number for number in range(CARDS)} | {CONTROL: 255}
    assert {name: minor for name, (_, minor) in nodes.items()} == minors

    serve(daemon, cluster, cards=CARDS)
    assert daemon.registered_ids() == machine.ids().keys()
    pods = [cluster.run_pod(f"pair-{number}", devices=2) for number in range(CARDS // 2)]
    grants = [granted(machine, pod, 2) for pod in pods]
    assert frozenset().union(*grants) == machine.ids().keys()


# --- virtual functions ----------------------------------------------------------------------------


def test_cards_follow_the_label_up_to_the_handles_of_a_host(
    cluster: Cluster, machine: Machine, daemon: Plugin, start: Start
) -> None:
    """The host has 32 nodes at most, and the cards themselves take 8 of them."""
    cards = list(machine.vfs())  # in PCI order
    start(0)
    cluster.wait_for_amount(ALL)

    cluster.set_vfs("4")
    wait_for_budget(cluster, dict.fromkeys(cards[:6], 4) | dict.fromkeys(cards[6:], 0))
    cluster.wait_for_amount(Amount(6 * 4 + 2, 6 * 4 + 2))
    assert {card for card, _ in daemon.asked_of_the_driver()} == set(cards[:6])
    reach_vfs(cluster, machine, 4, pods=3)  # two whole cards are offered, too

    cluster.set_vfs("2")
    halves = dict.fromkeys(cards, (2, 2, "success"))
    cluster.wait_for_report("success", halves, seconds=REPORT_SECONDS)
    cluster.wait_for_amount(Amount(8 * 2, 8 * 2))
    reach_vfs(cluster, machine, 2, pods=1)

    cluster.set_vfs("4")  # nodes of cards that have 2 VFs count as well
    wait_for_budget(cluster, dict.fromkeys(cards[:4], 4) | dict.fromkeys(cards[4:], 2))
    cluster.wait_for_amount(Amount(4 * 4 + 4 * 2, 4 * 4 + 4 * 2))
    assert len(device_nodes().keys() - {CONTROL}) == HANDLES


def wait_for_budget(cluster: Cluster, vfs: dict[str, int]) -> None:
    """Wait until the cards have so many of 4 VFs, and those with fewer say why."""
    states = {card: (4, number, "success" if number == 4 else "failed") for card, number in vfs.items()}
    report = cluster.wait_for_report("failed", states, seconds=REPORT_SECONDS)
    reasons = {card: own.get("reason", "") for card, own in report.cards.items()}
    assert {card for card, reason in reasons.items() if reason.startswith("handle-budget: ")} == {
        card for card, number in vfs.items() if number < 4
    }


def reach_vfs(cluster: Cluster, machine: Machine, vfs: int, *, pods: int) -> None:
    """Each pod opens its own device and no other node, and one of them at least has a VF."""
    users = [cluster.run_pod(f"user-{number}", devices=1) for number in range(pods)]
    ids = [id for user in users for id in granted(machine, user, 1)]
    assert len(set(ids)) == pods
    assert any(id.endswith(f"-of{vfs}") for id in ids)
    for user in users:
        user.delete()


# --- the kernel's log -----------------------------------------------------------------------------


class Scene:
    """Seven cards are in use; one pod after the other has the last one, `card`."""

    def __init__(
        self, hooks: Hooks, cluster: Cluster, machine: Machine, daemon: Plugin, start: Start
    ) -> None:
        self.cluster = cluster
        self._daemon = daemon
        self._start = start
        self._plugin = hooks.plugin
        self._driver = f"e2e-test-{uuid.uuid4().hex[:8]}"  # the log still has the lines of earlier tests
        self._port = free_port()
        rules = machine.file.with_name("rules.toml")
        rules.write_text(RULES.format(facility=USER, driver=self._driver, reason=REASON))
        self._socket = machine.file.with_name("status.sock")
        self._options = (
            "--kernel-log=act",
            f"--kernel-log-rules={rules}",
            f"--status-socket={self._socket}",
            f"--metrics-address=127.0.0.1:{self._port}",
        )
        self._start_and_follow()
        cluster.wait_for_amount(ALL)
        others = cluster.run_pod("others", devices=CARDS - 1)
        (self.card,) = machine.ids().keys() - granted(machine, others, CARDS - 1)

    def restart(self, end: Callable[[], object]) -> None:
        """End the plugin and start another one, which reads what the log has of before."""
        end()
        self._daemon.wait_for_no_process()
        self.cluster.wait_for_allocatable(0)
        self._start_and_follow()

    def _start_and_follow(self) -> None:
        times = self._daemon.log.count(FOLLOWED)
        self._start("keep", *self._options)
        self._daemon.wait_for_log(FOLLOWED, times=times + 1)

    @property
    def line(self) -> str:
        address = self.card.rpartition(".")[0]
        return f"{self._driver}: (PCI:{address}): a simulated card does not answer"

    def write_line(self, *, incidents: int) -> None:
        """Write a line about the card to the kernel's log, and wait for the number of its incidents."""
        with KERNEL_LOG.open("wb", buffering=0) as log:
            log.write(f"<{USER << 3 | INFO}>{self.line}\n".encode())
        wait_for(self._port, "xpu_driver_incidents_total", incidents, card=self.card, reason=REASON)

    def run_user(self, name: str, *, code: int) -> Pod:
        """A pod with the card, which ends with this exit code when its container is ended."""
        node, image = self.cluster.node, self.cluster.image
        manifest = pod_manifest(f"{LABEL}-{name}", node=node, image=image, devices=1)
        script = f"trap 'exit {code}' TERM; while :; do sleep 3600 & wait; done"
        manifest["spec"]["restartPolicy"] = "Never"
        manifest["spec"]["containers"] = [container("main", image=image, script=script, devices=1)]
        self.cluster.kubectl("create", "--filename=-", stdin=json.dumps(manifest))
        pod = Pod(self.cluster, manifest["metadata"]["name"])
        pod.wait_until_running()
        return pod

    def end(self, pod: Pod, phase: str) -> None:
        pod.end_container()
        wait_until(
            f"pod {pod.name} ends",
            lambda: pod.state().phase,
            lambda seen: seen in {"Succeeded", "Failed"},
            seconds=END_SECONDS,
        )
        assert pod.state().phase == phase

    def wait_for_event(self, reason: str, *texts: str) -> None:
        wait_until(
            f"an Event {reason} has {texts}",
            self.cluster.events,
            lambda events: any(
                own == reason and all(part in text for part in texts) for _, own, text in events
            ),
            seconds=EVENT_SECONDS,
        )

    def health(self) -> tuple[str, str | None, int | None]:
        """Health, its reason and the library's state of the card, by `xpu-device-plugin list`."""
        own: Json = next(
            own for own in json.loads(self.command("list", "--json"))["devices"] if own["id"] == self.card
        )
        return own["health"], own["reason"], own["state"]

    def stays_listed(self) -> None:
        watch_that("the card stays on the list", self.cluster.amount, ALL.__eq__, seconds=PATIENCE_SECONDS)
        assert self.health() == ("Healthy", None, RUNNING)

    def wait_until_sick(self) -> None:
        self.cluster.wait_for_amount(WITHOUT_ONE)
        assert self.health() == ("Unhealthy", "driver-error", RUNNING)

    def command(self, *words: str) -> str:
        """What a sub-command prints that asks the running plugin."""
        command = (*self._plugin, *words, f"--status-socket={self._socket}")
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
        assert (done.returncode, done.stderr) == (0, ""), f"{words}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def scene(hooks: Hooks, cluster: Cluster, machine: Machine, daemon: Plugin, start: Start) -> Scene:
    if not os.access(KERNEL_LOG, os.R_OK | os.W_OK):
        leave_out(hooks, f"{KERNEL_LOG} cannot be read and written")
    return Scene(hooks, cluster, machine, daemon, start)


def test_a_card_with_incidents_of_two_pods_is_sick_until_it_is_cleared(
    cluster: Cluster, daemon: Plugin, scene: Scene
) -> None:
    first = scene.run_user("first", code=1)
    scene.write_line(incidents=1)
    scene.wait_for_event("XPUDriverIncident", scene.card, REASON, scene.line, f"/{first.name}/main")
    scene.stays_listed()
    scene.end(first, "Failed")

    second = scene.run_user("second", code=1)
    before = second.state().identity
    scene.write_line(incidents=2)
    scene.wait_until_sick()
    scene.wait_for_event("XPUUnhealthy", scene.card, "driver-error", scene.line, f"/{second.name}/main")
    scene.restart(daemon.kill)
    scene.wait_until_sick()
    assert second.state().identity == before
    scene.end(second, "Failed")
    third = cluster.create_pod("third", devices=1)
    third.wait_until_unschedulable()

    scene.command("clear", scene.card)
    cluster.wait_for_amount(ALL)
    third.wait_until_running()
    scene.restart(daemon.terminate)
    cluster.wait_for_amount(ALL)
    scene.write_line(incidents=1)
    scene.stays_listed()


@pytest.mark.usefixtures("pods_api")
def test_a_pod_that_ends_well_in_between_shows_that_the_card_works(scene: Scene) -> None:
    for incidents, (name, code, phase) in enumerate(
        (("well", 0, "Succeeded"), ("ill", 1, "Failed")), start=1
    ):
        pod = scene.run_user(name, code=code)
        scene.write_line(incidents=incidents)
        scene.stays_listed()
        scene.end(pod, phase)
    scene.run_user("last", code=1)
    scene.write_line(incidents=3)
    scene.wait_until_sick()
