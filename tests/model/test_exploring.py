# SPDX-License-Identifier: Apache-2.0
"""A slice of the random search of `make test-random`; and that the search does find what is broken."""

from collections.abc import Mapping

import pytest

from tests.model import exploring
from xpu_plugin.model import ownership, vf_reconcile
from xpu_plugin.model.ownership import Answers, Ledger, Terms, examine
from xpu_plugin.model.vf_plan import Card, Proof


STEPS = 30_000
MOST_WALKS = 30  # that break an invariant, until one breaks the one that is looked for


def test_no_walk_breaks_an_invariant() -> None:
    counts = exploring.explore(STEPS, seed=0)
    print(f"{counts.total():,} steps: {dict(counts)}")
    moves = (
        "SetVfs",
        "granted",
        "refused",
        "killed",
        "kubelet",
        "forgets",
        "api",
        "foreign",
        "label",
        "computes",
        "late",
        "read",
        "order",
    )
    assert all(counts[move] > 20 for move in moves), counts


@pytest.mark.parametrize("flaw", ["trusts all", "forgets grants"])
def test_the_search_finds_a_plugin_that_is_less_careful(flaw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(
        ledger: Ledger, asked: list[Card], answers: Answers, terms: Terms, **known: object
    ) -> tuple[Ledger, Mapping[str, Proof]]:
        if flaw == "forgets grants":
            ledger = {}
        ledger, proofs = examine(ledger, asked, answers, terms, **known)  # type: ignore[arg-type]
        if flaw == "trusts all":
            proofs = {
                card: proof if proof.holders else Proof(at=proof.at, done=proof.done)
                for card, proof in proofs.items()
            }
        return ledger, proofs

    monkeypatch.setattr(exploring, "examine", careless)
    # Some walks come upon a card that is granted twice before they come upon one that is split while held.
    found: list[str] = []
    while not any("hold it" in text for text in found):
        assert len(found) < MOST_WALKS, found
        seed = int(found[-1].split()[1].rstrip(":")) + 1 if found else 0
        with pytest.raises(exploring.BrokenInvariantError) as broken:
            exploring.explore(20 * STEPS, seed=seed)
        found.append(str(broken.value).partition("\n")[0])


def test_the_search_finds_a_plugin_that_does_not_know_what_the_last_one_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exploring, "inherited", lambda memory, *_: memory)
    with pytest.raises(exploring.BrokenInvariantError, match=r"late Set|while the driver has"):
        exploring.explore(20 * STEPS, seed=0)


def test_the_search_finds_a_plugin_that_asks_on_and_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vf_reconcile, "_left_alone", lambda *_: False)
    with pytest.raises(exploring.BrokenInvariantError, match="which was refused 5 times"):
        exploring.explore(20 * STEPS, seed=180)  # from 0 it takes ten seconds longer


def test_the_search_finds_a_plugin_that_grants_a_card_in_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exploring.Plugin, "allocate", lambda plugin, own: own in plugin.entries())
    with pytest.raises(exploring.BrokenInvariantError, match="granted while its card is being changed"):
        exploring.explore(20 * STEPS, seed=0)


def test_the_search_finds_a_plugin_that_offers_what_the_kubelet_has_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exploring, "forgotten", lambda *_: frozenset())
    with pytest.raises(exploring.BrokenInvariantError, match=r"was granted, and (pod|former)"):
        exploring.explore(20 * STEPS, seed=0)


def test_the_search_finds_a_plugin_that_takes_what_is_not_listed_for_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if each holder's pod were gone, with any list of the kubelet."""
    monkeypatch.setattr(ownership, "pod_of", lambda _: "")
    with pytest.raises(exploring.BrokenInvariantError, match=r"was granted, and (pod|former)|hold it"):
        exploring.explore(20 * STEPS, seed=0)
