# SPDX-License-Identifier: Apache-2.0
"""Restarts of the kubelet, and times without an API server."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from .cluster import Cluster
from .hooks import Hooks
from .plugin import kubelet_life
from .waiting import wait_until


KUBELET_SECONDS = 60

API_SERVER_SECONDS = 60
SCHEDULER_SECONDS = 120
"""Clients of an API server that was away wait before they try again, a scheduler more than a minute."""


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


@contextmanager
def without_api_server(hooks: Hooks, cluster: Cluster) -> Iterator[None]:
    """Stop it, and have it back and ready in the end, also after an error, and then the scheduler."""
    try:
        switch_api_server(hooks.stop_api_server, cluster, ready=False)
        yield
    finally:
        switch_api_server(hooks.start_api_server, cluster, ready=True)
    pod = cluster.create_pod("scheduled", devices=0)
    pod.wait_until_running(seconds=SCHEDULER_SECONDS)
    pod.delete()


def switch_api_server(command: tuple[str, ...], cluster: Cluster, *, ready: bool) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=API_SERVER_SECONDS)
    wait_until(
        f"the API server is {'ready' if ready else 'away'}",
        cluster.answers,
        lambda answers: answers == ready,
        seconds=API_SERVER_SECONDS,
    )
