# SPDX-License-Identifier: Apache-2.0
"""Rollouts of the plugin on a real node: `python -m tests.endurance.rollouts [--rounds N] [OPTION...]`

Each round replaces the DaemonSet's pod by `kubectl rollout restart`. Meanwhile a pod a second asks for one
device, writes down which device nodes it can open, and ends; another pod keeps its device throughout. The
kubelet's number of devices is sampled, the Node and all pods are watched. On a node before 1.22, where a
DaemonSet has no `maxSurge`, `--surge` takes two DaemonSets by turns: one is deleted once the other is ready.

In any case no device is held twice, by what containers could open and by the kubelet's checkpoint, the pod
that stays is untouched, and after each round the node offers all devices. Where the manifest has
`maxUnavailable: 0`, the number of devices is never below all, in the kubelet and on the Node, and each pod
runs. Ends with status 1 if that is not so. In any case it prints how long the gaps were, how many pods were
refused (by the kubelet, for good), and how many were stuck (by the plugin, until they are deleted).
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.cluster import LABEL, RESOURCE, STATUS_SECONDS, Cluster, KubectlError, pod_manifest
from tests.e2e.installation import (
    DAEMON_SET,
    IN_ITS_NAMESPACE,
    MANIFEST,
    NAMESPACE,
    POD_RESOURCES,
    PODS_API,
    ROLLOUT_SECONDS,
    SELECTOR,
    Installation,
    at_its_place,
    occupied,
    remove_state,
    vendor_library,
)
from tests.e2e.machine import CARDS, CONTROL, device_nodes, read_view, view_script
from tests.endurance.node import Node, a_node, verdict
from tests.endurance.witnesses import Beside, Gaps, Kubelet, Samples, Watch, gaps


FIXED_SOCKET = Path(__file__).with_name("fixed_socket.yml")
FORMER = Path(__file__).parents[1] / "e2e"
MOST_PODS = 30  # at once
POD_PERIOD_SECONDS = 1.0
POD_LIFE_SECONDS = 1
LAST_PODS_SECONDS = 90
REST_SECONDS = 3.0
"""Between two rounds, at most."""
ADVICE = "delete the pod"
"""In a refusal of the plugin that it repeats at each start."""
SURGE_SINCE = 1, 22
"""The release from which a DaemonSet has `maxSurge`; 1.21 had it behind a feature gate."""
OTHER = f"{DAEMON_SET.partition('/')[2]}-other"
TURN_SECONDS = 20
UPTIME = "cut -d' ' -f1 /proc/uptime"


@dataclass(frozen=True, slots=True)
class Use:
    """The device nodes that a container could open, and from when to when in seconds of uptime."""

    pod: str
    nodes: frozenset[str]
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a pod has come."""

    pod: str
    phase: str
    reason: str
    message: str
    """Of its container, when it has ended."""
    stuck: bool
    """The plugin refuses its start, and will again."""

    @property
    def ended(self) -> bool:
        return self.stuck or self.phase in {"Succeeded", "Failed"}

    @property
    def ran(self) -> bool:
        return self.phase == "Succeeded"

    @classmethod
    def of(cls, pod: dict[str, Any]) -> "Outcome":
        status = pod["status"]
        container: dict[str, Any] = next(iter(status.get("containerStatuses", [])), {})
        state = container.get("state", {})
        end, waiting = state.get("terminated", {}), state.get("waiting", {})
        reason = status.get("reason") or end.get("reason") or waiting.get("reason", "")
        stuck = ADVICE in waiting.get("message", "")
        return cls(pod["metadata"]["name"], status["phase"], reason, end.get("message", ""), stuck)


def shared(uses: Sequence[Use]) -> list[str]:
    """The device nodes that two containers could open at once, and the pods."""
    return [
        f"{node}: {one.pod}, {other.pod}"
        for one, other in combinations(uses, 2)
        if one.since < other.until and other.since < one.until
        for node in sorted(one.nodes & other.nodes)
    ]


def ready(pod: dict[str, Any]) -> bool:
    return any(
        own["type"] == "Ready" and own["status"] == "True" for own in pod["status"].get("conditions", [])
    )


def offered(node: dict[str, Any]) -> int:
    return int(node["status"]["allocatable"].get(RESOURCE, 0))


# --- a pod a second -------------------------------------------------------------------------------


def user_manifest(cluster: Cluster, name: str, *, life: str) -> dict[str, Any]:
    """A pod that writes down what it can open, from when to when, and ends."""
    manifest = pod_manifest(f"{LABEL}-{name}", node=cluster.node, image=cluster.image, devices=1)
    script = f"echo since $({UPTIME})\n{view_script(device_nodes())}{life}\necho until $({UPTIME})\n"
    manifest["spec"]["restartPolicy"] = "Never"
    manifest["spec"]["containers"][0]["command"] = ["sh", "-c", f"{{ {script} }} >/dev/termination-log"]
    return manifest


def use(pod: str, text: str) -> Use:
    """What the container of `user_manifest` has written."""
    since, until = (
        float(next(line for line in text.splitlines() if line.startswith(word)).split()[1])
        for word in ("since", "until")
    )
    return Use(pod, read_view(text, device_nodes()).openable - {CONTROL}, since, until)


class Churn(Beside):
    """Creates a pod a second until `enough`, and deletes those that have ended while the block runs.

    While a busy node lets MOST_PODS wait, it gets no more.
    """

    def __init__(self, cluster: Cluster, pods: Watch[Outcome]) -> None:
        super().__init__()
        self.created = 0
        self.enough = False
        self.errors: list[KubectlError] = []
        self._cluster = cluster
        self._pods = pods

    def run(self) -> None:
        due = time.monotonic()
        while self.waits(due):
            due += POD_PERIOD_SECONDS
            try:
                if not self.enough and len(self._pods.present) < MOST_PODS:
                    self._create()
                if ended := [own.pod for own in self._pods.present.values() if own.ended]:
                    self._cluster.kubectl("delete", "pods", "--wait=false", "--ignore-not-found", *ended)
            except KubectlError as error:
                self.errors.append(error)

    def _create(self) -> None:
        manifest = user_manifest(self._cluster, str(self.created), life=f"sleep {POD_LIFE_SECONDS}")
        self._cluster.kubectl("create", "--filename=-", stdin=json.dumps(manifest))
        self.created += 1


# --- a run ----------------------------------------------------------------------------------------


class ByTurns(Installation):
    """Two DaemonSets, of which one is installed: the other replaces it once its pod is ready."""

    def __init__(self, cluster: Cluster, image: str, *, manifest: str) -> None:
        super().__init__(cluster, image, manifest=manifest)
        self._present, self._next = daemon_set(self._manifest), daemon_set(self._manifest)
        self._next["metadata"]["name"] = OTHER
        for labels in (
            self._next["spec"]["selector"]["matchLabels"],
            self._next["spec"]["template"]["metadata"]["labels"],
        ):
            labels["turn"] = "other"

    def replace(self) -> None:
        self._cluster.kubectl("create", IN_ITS_NAMESPACE, "--filename=-", stdin=yaml.safe_dump(self._next))
        name = f"daemonset/{self._next['metadata']['name']}"
        self._cluster.kubectl("rollout", "status", name, IN_ITS_NAMESPACE, f"--timeout={TURN_SECONDS}s")
        self._cluster.kubectl(
            "delete", IN_ITS_NAMESPACE, "--wait=false", f"daemonset/{self._present['metadata']['name']}"
        )
        self._present, self._next = self._next, self._present

    def delete(self) -> None:
        self._cluster.kubectl("delete", IN_ITS_NAMESPACE, "--ignore-not-found", f"daemonset/{OTHER}")
        super().delete()


def daemon_set(text: str) -> dict[str, Any]:
    """The only one in a manifest."""
    (own,) = (own for own in yaml.safe_load_all(text) if own["kind"] == "DaemonSet")
    assert isinstance(own, dict)
    return own


def manifest(options: argparse.Namespace, *, by_turns: bool) -> tuple[str, dict[str, Any]]:
    """The text of what is installed, and its update strategy."""
    path = FIXED_SOCKET if options.plugin == "fixed-socket" else options.manifest
    documents = list(yaml.safe_load_all(path.read_text().replace("path: DIRECTORY", f"path: {FORMER}")))
    (own,) = (own for own in documents if own["kind"] == "DaemonSet")
    rolling = own["spec"]["updateStrategy"]["rollingUpdate"]
    if options.surge and not by_turns:
        rolling |= {"maxSurge": 1, "maxUnavailable": 0}
    return yaml.safe_dump_all(documents), rolling


@contextmanager
def installed(node: Node, kind: type[Installation], text: str) -> Iterator[Installation]:
    if not node.hooks.plugin_image:
        raise SystemExit("XPU_E2E_PLUGIN_IMAGE is not set: the name of the plugin's image on the node")
    if occupied():
        raise SystemExit("the vendor's library is there already, and is not to be touched")
    installation = kind(node.cluster, node.hooks.plugin_image, manifest=text)
    node.cluster.wait_for_allocatable(0)
    with (
        vendor_library(node.machine),
        at_its_place(node.hooks.pod_resources_socket, POD_RESOURCES),
        at_its_place(node.hooks.pods_api_socket, PODS_API),
    ):
        try:
            installation.create()
            node.cluster.wait_for_allocatable(CARDS)
            yield installation
        finally:
            print(installation.log())
            node.cluster.delete_pods()
            installation.delete()
            remove_state()
            for socket in node.hooks.device_plugin_directory.glob("fixed.sock"):
                socket.unlink()


def run(node: Node, options: argparse.Namespace) -> int:
    by_turns = options.surge and node.cluster.version() < SURGE_SINCE
    text, rolling = manifest(options, by_turns=by_turns)
    chance = random.Random(options.seed)
    promises = by_turns or rolling.get("maxUnavailable") == 0
    hooks, cluster = node.hooks, node.cluster
    command = (*hooks.kubectl, "--namespace", hooks.namespace)
    users = Watch(command, f"/api/v1/namespaces/{hooks.namespace}/pods?labelSelector={LABEL}", Outcome.of)
    plugins = Watch(command, f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={SELECTOR}", ready)
    nodes = Watch(command, f"/api/v1/nodes?fieldSelector=metadata.name={cluster.node}", offered)
    with installed(node, ByTurns if by_turns else Installation, text) as installation:
        holder = cluster.run_pod("holder", devices=1)
        before, held = holder.state().identity, node.machine.view_from(holder).openable - {CONTROL}
        kubelet = Kubelet(hooks.pod_resources_socket, hooks.device_plugin_directory)
        samples = Samples(kubelet, hertz=options.hertz)
        with users, plugins, nodes, samples, closing(kubelet), Churn(cluster, users) as churn:
            began, lost = time.monotonic(), ""
            try:
                for _ in range(options.rounds):
                    roll(installation, plugins, nodes)
                    time.sleep(chance.uniform(0, REST_SECONDS))  # pods are at any point when the next begins
                churn.enough = True
                users.until(
                    "every pod has ended",
                    lambda: (
                        len(users.latest) == 1 + churn.created
                        and all(own.ended for uid, own in users.present.items() if uid != before[0])
                    ),
                    seconds=LAST_PODS_SECONDS,
                )
            except AssertionError as error:
                lost = str(error)
            end = time.monotonic()
        in_kubelet = gaps(samples.counts, CARDS, end)
        on_node = gaps(nodes.changes, CARDS, end)
        untouched = holder.state().identity == before and (
            node.machine.view_from(holder).openable - {CONTROL} == held
        )
        outcomes = users.latest
        uses = [use(own.pod, own.message) for own in outcomes.values() if own.ran]
        stuck = {own.pod: own for _, own in users.changes if own.stuck}
        refused = [own for own in outcomes.values() if own.phase == "Failed" and own.pod not in stuck]
        doubles = [
            *shared(uses),
            *(f"{node}: {own.pod}, the holder" for own in uses for node in own.nodes & held),
            *(f"{id}: in the checkpoint" for id in sorted(samples.doubles)),
        ]
        reasons = Counter(own.reason for own in refused)
        print(
            f"{options.rounds} rollouts of {options.plugin} with "
            f"{'two DaemonSets by turns' if by_turns else rolling} in {end - began:.0f} s, "
            f"seed {options.seed}\n"
            f"pods: {churn.created} created, {len(uses)} ran, {len(refused)} refused {dict(reasons) or ''}, "
            f"{len(stuck)} stuck\n"
            f"kubelet, by {kubelet.source}, {samples.number} samples at {options.hertz:g} Hz with pauses "
            f"of {samples.longest_pause * 1000:.0f} ms at most: {in_kubelet}\n"
            f"Node: {on_node}\n"
            f"granted twice: {len(doubles)}"
        )
        wrong = [f"granted twice: {double}" for double in doubles]
        wrong += [f"kubectl: {error}" for error in churn.errors]
        wrong += [lost] if lost else []
        wrong += [f"no more samples: {samples.error}"] if samples.error else []
        if not untouched:
            wrong.append("the pod that stays is not the same, or has other devices")
        if promises:
            wrong += [f"{own.pod} did not run: {own.reason}" for own in (*refused, *stuck.values())]
            wrong += breaches(in_kubelet, on_node, gap=options.gap)
        return verdict(wrong)


def roll(installation: Installation, plugins: Watch[bool], nodes: Watch[int]) -> None:
    """Replace the plugin's pod, until another is ready and alone, and the node offers all devices."""
    (former,) = plugins.present
    installation.replace()
    plugins.until(
        "another pod of the plugin",
        lambda: list(plugins.present.values()) == [True] and former in plugins.gone,
        seconds=ROLLOUT_SECONDS,
    )
    nodes.until(
        "the node offers all devices",
        lambda: list(nodes.present.values()) == [CARDS],
        seconds=STATUS_SECONDS,
    )


def breaches(in_kubelet: Gaps, on_node: Gaps, *, gap: float) -> list[str]:
    """Where the numbers were below what `maxUnavailable: 0` promises. gap: seconds allowed in the kubelet"""
    wrong = [
        f"gap in the kubelet: {seconds * 1000:.0f} ms" for seconds in in_kubelet.seconds if seconds > gap
    ]
    return wrong + [f"gap on the Node: {seconds * 1000:.0f} ms" for seconds in on_node.seconds]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plugin", choices=["shipped", "fixed-socket"], default="shipped")
    parser.add_argument(
        "--manifest", type=Path, default=MANIFEST, help="of the shipped plugin, one DaemonSet in it"
    )
    parser.add_argument(
        "--surge",
        action="store_true",
        help="maxSurge 1, maxUnavailable 0 in place of its strategy; before 1.22 two DaemonSets by turns",
    )
    parser.add_argument(
        "--hertz", type=float, default=20.0, help="samples of the kubelet's number each second"
    )
    parser.add_argument("--gap", type=float, default=0.0, metavar="SECONDS", help="allowed in the kubelet")
    options = parser.parse_args()
    with a_node() as node:
        return run(node, options)


if __name__ == "__main__":
    sys.exit(main())
