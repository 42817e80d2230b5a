# SPDX-License-Identifier: Apache-2.0
"""The rules for the kernel's log: a line -> the card that it is about, and its meaning."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from xpu_plugin.frozen import frozen


LONGEST_TEXT = 300
"""Characters of a line that are kept; an Event has 1024 bytes."""

PODS, IDLE = "pods", "idle"
_REASON = r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?"
_PATTERN = frozenset({"reason", "text", "sick", "reset"})
_RULES = frozenset(
    {
        *("facility", "together_seconds", "pods", "window_seconds", "idle_seconds"),
        *("address", "process", "pattern"),
    }
)
_LONGEST_WINDOW = 30 * 86400.0
_MOST_FACILITY = 1023
_LONGEST_PID = 7  # digits; the kernel's most is 4194304


@frozen
class Pattern:
    """Lines with one meaning."""

    reason: str
    expression: re.Pattern[str]
    of_pods: bool  # incidents of different pods make a card sick
    of_idle: bool  # a line without a holder makes a card sick
    reset: bool  # the card was reset


@frozen
class Line:
    """A line about a card."""

    card: str  # the PCI address without the function
    reason: str
    text: str
    at: float = 0.0  # seconds of the monotonic clock
    number: int = 0  # the record's; it grows until the next boot
    pid: int | None = None  # of the process that it names, in the host's numbers
    of_pods: bool = False  # as in Pattern
    of_idle: bool = False
    reset: bool = False


@frozen
class Rules:
    """The lines that count, and the numbers of the rule. docs/health.md has the rule."""

    facility: int  # of records that count
    together: float  # seconds from the first line of an incident to its last one
    pods: int
    window: float  # seconds
    idle: float  # seconds
    address: re.Pattern[str]  # with the group `card`
    process: re.Pattern[str]  # with the group `pid`
    patterns: tuple[Pattern, ...]

    def line(self, text: str, *, at: float = 0.0, number: int = 0) -> Line | None:
        """Return the meaning of a record's text; None if it is about no card, or matches no pattern."""
        if (found := self.address.search(text)) is None or not found["card"]:
            return None
        for pattern in self.patterns:
            if pattern.expression.search(text) is not None:
                process = self.process.search(text)
                return Line(
                    card=found["card"].lower(),
                    reason=pattern.reason,
                    text=text[:LONGEST_TEXT],
                    at=at,
                    number=number,
                    pid=int(process["pid"]) if process and _is_pid(process["pid"]) else None,
                    of_pods=pattern.of_pods,
                    of_idle=pattern.of_idle,
                    reset=pattern.reset,
                )
        return None


def parse(document: Mapping[str, Any]) -> Rules:
    """Return the rules of a TOML document. Raises ValueError: the key, its value and the accepted ones."""
    _known("", document, _RULES)
    patterns = _key(document, "pattern")
    if not isinstance(patterns, list) or not patterns:
        _refuse("pattern", patterns, "at least one table [[pattern]]")
    return Rules(
        facility=int(_number(document, "facility", 0, _MOST_FACILITY, whole=True)),
        together=_number(document, "together_seconds", 0.1, 600),
        pods=int(_number(document, "pods", 2, 16, whole=True)),
        window=_number(document, "window_seconds", 1, _LONGEST_WINDOW),
        idle=_number(document, "idle_seconds", 1, _LONGEST_WINDOW),
        address=_expression(document, "address", group="card"),
        process=_expression(document, "process", group="pid"),
        patterns=_patterns(patterns),
    )


def _patterns(tables: Sequence[Any]) -> tuple[Pattern, ...]:
    found: dict[str, Pattern] = {}
    for number, table in enumerate(tables, 1):
        where = f"pattern {number}: "
        if not isinstance(table, dict):
            _refuse(f"pattern {number}", table, "a table")
        _known(where, table, _PATTERN)
        reason = _key(table, "reason", where)
        if not isinstance(reason, str) or not re.fullmatch(_REASON, reason):
            _refuse(f"{where}reason", reason, "lower-case letters, digits and -, up to 40 of them")
        if reason in found:
            _refuse(f"{where}reason", reason, "another reason for each pattern")
        sick, reset = table.get("sick", []), table.get("reset", False)
        if not isinstance(sick, list) or not all(word in (PODS, IDLE) for word in sick):
            _refuse(f"{where}sick", sick, f'a list of "{PODS}", "{IDLE}" or both')
        if not isinstance(reset, bool) or (reset and sick):
            _refuse(f"{where}reset", reset, "true or false, and true only without `sick`")
        found[reason] = Pattern(
            reason=reason,
            expression=_expression(table, "text", where),
            of_pods=PODS in sick,
            of_idle=IDLE in sick,
            reset=reset,
        )
    return tuple(found.values())


def _is_pid(text: str | None) -> bool:
    """Return whether a group of the administrator's expression has found a process id."""
    return text is not None and text.isascii() and text.isdigit() and len(text) <= _LONGEST_PID


def _known(where: str, table: Mapping[str, Any], keys: frozenset[str]) -> None:
    for key in table:
        if key not in keys:
            _refuse(f"{where}the key", key, ", ".join(sorted(keys)))


def _key(table: Mapping[str, Any], key: str, where: str = "") -> Any:
    if key not in table:
        raise ValueError(f"{where}{key}: missing; accepted: a value for it, as in the plugin's own rules")
    return table[key]


def _number(table: Mapping[str, Any], key: str, least: float, most: float, *, whole: bool = False) -> float:
    value = _key(table, key)
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        _refuse(key, value, f"a {'whole ' if whole else ''}number from {least:g} to {most:.10g}")
    return float(value)


def _expression(
    table: Mapping[str, Any], key: str, where: str = "", *, group: str | None = None
) -> re.Pattern[str]:
    value = _key(table, key, where)
    accepted = f"a regular expression{f' with a group (?P<{group}>...)' if group else ''}"
    if not isinstance(value, str) or not value:
        _refuse(f"{where}{key}", value, accepted)
    try:
        expression = re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        _refuse(f"{where}{key}", value, f"{accepted} ({error})")
    if group is not None and group not in expression.groupindex:
        _refuse(f"{where}{key}", value, accepted)
    return expression


def _refuse(where: str, value: object, accepted: str) -> NoReturn:
    text = repr(value)
    shown = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
    raise ValueError(f"{where}: {shown} is not accepted; accepted: {accepted}")
