# SPDX-License-Identifier: Apache-2.0
"""What sub-commands may ask the running plugin: answers made of the one picture and what the loops know."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict

from xpu_plugin import log
from xpu_plugin.edges.driver import Driver
from xpu_plugin.edges.kubelet_view import KubeletView
from xpu_plugin.log import RingHandler
from xpu_plugin.loops.apply import Apply
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.picture import NEVER, Picture
from xpu_plugin.loops.readings import Meters
from xpu_plugin.loops.supervision import Supervisor
from xpu_plugin.loops.sweep import Sweep
from xpu_plugin.model.inventory import Facts, Policy
from xpu_plugin.model.rows import holders, rows
from xpu_plugin.model.unlisted import Unlisted
from xpu_plugin.model.vf import (
    Action,
    DesiredVfs,
    Report,
    by_argument,
    cards,
    document,
    parse,
    plan,
    step_if_idle,
)


class Status:
    """Answers, by name, in `answers`. Nothing here opens the library or is remembered.

    streams: how many streams the kubelet has open; alone: whether no other plugin is in our way
    unwritten: what could not be written on the node, None where nothing is written
    """

    def __init__(
        self,
        *,
        picture: Picture,
        sweep: Sweep,
        apply: Apply,
        proof: IdleProof,
        driver: Driver,
        meters: Meters,
        decisions: RingHandler,
        view: KubeletView,
        streams: Callable[[], int],
        alone: Callable[[], bool],
        unwritten: Callable[[], tuple[str, ...] | None],
        displaced: Callable[[], list[str]],
        supervisor: Supervisor,
        configuration: str,
    ) -> None:
        self._picture = picture
        self._sweep = sweep
        self._apply = apply
        self._proof = proof
        self._driver = driver
        self._meters = meters
        self._view = view
        self._streams = streams
        self._alone = alone
        self._unwritten = unwritten
        self._displaced = displaced
        self._supervisor = supervisor
        self._configuration = configuration
        self.answers: Mapping[str, Callable[..., object]] = {
            "clear": sweep.clear,
            "decisions": lambda: decisions.all,
            "library": sweep.library,
            "list": self.list,
            "plan": self.plan,
            "state": self.state,
            "top": self.top,
        }

    async def list(self, *, wide: bool = False) -> dict[str, object]:
        """Every device that is known. wide: and who holds it, as the kubelet says now."""
        answer = listed(self._picture.facts, self._picture.policy, self._sweep.problems, self._sweep.unlisted)
        answer["trouble"] = self._trouble()
        if wide:
            answers = await self._view.answers(oldest=0.0)
            answer["holders"] = holders(answers.shown, self._picture.facts, self._picture.policy)
            answer["problems"] = [*self._sweep.problems, *answers.complaints]
        return answer

    async def plan(self, *, number: str | None = None) -> dict[str, object]:
        """What is being done about VFs; with a number, what would be done if that were wished."""
        if self._picture.current is None:
            return {"trouble": self._trouble()}
        desired, report = self._apply.desired, self._apply.report
        if number is not None or not report.steps:
            desired = desired if number is None else by_argument(parse(number))
            report = await planned(desired, self._picture.facts, self._picture.policy, self._proof)
        return document(desired, report)

    async def top(self) -> dict[str, object]:
        """What the devices measure, a few seconds old; by device id, without those that do not tell."""
        readings = await self._meters.read()
        answer = listed(self._picture.facts, self._picture.policy, self._sweep.problems)
        answer["trouble"] = self._trouble()
        answer["readings"] = {id: asdict(own) for id, own in readings.gauges.items()} if readings else {}
        return answer

    def state(self) -> dict[str, object]:
        """The plugin itself: what it works with, and whom it works for."""
        scan = self._sweep.last
        desired, current = self._apply.desired, self._picture.current
        return {
            "pid": os.getpid(),
            "worker": self._driver.pid,
            "replaced": self._sweep.library_older if scan else None,
            "replacement_trouble": self._sweep.library_unfit,
            "configuration": self._configuration,
            "generation": current.generation if current else NEVER,
            "library": scan.library if scan else None,
            "library_version": scan.library_version if scan else None,
            "driver_version": scan.driver_version if scan else None,
            "driver_release": scan.driver_release if scan else None,
            "trouble": self._trouble(),
            "unwatched": self._sweep.unwatched,
            "streams": self._streams(),
            "alone": self._alone(),
            "unwritten": self._unwritten(),
            "displaced": self._displaced(),
            "parts_down": dict(self._supervisor.down),
            "log_lines_dropped": log.dropped(),
            "desired": {"number": desired.number, "origin": desired.origin, "problem": desired.problem},
        }

    def _trouble(self) -> str | None:
        if self._picture.current is None:
            return self._sweep.trouble or "the devices have not been scanned yet"
        return self._sweep.trouble


def listed(
    facts: Facts, policy: Policy, problems: tuple[str, ...], nodes: tuple[Unlisted, ...] = ()
) -> dict[str, object]:
    """What `list` shows, by a plugin or by a worker of its own. nodes: those without an index"""
    return {
        "devices": [asdict(row) for row in rows(facts, policy)],
        "problems": list(problems),
        "unlisted": [asdict(node) | {"path": node.path, "why": node.why} for node in nodes],
    }


async def planned(desired: DesiredVfs, facts: Facts, policy: Policy, proof: IdleProof) -> Report:
    """What would be done if that were wished: a look who uses the cards concerned, and no action."""
    observed = cards(facts, policy)
    asked = [card for card in observed.values() if step_if_idle(desired, card).action is Action.APPLY]
    return Report(steps=plan(desired, observed, await proof.look(asked)), problem=desired.problem)
