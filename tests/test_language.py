# SPDX-License-Identifier: Apache-2.0
"""Plain words in the files of `[tool.language]`, and log messages that are phrases with fields."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from xpu_plugin.config import Config
from xpu_plugin.log import MEMBERS


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
    assert codespell(*(file for file in files if file != Path(__file__))) == ""


def test_a_word_that_is_not_plain_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`Whoever` reads it.\nNobody reads it.\n")
    assert codespell(page).splitlines() == [f"{page}:2: Nobody ==> No process, No container, No part"]


# --- messages -------------------------------------------------------------------------------------

LEVELS = re.compile(r"logger\.(debug|info|warning|error|exception|critical|log)$|getLogger\(.*\)\.\w+$")
PHRASE = re.compile(r"[^%=]+")


def faults(tree: ast.Module) -> Iterator[str]:
    """Calls with a value inside of the text, or with a field that a JSON line has for itself."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        texts = node.args[name.endswith("logger.log") :] if LEVELS.search(name) else []
        if name.split(".")[-1] == "Message":
            texts = node.args
            if {keyword.arg for keyword in node.keywords} & {*MEMBERS}:
                yield ast.unparse(node)
        if len(texts) > 1 or any(not is_phrase(text) for text in texts):
            yield ast.unparse(node)


def is_phrase(text: ast.expr) -> bool:
    """Whether it is a constant without values, or a message, which is looked at by itself."""
    match text:
        case ast.Constant(value=str(words)):
            return PHRASE.fullmatch(words) is not None
        case ast.Call(func=ast.Name(id="Message") | ast.Attribute(attr="Message")) | ast.Name(id="message"):
            return True
    return False


def test_log_messages_are_constant_phrases_with_fields() -> None:
    modules = [*(ROOT / "xpu_plugin").rglob("*.py")]
    assert len(modules) > 50
    found = {
        f"{module.relative_to(ROOT)}: {fault}"
        for module in modules
        if module.name != "log.py"
        for fault in faults(ast.parse(module.read_text(encoding="utf-8")))
    }
    assert found == set()
    assert not {field.name.replace("_", "-") for field in fields(Config)} & {*MEMBERS}, "they are fields too"


def test_a_message_with_a_value_in_its_text_is_found() -> None:
    for flawed in (
        'logger.warning("device %s", id)',
        'logger.warning(f"device {id}")',
        'logger.log(level, "device id=1")',
        'logger.info(Message(f"device {id}"))',
        'logger.info(Message("device", level=1))',
        "logger.info(text)",
    ):
        assert list(faults(ast.parse(flawed))), flawed
    assert not list(faults(ast.parse('logger.log(level, Message("device", id=id)); logger.info("stopping")')))
