# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin list`: what this node has, as the plugin would offer it."""

import asyncio
import json
import os
import sys

from xpu_plugin.commands.output import print_table, scanned
from xpu_plugin.config import LIST_OPTIONS, PROGRAM, Config, Parser, read_config
from xpu_plugin.daemon import policy, target
from xpu_plugin.edges.driver import Driver, LibraryError, WorkerError
from xpu_plugin.model.devices import Device, Found
from xpu_plugin.model.inventory import Policy, first_verdict
from xpu_plugin.xpuml import XpumlError


_COLUMNS = ("id", "kind", "model", "path", "numa", "memory", "health", "reason", "resource")
_GIB = 1 << 30


def main(arguments: list[str]) -> int:
    """Exit status 0, also when there is no device; 1 when the library cannot tell."""
    parser = Parser(
        prog=f"{PROGRAM} list",
        description="List this node's devices. Asks the library by a process of its own, whether or not a "
        "plugin is running; that opens each device for an instant.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, additive only")
    parser.add_argument("--all", action="store_true", help="also PFs that have VFs, and denied devices")
    config, namespace, warnings = read_config(arguments, os.environ, options=LIST_OPTIONS, parser=parser)
    for warning in warnings:
        print(f"{PROGRAM}: {warning}", file=sys.stderr)
    rules = policy(config)
    try:
        found = asyncio.run(_found(config))
    except (WorkerError, LibraryError, XpumlError) as error:
        print(f"{PROGRAM}: cannot list devices: {error}", file=sys.stderr)
        return 1
    devices = [device for device in found.devices.values() if namespace.all or rules.offers(device)]
    for problem in found.problems:
        print(f"{PROGRAM}: not listed: {problem}", file=sys.stderr)
    if namespace.json:
        print(json.dumps({"devices": [_record(device, rules) for device in devices]}, indent=2))
    else:
        print_table(_COLUMNS, [_row(device, rules) for device in devices], "no devices")
    return 0


async def _found(config: Config) -> Found:
    driver = Driver(target(config), call_timeout=config.call_timeout)
    try:
        return await scanned(driver)
    finally:
        await driver.close()


def _record(device: Device, rules: Policy) -> dict[str, object]:
    health = first_verdict(device)
    return {
        "id": device.id,
        "card": device.card,
        "kind": device.kind.value,
        "model": device.model,
        "path": device.path,
        "index": device.index,
        "numa": device.numa,
        "memory_bytes": device.memory_bytes,
        "state": device.state,
        "health": str(health),
        "reason": health.reason,
        "resource": rules.resource_of(device),
    }


def _row(device: Device, rules: Policy) -> tuple[str, ...]:
    health = first_verdict(device)
    return (
        device.id,
        device.kind.value,
        device.model,
        device.path,
        "-" if device.numa is None else str(device.numa),
        f"{device.memory_bytes / _GIB:.1f}Gi" if device.memory_bytes else "-",
        str(health),
        health.reason or "-",
        rules.resource_of(device) if rules.offers(device) else "-",
    )
