# SPDX-License-Identifier: Apache-2.0
"""Memories of grants, and the kubelet's side of them, where no kubelet has to be there."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from xpu_plugin.edges.kubelet.view import KubeletView
from xpu_plugin.edges.state.grants import GrantRecord
from xpu_plugin.edges.worker.client import Target
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.allocation import Kept
from xpu_plugin.model.ownership import Terms


def nowhere(directory: Path) -> Target:
    """A target without a library and without a device."""
    return Target(libraries=(), dev_root=directory, sysfs_root=directory, simulated=True, environment={})


def kubelet_at(directory: Path) -> KubeletView:
    """The reader of a kubelet that has its sockets and files in `directory`; nothing has to be there."""
    return KubeletView(device_plugin_dir=directory, pod_resources_socket=directory / "pod-resources.sock")


def grants_of(picture: Picture, state: Path, *, clock: Callable[[], float] = time.monotonic) -> Grants:
    """The memory of grants of a plugin on a node without a kubelet; its record is in `state`."""
    terms = Terms(own_pod="kube-system/plugin")
    return Grants(picture, kubelet_at(state), GrantRecord(state), terms, clock=clock)


class Memory(GrantRecord):
    """A record alone, in the place of `Grants`: no other instance has to know the grants."""

    async def passed_on(self) -> bool:
        return True

    async def kept(self, resource: str, ids: Sequence[str]) -> Kept:
        return Kept()
