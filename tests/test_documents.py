# SPDX-License-Identifier: Apache-2.0
"""What the pages say is so: links lead somewhere, and the lists on them are those of the sources."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pages import READMES, parts, prose, tables
from xpu_plugin import cli, config
from xpu_plugin.commands import list as list_command
from xpu_plugin.commands import plan, top
from xpu_plugin.model import health
from xpu_plugin.model.checks.every import CHECKS
from xpu_plugin.model.families import FAMILIES, OF_THE_PROCESS


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xpu_plugin"
ARCHITECTURE = ROOT / "docs/architecture.md"
MESSAGES = ROOT / "docs/messages.md"


def pages() -> list[Path]:
    """Every Markdown page of the repository; none of what tools keep there."""
    kept_by_tools = re.compile(r"\.|(build|dist|node_modules)$")
    directories = [ROOT]
    for directory in directories:
        directories += [
            below for below in directory.iterdir() if below.is_dir() and not kept_by_tools.match(below.name)
        ]
    return sorted(page for directory in directories for page in directory.glob("*.md"))


def headings(page: Path) -> list[str]:
    return [line for line in prose(page) if re.match(r"#+ ", line)]


def anchors(page: Path) -> set[str]:
    """What can be linked to, as forges name it."""
    titles = [heading.lstrip("# ").lower() for heading in headings(page)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


# --- links --------------------------------------------------------------------------------------


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


# --- the two READMEs ----------------------------------------------------------------------------


WORDS = {"off": "false", "关": "false", "": None}
"""How the READMEs write some defaults."""


@pytest.mark.parametrize("readme", READMES)
def test_every_option_is_documented_with_its_default(readme: str) -> None:
    (table,) = (
        table for table in tables(ROOT / readme) if any("`--resource-name`" in row[0] for row in table)
    )
    documented: dict[str, str | None] = {}
    for names, default, *_ in table[1:]:
        options = re.findall(r"`--([-a-z]+)`", names)
        values = [WORDS.get(value.strip("` "), value.strip("` ")) for value in re.split("[,、]", default)]
        documented |= dict(zip(options, values * len(options) if len(values) == 1 else values, strict=True))
    assert documented == {option.name: option.default for option in config.OPTIONS}


def test_both_readmes_are_built_alike() -> None:
    def shape(readme: str) -> dict[str, list[object]]:
        page = ROOT / readme
        return {
            "headings": [heading.partition(" ")[0] for heading in headings(page)],
            "code blocks": [(fence, len(lines)) for fence, lines in parts(page) if fence],
            "tables": [[len(row) for row in table] for table in tables(page)],
        }

    assert shape(READMES[0]) == shape(READMES[1])


# --- docs/metrics.md ----------------------------------------------------------------------------


def test_the_page_of_metrics_is_the_table_of_the_sources() -> None:
    """Names, types, labels and units are what dashboards and alerts are made of: a change shows here."""
    (table,) = (table for table in tables(ROOT / "docs/metrics.md") if table[0][0] == "name")
    assert table[0] == ["name", "type", "labels", "unit", "meaning"]
    assert table[1:] == [
        [
            f"`{family.name}`",
            family.type,
            ", ".join(f"`{label}`" for label in family.labels),
            family.unit,
            family.meaning,
        ]
        for family in (*FAMILIES, *OF_THE_PROCESS)
    ]


# --- docs/architecture.md -----------------------------------------------------------------------

_MODULE = re.compile(r"\b(?:[\w.-]+/)*\w+\.(?:py|pyx|pxd)\b")


def modules() -> set[str]:
    """Every module of xpu_plugin that is somebody's own work, by its path within the package."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and not path.is_relative_to(PACKAGE / "proto")
    }


def test_the_architecture_shows_every_module() -> None:
    pictures = ["\n".join(lines) for fence, lines in parts(ARCHITECTURE) if fence == "```mermaid"]
    assert len(pictures) == 2, "the processes and the data flow"
    rows = [" ".join(row) for table in tables(ARCHITECTURE) for row in table]
    shown = set(_MODULE.findall("\n".join([*pictures[1:], *rows])))
    assert modules() - shown == set()


def test_the_architecture_speaks_of_no_module_that_is_not_there() -> None:
    named = set(_MODULE.findall(ARCHITECTURE.read_text(encoding="utf-8")))
    assert {name for name in named if not (PACKAGE / name).exists() and not (ROOT / name).exists()} == set()


# --- docs/messages.md ---------------------------------------------------------------------------

TEXT_OF = {
    "AddressError": 0,
    "BusyError": 0,
    "_refusal": 0,
    "_warning": 0,
    "argparse.ArgumentTypeError": 0,
    "complaints.append": 0,
    "dict.fromkeys": 1,
    "failures.append": 0,
    "HostError": 0,
    "LibraryError": 0,
    "logger.error": 0,
    "logger.log": 1,
    "logger.warning": 0,
    "MachineError": 0,
    "NoRoomError": 0,
    "problems.append": 0,
    "Refusal": 1,
    "self._complain": 0,
    "StatusError": 0,
    "TooManyStuckError": 0,
    "UnknownHoldersError": 0,
    "UnknownWishError": 0,
    "UnwatchedError": 0,
    "UsageError": 0,
    "warnings.append": 0,
    "WorkerDiedError": 0,
    "WorkerGrownError": 0,
    "WorkerHungError": 0,
    "xpuml.LibraryNotFoundError": 0,
    "xpuml.WrongDeviceError": 0,
}
"""Calls that are given a message, and which argument of theirs it is. `print` to stderr is one more."""

RETURNING = frozenset(
    {
        "_advice",
        "_contradiction",
        "_dropped",
        "_failed",
        "_left_out",
        "_not_listed",
        "_unbound",
        "_without_node",
        "absence",
        "advice",
        "untold",
    }
)
"""Functions that return messages."""

WITHOUT_A_TEXT_OF_THEIR_OWN = {
    "ApiError": "the words of what failed, or of advice",
    "AdmissionError": "said by the stand-in for the kubelet, in a kubelet's words",
    "DriverNotLoadedError": "the library's words, by XpumlError",
    "InitError": "the words of what failed",
    "InvalidArgumentError": "the library's words, by XpumlError",
    "LibraryNotFoundError": "raised as xpuml.LibraryNotFoundError",
    "LibraryUnusableError": "raised by the binding",
    "OutputError": "the system's words",
    "PluginError": "the base, which is not raised itself",
    "StartError": "said by the stand-in for the kubelet, in a kubelet's words",
    "StepError": "the demo shows what it expected and what it saw",
    "WorkerError": "raised by its subclasses only",
    "WrongDeviceError": "raised as xpuml.WrongDeviceError",
    "XpumlError": "the library's words: function, text and code",
    "_RefusedError": "said by the stand-in for the kubelet, in a kubelet's words",
}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for module in modules():
        yield PACKAGE / module, ast.parse((PACKAGE / module).read_text(encoding="utf-8"))


def called(call: ast.Call) -> str:
    return ast.unparse(call.func)


def given(call: ast.Call) -> ast.expr | None:
    """The message that a call is given, if it is given one."""
    if called(call) == "print" and any(ast.unparse(word.value) == "sys.stderr" for word in call.keywords):
        return call.args[0]
    place = TEXT_OF.get(called(call))
    return None if place is None or place >= len(call.args) else call.args[place]


def expressions(tree: ast.Module) -> Iterator[ast.expr]:
    """What stands where messages stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (text := given(node)) is not None:
            yield text
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in RETURNING:
            yield from (own.value for own in ast.walk(node) if isinstance(own, ast.Return) and own.value)


def texts(expression: ast.expr, path: Path) -> Iterator[str]:
    """The message as `plain` has it. What is no literal is somebody else's message, passed on."""
    match expression:
        case ast.Constant(value=str(text)):
            yield re.sub(r"%[srd]", "…", text)
        case ast.JoinedStr(values=values):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else filled_in(part, path)
                for part in values
            )
        case ast.IfExp(body=one, orelse=other):
            yield from (*texts(one, path), *texts(other, path))
        case ast.BinOp():
            pytest.fail(f"{path}:{expression.lineno}: a message in pieces cannot be found by who reads it")


def filled_in(part: ast.expr, path: Path) -> str:
    """What stands at a place in an f-string: a constant of the module, else a placeholder."""
    if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name) and part.value.id.isupper():
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        return str(getattr(module, part.value.id, "…"))
    return "…"


def plain(text: str) -> str:
    """A message with all placeholders alike, be they <this> or `…`."""
    return re.sub(r"…+", "…", re.sub(r"<[^<>]+>", "…", text.strip("`")))


def test_every_message_is_explained() -> None:
    said = {
        plain(text)
        for path, tree in sources()
        for expression in expressions(tree)
        for text in texts(expression, path)
    }
    said |= {plain(re.sub(r"\{[^{}]+\}", "…", text)) for text in texts_of_the_binding()}
    said = {
        text for text in said if re.search(r"\w\w", re.sub(rf"{config.PROGRAM}( \w+)?: ", "", text))
    }  # no mere wrapping
    explained = [plain(row[0]) for table in tables(MESSAGES) if table[0][0] == "message" for row in table[1:]]
    assert {"unknown": set(explained) - said, "missing": said - set(explained)} == {
        "unknown": set(),
        "missing": set(),
    }
    assert sorted(explained) == sorted(set(explained)), "explained twice"


def texts_of_the_binding() -> list[str]:
    """What it raises in its own words for others to pass on."""
    source = (ROOT / "_xpuml/_xpuml.pyx").read_text(encoding="utf-8")
    return re.findall(r'raise xpuml\.\w+\(f"(.+)"\)', source)


def test_no_source_of_messages_is_overlooked() -> None:
    trees = [tree for _, tree in sources()]
    calls = {called(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert TEXT_OF.keys() - calls == set(), "nobody calls these"
    loud = {
        call
        for call in calls
        if re.fullmatch(r"(logger|logging)\.(warn|warning|error|exception|critical)", call)
    }
    assert loud <= TEXT_OF.keys()
    functions = {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert functions >= RETURNING
    errors = {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and re.search(r"(Error|Refusal)$", node.name)
    }
    assert errors - TEXT_OF.keys() == WITHOUT_A_TEXT_OF_THEIR_OWN.keys()


@pytest.mark.parametrize("readme", READMES)
def test_the_samples_have_the_columns_that_commands_print(readme: str) -> None:
    heads = [
        line.split() for fence, lines in parts(ROOT / readme) if fence for line in lines if line.isupper()
    ]
    for columns in ([*list_command._COLUMNS, "holders"], plan._COLUMNS, top._COLUMNS):
        assert [column.upper() for column in columns] in heads


@pytest.mark.parametrize("readme", READMES)
def test_every_sub_command_has_its_exit_status_told(readme: str) -> None:
    (table,) = (table for table in tables(ROOT / readme) if any(row[0] == "`doctor`" for row in table))
    told = {name for row in table[1:] for name in re.findall(r"`([a-z]+)", row[0])}
    assert told == set(cli.COMMANDS)


def test_every_check_of_doctor_is_explained() -> None:
    (table,) = (table for table in tables(MESSAGES) if table[0][0] == "check")
    assert [row[0].strip("`") for row in table[1:]] == [check.name for check in CHECKS]


def test_every_reason_of_ill_health_is_explained() -> None:
    tree = ast.parse(Path(health.__file__).read_text(encoding="utf-8"))
    given_first = [
        node.args[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called(node) == "Health" and node.args
    ]
    reasons = {str(own.value) for own in given_first if isinstance(own, ast.Constant)}
    reasons |= {
        str(getattr(health, own.id)) for own in given_first if isinstance(own, ast.Name) and own.id.isupper()
    }
    reasons |= set(health._KL2_STATES.values())
    (table,) = (table for table in tables(MESSAGES) if table[0][0] == "reason")
    assert sorted(row[0].strip("`") for row in table[1:]) == sorted(reasons)
