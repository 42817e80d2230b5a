# SPDX-License-Identifier: Apache-2.0
"""Plain words: the files of `[tool.language]` have none of those in words.txt."""

import subprocess
import sys
import tomllib
from pathlib import Path


ROOT = Path(__file__).parents[1]
WORDS = ROOT / "tests/words.txt"
CODE = r"`[^`]*`"


def codespell(*files: Path) -> str:
    """One line for each word that is not plain, with a proposal."""
    command = [
        sys.executable, "-m", "codespell_lib", "--dictionary", str(WORDS), "--ignore-regex", CODE,
        "--config", "/dev/null", "--toml", "/dev/null", *map(str, files),
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def test_the_words_are_plain() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    files = sorted({file for pattern in tool["language"]["plain"] for file in ROOT.glob(pattern)})
    assert len(files) > len(tool["language"]["plain"])
    assert codespell(*files) == ""


def test_a_word_that_is_not_plain_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`Whoever` reads it.\nNobody reads it.\n")
    assert codespell(page).splitlines() == [f"{page}:2: Nobody ==> No process, No container, No part"]
