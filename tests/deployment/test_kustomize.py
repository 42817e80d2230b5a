# SPDX-License-Identifier: Apache-2.0
"""deployment/kustomize/: its copies are copies, and what kubectl makes of it."""

import subprocess
from pathlib import Path

import pytest

from .manifests import (
    CLUSTER_ROLE,
    CLUSTER_ROLE_BINDING,
    DEPLOYMENT,
    MANIFEST,
    Object,
    Plugin,
    check_plugin,
    kubectls,
    objects_in,
    objects_of,
    of_kind,
    the,
    title,
)


KUSTOMIZE = DEPLOYMENT / "kustomize"
COPIES = {
    KUSTOMIZE / "base" / MANIFEST.name: MANIFEST,
    KUSTOMIZE / "overlays/label-mode" / CLUSTER_ROLE.name: CLUSTER_ROLE,
    KUSTOMIZE / "overlays/label-mode" / CLUSTER_ROLE_BINDING.name: CLUSTER_ROLE_BINDING,
}
"""kustomize reads nothing from outside of its own directory, also not by a symbolic link."""

DIRECTORIES = sorted(file.parent for file in KUSTOMIZE.rglob("kustomization.yaml"))


def render(directory: Path) -> list[Object]:
    """As kubectl has it; all versions of it the same."""
    if not kubectls():
        pytest.skip("no kubectl in PATH, nor in XPU_E2E_KUBECTL")
    outputs = []
    for command in kubectls():
        done = subprocess.run(
            [*command, "kustomize", str(directory)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        outputs.append(sorted(objects_in(done.stdout), key=title))
    assert all(output == outputs[0] for output in outputs)
    return outputs[0]


@pytest.mark.parametrize("copy", COPIES, ids=lambda path: path.name)
def test_a_copy_is_its_original(copy: Path) -> None:
    original = COPIES[copy]
    assert copy.read_bytes() == original.read_bytes(), f"cp {original} {copy}"


def test_every_directory_is_tested() -> None:
    names = [directory.relative_to(KUSTOMIZE).as_posix() for directory in DIRECTORIES]
    assert names == ["base", "overlays/label-mode", "overlays/metrics", "overlays/surge"]


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
def test_what_is_rendered_is_consistent(directory: Path) -> None:
    check_plugin(render(directory))


def test_the_base_is_the_manifest() -> None:
    assert render(KUSTOMIZE / "base") == sorted(objects_of(MANIFEST), key=title)


def test_label_mode_is_the_three_manifests_but_for_an_argument_and_the_startup_taint() -> None:
    rendered = render(KUSTOMIZE / "overlays/label-mode")
    plugin = Plugin(the(rendered, "DaemonSet"))
    assert plugin.config.sriov_num_vfs is None
    expected = objects_of(MANIFEST, CLUSTER_ROLE, CLUSTER_ROLE_BINDING)
    manifest = Plugin(the(expected, "DaemonSet"))
    manifest.container["args"] = [
        "--sriov-num-vfs=keep" if argument == "--sriov-num-vfs=0" else argument
        for argument in manifest.container["args"]
    ]
    manifest.container["args"].append(f"--startup-taint={plugin.config.startup_taint}")
    manifest.spec["tolerations"].insert(0, {"key": plugin.config.startup_taint, "operator": "Exists"})
    assert rendered == sorted(expected, key=title)


def test_surge_is_the_manifest_but_for_the_order_of_an_update() -> None:
    rendered = render(KUSTOMIZE / "overlays/surge")
    expected = objects_of(MANIFEST)
    the(expected, "DaemonSet")["spec"]["updateStrategy"]["rollingUpdate"] = {
        "maxSurge": 1,
        "maxUnavailable": 0,
    }
    assert rendered == sorted(expected, key=title)


def test_metrics_are_added_to_the_manifest() -> None:
    rendered = render(KUSTOMIZE / "overlays/metrics")
    added = ("Service", "ServiceMonitor")
    assert [each for each in rendered if each["kind"] not in added] == sorted(objects_of(MANIFEST), key=title)
    assert [len(of_kind(rendered, kind)) for kind in added] == [1, 1]
