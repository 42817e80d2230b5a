# SPDX-License-Identifier: Apache-2.0
"""A node for each test: four cards, the plugin, and none of it left afterwards."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from .access import Access
from .cluster import RESOURCE, Cluster, Pod
from .hooks import Hooks
from .machine import CARDS, Machine, device_nodes, real_nodes, remove_nodes
from .plugin import FORMER_SOCKET, SOCKETS, Plugin, kubelet_life
from .waiting import wait_until


Start = Callable[..., None]
"""Starts the plugin: with an argument for --sriov-num-vfs, and further options."""

SETTLE_SECONDS = 2
KUBELET_SECONDS = 60
API_SERVER_SECONDS = 60


@pytest.fixture(scope="session")
def hooks() -> Hooks:
    """What the environment says of this node; skips where the suite cannot run."""
    hooks = Hooks.read(os.environ)
    if reason := hooks.missing():
        leave_out(hooks, reason)
    if nodes := real_nodes():
        leave_out(hooks, f"this node has XPUs of its own, which are not to be touched: {', '.join(nodes)}")
    return hooks


def leave_out(hooks: Hooks, reason: str) -> NoReturn:
    """Skip, or fail where nothing is to be left out."""
    if hooks.required:
        pytest.fail(f"XPU_E2E_REQUIRED is set, and {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(hooks: Hooks) -> Iterator[Cluster]:
    """The node without pods or devices of ours, before the first test and after the last."""
    cluster = Cluster(kubectl=hooks.kubectl, node=hooks.node, namespace=hooks.namespace, image=hooks.image)
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
def machine(hooks: Hooks, cluster: Cluster, tmp_path: Path) -> Iterator[Machine]:
    """Four healthy cards."""
    machine = Machine(hooks.plugin, tmp_path)
    try:
        machine.create()
        assert len(machine.ids()) == CARDS
        yield machine
    finally:
        machine.close()


@pytest.fixture
def daemon(hooks: Hooks, cluster: Cluster, machine: Machine, tmp_path: Path) -> Iterator[Plugin]:
    """The plugin, not started yet."""
    command = (
        *hooks.plugin,
        *machine.options,
        f"--device-plugin-dir={hooks.device_plugin_directory}",
        f"--pod-resources-socket={hooks.pod_resources_socket}",
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
            f"--grant-settle={SETTLE_SECONDS}",
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


def require_restart(hooks: Hooks) -> None:
    if not hooks.restart_kubelet:
        leave_out(hooks, "XPU_E2E_RESTART_KUBELET is not set: this kubelet is not to be restarted")


def restart_kubelet(hooks: Hooks) -> None:
    """Restart it, and return when the new one listens for plugins."""
    before = kubelet_life(hooks.device_plugin_directory)
    subprocess.run(hooks.restart_kubelet, check=True, stdin=subprocess.DEVNULL, timeout=KUBELET_SECONDS)
    wait_until(
        "a new kubelet listens for plugins",
        lambda: kubelet_life(hooks.device_plugin_directory),
        lambda life: life not in {before, None},
        seconds=KUBELET_SECONDS,
    )


def require_stop(hooks: Hooks) -> None:
    if not (hooks.stop_api_server and hooks.start_api_server):
        leave_out(
            hooks,
            "XPU_E2E_STOP_API_SERVER and XPU_E2E_START_API_SERVER are not both set: this API server is not "
            "to be stopped",
        )


@contextmanager
def without_api_server(hooks: Hooks, cluster: Cluster) -> Iterator[None]:
    """Stop it, and have it back and ready in the end, whatever happens meanwhile."""
    try:
        switch_api_server(hooks.stop_api_server, cluster, ready=False)
        yield
    finally:
        switch_api_server(hooks.start_api_server, cluster, ready=True)


def switch_api_server(command: tuple[str, ...], cluster: Cluster, *, ready: bool) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=API_SERVER_SECONDS)
    wait_until(
        f"the API server is {'ready' if ready else 'away'}",
        cluster.answers,
        lambda answers: answers == ready,
        seconds=API_SERVER_SECONDS,
    )


def serve(plugin: Plugin, cluster: Cluster, *options: str) -> None:
    """Start a plugin and wait until the node shows all four devices."""
    # Otherwise the number of an earlier plugin would be taken for this one's.
    cluster.wait_for_allocatable(0)
    plugin.start(*options)
    cluster.wait_for_allocatable(CARDS)


@contextmanager
def closing(plugin: Plugin, cluster: Cluster) -> Iterator[None]:
    """Let nothing of a plugin stay behind, no pod either."""
    try:
        yield
        cluster.delete_pods()
    finally:
        try:
            plugin.close()
        finally:
            print(plugin.log)  # pytest shows it with a failure
    assert plugin.sockets() == []


def leftovers(hooks: Hooks, cluster: Cluster) -> list[str]:
    """What of the suite's is still there, apart from processes."""
    directory = hooks.device_plugin_directory
    sockets = [str(path) for name in (SOCKETS, FORMER_SOCKET) for path in directory.glob(name)]
    return [*cluster.pods(), *cluster.marks(), *device_nodes(), *sockets]
