# SPDX-License-Identifier: Apache-2.0
"""Runs the administrator's program for devices with a driver error: carries out the decisions of
`model.probe`."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from xpu_plugin.edges.probe import ProbeProcess, environment
from xpu_plugin.frozen import frozen
from xpu_plugin.log import Message, Once, note
from xpu_plugin.loops.driver_errors import DriverErrors
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.picture import Picture
from xpu_plugin.loops.tenure import Tenures
from xpu_plugin.model.devices import Device
from xpu_plugin.model.events import WARNING, Event
from xpu_plugin.model.handover import Stage
from xpu_plugin.model.health import PROBE_STUCK, VF_CHANGE_PLANNED, Health
from xpu_plugin.model.incidents import Ending
from xpu_plugin.model.inventory import card_of
from xpu_plugin.model.probe import (
    EVENTS,
    NO_ANSWER,
    PAUSE_SECONDS,
    Decision,
    Memory,
    ProbeResult,
    Run,
    View,
    decide,
    result_of,
)
from xpu_plugin.model.reservation import LOOK_SECONDS, Prove, Wait
from xpu_plugin.model.vf_plan import Proof, cards
from xpu_plugin.observable import Outbox, Value
from xpu_plugin.waiting import Cooldown, wait_for


logger = logging.getLogger(__name__)

END_SECONDS = 0.5  # for a killed program to be gone, while the plugin ends or hands over


@frozen
class Program:
    """The administrator's program. seconds: its deadline"""

    command: tuple[str, ...]
    seconds: float


@frozen
class ProbePace:
    """Waits, in seconds."""

    settle: float  # between withholding a card and the second proof that it is idle
    look: float = LOOK_SECONDS
    pause: tuple[float, float] = PAUSE_SECONDS


class Probes:
    """Probes one device at a time. A passed probe ends its driver error.

    results: number of runs by their result
    """

    def __init__(
        self,
        program: Program,
        tenures: Tenures,
        picture: Picture,
        proof: IdleProof,
        errors: DriverErrors,
        *,
        events: Outbox[Event],
        pace: ProbePace,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._program = program
        self._tenures = tenures
        self._picture = picture
        self._proof = proof
        self._errors = errors
        self._events = events
        self._pace = pace
        self._clock = clock
        self._wake = asyncio.Event()
        self._waiting: Value[bool] = Value(False)  # the end of a container may change the next decision
        self._memory = Memory()
        self._proofs: Mapping[str, Proof] = {}
        self._tenure: int | None = None  # of the last decision
        self._left: tuple[Run, ProbeProcess] | None = None  # the last run, until its process is gone
        self._pauses: Cooldown[str] = Cooldown(*pace.pause, clock=clock)
        self._told: dict[str, Once] = {}  # device id -> its last result that was reported
        self._noted = Once()
        self.results: Counter[ProbeResult] = Counter()

    def again(self) -> None:
        """Probe sick devices without further pauses, as the administrator asks."""
        self._pauses.forget_all_but(())
        self._wake.set()

    async def run(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._proof.attend(self._waiting), name="ends of containers")
            await self._carry_out()

    async def _carry_out(self) -> None:
        with (
            self._picture.waking(self._wake),
            self._errors.sick.waking(self._wake),
            self._proof.grants.waking(self._wake),
            self._proof.ended.waking(self._wake),
        ):
            while True:
                async with self._tenures.work():
                    decision = self._decide()
                    if isinstance(decision.action, Run):
                        await self._probe(decision.action)
                        continue
                match decision.action:
                    case Wait(None):
                        await self._wake.wait()
                    case Wait(float() as seconds):
                        await wait_for(self._wake, seconds)
                    case Prove(addresses):
                        known = cards(self._picture.facts, self._picture.policy)
                        asked = [known[address] for address in addresses if address in known]
                        self._proofs = {**self._proofs, **await self._proof.look(asked)}

    def _decide(self) -> Decision:
        """Decide and publish without an await: a grant comes before this, or after it and is refused."""
        self._wake.clear()
        if self._tenure != (tenure := self._tenures.stage.version):
            # Proofs and a plan of an earlier tenure do not count any more.
            self._tenure, self._memory, self._proofs = tenure, Memory(last=self._memory.last), {}
        decision = decide(self._memory, self._view(), self._pace.settle)
        self._memory = decision.memory
        self._waiting.set(decision.awaits_an_end)
        self._show(decision.withheld)
        noted: dict[str, object] = {
            "withheld": {card: health.reason for card, health in decision.withheld.items()},
            "proofs": {
                card: {"holders": list(proof.holders), "doubt": proof.doubt}
                for card, proof in self._proofs.items()
            },
        }
        if self._errors.sick.current and self._noted.changed(noted):
            note("probe", **noted)
        return decision

    def _view(self) -> View:
        facts = self._picture.facts
        sick = self._errors.sick.current
        self._pauses.forget_all_but(sick)
        self._told = {id: told for id, told in self._told.items() if id in sick}
        suspects = {id: card for id in sick if id in facts.devices and (card := card_of(id, facts))}
        kept_back = facts.kept_back.values()
        if self._left is not None and self._left[1].gone():
            logger.info(Message("a probe that was killed has ended", id=self._left[0].id))
            self._left = None
        return View(
            now=self._clock(),
            proofs={card: proof for card, proof in self._proofs.items() if card in suspects.values()},
            taken=self._proof.grants.taken(),
            ended=self._proof.ended.current,
            look=self._pace.look,
            suspects=suspects,
            paused={id: self._pauses.until(id) for id in suspects},
            changing=any(health == VF_CHANGE_PLANNED or health.in_change for health in kept_back),
            stuck=self._left is not None,
        )

    def _show(self, withheld: Mapping[str, Health]) -> None:
        if withheld != self._picture.facts.probed:
            self._picture.submit(lambda facts: replace(facts, probed=withheld))

    # --- one run --------------------------------------------------------------------------------

    async def _probe(self, run: Run) -> None:
        """Run the program, and judge by its end. The card stays withheld until the next decision."""
        device = self._picture.facts.devices[run.id]
        variables = environment(run.id, device.path, device.address)
        logger.info(Message("a probe begins", id=run.id, path=device.path, program=self._program.command[0]))
        process = ProbeProcess(self._program.command, variables)
        self._left = run, process
        try:
            result, why = await self._result(process)
        finally:
            if await process.end(END_SECONDS):
                self._left = None
            else:
                self._show({run.card: PROBE_STUCK})
                logger.warning(Message("a probe cannot be killed", id=run.id, card=run.card))
        if self._left is not None:
            result, why = ProbeResult.STUCK, "it was killed and does not end"
        if result is None:
            logger.info(Message("a probe was ended for a hand-over", id=run.id))
        else:
            self._judge(device, result, why, process.line)

    async def _result(self, process: ProbeProcess) -> tuple[ProbeResult | None, str]:
        """Return the result and its reason; None if this instance has to hand over the node before."""
        version = self._tenures.stage.version
        running = asyncio.create_task(process.status(), name="probe")
        parting = asyncio.create_task(self._tenures.stage.beyond(version), name="end of the tenure")
        try:
            await asyncio.wait(
                {running, parting}, timeout=self._program.seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if running.done():
                status = running.result()
                text = f"signal {-status}" if status < 0 else f"exit status {status}"
                return result_of(status), text
        except OSError as error:
            return ProbeResult.NOT_STARTED, str(error.strerror)
        finally:
            for task in (running, parting):
                task.cancel()
            await asyncio.gather(running, parting, return_exceptions=True)
        if self._tenures.stage.current is not Stage.WORKING:
            return None, ""
        return ProbeResult.LATE, f"it does not end within {self._program.seconds:g} s"

    def _judge(self, device: Device, result: ProbeResult, why: str, line: str) -> None:
        """Report a result, and draw the consequence. Repetitions are only counted."""
        self.results[result] += 1
        note("probed", id=device.id, result=str(result), why=why, line=line)
        kind, reason = EVENTS.get(result, NO_ANSWER)
        text = f"{device.id} at {device.path}: {result}, {why}" + (f"; {line}" if line else "")
        if result is ProbeResult.PASSED:
            logger.info(Message("a probe has passed", id=device.id, why=why, line=line))
            self._events.put(Event(kind=kind, reason=reason, text=text))
            self._errors.end(device.id, Ending.PROBE)
            return
        seconds = self._pauses.begin(device.id)
        if not self._told.setdefault(device.id, Once()).changed(result):
            return
        own, again = device.id, round(seconds)
        if result is ProbeResult.SICK:
            logger.warning(
                Message("a probe finds a device sick", id=own, why=why, line=line, again_in_s=again)
            )
        else:
            logger.warning(
                Message("a probe has no answer", id=own, result=result, why=why, line=line, again_in_s=again)
            )
        self._events.put(Event(kind=WARNING, reason=reason, text=text))
