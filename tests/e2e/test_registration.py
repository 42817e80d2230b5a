# SPDX-License-Identifier: Apache-2.0
"""What a kubelet knows plugins by: its socket is touched, and another plugin registers our resource name.

Kubelets differ here, so this is for each release that a cluster can be had of. After a failure of the first
test on Kubernetes 1.37 restart the kubelet, or every later test fails too.
"""

import pytest

from .cluster import RESOURCE, Amount, Cluster
from .hooks import Hooks
from .machine import CARDS, Machine, granted
from .plugin import Plugin
from .waiting import wait_until, watch_that


pytestmark = [pytest.mark.e2e, pytest.mark.compatibility, pytest.mark.timeout(240)]

NOTICE_SECONDS = 5  # a plugin that takes it for another kubelet has registered again by then
RETURN_SECONDS = 60  # two looks 10 s apart, the kubelet's own pace, and the time to settle
OLD_IDS = {str(number) for number in range(CARDS)}


def test_a_touched_kubelet_socket_is_no_new_kubelet(hooks: Hooks, cluster: Cluster, plugin: Plugin) -> None:
    """As by `chmod -R` or `restorecon`. Kubernetes 1.37 refuses a path that it knows, for ever."""
    registered, socket = (
        plugin.log.count("registered resource="),
        hooks.device_plugin_directory / "kubelet.sock",
    )
    streams = plugin.streams()
    socket.chmod(socket.stat().st_mode & 0o7777)
    watch_that(
        "the stream is the same one",
        plugin.streams,
        lambda present: present == streams,
        seconds=NOTICE_SECONDS,
    )
    assert plugin.log.count("registered resource=") == registered
    plugin.terminate()
    cluster.wait_for_amount(Amount(CARDS, 0))
    plugin.start()
    cluster.wait_for_allocatable(CARDS)


def test_a_rival_is_noticed_and_the_devices_come_back(
    cluster: Cluster, machine: Machine, plugin: Plugin, rival: Plugin
) -> None:
    """The former plugin is started by mistake, grants two devices, and ends."""
    ids = machine.ids()
    rival.start()
    wait_until(
        "the kubelet has the rival's devices",
        plugin.registered_ids,
        lambda registered: registered == OLD_IDS,
        seconds=RETURN_SECONDS,
    )
    old = cluster.run_pod("old", devices=2)
    held = machine.view_from(old).openable
    rival.terminate()
    plugin.wait_for_log(
        rf'another plugin has registered our resource: .* resource={RESOURCE} ids=\["0", "1", "2", "3"\]'
    )
    wait_until(
        "the plugin offers its devices again",
        lambda: plugin.log,
        lambda log: f"the kubelet has our devices again resource={RESOURCE}" in log,
        seconds=RETURN_SECONDS,
    )
    free = {id for id, node in ids.items() if node not in held}
    assert len(free) == CARDS - 2
    young = cluster.run_pod("young", devices=CARDS - 2)
    assert granted(machine, young, CARDS - 2) == free
