# SPDX-License-Identifier: Apache-2.0
"""What a check says."""

from collections.abc import Callable, Iterable
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model.checks.evidence import Evidence


class Verdict(StrEnum):
    """The worst last."""

    SKIPPED = "skipped"
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@frozen
class Finding:
    """evidence: what was seen, a sentence; advice: the next step, where there is one to take"""

    verdict: Verdict
    evidence: str
    advice: str = ""


@frozen
class Check:
    """name: stable, for programs; about: what it looks at"""

    name: str
    about: str
    judge: Callable[[Evidence], Finding]


def ok(evidence: str) -> Finding:
    return Finding(verdict=Verdict.OK, evidence=evidence)


def skipped(evidence: str, advice: str = "") -> Finding:
    return Finding(verdict=Verdict.SKIPPED, evidence=evidence, advice=advice)


def warning(evidence: str, advice: str) -> Finding:
    return Finding(verdict=Verdict.WARNING, evidence=evidence, advice=advice)


def error(evidence: str, advice: str) -> Finding:
    return Finding(verdict=Verdict.ERROR, evidence=evidence, advice=advice)


_STATUS = {Verdict.SKIPPED: 0, Verdict.OK: 0, Verdict.WARNING: 1, Verdict.ERROR: 3}


def exit_status(findings: Iterable[Finding]) -> int:
    """0 when nothing is wrong, 1 with warnings, 3 with errors."""
    return max((_STATUS[finding.verdict] for finding in findings), default=0)
