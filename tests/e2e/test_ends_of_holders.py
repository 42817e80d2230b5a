# SPDX-License-Identifier: Apache-2.0
"""The last user of a card ends: how soon the card is free, by the kubelet's pods API, and what is no end."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import pytest

from .cluster import LABEL, Amount, Cluster, Pod, pod_manifest
from .hooks import Hooks, require_restart, require_stop
from .machine import CARDS, Machine
from .outages import restart_kubelet, without_api_server
from .plugin import Plugin, Start
from .waiting import wait_until, watch_that


pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150), pytest.mark.usefixtures("no_marks", "pods_api")]

FREE_SECONDS = 5.0
"""The promise is 2 s; a loaded machine takes longer."""
CHANGE_SECONDS = 60
LOOKS_SECONDS = 12
GRACE_SECONDS = 20
OBEDIENT = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
STUBBORN = "trap '' TERM; while :; do sleep 0.05; done"


def run_user(
    cluster: Cluster, *, init: bool = False, policy: str = "Never", script: str = OBEDIENT, grace: int = 0
) -> tuple[Pod, int]:
    """A pod of which one container has one device, and that container's process on this node."""
    manifest = pod_manifest(f"{LABEL}-user", node=cluster.node, image=cluster.image, devices=1)
    spec = manifest["spec"]
    spec["restartPolicy"], spec["terminationGracePeriodSeconds"] = policy, grace
    spec["containers"][0]["command"] = ["sh", "-c", script]
    if init:
        main = pod_manifest("main", node=cluster.node, image=cluster.image, devices=0)["spec"]["containers"]
        spec["initContainers"] = [spec["containers"][0] | {"name": "first"}]
        spec["containers"] = main
    cluster.kubectl("create", "--filename", "-", stdin=json.dumps(manifest))
    pod = Pod(cluster, manifest["metadata"]["name"])
    processes = wait_until(
        "the container runs", lambda: list(processes_of(pod, script)), lambda found: found, seconds=60
    )
    return pod, min(processes)


def processes_of(pod: Pod, script: str) -> Iterator[int]:
    """The processes of this node that run a script in the pod."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            environment = (directory / "environ").read_bytes().split(b"\0")
            arguments = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if f"HOSTNAME={pod.name}".encode() in environment and arguments[:3] == [
            b"sh",
            b"-c",
            script.encode(),
        ]:
            yield int(directory.name)


def held_card(machine: Machine, hooks: Hooks) -> str:
    """The card that the kubelet's checkpoint names."""
    checkpoint = json.loads((hooks.device_plugin_directory / "kubelet_internal_checkpoint").read_text())
    (card,) = {
        id
        for entry in checkpoint["Data"]["PodDeviceEntries"]
        for ids in entry["DeviceIDs"].values()
        for id in ids
    }
    assert card in machine.vfs()
    return str(card)


def until_blocked(daemon: Plugin, machine: Machine, card: str) -> None:
    daemon.wait_for_log(f"reason=VFBlocked card={card} ")
    wait_until(
        "the others are split",
        machine.vfs,
        lambda seen: seen == dict.fromkeys(seen, 2) | {card: 0},
        seconds=CHANGE_SECONDS,
    )


def until_free(daemon: Plugin, card: str, end: float) -> float:
    """Wait until the card is withheld for its change; the seconds since its user ended."""
    pattern = rf"(\S+Z) .*device withheld from new pods id={re.escape(card)} reason=vf-change-planned"
    daemon.wait_for_log(pattern)
    match = re.search(pattern, daemon.log)
    assert match is not None
    seconds = datetime.fromisoformat(match[1]).timestamp() - end
    print(f"blocked for {seconds:.2f} s after the end")
    return seconds


def until_split(machine: Machine) -> None:
    wait_until("all are split", machine.vfs, lambda seen: set(seen.values()) == {2}, seconds=CHANGE_SECONDS)


def end(pid: int) -> float:
    os.kill(pid, signal.SIGTERM)
    wait_until(
        "its end", lambda: Path(f"/proc/{pid}").exists(), lambda there: not there, seconds=30, pause=0.005
    )
    return time.time()


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize(("init", "policy"), [(False, "Never"), (False, "OnFailure"), (True, "Always")])
def test_a_card_is_free_soon_after_its_last_user_has_ended(
    *,
    hooks: Hooks,
    cluster: Cluster,
    machine: Machine,
    daemon: Plugin,
    start: Start,
    init: bool,
    policy: str,
    away: bool,
) -> None:
    if away:
        require_stop(hooks)
    start(0)
    cluster.wait_for_amount(Amount(CARDS, CARDS))
    _, pid = run_user(cluster, init=init, policy=policy)
    card = held_card(machine, hooks)
    cluster.set_vfs("2")
    until_blocked(daemon, machine, card)
    with without_api_server(hooks, cluster) if away else nullcontext():
        assert until_free(daemon, card, end(pid)) <= FREE_SECONDS
        until_split(machine)


@pytest.mark.parametrize("init", [False, True])
def test_a_card_that_waits_for_the_argument_is_free_soon_after_its_pod_is_deleted(
    *, hooks: Hooks, cluster: Cluster, machine: Machine, daemon: Plugin, start_by_argument: Start, init: bool
) -> None:
    start_by_argument(0)
    cluster.wait_for_amount(Amount(CARDS, CARDS))
    pod, pid = run_user(cluster, init=init, policy="Always", grace=GRACE_SECONDS)
    card = held_card(machine, hooks)
    daemon.terminate()
    start_by_argument(2)
    until_blocked(daemon, machine, card)
    cluster.kubectl("delete", "pod", pod.name, "--wait=false")
    wait_until(
        "its end", lambda: Path(f"/proc/{pid}").exists(), lambda there: not there, seconds=30, pause=0.005
    )
    assert until_free(daemon, card, time.time()) <= FREE_SECONDS
    until_split(machine)


@pytest.mark.parametrize("init", [False, True])
def test_a_kubelet_without_its_api_server_since_its_start_shows_no_end(
    *, hooks: Hooks, cluster: Cluster, machine: Machine, daemon: Plugin, start_by_argument: Start, init: bool
) -> None:
    require_restart(hooks)
    require_stop(hooks)
    start_by_argument(0)
    cluster.wait_for_amount(Amount(CARDS, CARDS))
    _, pid = run_user(cluster, init=init)
    card = held_card(machine, hooks)
    daemon.terminate()
    start_by_argument(2)
    until_blocked(daemon, machine, card)
    with without_api_server(hooks, cluster):
        restart_kubelet(hooks)
        end(pid)
        stays(daemon, machine, card)
    until_split(machine)


@pytest.mark.parametrize("init", [False, True])
def test_a_pod_that_is_deleted_by_force_keeps_its_card_while_its_container_runs(
    *, hooks: Hooks, cluster: Cluster, machine: Machine, daemon: Plugin, start_by_argument: Start, init: bool
) -> None:
    start_by_argument(0)
    cluster.wait_for_amount(Amount(CARDS, CARDS))
    pod, pid = run_user(cluster, init=init, script=STUBBORN, grace=GRACE_SECONDS)
    card = held_card(machine, hooks)
    daemon.terminate()
    start_by_argument(2)
    until_blocked(daemon, machine, card)
    cluster.kubectl("delete", "pod", pod.name, "--force", "--grace-period=0", "--wait=false")
    wait_until(
        "its end",
        lambda: (Path(f"/proc/{pid}").exists(), machine.vfs()[card]),
        lambda seen: seen[1] or not seen[0],
        seconds=2 * GRACE_SECONDS,
    )
    assert not Path(f"/proc/{pid}").exists()
    until_split(machine)


def stays(daemon: Plugin, machine: Machine, card: str) -> None:
    watch_that(
        "the card stays as it is",
        lambda: (card in dict(daemon.asked_of_the_driver()), machine.vfs()[card]),
        lambda seen: seen == (False, 0),
        seconds=LOOKS_SECONDS,
    )
