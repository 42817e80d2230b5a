# SPDX-License-Identifier: Apache-2.0
"""Additions of the administrator to containers with devices: variables, and files of the host."""

from pathlib import Path

import pytest

from .cluster import Cluster, Pod
from .machine import Machine, granted
from .plugin import Plugin, serve


pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

BOTH = ("XPU_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
LIBRARIES = "LD_LIBRARY_PATH"
READ_ONLY = "Read-only file system"


def variables(pod: Pod) -> dict[str, str]:
    """The environment of a program in the container."""
    lines = (line.partition("=") for line in pod.execute("env").splitlines())
    return {name: value for name, _, value in lines}


@pytest.fixture
def xre(tmp_path: Path) -> Path:
    """A link to an XRE of the host, beside a newer one."""
    for release in ("5.1", "5.2"):
        (tmp_path / f"xpu-{release}").mkdir()
        (tmp_path / f"xpu-{release}/version").write_text(release)
    (tmp_path / "xpu").symlink_to(tmp_path / "xpu-5.1")
    return tmp_path / "xpu"


@pytest.mark.compatibility
def test_a_container_has_variables_files_and_exactly_its_devices(
    cluster: Cluster, machine: Machine, daemon: Plugin, xre: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    serve(
        daemon,
        cluster,
        "--container-env=both",
        "--mount-xre",
        f"--xre-dir={xre}",
        f"--mount-file={missing}",
        f"--container-library-path={xre}/lib",
    )
    pod = cluster.run_pod("two", devices=2)
    granted(machine, pod, 2)
    seen = variables(pod)
    assert {name: seen[name] for name in (*BOTH, LIBRARIES)} == {
        **dict.fromkeys(BOTH, "0,1"),
        LIBRARIES: f"{xre}/lib",
    }
    assert pod.execute(f"cat {xre}/version") == "5.1"
    assert READ_ONLY in pod.execute(f"touch {xre}/new 2>&1 || true")
    assert not missing.exists(), "the runtime makes a directory of a path that is missing"

    # Another link is for containers that start later, and for this one when it restarts.
    (xre.parent / "next").symlink_to(xre.parent / "xpu-5.2")
    (xre.parent / "next").replace(xre)
    assert pod.execute(f"cat {xre}/version") == "5.1"
    pod.restart_container()
    assert pod.execute(f"cat {xre}/version") == "5.2"


@pytest.mark.compatibility
def test_a_variable_of_the_pod_wins(cluster: Cluster, machine: Machine, daemon: Plugin) -> None:
    serve(daemon, cluster, "--container-env=xpu", "--container-library-path=/a/lib")
    own = {"XPU_VISIBLE_DEVICES": "1", LIBRARIES: "/b/lib"}
    pod = cluster.create_pod("own", devices=2, environment=own)
    pod.wait_until_running()
    seen = variables(pod)
    assert {name: seen[name] for name in own} == own
    assert BOTH[1] not in seen
