# SPDX-License-Identifier: Apache-2.0
"""What every file of this repository owes its readers."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from xpu_plugin.proto import deviceplugin_pb2


ROOT = Path(__file__).parents[1]
SPDX = "SPDX-License-Identifier: Apache-2.0"
SOURCES = {
    ".c", ".cmake", ".h", ".proto", ".pxd", ".py", ".pyi", ".pyx", ".sh", ".toml", ".yaml", ".yml",
}  # fmt: skip
SOURCE_NAMES = {"CMakeLists.txt", "Dockerfile", "Makefile"}


def tracked(*options: str) -> list[str]:
    """Paths of the files in git that are there now."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", *options]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for path in listed.split("\0") if path and (ROOT / path).is_file()]


def pyproject() -> dict[str, dict[str, list[str]]]:
    document: dict[str, dict[str, list[str]]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return document


def versions(requirements: list[str]) -> dict[str, str]:
    """Name -> the rest of each requirement."""
    matches = [re.fullmatch(r"([A-Za-z0-9-]+)(.*)", requirement) for requirement in requirements]
    return {match[1]: match[2] for match in matches if match}


def test_an_spdx_line_heads_every_source_file() -> None:
    sources = [
        path
        for path in tracked()
        if Path(path).suffix in SOURCES or Path(path).name in SOURCE_NAMES or path.startswith(".ci/")
    ]
    assert len(sources) > 50
    without = [
        path
        for path in sources
        if not any(SPDX in line for line in (ROOT / path).read_text(encoding="utf-8").splitlines()[:2])
    ]
    assert without == []


def test_the_licence_is_apache_2() -> None:
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()


def test_no_tracked_file_is_one_that_git_is_told_to_ignore() -> None:
    assert tracked("--cached", "--ignored", "--exclude-standard") == []


def test_no_tracked_file_is_a_binary() -> None:
    assert [path for path in tracked() if b"\0" in (ROOT / path).read_bytes()] == []


def test_the_run_time_is_not_older_than_the_generator_of_its_grpc_code() -> None:
    """Generated code refuses it: grpcio's lower bound is the version of grpcio-tools in the build."""
    built = versions(pyproject()["build-system"]["requires"])
    needed = versions(pyproject()["project"]["dependencies"])
    assert re.fullmatch(r"==[0-9.]+", built["grpcio-tools"])
    assert needed["grpcio"].split(",")[0] == ">=" + built["grpcio-tools"].removeprefix("==")


def test_protobuf_is_not_older_than_the_generator_of_its_messages() -> None:
    """The generated code says for which version it was made."""
    generated = Path(deviceplugin_pb2.__file__).read_text()
    match = re.search(r"# Protobuf Python Version: ([0-9]+)\.([0-9]+)\.([0-9]+)", generated)
    assert match
    needed = versions(pyproject()["project"]["dependencies"])["protobuf"].split(",")[0]
    lower = tuple(map(int, needed.removeprefix(">=").split(".")))
    made_for = tuple(map(int, match.groups()))
    assert lower >= made_for[: len(lower)]
    assert lower[0] == made_for[0]


def test_every_copy_of_the_version_is_that_of_pyproject() -> None:
    """A release changes pyproject.toml first, then the files that this names."""
    version = str(pyproject()["project"]["version"])
    copies = [
        (path, found)
        for path in tracked()
        if not path.startswith("tests/")
        for found in re.findall(
            r"(?:kunlunxpu/xpu-device-plugin:v|^ARG VERSION=|^appVersion: v|^version: )(\d[-\w.]*)",
            (ROOT / path).read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    ]
    assert {path for path, _ in copies} >= {
        "README.md",
        "README.zh-CN.md",
        "deployment/helm/xpu-device-plugin/Chart.yaml",
        "deployment/kustomize/base/xpu-device-plugin.yml",
        "deployment/xpu-device-plugin.yml",
        "docker/Dockerfile",
        "docker/amd64/Dockerfile.ubuntu16.04",
    }
    assert [(path, found) for path, found in copies if found != version] == []


def test_the_last_release_of_the_changelog_is_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert (
        next(heading for heading in headings if heading != "Unreleased") == pyproject()["project"]["version"]
    )


def test_run_time_dependencies_are_few() -> None:
    """Each is installed on every node."""
    allowed = {"grpcio", "protobuf", "kubernetes", "prometheus-client"}
    assert versions(pyproject()["project"]["dependencies"]).keys() <= allowed
