# SPDX-License-Identifier: Apache-2.0
"""Sub-commands against a status socket of another release, or of another program."""

import contextlib
import json
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.machines import make_machine, settings_of
from xpu_plugin.cli import main
from xpu_plugin.commands.shapes import MOST, SHAPES, Each, misfit, shown


COMMANDS = (
    "list", "list --wide", "list --json", "plan", "plan --json", "top --once", "top --json", "topo",
    "topo --json", "doctor", "doctor --json",
)  # fmt: skip
ESCAPES = "\x1b[31mEVIL\n\x1b]0;x\x07\udcff"
STRANGE: list[Any] = [
    None, True, 5, 1.5, "x", [], [1], {}, {"devices": None}, [{}],
    {"devices": [None], "problems": [], "trouble": None},
    {"devices": [{"id": "x"}], "problems": [], "trouble": None},
    {"desired": {"number": 0, "origin": "", "problem": ""}, "state": "odd", "cards": []},
    {"trouble": 5},
]  # fmt: skip

Says = Callable[[Callable[[str], object]], None]


@pytest.fixture
def node(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The status socket of a node, with a simulated machine; options come by the environment."""
    for name, value in settings_of(make_machine(place), place).items():
        monkeypatch.setenv(name, value)
    return place / "status.sock"


@pytest.fixture
def says(node: Path) -> Iterator[Says]:
    """Sets what is answered at the status socket, by the name of the question."""
    answer: list[Callable[[str], object]] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(node))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, connection.makefile("rwb") as stream:
                        name = json.loads(stream.readline())["ask"]
                        stream.write(json.dumps(answer[-1](name)).encode() + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield answer.append
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    captured = capsys.readouterr()
    assert all(line.isprintable() for line in (captured.out + captured.err).splitlines())
    return captured


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_of_another_shape_is_one_line_and_the_library_is_asked(
    command: str, says: Says, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = []
    for strange in STRANGE:
        says(lambda _, strange=strange: {"answer": strange})  # type: ignore[misc]
        status = main(command.split())
        out, err = printed(capsys)
        (line,) = err.splitlines()
        assert "no running plugin answers: another release of the plugin, or another program: " in line
        alone.append((status, out if "doctor" not in command else ""))
    assert set(alone) == {alone[0]}
    assert alone[0][0] in (0, 3)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_refusal_cannot_write_to_the_terminal(
    command: str, says: Says, capsys: pytest.CaptureFixture[str]
) -> None:
    says(lambda _: {"error": ESCAPES})
    assert main(command.split()) in (0, 3)
    assert "EVIL" in printed(capsys)[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_with_no_more_than_its_shape_is_shown(
    command: str, says: Says, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sub-command reads nothing that a plugin of its own shape may lack, and shows no text as it is."""
    name = command.partition(" -")[0] if command != "list --wide" else "list wide"

    def answer(question: str) -> object:
        return {"answer": smallest(SHAPES[name if question == name.partition(" ")[0] else question])}

    says(answer)
    assert main(command.split()) in (0, 1, 3)
    out, err = printed(capsys)
    assert "no running plugin" not in err
    assert "EVIL" in out + err


def smallest(shape: Any) -> Any:
    """A value of the shape, with nothing beyond."""
    if isinstance(shape, dict):
        return {key: smallest(own) for key, own in shape.items()}
    if isinstance(shape, Each):
        return {ESCAPES: smallest(shape.shape)}
    if isinstance(shape, list):
        return [smallest(shape[0])]
    return {str: ESCAPES, int: 1, bool: True, object: None}.get(shape[0], shape[0])


def test_a_bundle_has_what_fits_and_leaves_out_the_rest(
    node: Path, says: Says, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, answer in enumerate((5, smallest(SHAPES["decisions"]))):
        says(lambda _, answer=answer: {"answer": answer})  # type: ignore[misc]
        file = node.parent / f"{number}.tar.gz"
        assert main(["bundle", f"--output={file}"]) == 0
        with tarfile.open(file) as archive:
            names = {Path(name).name for name in archive.getnames()}
        assert ("decisions.json" in names) == (number == 1)
        assert "state.json" not in names
        assert "another program" in printed(capsys)[1]


@pytest.mark.parametrize("answer", [None, 5, [], {}, "yes", 1])
def test_clear_takes_yes_and_no_only(answer: object, says: Says, capsys: pytest.CaptureFixture[str]) -> None:
    says(lambda _: {"answer": answer})
    assert main(["clear", ESCAPES]) == 1
    assert "not a running plugin" in printed(capsys)[1]


@pytest.mark.parametrize("answer", [True, False])
def test_clear_shows_the_id_as_one_line(answer: bool, says: Says, capsys: pytest.CaptureFixture[str]) -> None:
    says(lambda _: {"answer": answer})
    assert main(["clear", ESCAPES]) == 1 - answer
    assert len("".join(printed(capsys)).splitlines()) == 1


def test_a_socket_that_may_not_be_looked_at_is_told(
    node: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (node.parent / "loop").symlink_to("loop")
    for path, why in ((node.parent / "loop/s", "Too many levels"), (node.parent, "Connection refused")):
        monkeypatch.setenv("XPU_PLUGIN_STATUS_SOCKET", str(path))
        assert main(["list"]) == 0
        assert f"no running plugin answers: {path}: {why}" in printed(capsys)[1]


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"decisions"}))
def test_each_key_of_a_shape_has_to_be_there_and_of_its_kind(name: str) -> None:
    whole = smallest(SHAPES[name])
    assert misfit(whole, SHAPES[name]) is None
    for *parents, key in paths(whole):
        document = json.loads(json.dumps(whole))
        holder = document
        for parent in parents:
            holder = holder[parent]
        holder[key] = 1.5
        assert misfit(document, SHAPES[name]) is not None
        if isinstance(holder, dict) and key != ESCAPES:
            del holder[key]
            assert misfit(document, SHAPES[name]) is not None


def paths(document: Any) -> Iterator[tuple[Any, ...]]:
    """Of all that is within."""
    parts = document.items() if isinstance(document, dict) else enumerate(document)
    for key, own in parts:
        yield (key,)
        if isinstance(own, dict | list):
            yield from ((key, *rest) for rest in paths(own))


@pytest.mark.parametrize(
    ("value", "shape", "fits"),
    [
        (1, (int,), True),
        (True, (int,), False),
        (MOST, (int,), False),
        (-MOST, (int,), False),
        (1.0, (int,), False),
        (None, (int, type(None)), True),
        ("blocked", ("blocked", "failed"), True),
        ("odd", ("blocked", "failed"), False),
        ([], ("blocked", "failed"), False),
        ({"a": 1, "more": 2}, {"a": (int,)}, True),
        ({"a": "1"}, Each((int,)), False),
        ([1, "1"], [(int,)], False),
    ],
)
def test_what_fits(value: object, shape: Any, fits: bool) -> None:
    assert (misfit(value, shape) is None) == fits


def test_texts_are_shown_printable_wherever_they_are() -> None:
    assert shown({"\x1b": ["é\n", {"a": "\udcff"}, 1, None]}) == {
        "\\u001b": ["é\\n", {"a": "\\udcff"}, 1, None]
    }
