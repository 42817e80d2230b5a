# SPDX-License-Identifier: Apache-2.0
"""The plugin as an administrator installs it: the shipped manifest, the image, a vendor library on the host.

The simulator stands where XRE would install the library, with the machine's file beside it; so nothing of the
manifest but the image's name has to be changed.
"""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from xpu_plugin.simulation.library import shipped

from .access import DEPLOYMENT, RIGHTS
from .cluster import Cluster
from .machine import Machine
from .waiting import wait_until


XRE = Path("/usr/local/xpu")
STATE = Path("/var/lib/xpu-device-plugin")
POD_RESOURCES = Path("/var/lib/kubelet/pod-resources")
PODS_API = Path("/var/lib/kubelet/pods-api")
MANIFEST = DEPLOYMENT / "xpu-device-plugin.yml"
NAMESPACE = "kube-system"
IN_ITS_NAMESPACE = f"--namespace={NAMESPACE}"
DAEMON_SET = "daemonset/xpu-device-plugin-daemonset"
SELECTOR = "name=xpu-device-plugin-ds"
ROLLOUT_SECONDS = 90


class Installation:
    """What `kubectl apply` of deployment/xpu-device-plugin.yml makes, or of another manifest."""

    def __init__(self, cluster: Cluster, image: str, *, manifest: str = "") -> None:
        self._cluster = cluster
        text = manifest or MANIFEST.read_text()
        names = set(re.findall(r"image: (\S+)", text))
        assert len(names) == 1, names
        self._manifest = text.replace(names.pop(), image)

    def create(self) -> None:
        self._cluster.kubectl("create", IN_ITS_NAMESPACE, "--filename=-", stdin=self._manifest)
        self.wait_for_rollout()

    def delete(self) -> None:
        """Take everything away, and wait until the pod has gone."""
        self._cluster.kubectl(
            "delete", IN_ITS_NAMESPACE, "--ignore-not-found", "--filename=-", stdin=self._manifest
        )
        self._cluster.kubectl("delete", "--ignore-not-found", *RIGHTS)
        wait_until("the plugin's pod is gone", self.pods, lambda pods: not pods, seconds=ROLLOUT_SECONDS)

    def wait_for_rollout(self) -> None:
        """Until the new pod is ready, by its probe, and the old one has gone."""
        wait_until(
            "the plugin is rolled out",
            lambda: self._cluster.kubectl("rollout", "status", DAEMON_SET, IN_ITS_NAMESPACE, "--watch=false"),
            lambda text: "successfully rolled out" in text,
            seconds=ROLLOUT_SECONDS,
        )

    def restart(self) -> None:
        """`kubectl rollout restart`, until another pod has taken over."""
        before = self.pods()
        self.replace()
        wait_until(
            "another pod of the plugin",
            self.pods,
            lambda pods: pods and not set(pods) & set(before),
            seconds=ROLLOUT_SECONDS,
        )
        self.wait_for_rollout()

    def replace(self) -> None:
        """`kubectl rollout restart`, without a wait."""
        self._cluster.kubectl("rollout", "restart", DAEMON_SET, IN_ITS_NAMESPACE)

    def pods(self) -> list[str]:
        names = self._cluster.kubectl(
            "get", "pods", IN_ITS_NAMESPACE, f"--selector={SELECTOR}", "--output=name"
        )
        return names.split()

    def execute(self, *command: str, accept: tuple[int, ...] = (0,)) -> str:
        """What a command prints in the plugin's container."""
        (pod,) = self.pods()
        return self._cluster.kubectl("exec", IN_ITS_NAMESPACE, pod, "--", *command, accept=accept)

    def log(self) -> str:
        return "".join(self._cluster.kubectl("logs", IN_ITS_NAMESPACE, pod) for pod in self.pods())

    def allow(self) -> None:
        """Apply the two RBAC files."""
        self._cluster.kubectl("create", *RIGHTS)


def occupied() -> bool:
    """Whether a vendor library is there. An empty directory is what a container runtime makes to mount it."""
    return XRE.exists() and any(XRE.iterdir())


@contextlib.contextmanager
def vendor_library(machine: Machine) -> Iterator[None]:
    """The simulator at the place of the vendor's library, behind a link as XRE's own, for the machine."""
    assert not occupied(), f"{XRE} is there already"
    if XRE.is_dir():
        XRE.rmdir()
    release = XRE.with_name("xpu-e2e")
    directory = release / "lib64"
    directory.mkdir(parents=True)
    XRE.symlink_to(release)
    try:
        shutil.copy(shipped(), directory)
        shutil.copy(machine.file, directory / "machine")
        yield
    finally:
        XRE.unlink()
        shutil.rmtree(release)


@contextlib.contextmanager
def at_its_place(socket: Path, place: Path) -> Iterator[None]:
    """The directory of one of the kubelet's APIs where the manifest looks for it."""
    if socket.parent == place or not socket.exists():
        yield
        return
    place.mkdir(parents=True, exist_ok=True)
    mount("--bind", str(socket.parent), str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def remove_state() -> None:
    """What the plugin has kept on the host."""
    for file in STATE.glob("*"):
        os.unlink(file)  # noqa: PTH108 - a directory there is none of ours
    with contextlib.suppress(FileNotFoundError):
        STATE.rmdir()
