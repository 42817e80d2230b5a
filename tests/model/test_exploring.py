# SPDX-License-Identifier: Apache-2.0
"""A slice of the random search of `make test-random`; and that the search does find what is broken."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.model import exploring
from xpu_plugin.model import ownership, probe, roster, vf_reconcile
from xpu_plugin.model.ownership import Answers, Ledger, Terms, examine
from xpu_plugin.model.pods import Container, Exit, Pod
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
        "exits",
        "fails",
        "forced",
        "handover",
        "resumed",
        "sick",
        "probe",
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


def test_the_search_finds_a_probe_of_a_card_with_a_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.View, "free", lambda *_: True)
    monkeypatch.setattr(probe.View, "settled", lambda *_: Proof())
    with pytest.raises(exploring.BrokenInvariantError, match="probe of"):
        exploring.explore(20 * STEPS, seed=0)


def test_the_search_finds_a_change_of_vfs_in_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exploring.Plugin, "cards", lambda plugin: exploring.cards_of(plugin.scanned))
    with pytest.raises(exploring.BrokenInvariantError, match="in a probe"):
        exploring.explore(20 * STEPS, seed=0)


def test_the_search_finds_a_plugin_that_asks_on_and_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vf_reconcile, "_left_alone", lambda *_: False)
    monkeypatch.setattr(exploring.Explorer, "hands_over", lambda _: None)  # another plugin counts anew
    with pytest.raises(exploring.BrokenInvariantError, match="which was refused 5 times"):
        exploring.explore(20 * STEPS, seed=100_181)  # from 0 it takes minutes longer


def test_the_search_finds_a_plugin_that_does_not_learn_the_grants_of_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exploring.Plugin, "learn", lambda *_: None)
    with pytest.raises(exploring.BrokenInvariantError, match=r"hold it|was granted, and|not listed"):
        exploring.explore(20 * STEPS, seed=0)


def test_the_search_finds_a_plugin_that_grants_a_card_in_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exploring.Plugin, "allocate", lambda plugin, own: own in plugin.entries())
    monkeypatch.setattr(exploring.Explorer, "hands_over", lambda _: None)  # no grant is known to another one
    with pytest.raises(exploring.BrokenInvariantError, match="granted while its card is being changed"):
        exploring.explore(20 * STEPS, seed=1)


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
    with pytest.raises(exploring.BrokenInvariantError, match=r"was granted, and|hold it|not listed"):
        exploring.explore(20 * STEPS, seed=0)


@pytest.mark.parametrize(
    "flaw", ["a pod that is gone has ended", "a failed pod has ended", "a new run has ended"]
)
def test_the_search_finds_a_plugin_that_believes_the_pods_api_too_soon(
    flaw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def over(container: Container) -> Container:
        return replace(container, exit=container.exit or Exit(code=0, finished=1e9))

    def failed(
        before: roster.Roster, pods: Mapping[str, Pod], *more: object, **named: float
    ) -> roster.Roster:
        told = {
            uid: replace(pod, containers={name: over(own) for name, own in pod.containers.items()})
            if pod.over
            else pod
            for uid, pod in pods.items()
        }
        return roster.after_list(before, told, *more, **named)  # type: ignore[arg-type]

    def applied(*given: object, **more: object) -> Answers:
        answers = roster.applied(*given, **more)  # type: ignore[arg-type]
        late = 1e9
        return replace(
            answers,
            ended=dict.fromkeys(answers.ended, late),
            finished=dict.fromkeys(answers.finished, late),
        )

    match flaw:
        case "a pod that is gone has ended":
            monkeypatch.setattr(roster.Known, "lingers", lambda *_: False)
        case "a failed pod has ended":
            monkeypatch.setattr(exploring, "after_list", failed)
        case "a new run has ended":
            monkeypatch.setattr(exploring, "applied", applied)
    seed = {"a pod that is gone has ended": 226, "a failed pod has ended": 0, "a new run has ended": 108}[
        flaw
    ]
    with pytest.raises(exploring.BrokenInvariantError, match=r"was granted, and|hold it|not listed"):
        exploring.explore(20 * STEPS, seed=seed)  # from 0 it takes longer
