# SPDX-License-Identifier: Apache-2.0
"""Links and mounts as a container sees them that has the host's directories elsewhere."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xpu_plugin.edges.installation import absence, located


NAME = "usr/local/xpu/lib64/libxpuml.so.1"


def unshared() -> bool:
    """Whether we may make mounts of our own."""
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


with_mounts = pytest.mark.skipif(
    shutil.which("unshare") is None or not unshared(), reason="needs root and a mount namespace"
)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The container's directory for the host's `/`, with an XRE and no link to it."""
    root = tmp_path / "host"
    for name in ("lib64", "lib"):
        directory = root / "usr/local/xpu-5.0.21" / name
        directory.mkdir(parents=True)
        (directory / "libxpuml.so.1.5").write_text(name)
        (directory / "libxpuml.so.1").symlink_to("libxpuml.so.1.5")
    return root


@pytest.mark.parametrize(
    "target",
    [
        "xpu-5.0.21",
        "./xpu-5.0.21/",
        "../local/xpu-5.0.21",
        "/usr/local/xpu-5.0.21",
        "/usr/../usr/local//xpu-5.0.21",
        "../../../../usr/local/xpu-5.0.21",
    ],
)
def test_a_link_leads_where_it_leads_on_the_host(host: Path, target: str) -> None:
    (host / "usr/local/xpu").symlink_to(target)
    place = Path(located(f"{host}/{NAME}", str(host)))
    assert place == host / "usr/local/xpu-5.0.21/lib64/libxpuml.so.1.5"
    assert place.read_text() == "lib64"


def test_links_to_links_and_a_directory_without_any(host: Path) -> None:
    (host / "usr/local/xpu").symlink_to("/usr/local/current")
    (host / "usr/local/current").symlink_to("xpu-5.0.21")
    (host / "usr/local/xpu-5.0.21/lib/libxpuml.so").symlink_to("/usr/local/xpu/lib64/libxpuml.so.1")
    assert Path(located(f"{host}/usr/local/xpu/lib/libxpuml.so", str(host))).read_text() == "lib64"
    plain = f"{host}/usr/local/xpu-5.0.21/lib/libxpuml.so.1.5"
    assert located(plain, str(host)) == plain


@pytest.mark.parametrize("root", [None, "/elsewhere", "/hos"])
def test_a_path_that_is_not_below_the_root_is_the_loaders_to_follow(root: str | None) -> None:
    for path in (
        "/host/usr/local/xpu/lib64/libxpuml.so.1",
        "/usr/local/xpu/lib/libxpuml.so",
        "libxpuml.so.1",
    ):
        assert located(path, root) == path


def test_links_in_a_ring_have_an_end(host: Path) -> None:
    (host / "usr/local/xpu").symlink_to("xpu.1")
    (host / "usr/local/xpu.1").symlink_to("/usr/local/xpu")
    with pytest.raises(OSError, match="symbolic links"):
        located(f"{host}/{NAME}", str(host))
    assert "symbolic links" in absence(f"{host}/{NAME}", str(host))


def test_what_is_not_there_is_said_to_be_so(host: Path) -> None:
    assert absence(f"{host}/{NAME}", str(host)) == "no such file"
    assert absence("/nonexistent/libxpuml.so.1", None) == "no such file"
    (host / "usr/local/xpu").symlink_to("xpu-6")
    assert "no such file" in absence(f"{host}/{NAME}", str(host))


SCENE = """
import shutil, subprocess, sys
from pathlib import Path
from xpu_plugin.edges.installation import absence
from xpu_plugin.doctor.host_survey import directory_trouble
place, deed = Path(sys.argv[1]), sys.argv[2]
source, root = place / "source of it", place / "host"
target = root / "usr/local"
for directory in (source / "bin", target, place / "deep"):
    directory.mkdir(parents=True)
subprocess.run(["mount", "--bind", source, target], check=True)
match deed:
    case "deleted":
        shutil.rmtree(source)
        (source / "xpu").mkdir(parents=True)
    case "empty":
        (source / "bin").rmdir()
    case "elsewhere":
        (source / "xpu").symlink_to("/opt/xpu-5")
print(absence(f"{target}/xpu/lib/libxpuml.so.1", str(root)))
print(directory_trouble(target))
"""


@with_mounts
@pytest.mark.parametrize(
    ("deed", "said"),
    [
        (
            "deleted",
            "{target} was deleted on the host since this pod has started; a new pod has the present one",
        ),
        ("empty", "no such file: {target} is empty"),
        (
            "elsewhere",
            "no such file: a link leads to /opt/xpu-5/lib/libxpuml.so.1 of the host, which is not mounted",
        ),
        ("nothing", "no such file"),
    ],
)
def test_a_mount_that_shows_nothing_is_named(tmp_path: Path, deed: str, said: str) -> None:
    """As a runtime mounts a directory of the host into a container, and then the host goes on."""
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-P", "-c", SCENE, str(tmp_path), deed],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    target = tmp_path / "host/usr/local"
    absence_of_library, trouble = done.stdout.splitlines()
    assert absence_of_library == said.format(target=target)
    gone = f"{target} was deleted on the host since this pod has started; delete the plugin's pod"
    assert trouble == (gone if deed == "deleted" else "None"), "the same of the kubelet's directory"
