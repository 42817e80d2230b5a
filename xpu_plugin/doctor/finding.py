# SPDX-License-Identifier: Apache-2.0
"""The result of a check."""

from collections.abc import Callable, Iterable
from enum import StrEnum

from xpu_plugin.doctor.evidence import Evidence
from xpu_plugin.frozen import frozen


class Verdict(StrEnum):
    """The verdicts, the worst last."""

    SKIPPED = "skipped"
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@frozen
class Finding:
    """The result of one check."""

    verdict: Verdict
    evidence: str  # a sentence about the facts
    advice: str = ""  # the next step, or empty


@frozen
class Check:
    """One check."""

    name: str  # stable, for programs
    about: str  # its subject
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
    """Return 0 if nothing is wrong, 1 with warnings, 3 with errors."""
    return max((_STATUS[finding.verdict] for finding in findings), default=0)
