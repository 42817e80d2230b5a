# SPDX-License-Identifier: Apache-2.0
"""The files that the image is made of agree with each other, and with the rest of the repository."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.image.commands import DOCKER, ROOT


DOCKERFILES = (DOCKER / "Dockerfile", DOCKER / "amd64/Dockerfile.ubuntu16.04")
PINS = {name: (DOCKER / f"{name}.txt").read_text() for name in ("requirements", "build-requirements")}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pinned(text: str) -> dict[str, Version]:
    return {
        name: Version(version)
        for name, version in re.findall(r"^([a-z0-9.-]+)==([^ ;]+)", text, re.MULTILINE)
    }


@pytest.mark.parametrize("name", PINS)
def test_every_requirement_has_its_hashes(name: str) -> None:
    logical = PINS[name].replace("\\\n", " ").splitlines()
    requirements = [line for line in logical if line and not line.lstrip().startswith("#")]
    assert len(requirements) > 10
    assert [line for line in requirements if not re.search(r"==\S+ .*--hash=sha256:[0-9a-f]{64}", line)] == []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("requirements", PYPROJECT["project"]["dependencies"]),
        ("build-requirements", PYPROJECT["build-system"]["requires"]),
    ],
)
def test_what_is_pinned_is_what_the_project_asks_for(name: str, wanted: list[str]) -> None:
    pins = pinned(PINS[name])
    for requirement in map(Requirement, wanted):
        assert requirement.name in pins, f"compile {name}.txt again, as docker/README.md says"
        assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_nothing_says_where_from() -> None:
    """Neither index nor directory: that is the builder's own business."""
    for text in PINS.values():
        assert re.findall(r"^\s*-(?!-hash)\S+", text, re.MULTILINE) == []


def test_both_dockerfiles_do_the_same() -> None:
    """They differ in what their comments say, and in the defaults of three arguments."""
    stages = []
    for file in DOCKERFILES:
        lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        stages.append([re.sub(r"^(ARG (BUILDER_IMAGE|BASE_IMAGE|PYTHON))=.*", r"\1", line) for line in lines])
    assert stages[0] == stages[1]
    assert sum(line.startswith("FROM") for line in stages[0]) == 2
