# SPDX-License-Identifier: Apache-2.0
"""Starts of a node with bare pods that wait for devices: how many of them fail for good.

    python -m tests.e2e.starts registrations 30
    python -m tests.e2e.starts registrations 30 --without
    python -m tests.e2e.starts reboots 10 --end-containers 'COMMAND'

registrations: the node object is deleted, the kubelet's checkpoint removed, and the kubelet registers anew,
with the startup taint. Pods wait for devices all the time. The plugin starts a while after the kubelet,
splits the cards and removes the taint. --without: the taint is removed as soon as the node is there.

reboots: pods have devices; then plugin, kubelet and containers end, and the kubelet starts before the plugin.

It needs the environment of the end-to-end suite. The command of XPU_E2E_RESTART_KUBELET has to start a
kubelet with --register-with-taints=baidu.com/xpu-startup=:NoSchedule. It ends with status 1 if a pod fails at
a registration with the taint.
"""

import argparse
import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from .access import Access
from .cluster import Cluster, Pod
from .hooks import Hooks
from .machine import CARDS, Machine, remove_nodes
from .outages import restart_kubelet
from .plugin import CHECKPOINT_NAME, Plugin
from .waiting import wait_until


KEY = "baidu.com/xpu-startup"
NODE_SECONDS, PODS_SECONDS = 60, 120
VFS = 2
LONGEST_DELAY = 3.0  # of the plugin after the kubelet, in seconds


@contextlib.contextmanager
def plugin_of(
    hooks: Hooks, cluster: Cluster, machine: Machine, place: Path, *options: str
) -> Iterator[Plugin]:
    """The plugin, not started yet; its records stay in `place`."""
    command = (
        *hooks.plugin,
        *machine.options,
        f"--device-plugin-dir={hooks.device_plugin_directory}",
        f"--pod-resources-socket={hooks.pod_resources_socket}",
        f"--state-dir={place / 'state'}",
        f"--kubeconfig={place / 'kubeconfig'}",
        f"--node-name={cluster.node}",
        f"--pod-namespace={cluster.namespace}",
        "--pod-list-delay=2",
        *options,
    )
    plugin = Plugin(command, directory=hooks.device_plugin_directory, log=place / "plugin.log")
    try:
        yield plugin
    finally:
        plugin.close()


def settled(pods: list[Pod], former: Collection[str] = ()) -> Counter[str]:
    """The phases of the pods once none is on its way, with the reason of a failure.

    former: containers that have ended, also if the status of the pod still has them
    """

    def ends() -> list[str]:
        states = [pod.state() for pod in pods]
        return [
            "Running"
            if own.running and own.container not in former
            else f"{own.phase if own.phase != 'Running' else 'Waiting'} {own.reason}".strip()
            for own in states
        ]

    return Counter(
        wait_until(
            "all pods run or have failed",
            ends,
            lambda seen: all(own == "Running" or own.startswith(("Failed", "Gone")) for own in seen),
            seconds=PODS_SECONDS,
        )
    )


def register(hooks: Hooks, cluster: Cluster, access: Access, place: Path, *, gated: bool) -> Counter[str]:
    """One first registration of the node."""
    cluster.delete_pods()
    cluster.kubectl("delete", "node", cluster.node)
    (hooks.device_plugin_directory / CHECKPOINT_NAME).unlink(missing_ok=True)
    machine = Machine(hooks.plugin, place)
    options = (f"--sriov-num-vfs={VFS}", f"--startup-taint={KEY}")
    try:
        machine.create()
        own = cluster.create_pod("own", devices=0, tolerates=KEY)
        pods = [cluster.create_pod(f"waits-{number}", devices=1) for number in range(CARDS * VFS)]
        access.write_kubeconfig(place / "kubeconfig")
        restart_kubelet(hooks)
        wait_until("the node is there", lambda: registered(cluster), bool, seconds=NODE_SECONDS)
        assert KEY in cluster.taints(), f"the kubelet does not register with the taint {KEY}"
        if not gated:
            cluster.kubectl("taint", "node", cluster.node, f"{KEY}-")
        time.sleep(random.uniform(0.0, LONGEST_DELAY))
        with plugin_of(hooks, cluster, machine, place, *options, f"--pod-name={own.name}") as plugin:
            plugin.start()
            return settled(pods)
    finally:
        cluster.delete_pods()
        machine.close()


def registered(cluster: Cluster) -> bool:
    return bool(cluster.kubectl("get", "node", cluster.node, "--ignore-not-found", "--output=name"))


def reboot(hooks: Hooks, cluster: Cluster, access: Access, place: Path, end_containers: str) -> Counter[str]:
    """One reboot of a node on which each device has a pod."""
    cluster.delete_pods()
    machine = Machine(hooks.plugin, place)
    options = ("--sriov-num-vfs=keep", f"--startup-taint={KEY}")
    try:
        machine.create()
        access.write_kubeconfig(place / "kubeconfig")
        with plugin_of(hooks, cluster, machine, place, *options) as plugin:
            plugin.start()
            cluster.wait_for_allocatable(CARDS)
            pods = [cluster.run_pod(f"bound-{number}", devices=1) for number in range(CARDS)]
            former = {pod.state().container for pod in pods}
            cluster.kubectl("taint", "node", cluster.node, "--overwrite", f"{KEY}=:NoSchedule")
            plugin.kill()
            subprocess.run(shlex.split(end_containers), check=True, stdin=subprocess.DEVNULL, timeout=60)
            restart_kubelet(hooks)
            time.sleep(random.uniform(1.0, LONGEST_DELAY))
            plugin.start()
            return settled(pods, former)
    finally:
        cluster.delete_pods()
        machine.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.starts")
    parser.add_argument("what", choices=("registrations", "reboots"))
    parser.add_argument("number", type=int)
    parser.add_argument("--without", action="store_true", help="remove the taint before the cards are ready")
    parser.add_argument("--end-containers", default="", metavar="COMMAND")
    given = parser.parse_args()
    hooks = Hooks.read(os.environ)
    if (reason := hooks.missing()) or not hooks.restart_kubelet:
        print(reason or "XPU_E2E_RESTART_KUBELET is not set", file=sys.stderr)
        return 2
    cluster = Cluster(kubectl=hooks.kubectl, node=hooks.node, namespace=hooks.namespace, image=hooks.image)
    access = Access(cluster)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    remove_nodes()
    access.remove()
    access.create()
    total: Counter[str] = Counter()
    try:
        for turn in range(given.number):
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as name:
                place = Path(name)
                ends = (
                    register(hooks, cluster, access, place, gated=not given.without)
                    if given.what == "registrations"
                    else reboot(hooks, cluster, access, place, given.end_containers)
                )
            total += ends
            print(f"{turn + 1}: {dict(ends)} in {time.monotonic() - began:.0f} s", flush=True)
    finally:
        access.remove()
    print(f"{given.what}: {given.number}, pods: {total.total()}, of which {dict(total)}")
    failed = total.total() - total["Running"]
    return int(given.what == "registrations" and not given.without and failed > 0)


if __name__ == "__main__":
    sys.exit(main())
