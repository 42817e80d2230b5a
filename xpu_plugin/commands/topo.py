# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin topo`: the connections between this node's cards."""

import asyncio
import json
import os
import sys
from typing import Any

from xpu_plugin.commands.output import aligned
from xpu_plugin.commands.source import Either
from xpu_plugin.config import PROGRAM, TOPO_OPTIONS, Config, Parser, UsageError, read_config
from xpu_plugin.edges.option_file import OptionFileError
from xpu_plugin.edges.worker.client import LibraryError, WorkerError
from xpu_plugin.loops.links import NoLinksError
from xpu_plugin.model.topology import LEGEND
from xpu_plugin.xpuml import XpumlError


def main(arguments: list[str]) -> int:
    """Return the exit status: 0, also without a card; 1 if the library does not answer, 2 bad usage."""
    parser = Parser(
        prog=f"{PROGRAM} topo",
        description="Show how this node's cards are connected, and the link groups by which containers get "
        "several cards. The plugin that runs behind --status-socket answers, by its own options; without "
        "one, a process of its own asks the library, and opens each device for an instant.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, additive only")
    config, namespace, warnings = read_config(arguments, os.environ, options=TOPO_OPTIONS, parser=parser)
    for warning in warnings:
        print(f"{PROGRAM}: {warning}", file=sys.stderr)
    try:
        answer = asyncio.run(_topo(config))
    except OptionFileError as error:
        raise UsageError(str(error)) from None
    except (NoLinksError, WorkerError, LibraryError, XpumlError) as error:
        print(f"{PROGRAM}: cannot show the topology: {error}", file=sys.stderr)
        return 1
    if trouble := answer.pop("trouble", None):
        print(f"{PROGRAM}: the running plugin has trouble: {trouble}", file=sys.stderr)
        if not answer["cards"]:
            return 1
    print(json.dumps(answer, indent=2) if namespace.json else _text(answer))
    return 0


def _text(answer: dict[str, Any]) -> str:
    cards = answer["cards"]
    if not cards:
        return "no cards"
    names = [_name(card) for card in cards]
    rows = [
        (
            name,
            *(card["links"].get(other["card"], "-") for other in cards),
            "-" if card["numa"] is None else str(card["numa"]),
            card["switch"] or "-",
            card["group"] or "-",
            card["card"],
        )
        for name, card in zip(names, cards, strict=True)
    ]
    matrix = aligned([("", *names, "NUMA", "SWITCH", "GROUP", "CARD"), *rows])
    legend = aligned([(str(level), text) for level, text in LEGEND.items()])
    return f"{matrix}\n\nlink groups by {answer['source']}\n{legend}"


def _name(card: dict[str, Any]) -> str:
    """Return the name of a card's first node, `xpu2`."""
    paths = sorted(card["paths"], key=lambda path: (len(path), path))
    return paths[0].rpartition("/")[2] if paths else "-"


async def _topo(config: Config) -> dict[str, Any]:
    source = Either(config)
    try:
        answer: dict[str, Any] = await source.ask("topo")
        return answer
    finally:
        await source.close()
