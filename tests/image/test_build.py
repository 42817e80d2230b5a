# SPDX-License-Identifier: Apache-2.0
"""Both Dockerfiles, built with buildah on given bases, and what comes out of that.

XPU_IMAGE_BUILDER and XPU_IMAGE_BASE name the bases (tests/image/bases.sh makes some), XPU_IMAGE_PYTHON the
interpreter in the first, if not python3.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.image.commands import ROOT, run


BUILD_SECONDS = 1800
MOST_BYTES = 90_000_000
TIMES = 3  # that a build is tried: a step may fail to start in a container without a runtime
HOME = "opt/xpu-device-plugin"
DOCUMENTS = "usr/share/doc/xpu-device-plugin"
BASES = ("XPU_IMAGE_BUILDER", "XPU_IMAGE_BASE")
CHROOT = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": os.environ.get("STORAGE_DRIVER", "vfs")}

pytestmark = pytest.mark.timeout(2 * BUILD_SECONDS)


@dataclass(frozen=True)
class Image:
    name: str
    root: Path
    """Where its files can be seen."""
    configuration: dict[str, Any]


def buildah(*arguments: str) -> str:
    return run("buildah", *arguments, seconds=BUILD_SECONDS).strip()


@pytest.fixture(scope="module", params=["docker/Dockerfile", "docker/amd64/Dockerfile.ubuntu16.04"])
def image(request: pytest.FixtureRequest) -> Iterator[Image]:
    """Built as documented, but for the bases."""
    if os.geteuid() or not shutil.which("buildah"):
        pytest.skip("needs root and buildah")
    if missing := [name for name in BASES if name not in os.environ]:
        pytest.skip(f"{', '.join(missing)} not set; tests/image/bases.sh makes bases")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CHROOT.items():
            patch.setenv(name, value)
        arguments = (
            f"--build-arg BUILDER_IMAGE={os.environ['XPU_IMAGE_BUILDER']} "
            f"--build-arg BASE_IMAGE={os.environ['XPU_IMAGE_BASE']} "
            f"--build-arg PYTHON={os.environ.get('XPU_IMAGE_PYTHON', 'python3')}"
        )
        name = f"localhost/xpu-device-plugin-test:{Path(request.param).name.lower()}"
        if (
            request.param == "docker/Dockerfile"
        ):  # what build.sh builds, with buildah where that is all there is
            patch.setenv("BUILD_ARGS", arguments)
            command = [str(ROOT / "build.sh"), name]
        else:
            command = ["buildah", "build", *arguments.split(), "-t", name, "-f", request.param, "."]
        for time in range(TIMES):
            try:
                run(*command, cwd=ROOT, seconds=BUILD_SECONDS)
                break
            except AssertionError:
                if time == TIMES - 1:
                    raise
        container = buildah("from", name)
        try:
            configuration = json.loads(buildah("inspect", "--type", "image", name))["OCIv1"]
            yield Image(name, Path(buildah("mount", container)), configuration)
        finally:
            buildah("rm", container)
            buildah("rmi", name)


def test_it_is_labelled(image: Image) -> None:
    labels = image.configuration["config"]["Labels"]
    prefix = "org.opencontainers.image."
    assert labels[prefix + "title"] == "xpu-device-plugin"
    assert labels[prefix + "licenses"] == "Apache-2.0"
    assert labels[prefix + "base.name"] == os.environ["XPU_IMAGE_BASE"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", labels[prefix + "version"])


def test_it_is_small(image: Image) -> None:
    """What the image adds to its base: the sum of the sizes of its files."""
    added = [*(image.root / HOME).rglob("*"), *(image.root / DOCUMENTS).rglob("*")]
    assert sum(path.lstat().st_size for path in added) < MOST_BYTES


def test_it_adds_nothing_elsewhere(image: Image) -> None:
    """Neither files of the build's own nor such as were left in the base."""
    container = buildah("from", os.environ["XPU_IMAGE_BASE"])
    try:
        base = Path(buildah("mount", container))
        before = {path.relative_to(base) for path in base.rglob("*")}
    finally:
        buildah("rm", container)
    after = {path.relative_to(image.root) for path in image.root.rglob("*")}
    new = {str(path) for path in after - before}
    # Where a tool mounts something for the time of a step it leaves a place for it.
    mounted = {"etc/hosts", "etc/resolv.conf", "run/.containerenv", "run/secrets"}
    assert {path for path in new if not path.startswith((HOME, DOCUMENTS))} <= mounted
    assert before - after == set()


def test_no_tool_is_left(image: Image) -> None:
    names = {path.name for path in (image.root / HOME).rglob("*")}
    assert names & {"pip", "setuptools", "cmake", "gcc", "patchelf", "Python.h", "ensurepip"} == set()


def test_the_bill_of_materials_lists_what_is_there(image: Image) -> None:
    bill = json.loads((image.root / DOCUMENTS / "sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    listed = {re.sub(r"[-_.]+", "-", part["name"]).lower() for part in bill["components"]}
    (site,) = (image.root / HOME).glob("lib/python3*/site-packages")
    installed = {path.name.partition("-")[0] for path in site.glob("*.dist-info")}
    installed = {re.sub(r"[-_.]+", "-", name).lower() for name in installed} - {"xpu-device-plugin"}
    assert installed <= listed
    assert {"cpython", "openssl"} <= listed
    assert not {"aiohttp", "pip"} & listed
    assert (image.root / DOCUMENTS / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_it_works_with_a_read_only_root(image: Image) -> None:
    """As the manifest runs it: only what is mounted can be written to."""
    script = (
        'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && mount -t tmpfs tmpfs "$0/tmp" '
        '&& mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" '
        '&& exec chroot "$0" /usr/bin/env -i "$@"'
    )
    entrypoint = image.configuration["config"]["Entrypoint"]
    environment = image.configuration["config"]["Env"]
    assert "PYTHONDONTWRITEBYTECODE=1" in environment
    inside = ("unshare", "--mount", "sh", "-c", script, str(image.root), *environment)
    said = run(*inside, *entrypoint, "demo", "--once")
    assert "exit status 0" in said
    # As in `kubectl exec`: by its name.
    for command in ("list", "plan"):
        run(*inside, "xpu-device-plugin", command, "--help")
    refused = subprocess.run([*inside, "touch", "/opt/file"], capture_output=True, text=True, check=False)
    assert "Read-only file system" in refused.stderr
