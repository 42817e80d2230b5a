# SPDX-License-Identifier: Apache-2.0
"""The Markdown pages of the repository, taken apart."""

import re
from pathlib import Path


READMES = ("README.md", "README.zh-CN.md")


def parts(page: Path) -> list[tuple[str, list[str]]]:
    """A page as its code blocks, each with its info string behind ```, and what is between them."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in page.read_text(encoding="utf-8").splitlines():
        if not line.startswith("```"):
            found[-1][1].append(line)
        else:
            found.append(("", []) if found[-1][0] else (line, []))
    assert not found[-1][0], f"{page}: a code block that does not end"
    return found


def prose(page: Path) -> list[str]:
    return [line for fence, lines in parts(page) if not fence for line in lines]


def tables(page: Path) -> list[list[list[str]]]:
    """The cells of each table, its head first; the line below the head is left out."""
    found: list[list[list[str]]] = []
    former = ""
    for line in prose(page):
        if line.startswith("|"):
            if not former.startswith("|"):
                found.append([])
            if not re.fullmatch(r"[|:-]+", line):
                found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        former = line
    return found
