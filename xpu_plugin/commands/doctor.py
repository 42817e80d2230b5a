# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin doctor`: check everything that a node needs, with a next step for each finding."""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence

from xpu_plugin.commands.collect import collect
from xpu_plugin.config import DOCTOR_OPTIONS, PROGRAM, Parser, read_config
from xpu_plugin.doctor.finding import Check, Finding, Verdict, exit_status
from xpu_plugin.doctor.registry import diagnose


Findings = Sequence[tuple[Check, Finding]]


def main(arguments: list[str]) -> int:
    """Return the exit status: 0 nothing is wrong, 1 warnings, 3 errors, 2 bad usage."""
    parser = Parser(
        prog=f"{PROGRAM} doctor",
        description="Check once everything that XPUs on this node need, and change nothing. The plugin that "
        "runs behind --status-socket answers; without one, a process of its own asks the library, and opens "
        "each device for an instant.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, additive only")
    config, namespace, warnings = read_config(arguments, os.environ, options=DOCTOR_OPTIONS, parser=parser)
    for warning in warnings:
        print(f"{PROGRAM}: {warning}", file=sys.stderr)
    findings = diagnose(asyncio.run(collect(config)))
    print(json.dumps(document(findings), indent=2) if namespace.json else text(findings))
    return exit_status(finding for _, finding in findings)


def document(findings: Findings) -> dict[str, object]:
    """Return the JSON. Its names are an interface for programs: none is renamed or removed."""
    return {
        "status": exit_status(finding for _, finding in findings),
        "checks": [
            {
                "name": check.name,
                "about": check.about,
                "verdict": str(finding.verdict),
                "evidence": finding.evidence,
                "advice": finding.advice,
            }
            for check, finding in findings
        ],
    }


def text(findings: Findings) -> str:
    """Return the text: a line for each check, the next step below it, and the number of each verdict."""
    width = max(len(check.name) for check, _ in findings)
    lines = []
    for check, finding in findings:
        lines.append(f"{finding.verdict:<8} {check.name:<{width}}  {finding.evidence}")
        if finding.advice:
            lines.append(f"{'':<8} {'':<{width}}  next: {finding.advice}")
    number = Counter(finding.verdict for _, finding in findings)
    counts = ", ".join(f"{number[verdict]} {verdict}" for verdict in reversed(Verdict) if number[verdict])
    return "\n".join([*lines, f"{len(findings)} checks: {counts}"])
