# SPDX-License-Identifier: Apache-2.0
"""Answers to sub-commands, made from the picture and the state of the loops."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from xpu_plugin import log
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.picture import NEVER
from xpu_plugin.loops.telemetry import Telemetry
from xpu_plugin.model import topology
from xpu_plugin.model.device_table import holders, rows
from xpu_plugin.model.inventory import Facts, Policy
from xpu_plugin.model.unlisted import Unlisted
from xpu_plugin.model.vf_plan import (
    DesiredVfs,
    Report,
    VfAction,
    by_argument,
    cards,
    document,
    parse,
    plan,
    step_if_idle,
    within_handles,
)


if TYPE_CHECKING:
    from xpu_plugin.plugin import Plugin


class Control:
    """Answers by name, in `answers`. None of them opens the library or changes state but `clear`."""

    def __init__(self, plugin: "Plugin", meters: Telemetry) -> None:
        self._plugin = plugin
        self._picture, self._monitor, self._reconciler = plugin.picture, plugin.monitor, plugin.reconciler
        self._meters = meters
        self.answers: Mapping[str, Callable[..., object]] = {
            "clear": self.clear,
            "decisions": lambda: plugin.decisions.all,
            "library": plugin.monitor.library,
            "list": self.list,
            "plan": self.plan,
            "state": self.state,
            "top": self.top,
            "topo": self.topo,
        }

    def clear(self, id: str) -> bool:
        """Lift the quarantine of a device and its driver error; return whether there was one of them."""
        lifted = self._monitor.clear(id)
        return self._plugin.driver_errors.clear(id) or lifted

    async def list(self, *, wide: bool = False) -> dict[str, object]:
        """Return every known device. wide: with its holders, as the kubelet reports them now"""
        answer = listed(
            self._picture.facts,
            self._picture.policy,
            self._monitor.scanner.problems,
            self._monitor.scanner.unlisted,
        )
        answer["trouble"] = self._trouble()
        if wide:
            answers = await self._plugin.view.answers(oldest=0.0)
            answer["holders"] = holders(answers.shown, self._picture.facts, self._picture.policy)
            answer["problems"] = [*self._monitor.scanner.problems, *answers.complaints]
        return answer

    async def plan(self, *, number: str | None = None) -> dict[str, object]:
        """Report the changes of VFs; with a number, the planned changes for that number."""
        if self._picture.current is None:
            return {"trouble": self._trouble()}
        desired, report = self._reconciler.desired, self._reconciler.report
        if number is not None or not report.steps:
            desired = desired if number is None else by_argument(parse(number))
            plugin, picture = self._plugin, self._picture
            claims = plugin.reconciler.claims
            report = await planned(desired, picture.facts, picture.policy, plugin.proof, claims=claims)
        return document(desired, report, self._plugin.proof.witnesses)

    async def top(self) -> dict[str, object]:
        """Return the measurements by device id, a few seconds old. A device without any is left out."""
        readings = await self._meters.read()
        answer = listed(self._picture.facts, self._picture.policy, self._monitor.scanner.problems)
        answer["trouble"] = self._trouble()
        answer["readings"] = {id: asdict(own) for id, own in readings.gauges.items()} if readings else {}
        return answer

    def topo(self) -> dict[str, object]:
        """Return the connections between cards."""
        return topo(self._picture.facts) | {"trouble": self._trouble()}

    def state(self) -> dict[str, object]:
        """Return the state of the plugin itself, for `doctor` and `bundle`."""
        plugin, scan = self._plugin, self._monitor.scanner.last
        desired, current = self._reconciler.desired, self._picture.current
        return {
            "pid": os.getpid(),
            "worker": plugin.worker.pid,
            "replaced": self._monitor.trial.older if scan else None,
            "replacement_trouble": self._monitor.trial.unfit,
            "configuration": plugin.config.text(),
            "container_files": list(plugin.config.container_files),
            "generation": current.generation if current else NEVER,
            "library": scan.library if scan else None,
            "library_version": scan.library_version if scan else None,
            "driver_version": scan.driver_version if scan else None,
            "driver_release": scan.driver_release if scan else None,
            "trouble": self._trouble(),
            "unwatched": self._monitor.unwatched,
            "streams": plugin.streams,
            "alone": not plugin.tenures.rival,
            "unwritten": plugin.node_sync.unwritten if plugin.node_sync else None,
            "displaced": plugin.displaced,
            "parts_down": dict(plugin.supervisor.down),
            "kernel_log": {
                "mode": plugin.config.kernel_log,
                "trouble": plugin.kernel_log.trouble if plugin.kernel_log else None,
                "incidents": plugin.driver_errors.incidents_by_card,
                "sick": {id: own.health.text for id, own in plugin.driver_errors.sick.current.items()},
            },
            "log_lines_dropped": log.dropped(),
            "desired": {"number": desired.number, "origin": desired.origin, "problem": desired.problem},
        }

    def _trouble(self) -> str | None:
        if self._picture.current is None:
            return self._monitor.trouble or "the devices have not been scanned yet"
        return self._monitor.trouble


def listed(
    facts: Facts, policy: Policy, problems: tuple[str, ...], nodes: tuple[Unlisted, ...] = ()
) -> dict[str, object]:
    """Return the answer for `list`, by a plugin or by an own worker. nodes: those without an index"""
    return {
        "devices": [asdict(row) for row in rows(facts, policy)],
        "problems": list(problems),
        "unlisted": [asdict(node) | {"path": node.path, "why": node.why} for node in nodes],
    }


def topo(facts: Facts) -> dict[str, object]:
    """Return the answer for `topo`, by a plugin or by an own worker."""
    return topology.document(list(facts.devices.values()), facts.links)


async def planned(
    desired: DesiredVfs,
    facts: Facts,
    policy: Policy,
    proof: IdleProof,
    *,
    claims: Mapping[str, int] | None = None,
) -> Report:
    """Plan for a desired VF count: check the users of the cards concerned, without an action.

    claims: as for `within_handles`
    """
    observed = within_handles(cards(facts, policy), desired, facts, policy, claims=claims)
    asked = [card for card in observed.values() if step_if_idle(desired, card).action is VfAction.APPLY]
    return Report(steps=plan(desired, observed, await proof.look(asked)), problem=desired.problem)
