# SPDX-License-Identifier: Apache-2.0
"""The rules for the kernel's log: the plugin's own, and a file that is not accepted."""

import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from xpu_plugin.edges.kernel_log_rules import DEFAULT_RULES, read_rules
from xpu_plugin.model.kernel_log_rules import parse
from xpu_plugin.simulation.kernel_log import Trouble, kernel_log_lines


RULES = read_rules(None)
HANG = kernel_log_lines("0000:16:00.0", Trouble.HANG)
[RESET] = kernel_log_lines("0000:16:00.0", Trouble.RESET)
FAULT, *_ = kernel_log_lines("0000:16:00.0", Trouble.PROGRAM)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HANG[0], None),
        (HANG[1], ("noc-idle-timeout", None, True, True)),
        (HANG[2], ("kernel-exception", 4242, False, True)),
        (FAULT, ("kernel-exception", 4242, False, True)),
        (HANG[3], ("task-timeout", None, False, True)),
        (
            "KLRM: Xid (PCI:0000:16:00): 0, pid=4242, name=python, KL_XID_KERNEL_EXCEPTION, ch=0",
            ("kernel-exception", 4242, False, True),
        ),
        ("KLRM: Xid (PCI:0000:16:00): 7, pid=4242, name=python, OTHER", ("xid", 4242, False, True)),
        ("NVRM: Xid (PCI:0000:16:00): 13, pid=4242, name=python", None),
        ("kl3_wait_for_noc_idle() timeout", None),
    ],
)
def test_lines_from_the_field(text: str, expected: tuple[object, ...] | None) -> None:
    line = RULES.line(text, at=1.0, number=2)
    if expected is None:
        assert line is None
    else:
        assert line is not None
        assert (line.card, line.at, line.number) == ("0000:16:00", 1.0, 2)
        assert (line.reason, line.pid, line.of_pods, line.of_idle) == expected


def test_a_reset_is_no_incident() -> None:
    line = RULES.line(RESET)
    assert line is not None
    assert line.reset


@pytest.mark.parametrize("text", ["", "pid=x", "pid=12345678", "pid=\u0662"])
def test_an_expression_of_an_administrator_may_find_no_process_id(text: str) -> None:
    rules = parse({**document(), "process": "(pid=(?P<pid>.*))?", "address": "(card (?P<card>c))?"})
    assert rules.line(f"kl3_wait_for_noc_idle() timeout {text}") is None
    assert rules.line(f"card c kl3_wait_for_noc_idle() timeout {text}") is not None


def document() -> dict[str, Any]:
    return tomllib.loads(DEFAULT_RULES.read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own.pop("pods"), "pods: missing"),
        (lambda own: own.update(pods=1), "pods: 1 is not accepted; accepted: a whole number from 2 to 16"),
        (lambda own: own.update(pods=2.5), "a whole number"),
        (lambda own: own.update(pods=True), "a whole number"),
        (lambda own: own.update(window_seconds=float("nan")), "window_seconds: nan is not accepted"),
        (lambda own: own.update(facility=-1), "facility: -1 is not accepted"),
        (lambda own: own.update(windows=1), "the key: 'windows' is not accepted; accepted: address, "),
        (lambda own: own.update(address="PCI"), r"with a group \(\?P<card>...\)"),
        (lambda own: own.update(address="(?P<card>"), "unterminated"),
        (lambda own: own.update(pattern=[]), "at least one table"),
        (lambda own: own.update(pattern=[1]), "pattern 1: 1 is not accepted; accepted: a table"),
        (lambda own: own["pattern"][1].pop("text"), "pattern 2: text: missing"),
        (lambda own: own["pattern"][1].update(reason="No Good"), "pattern 2: reason: 'No Good'"),
        (lambda own: own["pattern"][1].update(reason="noc-idle-timeout"), "another reason for each"),
        (lambda own: own["pattern"][0].update(sick="pods"), "pattern 1: sick: 'pods'"),
        (lambda own: own["pattern"][0].update(sick=["pod"]), "pattern 1: sick"),
        (lambda own: own["pattern"][0].update(reset=True), "only without `sick`"),
        (lambda own: own["pattern"][0].update(color="red"), "pattern 1: the key: 'color'"),
    ],
)
def test_what_is_not_accepted_is_told_with_its_place(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    given = document()
    change(given)
    with pytest.raises(ValueError, match=message):
        parse(given)
