# SPDX-License-Identifier: Apache-2.0
"""Markdown pages of this repository, taken apart for tests."""

import re
from pathlib import Path


ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh-CN.md")
TASKS = (
    "docs/virtual-functions.md",
    "docs/health.md",
    "docs/upgrade.md",
    "docs/observe.md",
    "docs/troubleshoot.md",
)
"""Pages with commands for an administrator, beside docs/install.md."""
TRANSLATED = {READMES[0]: READMES[1]} | {
    page: page.replace("docs/", "docs/zh-CN/") for page in ("docs/install.md", "docs/kubernetes.md", *TASKS)
}
"""English page -> the same page in Chinese."""


def pages() -> list[Path]:
    """Every Markdown page of the repository; none of those that tools keep there."""
    kept_by_tools = re.compile(r"\.|(build|dist|node_modules)$")
    directories = [ROOT]
    for directory in directories:
        directories += [
            below for below in directory.iterdir() if below.is_dir() and not kept_by_tools.match(below.name)
        ]
    return sorted(page for directory in directories for page in directory.glob("*.md"))


def parts(page: Path) -> list[tuple[str, list[str]]]:
    """A page as its code blocks, each with its info string behind ```, and the text between them."""
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


def headings(page: Path) -> list[str]:
    return [line for line in prose(page) if re.match(r"#+ ", line)]


def anchors(page: Path) -> set[str]:
    """Targets of links within a page, as forges name them."""
    titles = [heading.lstrip("# ").lower() for heading in headings(page)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}
