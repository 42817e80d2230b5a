# SPDX-License-Identifier: Apache-2.0
"""What the suite asks of a cluster, all by way of kubectl: one node, and pods on it."""

import contextlib
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .waiting import wait_until


RESOURCE = "baidu.com/xpu"
LABEL = "xpu-device-plugin-e2e"
"""Every pod of the suite carries it, so that a crashed run can be cleared away by the next."""
DESIRED_LABEL = "baidu.com/sriov-num-vfs"
STATE_LABEL = f"{DESIRED_LABEL}.state"
DETAIL_ANNOTATION = f"{DESIRED_LABEL}.detail"
NODE_LABELS = tuple(
    f"baidu.com/xpu.{name}" for name in ("model", "count", "memory-mib", "driver-version", "vf-capable")
)
EVENT_SOURCE = "xpu-device-plugin"

KUBECTL_SECONDS = 30
GONE_SECONDS = 120
"""For deleted pods to be gone, also on a busy node with many of them."""
STATUS_SECONDS = 45
"""For news to reach the API server: several of the kubelet's node status periods (10 s by default)."""
POD_SECONDS = 60
REPORT_SECONDS = 60
"""For four cards to be changed one after the other, each after it has settled, and for the node to say so."""
RESTART_SECONDS = 45
"""For a container to start again. The first time it does so at once; this is for a kubelet that is busy."""

# PID 1 ignores signals it has no trap for; this one leaves on SIGTERM, so a test can make it end.
WAIT_FOR_EVER = "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done"

Json = dict[str, Any]  # what the API server answers; only the fields read here are relied on
States = Mapping[str, tuple[int | str, int, str]]


class KubectlError(Exception):
    """kubectl failed; the text is the command and what it had to say."""


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of the resource the node reports; 0 where it does not report it at all."""

    capacity: int
    allocatable: int


@dataclass(frozen=True, slots=True)
class Report:
    """What the plugin has written on the node about virtual functions; empty where it has not."""

    state: str
    detail: Json

    @property
    def cards(self) -> dict[str, Json]:
        """What it says of each card, by address."""
        return {card["address"]: card for card in self.detail.get("cards", [])}

    @property
    def states(self) -> States:
        """In short: of each card, by address, how many VFs are wished, how many it has, and its state."""
        return {
            address: (card["desired"], card["actual"], card["state"]) for address, card in self.cards.items()
        }


@dataclass(frozen=True, slots=True)
class PodState:
    phase: str
    """The API's word, or "Gone" when there is no such pod."""
    reason: str = ""
    """Why it does not run: the scheduler's, the kubelet's or the container's word."""
    message: str = ""
    uid: str = ""
    container: str = ""
    started: str = ""
    restarts: int = 0
    running: bool = False

    @property
    def identity(self) -> tuple[str, str, str, int]:
        """Unchanged as long as the running container is the same."""
        return self.uid, self.container, self.started, self.restarts

    @classmethod
    def of(cls, pod: Json) -> "PodState":
        status = pod["status"]
        container: Json = next(iter(status.get("containerStatuses", [])), {})
        state = container.get("state", {})
        unscheduled: Json = next(
            (c for c in status.get("conditions", []) if c.get("reason") == "Unschedulable"), {}
        )
        trouble = state.get("waiting") or state.get("terminated") or unscheduled
        return cls(
            phase=status["phase"],
            reason=status.get("reason") or trouble.get("reason", ""),
            message=status.get("message") or trouble.get("message", ""),
            uid=pod["metadata"]["uid"],
            container=container.get("containerID", ""),
            started=state.get("running", {}).get("startedAt", ""),
            restarts=container.get("restartCount", 0),
            running="running" in state and "deletionTimestamp" not in pod["metadata"],
        )


class Cluster:
    """One node of a cluster and the suite's pods on it."""

    def __init__(self, *, kubectl: Sequence[str], node: str, namespace: str, image: str) -> None:
        self._kubectl = (*kubectl, "--namespace", namespace)
        self.namespace = namespace
        self.image = image
        self.node = node or self._only_node()

    def kubectl(self, *arguments: str, stdin: str | None = None, accept: Sequence[int] = (0,)) -> str:
        """The standard output of a call that ended with an acceptable status."""
        command = (*self._kubectl, *arguments)
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=KUBECTL_SECONDS, check=False
        )
        if done.returncode not in accept:
            raise KubectlError(f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def answers(self) -> bool:
        """Whether the API server is there and ready."""
        try:
            return self.kubectl("get", "--raw=/readyz", "--request-timeout=2s") == "ok"
        except KubectlError:
            return False

    def versions(self) -> str:
        """The releases of the node's kubelet, of its container runtime, and of the API server."""
        node = self.shown()["status"]["nodeInfo"]
        server = json.loads(self.kubectl("get", "--raw=/version"))
        return (
            f"kubelet {node['kubeletVersion']}, {node['containerRuntimeVersion'].replace('://', ' ')}, "
            f"API server {server['gitVersion']}, node {self.node}"
        )

    def shown(self) -> Json:
        """The whole node."""
        node: Json = json.loads(self.kubectl("get", "node", self.node, "--output=json"))
        return node

    def metadata(self) -> Json:
        """The node's."""
        metadata: Json = self.shown()["metadata"]
        return metadata

    def version(self) -> tuple[int, int]:
        """The release of the node's kubelet."""
        major, minor, _ = self.shown()["status"]["nodeInfo"]["kubeletVersion"].removeprefix("v").split(".", 2)
        return int(major), int(minor)

    def taints(self) -> list[str]:
        """The keys of the node's taints."""
        return [taint["key"] for taint in self.shown()["spec"].get("taints", [])]

    def condition(self, kind: str) -> tuple[str, str] | None:
        """Status and reason of a condition of the node; None without it."""
        found = [own for own in self.shown()["status"]["conditions"] if own["type"] == kind]
        return (found[0]["status"], found[0]["reason"]) if found else None

    def forget_condition(self, kind: str) -> None:
        """Take a condition off the node's status, which kubectl of all releases can only do as a whole."""
        node = self.shown()
        node["status"]["conditions"] = [own for own in node["status"]["conditions"] if own["type"] != kind]
        del node["metadata"]["resourceVersion"]  # the kubelet writes all the time
        self.kubectl(
            "replace", f"--raw=/api/v1/nodes/{self.node}/status", "--filename=-", stdin=json.dumps(node)
        )

    def set_vfs(self, vfs: str | None) -> None:
        """Put the label onto the node that says how many VFs each card is to have, or take it off."""
        self._patch_metadata({"labels": {DESIRED_LABEL: vfs}})

    def report(self) -> Report:
        """What the plugin says on the node of its virtual functions."""
        metadata = self.metadata()
        detail = metadata.get("annotations", {}).get(DETAIL_ANNOTATION, "{}")
        return Report(metadata.get("labels", {}).get(STATE_LABEL, ""), json.loads(detail))

    def wait_for_report(self, state: str, states: States, *, seconds: float = REPORT_SECONDS) -> Report:
        """Wait until the node bears this state, and that of each card."""
        return wait_until(
            f"node {self.node} says {state}: {states}",
            self.report,
            lambda report: (report.state, report.states) == (state, states),
            seconds=seconds,
        )

    def events(self) -> list[tuple[str, str, str]]:
        """Type, reason and message of the plugin's events, as `kubectl describe node` shows them."""
        text = self.kubectl("describe", "node", self.node).partition("\nEvents:")[2]
        line = rf"^  (Normal|Warning) +(\w+) .*? {EVENT_SOURCE}(?:, \S+)? +(\S.*)$"
        return re.findall(line, text, re.MULTILINE)

    def wait_for_event(self, *event: str) -> None:
        """Wait until `kubectl describe node` shows this event of the plugin."""
        wait_until(
            f"`kubectl describe` shows for node {self.node}: {' '.join(event)}",
            self.events,
            lambda events: event in events,
            seconds=STATUS_SECONDS,
        )

    def marks(self) -> list[str]:
        """The labels and annotations of ours that the node bears."""
        metadata = self.metadata()
        keys = [*metadata.get("labels", {}), *metadata.get("annotations", {})]
        return sorted(key for key in keys if key.startswith((DESIRED_LABEL, *NODE_LABELS)))

    def forget_marks(self) -> None:
        """Take our labels, annotations and events off the node."""
        labels = dict.fromkeys([DESIRED_LABEL, STATE_LABEL, *NODE_LABELS])
        self._patch_metadata({"labels": labels, "annotations": {DETAIL_ANNOTATION: None}})
        about = f"--field-selector=involvedObject.kind=Node,source={EVENT_SOURCE}"
        self.kubectl("delete", "events", "--namespace=default", about)

    def _patch_metadata(self, metadata: Json) -> None:
        patch = json.dumps({"metadata": metadata})
        self.kubectl("patch", "node", self.node, "--type=merge", "--patch", patch)

    def amount(self) -> Amount:
        """What the node's status says of the resource."""
        status = self.shown()["status"]
        return Amount(*(int(status[kind].get(RESOURCE, 0)) for kind in ("capacity", "allocatable")))

    def described_amount(self) -> Amount:
        """The same numbers as a person reads them in `kubectl describe node`."""
        text = self.kubectl("describe", "node", self.node)
        found = {
            kind: re.search(rf"^{kind}:\n(?:  .*\n)*?  {re.escape(RESOURCE)}: +(\d+)$", text, re.MULTILINE)
            for kind in ("Capacity", "Allocatable")
        }
        return Amount(*(int(match[1]) if match else 0 for match in found.values()))

    def wait_for_allocatable(self, count: int) -> Amount:
        """Wait until the node's status offers so many devices."""
        return wait_until(
            f"node {self.node} shows {count} {RESOURCE} in Allocatable",
            self.amount,
            lambda amount: amount.allocatable == count,
            seconds=STATUS_SECONDS,
        )

    def wait_for_amount(self, amount: Amount) -> None:
        """Wait until the node's status says so."""
        wait_until(
            f"node {self.node} shows {amount}",
            self.amount,
            lambda seen: seen == amount,
            seconds=STATUS_SECONDS,
        )

    def create_pod(
        self,
        name: str,
        *,
        devices: int,
        before: str | None = None,
        beside: str | None = None,
        tolerates: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> "Pod":
        """Ask for a pod; whether it comes to run is another question.

        before, beside: script of an init container, or of a second container, with one device
        tolerates: the key of a taint
        environment: of the main container
        """
        manifest = pod_manifest(f"{LABEL}-{name}", node=self.node, image=self.image, devices=devices)
        spec = manifest["spec"]
        if before is not None:
            spec["initContainers"] = [container("before", image=self.image, script=before, devices=1)]
        if beside is not None:
            spec["containers"].append(container("other", image=self.image, script=beside, devices=1))
        if environment is not None:
            spec["containers"][0]["env"] = [
                {"name": variable, "value": value} for variable, value in environment.items()
            ]
        if tolerates is not None:
            spec["tolerations"] = [{"key": tolerates, "operator": "Exists"}]
        self.kubectl("create", "--filename", "-", stdin=json.dumps(manifest))
        return Pod(self, manifest["metadata"]["name"])

    def run_pod(self, name: str, *, devices: int) -> "Pod":
        """Create a pod and wait until its container runs."""
        pod = self.create_pod(name, devices=devices)
        pod.wait_until_running()
        return pod

    def pods(self) -> list[str]:
        """The names of the suite's pods."""
        return self.kubectl("get", "pods", f"--selector={LABEL}", "--output=name").split()

    def delete_pods(self) -> None:
        """Remove every pod of the suite and wait until they are gone."""
        self.kubectl("delete", "pods", f"--selector={LABEL}", "--wait=false")
        wait_until("the suite's pods are gone", self.pods, lambda pods: not pods, seconds=GONE_SECONDS)

    def _only_node(self) -> str:
        nodes = self.kubectl("get", "nodes", "--output=name").split()
        if len(nodes) != 1:
            raise KubectlError(f"the cluster has {len(nodes)} nodes: name this one in XPU_E2E_NODE")
        return nodes[0].removeprefix("node/")


class Pod:
    """A pod of the suite, by name."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self.name = name

    def state(self) -> PodState:
        text = self._cluster.kubectl("get", "pod", self.name, "--ignore-not-found", "--output=json")
        return PodState.of(json.loads(text)) if text else PodState("Gone")

    def status(self) -> Json:
        """Its status, as the API server has it."""
        status: Json = json.loads(self._cluster.kubectl("get", "pod", self.name, "--output=json"))["status"]
        return status

    def wait_until_running(self, *, seconds: float = POD_SECONDS) -> PodState:
        """Wait for the container to run; a pod that was refused for good fails at once."""
        state = wait_until(
            f"pod {self.name} runs",
            self.state,
            lambda state: state.running or state.phase in {"Failed", "Gone"},
            seconds=seconds,
        )
        assert state.running, f"pod {self.name} will never run: {state}"
        return state

    def wait_until_unschedulable(self) -> PodState:
        """Wait for the scheduler's verdict that the pod fits nowhere."""
        return wait_until(
            f"pod {self.name} is found unschedulable",
            self.state,
            lambda state: state.phase == "Pending" and state.reason == "Unschedulable",
            seconds=POD_SECONDS,
        )

    def wait_until_before_runs(self) -> None:
        """Wait for the init container to run; the pod has all its devices then."""
        wait_until(
            f"the init container of pod {self.name} runs",
            lambda: self.status().get("initContainerStatuses", ()),
            lambda own: own and "running" in own[0]["state"],
            seconds=POD_SECONDS,
        )

    def execute(self, script: str, *, container: str = "main") -> str:
        """What a shell script prints inside a container."""
        inside = f"--container={container}"
        return self._cluster.kubectl("exec", "--stdin", inside, self.name, "--", "sh", stdin=script)

    def end_container(self) -> None:
        """Let the container's main process exit; the kubelet starts the container again."""
        with contextlib.suppress(KubectlError):  # the shell that says it may end with its container
            self.execute("kill -TERM 1")

    def restart_container(self) -> None:
        """Let the container exit and wait until the kubelet has started it again."""
        before = self.state().container
        self.end_container()
        wait_until(
            f"the container of pod {self.name} runs again",
            self.state,
            lambda state: state.running and state.container != before,
            seconds=RESTART_SECONDS,
        )

    def device_health(self) -> dict[str, str]:
        """What the kubelet says in the pod's status of each device."""
        pod = json.loads(self._cluster.kubectl("get", "pod", self.name, "--output=json"))
        return {
            device["resourceID"]: device["health"]
            for container in pod["status"].get("containerStatuses", [])
            for own in container.get("allocatedResourcesStatus") or []
            for device in own["resources"]
        }

    def describe(self) -> str:
        return self._cluster.kubectl("describe", "pod", self.name)

    def events(self) -> str:
        """What `kubectl describe pod` says of events."""
        return self.describe().partition("\nEvents:\n")[2]

    def delete(self) -> None:
        """Remove the pod and wait until it is gone."""
        self._cluster.kubectl("delete", "pod", self.name, f"--timeout={KUBECTL_SECONDS - 5}s")


def pod_manifest(name: str, *, node: str, image: str, devices: int) -> Json:
    """A pod that waits for ever with so many devices on that node, sent there by the scheduler."""
    this_node = {"key": "metadata.name", "operator": "In", "values": [node]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {LABEL: ""}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "restartPolicy": "Always",
            "dnsPolicy": "Default",
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [{"matchFields": [this_node]}]
                    }
                }
            },
            "containers": [container("main", image=image, script=WAIT_FOR_EVER, devices=devices)],
        },
    }


def container(name: str, *, image: str, script: str, devices: int) -> Json:
    """A container of a pod, with so many devices."""
    limits: Mapping[str, str] = {RESOURCE: str(devices)} if devices else {}
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        "resources": {"limits": limits},
    }
