# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin top`: the measurements of this node's devices, in place on a terminal."""

import argparse
import asyncio
import json
import os
import shutil
import sys
from typing import Any

from xpu_plugin.commands.output import pause, table
from xpu_plugin.commands.source import Either, Source
from xpu_plugin.config import PROGRAM, TOP_OPTIONS, Config, Parser, read_config
from xpu_plugin.edges.worker.client import LibraryError, WorkerError
from xpu_plugin.xpuml import XpumlError


REFRESH_SECONDS = 2.0  # asked more often, the plugin returns its last measurements
_COLUMNS = ("id", "path", "memory", "used", "xpu", "temp", "power", "clock", "processes", "health")
_MIB = 1 << 20
_FULL_SCREEN, _NORMAL_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def main(arguments: list[str]) -> int:
    """Return the exit status: 0, also by Ctrl-C; 1 without readings, 2 bad usage."""
    parser = Parser(
        prog=f"{PROGRAM} top",
        description="Show the measurements of this node's devices, every two seconds on a terminal, else "
        "once. The plugin that runs behind --status-socket answers; without one, a process of its own asks "
        "the "
        "library, and opens each device for an instant. Power is the driver's number: watts or milliwatts, "
        "by "
        "release.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON once, additive only")
    parser.add_argument("--once", action="store_true", help="print once, also on a terminal")
    config, namespace, warnings = read_config(arguments, os.environ, options=TOP_OPTIONS, parser=parser)
    for warning in warnings:
        print(f"{PROGRAM}: {warning}", file=sys.stderr)
    return asyncio.run(_top(config, namespace))


async def _top(config: Config, options: argparse.Namespace) -> int:
    source = Either(config)
    try:
        if options.json or options.once or not sys.stdout.isatty():
            return await _once(source, as_json=options.json)
        return await _in_place(source)
    finally:
        await source.close()


async def _once(source: Source, *, as_json: bool) -> int:
    answer, trouble = await _answer(source)
    if trouble:
        print(f"{PROGRAM}: no readings: {trouble}", file=sys.stderr)
        return 1
    print(json.dumps({"devices": _records(answer)}, indent=2) if as_json else _table(answer))
    return 0


async def _in_place(source: Source) -> int:
    """Refresh until Ctrl-C; the last output stays on the screen."""
    shown = ""
    print(_FULL_SCREEN, end="")
    try:
        while True:
            answer, trouble = await _answer(source)
            shown = f"no readings: {trouble}" if trouble else _table(answer)
            most = max(shutil.get_terminal_size().lines - 1, 1)
            screen = "".join(f"{line}{_END_OF_LINE}\n" for line in shown.splitlines()[:most])
            print(f"{_HOME}{screen}{_END_OF_SCREEN}", end="")
            sys.stdout.flush()
            await pause(REFRESH_SECONDS)
    except asyncio.CancelledError:
        return 0
    finally:
        print(_NORMAL_SCREEN + shown)


async def _answer(source: Source) -> tuple[dict[str, Any], str | None]:
    """Return devices and readings, or the reason why there are none."""
    try:
        answer: dict[str, Any] = await source.ask("top")
    except (WorkerError, LibraryError, XpumlError) as error:
        return {}, str(error)
    missing = None if answer["readings"] or not answer["devices"] else "the library has reported none"
    return answer, answer.get("trouble") or missing


def _records(answer: dict[str, Any]) -> list[dict[str, object]]:
    """Return the measurements with the names of their devices."""
    names = ("id", "card", "model", "path", "health", "reason")
    return [
        {name: device[name] for name in names} | _measured(answer["readings"].get(device["id"], {}))
        for device in answer["devices"]
    ]


def _measured(reading: dict[str, object]) -> dict[str, object]:
    names = (
        "memory_used_bytes", "memory_total_bytes", "utilization_percent", "temperature_celsius", "power",
        "clock_mhz", "processes",
    )  # fmt: skip
    return {name: reading.get(name) for name in names}


def _table(answer: dict[str, Any]) -> str:
    rows = [
        (
            device["id"],
            device["path"],
            _mib(reading.get("memory_total_bytes")),
            _mib(reading.get("memory_used_bytes")),
            _with_unit(reading.get("utilization_percent"), "%"),
            _with_unit(reading.get("temperature_celsius"), "C"),
            _with_unit(reading.get("power"), ""),
            _with_unit(reading.get("clock_mhz"), "MHz"),
            _with_unit(reading.get("processes"), ""),
            device["reason"] or device["health"],
        )
        for device in answer["devices"]
        for reading in (answer["readings"].get(device["id"], {}),)
    ]
    return table(_COLUMNS, rows, "no devices")


def _mib(number: int | None) -> str:
    return "-" if number is None else f"{number / _MIB:.0f}Mi"


def _with_unit(number: int | None, unit: str) -> str:
    return "-" if number is None else f"{number}{unit}"
