# SPDX-License-Identifier: Apache-2.0
"""What is shipped, installed as the README says: image, manifest, RBAC files and the pod template."""

import json
import re
from pathlib import Path

import pytest

from .cluster import LABEL, RESOURCE, Amount, Cluster, Pod
from .hooks import Hooks
from .installation import (
    Installation,
)
from .machine import CARDS, Machine, granted
from .plugin import SOCKETS
from .waiting import wait_until


pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

README = Path(__file__).parents[2] / "README.md"
SECONDS = 60
MIB = 1 << 20
PYTHON = "/opt/xpu-device-plugin/bin/python"


def pod_template() -> str:
    """The README's pod."""
    blocks = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    (template,) = (block for block in blocks if "kind: Pod\n" in block)
    return str(template)


def run_template(cluster: Cluster) -> Pod:
    """The README's pod, unchanged but for its image and a label to clear it away by."""
    text = re.sub(r"image: \S+", f"image: {cluster.image}", pod_template())
    text = text.replace("metadata:\n", f"metadata:\n  labels:\n    {LABEL}: ''\n", 1)
    cluster.kubectl("create", "--filename=-", stdin=text)
    (name,) = re.findall(r"^  name: (\S+)$", text, re.MULTILINE)
    pod = Pod(cluster, name)
    pod.wait_until_running()
    return pod


@pytest.mark.compatibility
def test_it_works_as_installed(
    hooks: Hooks, cluster: Cluster, machine: Machine, installation: Installation
) -> None:
    assert cluster.amount() == cluster.described_amount() == Amount(CARDS, CARDS)
    pod = run_template(cluster)
    ids = granted(machine, pod, 2)
    before = pod.state().identity

    installation.restart()
    cluster.wait_for_allocatable(CARDS)
    assert pod.state().identity == before
    other = cluster.run_pod("other", devices=CARDS - 2)
    assert granted(machine, other, CARDS - 2).isdisjoint(ids)

    installation.delete()
    assert list(hooks.device_plugin_directory.glob(SOCKETS)) == []
    assert pod.state().identity == before
    cluster.kubectl("delete", "pod", pod.name, "--grace-period=1")  # its `sleep` does not listen


def test_its_commands_work_within_its_pod(
    cluster: Cluster, machine: Machine, installation: Installation
) -> None:
    listed = json.loads(installation.execute("xpu-device-plugin", "list", "--json"))["devices"]
    assert {device["id"] for device in listed} == machine.ids().keys()
    assert {device["resource"] for device in listed} == {RESOURCE}
    planned = installation.execute("xpu-device-plugin", "plan", "--sriov-num-vfs=0")
    assert planned.count(" keep ") == CARDS
    # By the running plugin; that the nodes' major is no driver's is seen, too.
    found = json.loads(installation.execute("xpu-device-plugin", "doctor", "--json", accept=(0, 1, 3)))
    verdicts = {check["name"]: check["verdict"] for check in found["checks"]}
    content = ("library", "devices-answer", "kubelet-socket", "registration", "pod-resources", "pods-api")
    assert {verdicts[name] for name in content} == {"ok"}, found


def test_it_may_do_no_more_than_it_has_to(cluster: Cluster, installation: Installation) -> None:
    script = (
        "import os, errno\n"
        "apis = ('/var/lib/kubelet/pod-resources/x', '/var/lib/kubelet/pods-api/x')\n"
        "for path in ('/x', '/opt/x', '/sys/x', '/host/usr/local/x', *apis):\n"
        "    try: os.open(path, os.O_CREAT | os.O_WRONLY)\n"
        "    except OSError as error: print(path, errno.errorcode[error.errno])\n"
        "    else: print(path, 'written')\n"
        "print(len([name for name in os.listdir('/proc') if name.isdigit()]))\n"
    )
    text = installation.execute(PYTHON, "-c", script)
    assert "written" not in text
    assert int(text.split()[-1]) < 10, "it sees the host's processes"


def test_its_memory_stays_below_its_limit(cluster: Cluster, installation: Installation) -> None:
    for number in range(3):
        cluster.run_pod(f"load-{number}", devices=1).delete()
    script = (
        "import glob\n"
        "print(sum(int(line.split()[1]) * 1024 for pid in glob.glob('/proc/[0-9]*/smaps_rollup') "
        "for line in open(pid) if line.startswith('Pss:')))\n"
    )
    used = int(installation.execute(PYTHON, "-c", script))
    (pod,) = installation.pods()
    path = "{.spec.containers[0].resources.limits.memory}"
    limit = cluster.kubectl("get", pod, "--namespace=kube-system", f"--output=jsonpath={path}")
    assert limit.endswith("Mi"), limit
    assert used < int(limit.removesuffix("Mi")) * MIB * 3 // 4


@pytest.mark.compatibility
def test_the_rbac_files_turn_label_mode_on(
    cluster: Cluster, machine: Machine, installation: Installation
) -> None:
    wait_until(
        "the argument counts without them",
        installation.log,
        lambda log: "the argument --sriov-num-vfs counts, as the node's label may not be read" in log,
        seconds=SECONDS,
    )
    installation.allow()
    cluster.set_vfs("0")
    cluster.wait_for_report("success", dict.fromkeys(machine.vfs(), (0, 0, "success")))
    cluster.set_vfs("9")
    report = wait_until(
        "more than a card can have is refused",
        cluster.report,
        lambda own: own.state == "failed",
        seconds=SECONDS,
    )
    assert all("accepts 0 to 3 VFs, not 9" in card["reason"] for card in report.cards.values())
    assert set(machine.vfs().values()) == {0}
