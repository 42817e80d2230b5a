# SPDX-License-Identifier: Apache-2.0
"""The proof that a card is idle: asks all witnesses who may know its users."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from xpu_plugin.edges.kubelet.view import KubeletView
from xpu_plugin.edges.worker.client import LibraryError, WorkerClient, WorkerError
from xpu_plugin.log import Message
from xpu_plugin.loops.grants import Grants
from xpu_plugin.model.devices import Usage
from xpu_plugin.model.vf_plan import Card, Proof
from xpu_plugin.observable import Value
from xpu_plugin.waiting import Cooldown
from xpu_plugin.xpuml import WrongDeviceError, XpumlError


logger = logging.getLogger(__name__)

MUTE_SECONDS = (60.0, 3600.0)  # for a card at which the question for its users costs a worker: first, most


class IdleProof:
    """Looks for users of cards: in the driver, in sysfs, at the kubelet and in the ledger of grants."""

    def __init__(
        self,
        worker: WorkerClient,
        view: KubeletView,
        grants: Grants,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._view = view
        self.grants = grants
        self._clock = clock
        self.witnesses: Mapping[str, str] = {}
        """Each source of the kubelet, and whether it has answered at the last look."""
        self._mute: Cooldown[str] = Cooldown(*MUTE_SECONDS, clock=clock)  # cards

    async def look(self, cards: Collection[Card]) -> dict[str, Proof]:
        """Ask all witnesses about these cards.

        A proof counts only answers to calls that began after this one. So two looks, one after the other,
        never share an answer.
        """
        began = self._clock()
        if not await self.grants.catch_up():
            doubt = "the record of grants cannot be read"
            now = self._clock()
            return {card.address: Proof(at=now, done=now, doubt=doubt) for card in cards}
        usages: dict[str, Usage | str] = {}
        for card in cards:
            usages[card.address] = await self._usage(card)
        answers = await self._view.answers(oldest=0.0)
        answers = replace(answers, began=min(began, answers.began), usages=usages)
        self.witnesses = answers.witnesses
        return self.grants.prove(cards, answers)

    @property
    def ended(self) -> Value[float]:
        """Time at which the end of a container was last seen; at once while `attend` follows."""
        return self._view.ended

    async def attend(self, waiting: Value[bool]) -> None:
        """Have the kubelet report ends of containers while a card waits for one (`waiting`). Never
        returns."""
        async for wanted in waiting.values():
            if wanted:
                version = waiting.version
                following = asyncio.create_task(self._view.follow(), name="pods")
                over = asyncio.create_task(waiting.beyond(version))
                try:
                    await asyncio.wait({following, over}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in (following, over):
                        task.cancel()
                    ended = await asyncio.gather(following, over, return_exceptions=True)
                for outcome in ended:
                    if isinstance(outcome, Exception):
                        raise outcome

    async def _usage(self, card: Card) -> Usage | str:
        """Return the answer of driver and sysfs, or the reason for its absence.

        A card at which the question costs a worker is left alone for a while; otherwise the others would
        never be asked. While a worker is stuck, no card is asked.
        """
        if card.address in self._mute:
            return self._mute.reason(card.address)
        if self._worker.stuck:
            return "a worker that was killed does not end: the driver holds it"
        try:
            usage = await self._worker.usage([device.index for device in card.devices], card.address)
        except WorkerError as error:
            if error.call is None:  # not the card's fault: no worker has scanned, for example
                return str(error)
            self._mute.begin(card.address, str(error))
            logger.warning(
                Message(
                    "cannot read the users of a card; it is asked again later", card=card.address, error=error
                )
            )
            return str(error)
        except (LibraryError, XpumlError, WrongDeviceError) as error:
            return str(error)
        self._mute.forget(card.address)
        return usage
