# SPDX-License-Identifier: Apache-2.0
"""Markdown for the pages of this directory, made from the code.

cog puts it into the pages: `.venv/bin/python -m cogapp -r -I docs/reference docs/reference/*.md`.
"""

import argparse
import ast
import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

from xpu_plugin import cli, config
from xpu_plugin.doctor.registry import CHECKS
from xpu_plugin.model.metric_families import FAMILIES, OF_THE_PROCESS


PAGES = Path(__file__).parent
PACKAGE = Path(cli.__file__).parent
BINDING = PACKAGE.parent / "_xpuml/_xpuml.pyx"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n" + "\n".join([row(head), "|" + "---|" * len(head), *map(row, rows)]) + "\n\n"


def row(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def code(text: str) -> str:
    return f"`{text}`" if text else ""


# --- options and commands ---------------------------------------------------------------------------


def options() -> str:
    """The plugin's own options."""
    return table(
        ("option", "default", "accepted", "meaning"),
        (
            (code(f"--{option.name}"), code(option.default or ""), accepted(option), sentence(option.help))
            for option in config.OPTIONS
        ),
    )


def accepted(option: config.Option) -> str:
    """In the words of its refusal; no option accepts a text without letters and digits."""
    try:
        option.parse("")
    except argparse.ArgumentTypeError as error:
        return str(error).partition("accepted: ")[2]
    return ""


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


class _Made(Exception):  # noqa: N818 - the way out of a sub-command, no error
    """A sub-command has its parser."""


def parser_of(command: str) -> argparse.ArgumentParser:
    made: list[argparse.ArgumentParser] = []

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        made.append(parser)
        raise _Made

    module = importlib.import_module(f"xpu_plugin.commands.{command}")
    with patch.object(config.Parser, "parse_args", stop):
        try:
            module.main([])
        except _Made:
            return made[0]
    raise AssertionError(command)


def commands() -> str:
    """Each sub-command: its description, its own options, and those that it shares with the plugin."""
    return "".join(_command(name) for name in cli.COMMANDS)


def _command(name: str) -> str:
    parser = parser_of(name)
    ours = {f"--{option.name}" for option in config.OPTIONS}
    own, shared = [], []
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to read them
        words = action.option_strings or [str(action.metavar or action.dest)]
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):  # noqa: SLF001
            continue
        if set(words) & ours and name != "simulate":
            shared.append(words[-1])
        else:
            own.append((code(_shown(action, words)), sentence((action.help or "").replace("%%", "%"))))
    text = f"\n### {name}\n\n{(parser.description or '').strip()}\n"
    if own:
        text += table(("argument", "meaning"), own)
    if shared:
        text += "\nAlso: " + ", ".join(map(code, shared)) + ".\n"
    return text


def _shown(action: argparse.Action, words: Sequence[str]) -> str:
    value = f" {action.metavar}" if action.option_strings and action.metavar and action.nargs != 0 else ""
    return ", ".join(words) + value


# --- metrics and checks -----------------------------------------------------------------------------


def metrics() -> str:
    return table(
        ("name", "type", "labels", "unit", "meaning"),
        (
            (code(each.name), each.type, ", ".join(map(code, each.labels)), each.unit, each.meaning)
            for each in (*FAMILIES, *OF_THE_PROCESS)
        ),
    )


def checks() -> str:
    return table(("check", "subject"), ((code(check.name), check.about) for check in CHECKS))


# --- messages ---------------------------------------------------------------------------------------

_LOUD = re.compile(
    r"logger\.(warning|error)$|_complain$|(warnings|complaints|failures|problems)\.append$"
    r"|(Refusal|UsageError|HostError|MachineError|LibraryError|ControlError|BusyError|Worker\w*Error)$"
)
"""Calls that are given a text for an administrator."""
_PLACEHOLDER = "…"


def unexplained() -> str:
    """What the page of messages does not have a row for."""
    rows = explained()
    known = {plain(text) for text in rows}
    missing = sorted({text for text in loud() if plain(text) not in known})
    said = {plain(text) for text in literals()}
    gone = sorted(text for text in rows if plain(text) not in said)
    text = ""
    if missing:
        text += "\n### Not explained yet\n" + table(("text",), ((code(each),) for each in missing))
    if gone:
        text += "\n### Explained, and no longer in the code\n"
        text += table(("text",), ((code(each),) for each in gone))
    return text


def information() -> str:
    """All messages of the level `info`."""
    found = {
        text
        for module, tree in sources()
        for call in calls(tree)
        if ast.unparse(call.func) == "logger.info" and call.args
        for text in texts(call.args[0], module)
        if wordy(text)
    }
    return table(("text",), ((code(text),) for text in sorted(found)))


def explained() -> list[str]:
    """The first cells of the tables of messages."""
    found: list[str] = []
    inside = False
    for line in (PAGES / "messages.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| message |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|-"):
            found += re.findall(r"`([^`]+)`", line.split(" | ")[0])
    return found


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for module in sorted(PACKAGE.rglob("*.py")):
        if not module.is_relative_to(PACKAGE / "proto"):
            yield module, ast.parse(module.read_text(encoding="utf-8"))


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def loud() -> Iterator[str]:
    """Texts of warnings, errors and refusals."""
    for module, tree in sources():
        for call in calls(tree):
            if _LOUD.search(ast.unparse(call.func)):
                yield from (text for argument in call.args for text in texts(argument, module) if wordy(text))


def literals() -> Iterator[str]:
    """Every text of the code."""
    for module, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.expr):
                yield from texts(node, module)
    yield from re.findall(r'raise xpuml\.\w+\(f"(.+)"\)', BINDING.read_text(encoding="utf-8"))


def texts(expression: ast.expr, module: Path) -> Iterator[str]:
    """The texts that an expression can be, with a placeholder for each part that only a run knows."""
    match expression:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else _filled_in(part, module)
                for part in values
            )
        case ast.Call(func=ast.Name(id="Message") | ast.Attribute(attr="Message"), args=[phrase, *_]):
            fields = "".join(f" {field.arg}={_PLACEHOLDER}" for field in expression.keywords if field.arg)
            yield from (f"{text}{fields}" for text in texts(phrase, module))
        case ast.IfExp(body=one, orelse=other):
            yield from (*texts(one, module), *texts(other, module))


def _filled_in(part: ast.expr, module: Path) -> str:
    """A constant of the module, else a placeholder."""
    if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name) and part.value.id.isupper():
        name = ".".join(module.relative_to(PACKAGE.parent).with_suffix("").parts)
        return str(getattr(importlib.import_module(name), part.value.id, _PLACEHOLDER))
    return _PLACEHOLDER


def wordy(text: str) -> bool:
    """More than a placeholder or a name."""
    return bool(re.search(r"\w{2}.* .*\w{2}", text))


def plain(text: str) -> str:
    """A message with all placeholders alike, be they <this>, {this} or `…`; constants count as such."""
    text = re.sub(r"<[^<>]+>|\{[^{}]+\}|\b\d+(\.\d+)*\b", _PLACEHOLDER, text)
    return re.sub(rf"{_PLACEHOLDER}+", _PLACEHOLDER, text)
