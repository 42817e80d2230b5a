# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin plan`: what would be done about the VFs of this node's cards."""

import asyncio
import json
import os
import sys
from typing import Any

from xpu_plugin.commands.output import scanned, table
from xpu_plugin.commands.running import Running
from xpu_plugin.config import PLAN_OPTIONS, PROGRAM, Config, Parser, read_config
from xpu_plugin.edges.driver import Driver, LibraryError, WorkerError
from xpu_plugin.edges.grants import GrantRecord
from xpu_plugin.errors import PluginError
from xpu_plugin.loops.exchange import exchange
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.picture import Picture
from xpu_plugin.loops.status import planned
from xpu_plugin.model.devices import identify
from xpu_plugin.model.inventory import after_scan
from xpu_plugin.model.vf import Report, State, Wish, by_argument, document
from xpu_plugin.plugin import kubelet_of, node_of, policy, target, terms
from xpu_plugin.xpuml import XpumlError


WISH_SECONDS = 10.0  # for the API server to show the label
_COLUMNS = ("card", "wished", "actual", "action", "reason")
_STATUS = {State.SUCCESS: 0, State.PENDING: 3, State.BLOCKED: 4, State.FAILED: 4}


class UnknownWishError(PluginError):
    """The API server did not answer in time."""


def main(arguments: list[str]) -> int:
    """Exit status: 0 nothing to do, 3 changes, 4 a card is blocked or fails, 1 nobody knows, 2 bad usage."""
    parser = Parser(
        prog=f"{PROGRAM} plan",
        description="Tell what would be done about the VFs of this node's cards, and do nothing. Asks the "
        "plugin that runs behind --status-socket, which tells its own wish and what it is doing about it, or "
        "with --sriov-num-vfs what it would do about that. Without one the wish is --sriov-num-vfs if given "
        "here, else the node's label where it can be read, else the default; and the library is asked by a "
        "process of its own, which opens each device for an instant.",
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
    except (UnknownWishError, WorkerError, LibraryError, XpumlError) as error:
        print(f"{PROGRAM}: cannot plan: {error}", file=sys.stderr)
        return 1
    if "trouble" in answer:
        print(f"{PROGRAM}: cannot plan: {answer['trouble']}", file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2) if namespace.json else _text(answer))
    return _STATUS[State(answer["state"])]


def _text(answer: dict[str, Any]) -> str:
    wish = answer["wish"]
    origin = f"by {wish['origin']}" if wish["origin"] else "until a wish is known"
    rows = [
        (card["address"], str(card["wished"]), str(card["actual"]), card["action"], card["reason"] or "-")
        for card in answer["cards"]
    ]
    first = f"wished: {wish['number']}, {origin}" + (f"; {wish['problem']}" if wish["problem"] else "")
    return f"{first}\n{table(_COLUMNS, rows, 'no cards')}"


async def _plan(config: Config, *, given: bool) -> tuple[Wish, Report]:
    wish = by_argument(config.sriov_num_vfs) if given else await _wish(config)
    driver, picture = Driver(target(config), call_timeout=config.call_timeout), Picture(policy(config))
    try:
        found = identify(await scanned(driver))
        picture.submit(lambda facts: after_scan(facts, found))
        view = kubelet_of(config)
        grants = Grants(picture, view, GrantRecord(config.state_dir), terms(config), settled=True)
        return wish, await planned(wish, picture.facts, picture.policy, IdleProof(driver, view, grants))
    finally:
        await driver.close()


async def _wish(config: Config) -> Wish:
    """What the running plugin would be told: the label, or the argument where that counts."""
    between = exchange()
    node = node_of(config, between)
    if node is None:
        return by_argument(config.sriov_num_vfs)
    asking = asyncio.ensure_future(node.run())
    try:
        async with asyncio.timeout(WISH_SECONDS + config.label_timeout):
            return await between.desired.beyond(0)
    except TimeoutError:
        raise UnknownWishError(
            "the API server does not show the node's label; give --sriov-num-vfs to plan without"
        ) from None
    finally:
        asking.cancel()
