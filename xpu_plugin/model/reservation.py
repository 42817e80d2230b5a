# SPDX-License-Identifier: Apache-2.0
"""A card that is withheld until it is proven idle twice: before a change of its VFs, and before a probe."""

from collections.abc import Mapping

from xpu_plugin.frozen import frozen
from xpu_plugin.model.vf_plan import Proof


LOOK_SECONDS = 5.0  # between checks for users of a card


@frozen(kw_only=False)
class Wait:
    """Wait for so many seconds; None: until a change."""

    seconds: float | None


@frozen(kw_only=False)
class Prove:
    """Check the users of these cards."""

    cards: tuple[str, ...]


@frozen
class Users:
    """The facts about users of cards at the moment of a decision."""

    now: float
    proofs: Mapping[str, Proof]  # the last check of each card
    taken: frozenset[str] = frozenset()  # cards with a grant that may not have ended, at this instant
    ended: float = float("-inf")  # time at which the kubelet last reported the end of a container
    look: float = LOOK_SECONDS

    def fresh(self, card: str) -> bool:
        """Return whether the last check is recent, and no container was reported to end since."""
        proof = self.proofs.get(card)
        return proof is not None and proof.at >= self.ended and self.now - proof.done < self.look

    def free(self, card: str) -> bool:
        """Return whether the last check found no user of the card, and no grant followed."""
        return card in self.proofs and self.proofs[card].idle and card not in self.taken

    def settled(self, card: str, until: float) -> Wait | Prove | Proof | None:
        """Return the next step for a withheld card: a wait, a check that begins after that, the proof that
        it is idle. None if it has a user.

        until: end of the wait, in which grants surface that the kubelet began before the card was withheld
        """
        if card in self.taken:
            return None
        if self.now < until:
            return Wait(until - self.now)
        if self.proofs[card].at < until:
            return Prove((card,))
        return self.proofs[card] if self.proofs[card].idle else None
