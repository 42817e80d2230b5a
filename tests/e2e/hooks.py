# SPDX-License-Identifier: Apache-2.0
"""The environment variables that tell the suite about the node it runs on (see README.md)."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest


DEVICE_PLUGIN_DIRECTORY = Path("/var/lib/kubelet/device-plugins")
POD_RESOURCES_SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
PODS_API = Path("pods-api/pods-api.sock")  # below the kubelet's directory
CAP_MKNOD = 27  # its bit in the masks of /proc/self/status


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    required: bool
    """A reason not to run is a failure."""
    kubeconfig: str
    kubectl: tuple[str, ...]
    node: str
    """Empty: the cluster's only node."""
    namespace: str
    image: str
    restart_kubelet: tuple[str, ...]
    """Empty: this kubelet is not to be restarted."""
    stop_api_server: tuple[str, ...]
    start_api_server: tuple[str, ...]
    """Empty, one or the other: this API server is not to be stopped."""
    kubelet_log: tuple[str, ...]
    """Prints the kubelet's log. Empty: it cannot be read."""
    plugin_image: str
    """Empty: the image is not there, so what is shipped is not installed."""
    plugin: tuple[str, ...]
    device_plugin_directory: Path
    pod_resources_socket: Path

    @property
    def pods_api_socket(self) -> Path:
        return self.pod_resources_socket.parent.parent / PODS_API

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Hooks":
        def hook(name: str, default: str = "") -> str:
            return environment.get(f"XPU_E2E_{name}") or default

        return cls(
            required=bool(hook("REQUIRED")),
            kubeconfig=environment.get("KUBECONFIG", ""),
            kubectl=tuple(shlex.split(hook("KUBECTL", "kubectl"))),
            node=hook("NODE"),
            namespace=hook("NAMESPACE", "default"),
            image=hook("IMAGE", "busybox"),
            restart_kubelet=tuple(shlex.split(hook("RESTART_KUBELET"))),
            stop_api_server=tuple(shlex.split(hook("STOP_API_SERVER"))),
            start_api_server=tuple(shlex.split(hook("START_API_SERVER"))),
            kubelet_log=tuple(shlex.split(hook("KUBELET_LOG"))),
            plugin_image=hook("PLUGIN_IMAGE"),
            plugin=tuple(shlex.split(hook("PLUGIN"))) or (sys.executable, "-P", "-m", "xpu_plugin"),
            device_plugin_directory=Path(hook("DEVICE_PLUGIN_DIR", str(DEVICE_PLUGIN_DIRECTORY))),
            pod_resources_socket=Path(hook("POD_RESOURCES_SOCKET", str(POD_RESOURCES_SOCKET))),
        )

    def missing(self) -> str | None:
        """Why the suite cannot run here, or None."""
        if not self.kubeconfig:
            return "KUBECONFIG is not set: the suite needs a cluster (see tests/e2e/README.md)"
        if not shutil.which(self.kubectl[0]):
            return f"{self.kubectl[0]} is not to be found: set XPU_E2E_KUBECTL"
        if os.geteuid() != 0 or not may_mknod():
            return "not root, or without CAP_MKNOD: the suite makes device nodes in /dev"
        if not (self.device_plugin_directory / "kubelet.sock").is_socket():
            return (
                f"no kubelet.sock in {self.device_plugin_directory}: the suite has to run on the node itself "
                "(or set XPU_E2E_DEVICE_PLUGIN_DIR)"
            )
        return None


def may_mknod() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, mask = line.partition(":")
        if name == "CapEff":
            return bool(int(mask, 16) >> CAP_MKNOD & 1)
    return False


def leave_out(hooks: Hooks, reason: str) -> NoReturn:
    """Skip, or fail where nothing is to be left out."""
    if hooks.required:
        pytest.fail(f"XPU_E2E_REQUIRED is set, and {reason}")
    pytest.skip(reason)


def require_pods_api(hooks: Hooks) -> None:
    """Skip on kubelets before 1.37, also where nothing is to be left out."""
    if not hooks.pods_api_socket.is_socket():
        pytest.skip(f"this kubelet has no pods API: there is no {hooks.pods_api_socket}")


def require_restart(hooks: Hooks) -> None:
    if not hooks.restart_kubelet:
        leave_out(hooks, "XPU_E2E_RESTART_KUBELET is not set: this kubelet is not to be restarted")


def require_stop(hooks: Hooks) -> None:
    if not (hooks.stop_api_server and hooks.start_api_server):
        leave_out(
            hooks,
            "XPU_E2E_STOP_API_SERVER and XPU_E2E_START_API_SERVER are not both set: this API server is not "
            "to be stopped",
        )
