# SPDX-License-Identifier: Apache-2.0
"""The metrics of the daemon as a process of its own, over the simulator and against a kubelet's sockets."""

import asyncio
import shutil
import signal
import subprocess

import pytest

from tests.support.daemon import IDS, Node, shows
from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE
from tests.support.prometheus import SELDOM, Page, Scraped, fetch
from tests.support.waiting import SECONDS
from xpu_plugin.model.metric_families import FAMILIES, OF_THE_PROCESS
from xpu_plugin.simulation.kubelet import Kubelet
from xpu_plugin.xpuml import State


MIB = 1 << 20
OK = 200

pytestmark = pytest.mark.usefixtures("leaves_no_process")


# --- the names ------------------------------------------------------------------------------------


async def test_the_page_is_the_documented_one(node: Node, kubelet: Kubelet) -> None:
    scraped = Scraped(node, "--node-name=here")
    await shows(kubelet, IDS)
    page = await scraped.page()
    assert page.one("xpu_plugin_build_info", node="here") == 1
    _, kind, _ = await asyncio.to_thread(fetch, scraped.port)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    documented = {family.name: family for family in (*FAMILIES, *OF_THE_PROCESS)}
    assert page.families.keys() == documented.keys()
    for name, family in page.families.items():
        assert (family.type, family.documentation) == (documented[name].type, documented[name].meaning)
        assert bool(family.samples) is (name not in SELDOM), name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(documented[name].labels), sample


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
async def test_promtool_has_nothing_to_say_about_it(node: Node, kubelet: Kubelet) -> None:
    scraped = Scraped(node)
    await shows(kubelet, IDS)
    await kubelet.allocate(RESOURCE, 1)
    page = await scraped.page()
    checked = await asyncio.to_thread(
        subprocess.run,
        ["promtool", "check", "metrics"],
        input=page.text.encode(),
        capture_output=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_names_follow_the_conventions() -> None:
    for family in FAMILIES:
        assert family.name.startswith("xpu_")
        assert family.name.endswith("_total") is (family.type == "counter")
        assert len(set(family.labels)) == len(family.labels)


# --- the values -----------------------------------------------------------------------------------


async def test_a_node_that_the_library_does_not_list_has_a_series(node: Node, kubelet: Kubelet) -> None:
    node.machine.set_card(2, {"unreadable": "EIO"})
    scraped = Scraped(node)
    await shows(kubelet, [IDS[0], IDS[1], IDS[3]])
    assert (await scraped.page()).one("xpu_plugin_unlisted_nodes", path="/dev/xpu2") == 1


async def test_values_are_those_of_the_machine(node: Node, kubelet: Kubelet) -> None:
    node.machine.set_card(0, {"utilization": "42", "temperature": "71", "power": "95", "clock": "900"})
    node.machine.add_process(4711, card=0, memory=512)
    node.machine.set_card(1, {"power": "-1"})
    scraped = Scraped(node)
    await shows(kubelet, IDS)
    page = await scraped.page()
    own = {"id": IDS[0], "card": IDS[0], "model": "R200", "path": "/dev/xpu0"}
    assert page.one("xpu_device_memory_used_bytes", **own) == 512 * MIB
    assert page.one("xpu_device_memory_total_bytes", **own) == 16384 * MIB
    assert page.one("xpu_device_utilization_ratio", **own) == pytest.approx(0.42)
    assert page.one("xpu_device_temperature_celsius", **own) == 71
    assert page.one("xpu_device_power_reported", **own) == 95
    assert page.by_id("xpu_device_impossible_readings_total", reading="power") == {IDS[1]: 1}
    assert page.by_id("xpu_device_power_reported").keys() == {IDS[0], *IDS[2:]}
    assert page.one("xpu_device_clock_hertz", **own) == 900e6
    assert page.by_id("xpu_device_processes") == dict(zip(IDS, (1, 0, 0, 0), strict=True))
    assert page.one("xpu_plugin_library_info", version=library_version(page)) == 1
    assert page.one("xpu_plugin_library_up") == 1
    assert page.one("xpu_plugin_library_outdated") == 0
    assert page.all("xpu_devices") == {("Healthy", "whole", "R200", ""): 4}


def library_version(page: Page) -> str:
    (sample,) = page.families["xpu_plugin_library_info"].samples
    assert sample.labels["version"].startswith("4.0.12.1 ")
    return sample.labels["version"]


async def test_health_reasons_and_transitions(node: Node, kubelet: Kubelet) -> None:
    scraped = Scraped(node)
    await shows(kubelet, IDS)
    node.machine.set_card(1, {"state": str(State.ERROR.value)})
    await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 3, timeout=SECONDS)
    page = await scraped.page()
    assert page.by_id("xpu_device_healthy") == dict(zip(IDS, (1, 0, 1, 1), strict=True))
    assert page.by_id("xpu_device_unhealthy", reason="state-error") == {IDS[1]: 1}
    assert page.one("xpu_device_transitions_total", id=IDS[1], health="Unhealthy") == 1
    assert page.all("xpu_devices") == {
        ("Healthy", "whole", "R200", ""): 3,
        ("Unhealthy", "whole", "R200", "state-error"): 1,
    }
    node.machine.set_card(1, {"state": ""})
    await shows(kubelet, IDS)
    page = await scraped.page()
    assert page.one("xpu_device_transitions_total", id=IDS[1], health="Healthy") == 1
    assert page.by_id("xpu_device_unhealthy") == {}


async def test_a_device_that_leaves_takes_its_series_along(node: Node, kubelet: Kubelet) -> None:
    scraped = Scraped(node)
    await shows(kubelet, IDS)
    assert IDS[3] in (await scraped.page()).text
    node.machine.remove_card(3)
    scraped.daemon.process.send_signal(signal.SIGHUP)
    await shows(kubelet, IDS[:3])
    page = await scraped.until(
        lambda page: len(page.by_id("xpu_device_processes")) == 3, "readings without the device"
    )
    assert IDS[3] not in page.text
    assert "/dev/xpu3" not in page.text


async def test_grants_holders_requests_and_refusals(node: Node, kubelet: Kubelet) -> None:
    scraped = Scraped(node)
    await shows(kubelet, IDS)
    grant = await kubelet.allocate(RESOURCE, 2, pod="train", namespace="research")
    who = {"pod": "train", "namespace": "research", "container": "main"}
    held = dict.fromkeys(grant.ids, 1.0)
    page = await scraped.until(lambda page: page.by_id("xpu_device_holder", **who) == held, "its holder")
    assert {id for id, value in page.by_id("xpu_device_granted").items() if value} == set(grant.ids)
    assert page.one("xpu_plugin_granted_devices_total", resource=RESOURCE) == 2
    assert page.one("xpu_plugin_request_duration_seconds_count", method="Allocate") == 1
    assert page.one("xpu_plugin_request_duration_seconds_bucket", method="Allocate", le="+Inf") == 1
    assert page.one("xpu_plugin_pod_resources_up") == 1
    assert page.one("xpu_plugin_registrations_total", resource=RESOURCE) == 1
    assert page.one("xpu_plugin_streams", resource=RESOURCE) == 1

    kubelet.free(grant)
    node.machine.remove_card(0)
    with pytest.raises(Exception, match=r"node /dev/xpu0 is gone|unhealthy"):
        await kubelet.allocate(RESOURCE, 4)
    page = await scraped.until(
        lambda page: sum(page.all("xpu_plugin_request_errors_total", method="Allocate").values()), "a refusal"
    )
    await kubelet.restart()
    page = await scraped.until(
        lambda page: page.one("xpu_plugin_registrations_total", resource=RESOURCE) == 2, "a registration"
    )


async def test_a_holder_is_its_cards_by_whatever_id_it_was_granted(node: Node, kubelet: Kubelet) -> None:
    scraped = Scraped(node)
    await shows(kubelet, IDS)
    kubelet.hold(["1"], resource="baidu.com/R200", pod="former")  # a name that nothing is offered under
    page = await scraped.until(lambda page: page.by_id("xpu_device_holder", pod="former"), "its holder")
    assert page.by_id("xpu_device_holder", pod="former") == {IDS[1]: 1.0}


async def test_the_state_of_virtual_functions(node: Node, kubelet: Kubelet) -> None:
    node.machine.set_card(0, {"busy": "yes", "vfs": "2"})
    node.machine.add_process(4711, card=0, vf=0)
    own_pod(kubelet)
    scraped = Scraped(node, "--sriov-num-vfs=3", "--vf-policy=never")
    await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 5, timeout=SECONDS)
    page = await scraped.page()
    assert page.all("xpu_vf_desired") == dict.fromkeys([(id,) for id in IDS], 3)
    assert page.all("xpu_vf_actual") == dict(zip([(id,) for id in IDS], (2, 0, 0, 0), strict=True))
    assert page.all("xpu_vf_state", card=IDS[0]) == {
        ("success",): 0, ("pending",): 0, ("blocked",): 1, ("failed",): 0, ("unsupported",): 0,
    }  # fmt: skip
    assert page.all("xpu_device_info", kind="vf", card=IDS[0])
    assert page.by_id("xpu_device_memory_total_bytes")["0000:3b:01.0-of2"] == 8192 * MIB


# --- when something is wrong ----------------------------------------------------------------------


async def test_without_a_driver_the_page_says_so(node: Node, kubelet: Kubelet) -> None:
    node.machine.set({"driver": "gone"})
    scraped = Scraped(node)
    await scraped.daemon.says("no driver")
    page = await scraped.page()
    assert page.one("xpu_plugin_library_up") == 0
    assert page.all("xpu_devices") == {}
    assert page.one("xpu_plugin_sweep_age_seconds") > 0
    node.machine.set({"driver": "loaded"})
    await shows(kubelet, IDS)
    assert (await scraped.page()).one("xpu_plugin_library_up") == 1


async def test_without_a_kubelet_the_page_says_so(node: Node) -> None:
    scraped = Scraped(node)
    await scraped.daemon.says("device offered", times=4)
    page = await scraped.page()
    assert page.one("xpu_plugin_streams", resource=RESOURCE) == 0
    assert page.one("xpu_plugin_pod_resources_up") == 0
    assert page.all("xpu_device_holder") == {}
    assert page.one("xpu_devices", health="Healthy") == 4


async def test_a_library_that_crashes_and_hangs_is_counted(node: Node, kubelet: Kubelet) -> None:
    scraped = Scraped(node)
    await shows(kubelet, IDS)
    node.machine.add_fault("xpumlDeviceGetState", "crash", card=2, times=1)
    await scraped.until(
        lambda page: page.one("xpu_plugin_worker_restarts_total", cause="died") >= 1, "a crash"
    )
    node.machine.clear_faults()
    node.machine.add_fault("xpumlDeviceGetState", "hang", card=1, times=1)
    await scraped.until(
        lambda page: page.one("xpu_plugin_worker_restarts_total", cause="hung") >= 1, "a hang"
    )
    node.machine.clear_faults()
    await scraped.until(lambda page: page.one("xpu_plugin_sweep_duration_seconds_count") >= 1, "a sweep")


async def test_readings_that_hang_never_make_a_device_unhealthy(node: Node, kubelet: Kubelet) -> None:
    scraped = Scraped(node)
    await shows(kubelet, IDS)
    node.machine.add_fault("xpumlDeviceGetPowerUsage", "hang", card=1)
    await scraped.page()
    await scraped.daemon.says(
        f"cannot read the measurements of a device; it is asked again later id={IDS[1]} "
    )
    await scraped.until(lambda page: len(page.by_id("xpu_device_power_reported")) == 3, "the others")
    assert kubelet.lists(RESOURCE) == 1
