# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin plan`: the planned changes of VFs of this node's cards."""

import asyncio
import json
import os
import sys
from typing import Any

from xpu_plugin.commands.output import scanned, table
from xpu_plugin.commands.running import Running
from xpu_plugin.config import PLAN_OPTIONS, PROGRAM, Config, Parser, read_config
from xpu_plugin.edges.state.grants import GrantRecord
from xpu_plugin.edges.worker.client import LibraryError, WorkerClient, WorkerError
from xpu_plugin.errors import PluginError
from xpu_plugin.loops.control import planned
from xpu_plugin.loops.exchange import exchange
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.devices import identify
from xpu_plugin.model.inventory import after_scan
from xpu_plugin.model.vf_plan import DesiredVfs, Report, VfState, by_argument, document
from xpu_plugin.plugin import kubelet_of, node_of, policy, target, terms
from xpu_plugin.xpuml import XpumlError


LABEL_SECONDS = 10.0  # for the API server to show the label
_COLUMNS = ("card", "desired", "actual", "action", "reason")
_STATUS = {VfState.SUCCESS: 0, VfState.PENDING: 3, VfState.BLOCKED: 4, VfState.FAILED: 4}


class UnknownDesiredVfsError(PluginError):
    """The API server did not answer in time."""


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
    given = namespace.sriov_num_vfs
    try:
        answer = Running(config.status_socket).ask("plan", number=given)
        if answer is None:
            answer = document(*asyncio.run(_plan(config, given=given is not None)))
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
    return f"{first}\n{table(_COLUMNS, rows, 'no cards')}"


async def _plan(config: Config, *, given: bool) -> tuple[DesiredVfs, Report]:
    desired = by_argument(config.sriov_num_vfs) if given else await _desired(config)
    worker, picture = WorkerClient(target(config), call_timeout=config.call_timeout), Picture(policy(config))
    try:
        found = identify(await scanned(worker))
        picture.submit(lambda facts: after_scan(facts, found))
        view = kubelet_of(config)
        grants = Grants(picture, view, GrantRecord(config.state_dir), terms(config), settled=True)
        return desired, await planned(desired, picture.facts, picture.policy, IdleProof(worker, view, grants))
    finally:
        await worker.close()


async def _desired(config: Config) -> DesiredVfs:
    """Return the desired VF count as the running plugin would: by the label, else by the argument."""
    between = exchange()
    node = node_of(config, between)
    if node is None:
        return by_argument(config.sriov_num_vfs)
    asking = asyncio.ensure_future(node.run())
    try:
        async with asyncio.timeout(LABEL_SECONDS + config.label_timeout):
            return await between.desired.beyond(0)
    except TimeoutError:
        raise UnknownDesiredVfsError(
            "the API server does not show the node's label; give --sriov-num-vfs to plan without"
        ) from None
    finally:
        asking.cancel()
