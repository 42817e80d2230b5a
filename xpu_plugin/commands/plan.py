# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin plan`: the planned changes of VFs of this node's cards."""

import asyncio
import json
import os
import sys
from typing import Any

from xpu_plugin.commands.output import table
from xpu_plugin.commands.source import Either, UnknownDesiredVfsError
from xpu_plugin.config import PLAN_OPTIONS, PROGRAM, Config, Parser, read_config
from xpu_plugin.edges.worker.client import LibraryError, WorkerError
from xpu_plugin.model.vf_plan import VfState
from xpu_plugin.xpuml import XpumlError


_COLUMNS = ("card", "desired", "actual", "action", "reason")
_STATUS = {VfState.SUCCESS: 0, VfState.PENDING: 3, VfState.BLOCKED: 4, VfState.FAILED: 4}


def main(arguments: list[str]) -> int:
    """Return the exit status: 0 no change, 3 changes, 4 a card is blocked or fails, 1 unknown, 2 bad
    usage."""
    parser = Parser(
        prog=f"{PROGRAM} plan",
        description="Show the planned changes of VFs on this node, and change nothing. The plugin that runs "
        "behind --status-socket reports its desired VF count and its actions; with --sriov-num-vfs, the "
        "actions for that number. Without a running plugin the number is --sriov-num-vfs if given, else the "
        "node's label if it can be read, else the default. Then a process of its own asks the library, and "
        "opens each device for an instant.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, additive only")
    config, namespace, warnings = read_config(arguments, os.environ, options=PLAN_OPTIONS, parser=parser)
    for warning in warnings:
        print(f"{PROGRAM}: {warning}", file=sys.stderr)
    try:
        answer = asyncio.run(_plan(config, namespace.sriov_num_vfs))
    except (UnknownDesiredVfsError, WorkerError, LibraryError, XpumlError) as error:
        print(f"{PROGRAM}: cannot plan: {error}", file=sys.stderr)
        return 1
    if "trouble" in answer:
        print(f"{PROGRAM}: cannot plan: {answer['trouble']}", file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2) if namespace.json else _text(answer))
    return _STATUS[VfState(answer["state"])]


def _text(answer: dict[str, Any]) -> str:
    desired = answer["desired"]
    origin = f"by {desired['origin']}" if desired["origin"] else "until a number is known"
    rows = [
        (card["address"], str(card["desired"]), str(card["actual"]), card["action"], card["reason"] or "-")
        for card in answer["cards"]
    ]
    problem = f"; {desired['problem']}" if desired["problem"] else ""
    first = f"desired VF count: {desired['number']}, {origin}{problem}"
    witnesses = answer.get("witnesses")  # older releases lack them
    last = ""
    if isinstance(witnesses, dict) and witnesses:
        last = "\nkubelet: " + "; ".join(f"{name} {state}" for name, state in witnesses.items())
    return f"{first}\n{table(_COLUMNS, rows, 'no cards')}{last}"


async def _plan(config: Config, number: str | None) -> dict[str, Any]:
    source = Either(config)
    try:
        answer: dict[str, Any] = await source.ask("plan", number=number)
        return answer
    finally:
        await source.close()
