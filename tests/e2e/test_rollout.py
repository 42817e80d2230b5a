# SPDX-License-Identifier: Apache-2.0
"""An update with surge: the new pod takes the node over, and the kubelet has all devices at any time."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .cluster import RESOURCE, Cluster
from .hooks import Hooks
from .installation import DAEMON_SET, IN_ITS_NAMESPACE, Installation
from .machine import CARDS, Machine, granted
from .plugin import CHECKPOINT_NAME


pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

LOOK_SECONDS = 0.005
SURGE = {"spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}}
OLDEST = (1, 25)
"""The first Kubernetes that has `maxSurge` of DaemonSets for good."""


class Watch:
    """The smallest number of healthy devices that the kubelet has noted, at a look each 5 ms."""

    def __init__(self, hooks: Hooks) -> None:
        self._file = hooks.device_plugin_directory / CHECKPOINT_NAME
        self.least = CARDS
        self.looks = 0
        self._end = threading.Event()

    def _look(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            registered = json.loads(self._file.read_text())["Data"]["RegisteredDevices"]
            self.least = min(self.least, len(registered.get(RESOURCE) or []))
            self.looks += 1

    @contextmanager
    def looking(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()


def test_an_update_with_surge_leaves_no_gap(
    hooks: Hooks,
    cluster: Cluster,
    machine: Machine,
    installation: Installation,
) -> None:
    if cluster.version() < OLDEST:
        pytest.skip("Kubernetes before 1.25 has no maxSurge of DaemonSets for good")
    cluster.kubectl("patch", DAEMON_SET, IN_ITS_NAMESPACE, f"--patch={json.dumps(SURGE)}")
    held = cluster.run_pod("held", devices=1)
    ids = granted(machine, held, 1)
    watch = Watch(hooks)
    with watch.looking():
        for turn in range(3):
            (former,) = installation.pods()
            installation.restart()
            assert "this instance has taken the node over" in installation.log()
            assert former not in installation.pods()
            other = cluster.run_pod(f"other-{turn}", devices=CARDS - 1)
            assert granted(machine, other, CARDS - 1).isdisjoint(ids)
            other.delete()
    assert watch.least == CARDS, f"{watch.least} of {CARDS} after {watch.looks} looks"
    assert cluster.amount().allocatable == CARDS
