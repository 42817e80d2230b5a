# SPDX-License-Identifier: Apache-2.0
"""The pages agree with the code: links resolve, generated text is current, hand-made lists are complete."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import READMES, ROOT, TRANSLATED, anchors, pages, parts, prose, tables
from xpu_plugin import cli
from xpu_plugin.commands import list as list_command
from xpu_plugin.commands import plan, top
from xpu_plugin.doctor.registry import CHECKS
from xpu_plugin.model import health


PACKAGE = ROOT / "xpu_plugin"
REFERENCE = ROOT / "docs/reference"
LONGEST_README = 130  # lines


def test_every_link_within_the_repository_resolves() -> None:
    broken = []
    for page in pages():
        text = re.sub(r"`[^`]*`", "", "\n".join(prose(page)))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            goal = page.parent / path if path else page
            if not goal.exists() or (anchor and anchor not in anchors(goal)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_every_page_of_docs_is_linked_from_the_readme_or_from_another_page() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in pages()
        for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(page)))
        if target.partition("#")[0] and not re.match(r"[a-z]+:", target)
    }
    assert {page for page in pages() if page.is_relative_to(ROOT / "docs")} - linked == set()


@pytest.mark.parametrize("readme", READMES)
def test_a_readme_is_short(readme: str) -> None:
    assert len((ROOT / readme).read_text(encoding="utf-8").splitlines()) <= LONGEST_README


@pytest.mark.parametrize("page", TRANSLATED)
def test_a_page_and_its_translation_lead_to_each_other(page: str) -> None:
    for one, other in ((page, TRANSLATED[page]), (TRANSLATED[page], page)):
        targets = re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(ROOT / one)[:5]))
        assert any(((ROOT / one).parent / target).resolve() == ROOT / other for target in targets)


def test_generated_text_is_current() -> None:
    """Else: .venv/bin/python -m cogapp -r -I docs/reference docs/reference/*.md"""
    generated = sorted(map(str, REFERENCE.glob("*.md")))
    command = [sys.executable, "-m", "cogapp", "--check", "--diff", "-I", str(REFERENCE), *generated]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_architecture_names_no_file_that_is_absent() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:[\w.-]+/)*\w+\.(?:py|pyx|pxd)\b", text))
    assert {name for name in named if not (PACKAGE / name).exists() and not (ROOT / name).exists()} == set()


# --- lists by hand beside generated ones ----------------------------------------------------------


def test_every_sub_command_has_an_exit_status() -> None:
    (table,) = (
        table
        for table in tables(REFERENCE / "commands.md")
        if table[0] == ["command", "purpose", "exit status"]
    )
    told = {name for row in table[1:] for name in re.findall(r"`([a-z]+)", row[0])}
    assert told == set(cli.COMMANDS)


def test_the_conditions_of_every_check_are_explained() -> None:
    (table,) = (table for table in tables(REFERENCE / "checks.md") if "`warning`" in table[0])
    assert [row[0].strip("`") for row in table[1:]] == [check.name for check in CHECKS]


def test_every_reason_of_ill_health_is_explained() -> None:
    tree = ast.parse(Path(health.__file__).read_text(encoding="utf-8"))
    given_first = [
        node.args[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Health" and node.args
    ]
    reasons = {str(own.value) for own in given_first if isinstance(own, ast.Constant)}
    reasons |= {
        str(getattr(health, own.id)) for own in given_first if isinstance(own, ast.Name) and own.id.isupper()
    }
    reasons |= set(health._KL2_STATES.values())
    (table,) = (table for table in tables(REFERENCE / "messages.md") if table[0][0] == "reason")
    assert sorted(row[0].strip("`") for row in table[1:]) == sorted(reasons)


@pytest.mark.parametrize("directory", ["docs", "docs/zh-CN"])
def test_the_samples_have_the_columns_that_commands_print(directory: str) -> None:
    heads = [
        line.split()
        for page in ("observe.md", "virtual-functions.md")
        for fence, lines in parts(ROOT / directory / page)
        if fence
        for line in lines
        if line.isupper()
    ]
    for columns in ([*list_command._COLUMNS, "holders"], plan._COLUMNS, top._COLUMNS):
        assert [column.upper() for column in columns] in heads
