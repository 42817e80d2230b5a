# SPDX-License-Identifier: Apache-2.0
"""A node for each test: four cards, the plugin, and none of it left afterwards."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .access import Access
from .cluster import RESOURCE, Cluster, KubectlError, Pod
from .hooks import Hooks, leave_out, require_pods_api
from .installation import (
    POD_RESOURCES,
    PODS_API,
    XRE,
    Installation,
    at_its_place,
    occupied,
    remove_state,
    vendor_library,
)
from .machine import CARDS, Machine, present, real_nodes, remove_nodes
from .plugin import FORMER_SOCKET, Plugin, Start, closing, leftovers, serve


SETTLE_SECONDS = 2


def pytest_report_header() -> str:
    """What the suite meets: the node's kubelet and container runtime, and the API server."""
    hooks = Hooks.read(os.environ)
    if reason := hooks.missing():
        return f"no node: {reason}"
    try:
        return cluster_of(hooks).versions()
    except (KubectlError, subprocess.TimeoutExpired) as error:
        return f"no cluster: {error}"


def cluster_of(hooks: Hooks) -> Cluster:
    return Cluster(kubectl=hooks.kubectl, node=hooks.node, namespace=hooks.namespace, image=hooks.image)


@pytest.fixture(scope="session")
def hooks() -> Hooks:
    """What the environment says of this node; skips where the suite cannot run."""
    hooks = Hooks.read(os.environ)
    if reason := hooks.missing():
        leave_out(hooks, reason)
    if nodes := real_nodes():
        leave_out(hooks, f"this node has XPUs of its own, which are not to be touched: {', '.join(nodes)}")
    return hooks


@pytest.fixture(scope="session")
def cluster(hooks: Hooks) -> Iterator[Cluster]:
    """The node without pods or devices of ours, before the first test and after the last."""
    cluster = cluster_of(hooks)
    cluster.delete_pods()
    remove_nodes()
    # pytest has no teardown for SIGTERM, which is how CI systems end a job; for an interrupt it has.
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield cluster
    finally:
        remove_nodes()
        signal.signal(signal.SIGTERM, former)
    assert leftovers(hooks, cluster) == []


@pytest.fixture
def pods_api(hooks: Hooks) -> None:
    """Skips on kubelets that do not report the ends of containers."""
    require_pods_api(hooks)


@pytest.fixture
def machine(hooks: Hooks, cluster: Cluster, tmp_path: Path) -> Iterator[Machine]:
    """Four healthy cards."""
    with present(Machine(hooks.plugin, tmp_path)) as machine:
        yield machine


@pytest.fixture
def daemon(hooks: Hooks, cluster: Cluster, machine: Machine, tmp_path: Path) -> Iterator[Plugin]:
    """The plugin, not started yet."""
    command = (
        *hooks.plugin,
        *machine.options,
        f"--device-plugin-dir={hooks.device_plugin_directory}",
        f"--pod-resources-socket={hooks.pod_resources_socket}",
        f"--pods-api-socket={hooks.pods_api_socket}",
        f"--state-dir={tmp_path / 'state'}",
    )
    daemon = Plugin(command, directory=hooks.device_plugin_directory, log=tmp_path / "plugin.log")
    with closing(daemon, cluster):
        yield daemon


@pytest.fixture
def plugin(cluster: Cluster, daemon: Plugin) -> Plugin:
    """The plugin, serving: the node shows all four devices."""
    serve(daemon, cluster)
    return daemon


@pytest.fixture
def rival(hooks: Hooks, cluster: Cluster, machine: Machine, tmp_path: Path) -> Iterator[Plugin]:
    """The former plugin, not started yet: it offers the same four devices under ids of its own."""
    directory = hooks.device_plugin_directory
    script = Path(__file__).with_name("former.py")
    command = (sys.executable, "-P", str(script), str(directory / FORMER_SOCKET), RESOURCE)
    rival = Plugin(command, directory=directory, log=tmp_path / "former.log", sockets=FORMER_SOCKET)
    with closing(rival, cluster):
        yield rival


@pytest.fixture
def former(rival: Plugin, cluster: Cluster) -> Plugin:
    """The same, serving."""
    serve(rival, cluster)
    return rival


@pytest.fixture
def no_marks(cluster: Cluster) -> Iterator[None]:
    """Nothing of the plugin's on the node, before the test and after it."""
    cluster.forget_marks()
    yield
    cluster.forget_marks()
    assert cluster.marks() == []


@pytest.fixture
def access(hooks: Hooks, cluster: Cluster) -> Iterator[Access]:
    """The service account with its rights."""
    access = Access(cluster)
    if access.foreign():
        leave_out(hooks, "this cluster has the plugin's service account, which is not to be touched")
    access.remove()  # what a crashed run has left
    try:
        access.create()
        yield access
    finally:
        access.remove()


@pytest.fixture
def own_pod(daemon: Plugin, cluster: Cluster) -> Pod:
    """A pod without devices that the plugin takes for the one it runs in."""
    return cluster.run_pod("own", devices=0)


@pytest.fixture
def start_by_argument(daemon: Plugin, cluster: Cluster, own_pod: Pod) -> Start:
    """Without a way to the API server."""

    def start(argument: int | str, *options: str) -> None:
        daemon.start(
            f"--sriov-num-vfs={argument}",
            f"--pod-list-delay={SETTLE_SECONDS}",
            f"--pod-name={own_pod.name}",
            f"--pod-namespace={cluster.namespace}",
            *options,
        )

    return start


@pytest.fixture
def start(access: Access, start_by_argument: Start, cluster: Cluster, tmp_path: Path) -> Start:
    """With the service account's way to the API server."""
    kubeconfig = tmp_path / "kubeconfig"
    access.write_kubeconfig(kubeconfig)

    def start(argument: int | str, *options: str) -> None:
        start_by_argument(argument, f"--kubeconfig={kubeconfig}", f"--node-name={cluster.node}", *options)

    return start


@pytest.fixture
def installation(hooks: Hooks, cluster: Cluster, machine: Machine) -> Iterator[Installation]:
    """Installed: the node shows all four cards."""
    if not hooks.plugin_image:
        leave_out(hooks, "XPU_E2E_PLUGIN_IMAGE is not set: the name of the plugin's image on the node")
    if occupied():
        leave_out(hooks, f"{XRE} is there already, and is not to be touched")
    installation = Installation(cluster, hooks.plugin_image)
    cluster.wait_for_allocatable(0)
    with (
        vendor_library(machine),
        at_its_place(hooks.pod_resources_socket, POD_RESOURCES),
        at_its_place(hooks.pods_api_socket, PODS_API),
    ):
        try:
            installation.create()
            cluster.wait_for_allocatable(CARDS)
            yield installation
            cluster.delete_pods()
        finally:
            print(installation.log())
            installation.delete()
            cluster.forget_marks()
            remove_state()
