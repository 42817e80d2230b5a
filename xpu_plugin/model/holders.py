# SPDX-License-Identifier: Apache-2.0
"""Who uses a card: what each witness says -> the proof that nobody does, or who does.

No witness is enough. The kubelet's list leaves out ordinary init containers (it has sidecars, from 1.29 on)
and lags a grant; our own grants know nothing of what ended; the driver knows only processes that compute. A
card is idle when all say so.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, replace

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import Device, Usage
from xpu_plugin.model.inventory import Facts, Policy, card_of, is_old, our_resources
from xpu_plugin.model.vf import Card, Proof


@frozen
class Holding:
    """Devices of one resource that one container holds; `container` is `namespace/pod/container` or, from
    the checkpoint, `pod UID/container`."""

    container: str
    resource: str
    ids: tuple[str, ...]


@frozen
class Listing:
    """What the pod resources API lists. pods: `namespace/name` of each, also of those without devices"""

    pods: frozenset[str]
    holdings: tuple[Holding, ...]


@frozen
class Checkpoint:
    """The file in which the kubelet keeps its grants.

    holdings: by pod UID, also of containers that have ended until the next grant
    registered: resource -> the healthy ids of the list that the kubelet had last, from whichever plugin; None
    where that is not written down
    written_ns: the file's modification time in nanoseconds since 1970; 0 where there is no file
    """

    holdings: tuple[Holding, ...] = ()
    registered: Mapping[str, frozenset[str]] | None = None
    written_ns: int = 0


@frozen
class Answers:
    """The answers of all witnesses.

    began: the begin of the earliest call; done: the end of the last one, in seconds of the caller's clock
    listing: the kubelet's, None without such an API or where it was not asked, or why it did not answer
    checkpoint: its holdings, None where it cannot be read; checkpoint_trouble: why
    life: the kubelet instance that was there during all calls, else None; age: its seconds
    own: that very instance has written the checkpoint
    usages: card -> the answer of driver and sysfs, or why there is none
    """

    began: float
    done: float
    listing: Listing | str | None
    checkpoint: tuple[Holding, ...] | None
    life: object
    age: float
    usages: Mapping[str, Usage | str] = field(default_factory=dict)
    own: bool = False
    checkpoint_trouble: str | None = None

    @property
    def listed(self) -> Listing | None:
        """The kubelet's list; None where there is none."""
        return self.listing if isinstance(self.listing, Listing) else None

    @property
    def complaints(self) -> tuple[str, ...]:
        """A sentence for each source that is there and cannot be read."""
        troubles = (self.listing if isinstance(self.listing, str) else None, self.checkpoint_trouble)
        return tuple(trouble for trouble in troubles if trouble)

    @property
    def holdings(self) -> tuple[Holding, ...]:
        """All that the list or the checkpoint names, by the list first."""
        return (*(self.listed.holdings if self.listed else ()), *(self.checkpoint or ()))

    @property
    def shown(self) -> tuple[Holding, ...]:
        """The same for people: the checkpoint, which has no names of pods, only for devices not listed."""
        listed = self.listed.holdings if self.listed else ()
        known = {(holding.resource, id) for holding in listed for id in holding.ids}
        rest = (
            replace(holding, ids=tuple(id for id in holding.ids if (holding.resource, id) not in known))
            for holding in self.checkpoint or ()
        )
        return (*listed, *(holding for holding in rest if holding.ids))


@frozen
class Terms:
    """On what terms witnesses are believed.

    own_pod: `namespace/name`, None outside of a pod; settle: seconds for the kubelet's list to show a grant
    without_pod_resources: the administrator's consent to go without that list where there is no such API
    """

    own_pod: str | None = None
    settle: float = 10.0
    without_pod_resources: bool = False


# --- attribution ----------------------------------------------------------------------------------


def by_card(
    holdings: Iterable[Holding], facts: Facts, policy: Policy
) -> tuple[dict[str, set[str]], set[str]]:
    """Card -> containers that hold something of it; and those that hold an old id that nobody knows.

    A PCI address counts under whatever resource name, as other plugins may give the same hardware away;
    an old id under ours only.
    """
    ours = our_resources((*facts.lost.values(), *facts.devices.values()), policy)
    held: dict[str, set[str]] = {}
    strange = set()
    for holding in holdings:
        for id in holding.ids:
            if is_old(id) and holding.resource not in ours:
                continue
            if (card := card_of(id, facts)) is not None:
                held.setdefault(card, set()).add(holding.container)
            elif is_old(id):
                strange.add(f"{holding.container} (device {id})")
    return held, strange


# --- our own grants -------------------------------------------------------------------------------


@frozen
class Grant:
    """A device that we gave away and that may be held still.

    at: when, or when we started for one from the record; inherited: it is from the record
    allocated: when this process answered the kubelet's Allocate; None for a grant of another process
    shown: the kubelet instance whose list has shown it last, None if none has; FORMER when we were
        another process
    holder: the container that the list has shown it with
    known_to: the kubelet instance that knew of it last: one that asked for it, listed it or wrote it down
    noted: whether that one has listed it or written it down
    """

    at: float
    allocated: float | None = None
    inherited: bool = False
    shown: object = None
    holder: str | None = None
    known_to: object = None
    noted: bool = False


FORMER = "former"


Ledger = Mapping[str, Grant]
"""Grants by device id."""


@frozen
class Word:
    """The word of one kubelet instance on the holders, asked for at `began`.

    life: the instance, None if there was none or another one before the answer
    listing: None where it was not asked for or not to be had; trusted: it counts as a proof
    whole: it names every pod, as it names our own; None where our own pod is not known
    checkpoint: the ids in it, None where it cannot be read; own: this very instance has written it
    """

    began: float
    life: object
    listing: Listing | None = None
    whole: bool | None = False
    trusted: bool = False
    checkpoint: Collection[str] | None = None
    own: bool = False

    @property
    def listed(self) -> dict[str, str]:
        """Device id -> container."""
        holdings = self.listing.holdings if self.listing else ()
        return {id: holding.container for holding in holdings for id in holding.ids}


def after_word(ledger: Ledger, word: Word, settle: float, unused: Collection[str] = ()) -> Ledger:
    """The grants that are left, with what the kubelet has said of them.

    A grant ends when the instance that has listed it does not list it any more, or when the one that has
    written it down has written a checkpoint without it since. A grant that only an earlier instance has
    listed ends when its holder's pod is not in a list that is `whole`: an instance that has lost its
    checkpoint lists the pod without the device, and one that has not heard from the API server lists no pod.
    That no process uses a device does not end a grant whose pod is known: a pod may compute later. Any other
    grant ends `settle` seconds after we know of it at the earliest, and only while its device is `unused` by
    any process and not named by the checkpoint; so does one that an older release has written down as listed
    without its pod.
    """
    listed, checkpoint = word.listed, word.checkpoint

    def goes_on(id: str, grant: Grant) -> bool:
        if id in listed or grant.at >= word.began:
            return True
        if word.listing is not None and grant.shown is not None:
            if grant.shown == word.life:
                return False
            if grant.holder is not None and pod_of(grant.holder) in word.listing.pods:
                return not _dropped(id, grant, word)
            if word.whole and not _nameless(grant):
                return False
        if _dropped(id, grant, word):
            return False
        if grant.holder is not None and word.whole is False:
            return True
        if word.began - grant.at < settle or id not in unused:
            return True
        return checkpoint is None or id in checkpoint

    return {id: _marked(id, grant, word, listed) for id, grant in ledger.items() if goes_on(id, grant)}


def _nameless(grant: Grant) -> bool:
    """Whether an older release has written down that it was listed, and not for which pod."""
    return grant.holder is None and grant.known_to == FORMER


def _dropped(id: str, grant: Grant, word: Word) -> bool:
    """Whether the instance that has written a grant down has written since that it is over."""
    same = grant.noted and word.life is not None and grant.known_to == word.life
    return same and word.own and word.checkpoint is not None and id not in word.checkpoint


def _marked(id: str, grant: Grant, word: Word, listed: Mapping[str, str]) -> Grant:
    if grant.at >= word.began:
        return grant
    if id in listed:
        return replace(grant, shown=word.life, holder=listed[id], known_to=word.life, noted=True)
    if word.own and id in (word.checkpoint or ()):
        return replace(grant, known_to=word.life, noted=True)
    return grant


def forgotten(ledger: Ledger, word: Word, before: Collection[str] = ()) -> frozenset[str]:
    """The ids that a container may hold although this kubelet instance does not count them as held.

    A kubelet that has lost its checkpoint lets the containers run and gives their devices to others.
    before: the ids that were forgotten until now; they stay so where the kubelet cannot tell
    """
    listed = word.listed
    if word.checkpoint is None or word.life is None:
        return frozenset(before) & ledger.keys() - listed.keys()
    return frozenset(
        id
        for id, grant in ledger.items()
        if id not in listed
        and id not in word.checkpoint
        and grant.at < word.began
        and grant.known_to != word.life
        and (grant.known_to is not None or grant.holder is not None)
    )


def pod_of(container: str) -> str:
    """The `namespace/name` of a listed container's pod."""
    return container.rpartition("/")[0]


# --- the proof ------------------------------------------------------------------------------------

_UNREADABLE = "the kubelet's checkpoint cannot be read"
KUBELET_SECONDS = 60.0  # a kubelet has to be running for so long, if it cannot name our own pod


def examine(
    ledger: Ledger,
    asked: Collection[Card],
    answers: Answers,
    terms: Terms,
    *,
    facts: Facts,
    policy: Policy,
) -> tuple[Ledger, dict[str, Proof]]:
    """What is left of the grants, and the proof for each card asked about."""
    proofs = {}
    doubt = distrust(answers, terms)
    held: Mapping[str, Collection[str]] = {}
    strange: Collection[str] = ()
    if not doubt:
        held, strange = by_card(_holdings(answers, terms), facts, policy)
    # That grants have ended the checkpoint alone may tell, also where it takes consent to change cards by it.
    if not distrust(answers, replace(terms, without_pod_resources=True)):
        ledger = _strike_out(ledger, asked, answers, terms, facts)
    granted: dict[str | None, list[str]] = {}
    for id in ledger:
        granted.setdefault(card_of(id, facts), []).append(id)
    for card in asked:
        proof = _proof(card, answers.usages[card.address], held.get(card.address, ()), strange, doubt)
        if not proof.holders and card.address in granted:
            ids = ", ".join(granted[card.address])
            proof = Proof(holders=(f"a container that was granted {ids} and is not known to have ended",))
        proofs[card.address] = replace(proof, at=answers.began, done=answers.done)
    return ledger, proofs


def _holdings(answers: Answers, terms: Terms) -> Iterable[Holding]:
    """Whoever is named. A list that is none, or that cannot be seen to be complete, is completed by the
    checkpoint, late as that is in forgetting the dead."""
    if answers.listed is not None and terms.own_pod is not None:
        return answers.listed.holdings
    return answers.holdings


def distrust(answers: Answers, terms: Terms) -> str:
    """Why the kubelet's list is no proof; empty if it is one, or the administrator does without.

    One that was restarted while its API server is away lists no pods at all, for as long as that lasts.
    """
    listing = answers.listing
    if isinstance(listing, str):
        return listing
    if listing is None:
        if not terms.without_pod_resources:
            return (
                "this kubelet has no pod resources API: Kubernetes 1.15 or newer has; or consent by "
                "--vf-without-pod-resources"
            )
        return "" if answers.checkpoint is not None else _UNREADABLE
    if terms.own_pod is not None:
        if terms.own_pod in listing.pods:
            return ""
        return (
            f"the kubelet's list of pods does not name this plugin's own pod {terms.own_pod}; it does once "
            "the kubelet has heard from the API server"
        )
    if answers.life is None:
        return "the kubelet is not there, or was restarted just now"
    if answers.age < KUBELET_SECONDS:
        return f"the kubelet has been running for less than {KUBELET_SECONDS:g} s"
    return "" if answers.checkpoint is not None else _UNREADABLE


def _proof(
    card: Card, usage: Usage | str, held: Collection[str], strange: Collection[str], doubt: str
) -> Proof:
    if held:
        return Proof(holders=tuple(sorted(held)))
    if doubt:
        return Proof(doubt=doubt)
    if strange:
        return Proof(doubt=f"nobody knows which device is held by {', '.join(sorted(strange))}")
    return Proof(doubt=usage) if isinstance(usage, str) else by_usage(card, usage)


def _strike_out(
    ledger: Ledger, asked: Collection[Card], answers: Answers, terms: Terms, facts: Facts
) -> Ledger:
    """Forget grants that have ended."""
    unused: set[str] = set()
    for card in asked:
        usage = answers.usages[card.address]
        if isinstance(usage, str):
            continue
        here = unused_devices(card, usage)
        unused |= here
        if len(here) == len(card.devices):  # then also what is not there any more
            unused |= {id for id in ledger if card_of(id, facts) == card.address}
    return after_word(ledger, word_of(answers, terms), terms.settle, unused)


def word_of(answers: Answers, terms: Terms) -> Word:
    """The kubelet's part of the answers."""
    listing = answers.listed
    return Word(
        began=answers.began,
        life=answers.life,
        listing=listing,
        whole=None if terms.own_pod is None else listing is not None and terms.own_pod in listing.pods,
        trusted=listing is not None and not distrust(answers, terms),
        checkpoint=None if answers.checkpoint is None else _ids(answers.checkpoint),
        own=answers.own,
    )


def _ids(holdings: Iterable[Holding]) -> frozenset[str]:
    return frozenset(id for holding in holdings for id in holding.ids)


# --- the driver -----------------------------------------------------------------------------------


def unused_devices(card: Card, usage: Usage) -> set[str]:
    """The ids of a card's devices at which no process computes, as far as the driver could tell."""
    return {device.id for device in card.devices if usage.processes.get(device.address) == ()}


def by_usage(card: Card, usage: Usage) -> Proof:
    """What driver and sysfs say of a card's functions."""
    holders = []
    for device in card.devices:
        processes = usage.processes.get(device.address)
        if processes is None:
            return Proof(doubt=f"the driver does not tell who uses {device.id}")
        holders += [_named(device, process.host_pid) for process in processes]
    own = usage.drivers.get(card.address)
    if own is None:
        return Proof(doubt=f"sysfs does not tell the driver of {card.address}")
    if len(usage.drivers) - 1 != card.vfs:
        return Proof(doubt=f"sysfs shows {len(usage.drivers) - 1} VFs of {card.address}, not {card.vfs}")
    holders += [
        f"whoever has bound {address} to {driver or 'no driver'}"
        for address, driver in sorted(usage.drivers.items())
        if driver != own
    ]
    return Proof(holders=tuple(dict.fromkeys(holders)))


def _named(device: Device, host_pid: int | None) -> str:
    """A pid of a namespace of its own names nobody."""
    who = "a process" if host_pid is None else f"process {host_pid}"
    return f"{who} at {device.path}"
