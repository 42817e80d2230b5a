# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin list`: this node's devices as the plugin offers them, or would."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from xpu_plugin.commands.output import pause, table
from xpu_plugin.commands.source import Either
from xpu_plugin.config import LIST_OPTIONS, PROGRAM, Config, Parser, read_config
from xpu_plugin.edges.worker.client import LibraryError, WorkerError
from xpu_plugin.model.device_table import Row
from xpu_plugin.xpuml import XpumlError


WATCH_SECONDS = 1.0  # between looks of --watch
_COLUMNS = ("id", "kind", "model", "path", "numa", "memory", "health", "reason", "resource")
_GIB = 1 << 30


def main(arguments: list[str]) -> int:
    """Return the exit status: 0, also without a device; 1 if the library does not answer, 2 bad usage."""
    parser = Parser(
        prog=f"{PROGRAM} list",
        description="List this node's devices. The plugin that runs behind --status-socket answers, by its "
        "own options; without one, a process of its own asks the library, and opens each device for an "
        "instant.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, additive only")
    parser.add_argument(
        "--all",
        action="store_true",
        help="also PFs that have VFs, denied devices, and device nodes that the library does not list",
    )
    parser.add_argument("--wide", action="store_true", help="also which containers hold each device")
    parser.add_argument("--watch", action="store_true", help="print again on each change, until Ctrl-C")
    config, namespace, warnings = read_config(arguments, os.environ, options=LIST_OPTIONS, parser=parser)
    for warning in warnings:
        print(f"{PROGRAM}: {warning}", file=sys.stderr)
    try:
        return asyncio.run(_list(config, namespace))
    except KeyboardInterrupt:
        if not namespace.watch:
            raise
        return 0


async def _list(config: Config, options: argparse.Namespace) -> int:
    source = Either(config)
    printed: tuple[str, ...] = ()
    try:
        while True:
            text, status = "", 0
            complaints: list[str] = []
            try:
                answer = await source.ask("list", wide=options.wide)
                text, complaints = _shown(answer, options)
                if not answer["devices"] and answer.get("trouble"):
                    text, status = "", 1
            except (WorkerError, LibraryError, XpumlError) as error:
                complaints.append(f"{PROGRAM}: cannot list devices: {error}")
                status = 1
            if (text, *complaints) != printed:
                for complaint in complaints:
                    print(complaint, file=sys.stderr)
                if text:
                    print("\n" * bool(printed) + text, flush=True)
                printed = (text, *complaints)
            if not options.watch:
                return status
            await pause(WATCH_SECONDS)
    finally:
        await source.close()


def _shown(answer: dict[str, Any], options: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the text of an answer, and complaints."""
    nodes = answer.get("unlisted", [])  # another release may lack it
    complaints = [
        _not_listed(problem)
        for problem in (*answer["problems"], *(f"{node['path']}: {node['why']}" for node in nodes))
    ]
    if (trouble := answer.get("trouble")) and answer["devices"]:
        complaints.append(f"{PROGRAM}: as it was last, as the running plugin has trouble: {trouble}")
    elif trouble:
        complaints.append(f"{PROGRAM}: cannot list devices: {trouble}")
    found = [Row(**{name: record[name] for name in Row.__dataclass_fields__}) for record in answer["devices"]]
    rows = [row for row in found if options.all or row.offered_as is not None]
    held = answer.get("holders")
    if options.json:
        shown: dict[str, object] = {"devices": [_record(row, held) for row in rows]}
        return json.dumps(
            shown | ({"unlisted": nodes} if options.all and nodes else {}), indent=2
        ), complaints
    columns = _COLUMNS if held is None else (*_COLUMNS, "holders")
    cells = [_row(row, held) for row in rows]
    if options.all:
        paths = {row.path for row in rows}
        cells += [_node(node, columns) for node in nodes if node["path"] not in paths]
    return table(columns, cells, "no devices"), complaints


def _not_listed(problem: str) -> str:
    return f"{PROGRAM}: not listed: {problem}"


def _record(row: Row, held: dict[str, list[str]] | None) -> dict[str, object]:
    record = {name: getattr(row, name) for name in Row.__dataclass_fields__}
    return record if held is None else record | {"holders": list(held.get(row.id, ()))}


def _node(node: dict[str, str], columns: Sequence[str]) -> tuple[str, ...]:
    """Show a device node that the library does not list; it has no other facts."""
    known = {"path": node["path"], "reason": "not-listed"}
    return tuple(known.get(column, "-") for column in columns)


def _row(row: Row, held: dict[str, list[str]] | None) -> tuple[str, ...]:
    offered = row.offered_as
    resource = "-" if offered is None else row.resource
    cells = (
        row.id,
        row.kind,
        row.model,
        row.path,
        "-" if row.numa is None else str(row.numa),
        f"{row.memory_bytes / _GIB:.1f}Gi" if row.memory_bytes else "-",
        row.health,
        row.reason or "-",
        resource if offered in (None, row.id) else f"{resource} as {offered}",
    )
    return cells if held is None else (*cells, ",".join(held.get(row.id, ())) or "-")
