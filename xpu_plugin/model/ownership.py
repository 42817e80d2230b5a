# SPDX-License-Identifier: Apache-2.0
"""The users of a card: the answers of all sources -> its holders, or the proof that it is idle.

No source is enough alone. The kubelet's list omits ordinary init containers (it has sidecars from 1.29 on)
and lags behind a grant. Our own grants do not show their end. The driver reports only processes that compute.
A card is idle when all sources agree.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, replace

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import Device, Usage
from xpu_plugin.model.inventory import Facts, Policy, card_of, is_old, our_resources
from xpu_plugin.model.vf_plan import Card, Proof


@frozen
class Holding:
    """Devices of one resource that one container holds."""

    container: str  # `namespace/pod/container`; from the checkpoint, `pod UID/container`
    resource: str
    ids: tuple[str, ...]


@frozen
class Listing:
    """The list of the pod resources API."""

    pods: frozenset[str]  # `namespace/name` of each pod, also of those without devices
    holdings: tuple[Holding, ...]


@frozen
class Checkpoint:
    """The file in which the kubelet keeps its grants."""

    holdings: tuple[Holding, ...] = ()  # by pod UID; ended containers stay until the next grant
    # Resource -> the healthy ids of the last list from any plugin; None if the file lacks them.
    registered: Mapping[str, frozenset[str]] | None = None
    written_ns: int = 0  # the modification time in ns since 1970; 0 without a file


@frozen
class Answers:
    """The answers of all sources. Times are seconds of the caller's clock."""

    began: float  # begin of the earliest call
    done: float  # end of the last call
    listing: (
        Listing | str | None
    )  # None without the API or if it was not asked; a text: why it did not answer
    checkpoint: tuple[Holding, ...] | None  # its holdings; None if it cannot be read
    life: object  # the kubelet instance during all calls; None if it changed or was absent
    age: float  # seconds of that instance
    usages: Mapping[str, Usage | str] = field(default_factory=dict)  # by card; a text: why there is no answer
    own: bool = False  # that instance has written the checkpoint
    checkpoint_trouble: str | None = None  # why the checkpoint cannot be read
    # By the pods API (`roster`). List and checkpoint are without the holders that have ended.
    witness: bool = False  # it has answered
    witness_trouble: str | None = None  # why it does not answer; None without it
    refusal: str = ""  # why it refuses to answer
    ended: Mapping[str, float] = field(default_factory=dict)  # ids of ended holders -> time of the end
    seen: Mapping[str, float] = field(
        default_factory=dict
    )  # of these -> time at which that end was shown last
    finished: Mapping[str, float] = field(default_factory=dict)  # `namespace/pod/container` -> the same
    succeeded: Mapping[str, float] = field(default_factory=dict)  # of these, with exit code 0
    lingering: tuple[Holding, ...] = ()  # of pods that left it before their containers were seen to end
    fading: tuple[Holding, ...] = ()  # of the checkpoint, of pods that are not in it

    @property
    def listed(self) -> Listing | None:
        """The kubelet's list; None if there is none."""
        return self.listing if isinstance(self.listing, Listing) else None

    @property
    def complaints(self) -> tuple[str, ...]:
        """A sentence for each source that exists and cannot be read."""
        troubles = (self.listing if isinstance(self.listing, str) else None, self.checkpoint_trouble)
        return tuple(trouble for trouble in troubles if trouble)

    @property
    def witnesses(self) -> dict[str, str]:
        """Each source of the kubelet, and whether it has answered."""
        pods = self.refusal or self.witness_trouble or (ANSWERS if self.witness else ABSENT)
        return {
            "pod resources": self.listing if isinstance(self.listing, str) else _presence(self.listing),
            "checkpoint": self.checkpoint_trouble or _presence(self.checkpoint),
            "pods API": pods,
        }

    @property
    def holdings(self) -> tuple[Holding, ...]:
        """All holdings of the list and of the checkpoint, those of the list first."""
        return (*(self.listed.holdings if self.listed else ()), *(self.checkpoint or ()))

    @property
    def shown(self) -> tuple[Holding, ...]:
        """The same for people: the checkpoint has no pod names, so it adds only devices not listed."""
        listed = self.listed.holdings if self.listed else ()
        known = {(holding.resource, id) for holding in listed for id in holding.ids}
        rest = (
            replace(holding, ids=tuple(id for id in holding.ids if (holding.resource, id) not in known))
            for holding in self.checkpoint or ()
        )
        return (*listed, *(holding for holding in rest if holding.ids))


ANSWERS, ABSENT = "answers", "is not there"


def _presence(answer: object) -> str:
    return ABSENT if answer is None else ANSWERS


@frozen
class Terms:
    """The conditions on which the sources count."""

    own_pod: str | None = None  # `namespace/name`; None outside of a pod
    settle: float = 10.0  # seconds until the kubelet's list shows a grant
    without_pod_resources: bool = False  # the administrator consents to a kubelet without that API


# --- attribution ----------------------------------------------------------------------------------


def by_card(
    holdings: Iterable[Holding], facts: Facts, policy: Policy
) -> tuple[dict[str, set[str]], set[str]]:
    """Return card -> its holders, and the holders of old ids that no device has.

    A PCI address counts under any resource name, as another plugin may offer the same hardware. An old id
    counts under our names only.
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
    """A device that we granted and that may still be held."""

    at: float  # time of the grant; for one from the record, of our start
    allocated: float | None = None  # time of this process's Allocate answer; None for another process's
    inherited: bool = False  # it is from the record
    shown: object = None  # the last kubelet instance that listed it; None: none has; FORMER: before our start
    holder: str | None = None  # the container with which it was listed
    known_to: object = None  # the last kubelet instance that asked for it, listed it or wrote it down
    noted: bool = False  # that instance has listed it or written it down


FORMER = "former"


Ledger = Mapping[str, Grant]
"""Grants by device id."""


@frozen
class Word:
    """One kubelet instance's answers on the holders."""

    began: float  # begin of the call
    life: object  # the instance; None if there was none, or if another one started before the answer
    listing: Listing | None = None  # None if it was not asked for or is not available
    whole: bool | None = False  # it names every pod, as it names our own; None if our own pod is unknown
    trusted: bool = False  # the list counts as a proof
    checkpoint: Collection[str] | None = None  # its ids; None if it cannot be read
    own: bool = False  # this instance has written the checkpoint
    ended: Mapping[str, float] = field(default_factory=dict)  # id -> time at which its holder ended
    seen: Mapping[str, float] = field(default_factory=dict)  # id -> time at which that end was shown last
    finished: Mapping[str, float] = field(default_factory=dict)  # container -> time at which it ended
    lingering: Collection[str] = ()  # ids of containers that may run although their pods are gone

    @property
    def listed(self) -> dict[str, str]:
        """Device id -> container."""
        holdings = self.listing.holdings if self.listing else ()
        return {id: holding.container for holding in holdings for id in holding.ids}


def after_word(ledger: Ledger, word: Word, settle: float, unused: Collection[str] = ()) -> Ledger:
    """Return the remaining grants, marked by the kubelet's answers.

    A grant ends when the pods API shows the end of its container. An end that may be an earlier container's,
    or of an earlier run, counts only if it was shown after the grant, and not before `settle` seconds. A
    grant goes on while its pod lingers.

    A grant ends when the instance that listed it lists it no longer. It also ends when the instance that
    wrote it down has since written a checkpoint without it.

    A grant that only an earlier instance listed ends when its holder's pod is missing in a `whole` list. An
    instance that lost its checkpoint lists the pod without the device. An instance that has not reached the
    API server lists no pod.

    An unused device does not end a grant if its pod is known: a pod may compute later. Any other grant ends
    after `settle` seconds, but only if its device is `unused` by any process and the checkpoint does not name
    it. The same is true for a record of an older release that was listed without its pod.
    """
    listed, checkpoint = word.listed, word.checkpoint

    def goes_on(id: str, grant: Grant) -> bool:
        if id in listed or id in word.lingering or grant.at >= word.began:
            return True
        end = word.ended.get(id, word.finished.get(grant.holder or ""))
        if end is not None:
            settled = word.seen.get(id, word.began) >= grant.at and word.began - grant.at >= settle
            return grant.at >= end and not settled
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
    """Return whether an older release recorded it as listed, without the pod."""
    return grant.holder is None and grant.known_to == FORMER


def _dropped(id: str, grant: Grant, word: Word) -> bool:
    """Return whether the instance that wrote a grant down has since written a checkpoint without it."""
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
    """Return the ids that a container may hold although this kubelet instance does not count them.

    A kubelet that lost its checkpoint lets the containers run and gives their devices to others.
    before: the result until now; it stays where the kubelet gives no answer
    """
    listed = word.listed
    if word.checkpoint is None or word.life is None:
        return frozenset(before) & ledger.keys() - listed.keys()
    return frozenset(
        id
        for id, grant in ledger.items()
        if id not in listed
        and id not in word.checkpoint
        and id not in word.ended
        and grant.at < word.began
        and grant.known_to != word.life
        and (grant.known_to is not None or grant.holder is not None)
    )


def pod_of(container: str) -> str:
    """Return the `namespace/name` of a listed container's pod."""
    return container.rpartition("/")[0]


# --- the proof ------------------------------------------------------------------------------------

_UNREADABLE = "the kubelet's checkpoint cannot be read"
KUBELET_SECONDS = 60.0  # minimum run time of a kubelet that cannot name our own pod


def examine(
    ledger: Ledger,
    asked: Collection[Card],
    answers: Answers,
    terms: Terms,
    *,
    facts: Facts,
    policy: Policy,
) -> tuple[Ledger, dict[str, Proof]]:
    """Return the remaining grants, and the proof for each card in question."""
    proofs = {}
    doubt = distrust(answers, terms)
    held: Mapping[str, Collection[str]] = {}
    strange: Collection[str] = ()
    if not doubt:
        held, strange = by_card(_holdings(answers, terms), facts, policy)
    fading, _ = by_card(answers.fading, facts, policy)
    # The checkpoint alone may prove that grants ended, even if it needs consent to prove a card idle.
    if not distrust(answers, replace(terms, without_pod_resources=True)):
        ledger = _strike_out(ledger, asked, answers, terms, facts)
    granted: dict[str | None, list[str]] = {}
    for id in ledger:
        granted.setdefault(card_of(id, facts), []).append(id)
    for card in asked:
        proof = _proof(card, answers.usages[card.address], held.get(card.address, ()), strange, doubt)
        proof = replace(proof, fading=tuple(sorted(fading.get(card.address, ()))))
        if not proof.holders and card.address in granted:
            ids = ", ".join(granted[card.address])
            proof = Proof(holders=(f"a container that was granted {ids} and is not known to have ended",))
        proofs[card.address] = replace(proof, at=answers.began, done=answers.done)
    return ledger, proofs


def _holdings(answers: Answers, terms: Terms) -> Iterable[Holding]:
    """Return the present holders.

    If the list is missing or may be incomplete, the checkpoint is added, although it may name ended
    containers.
    """
    if answers.listed is not None and terms.own_pod is not None:
        return (*answers.listed.holdings, *answers.lingering)
    return (*answers.holdings, *answers.lingering)


def distrust(answers: Answers, terms: Terms) -> str:
    """Return why the kubelet's list is no proof; empty if it is one, or if the administrator consents.

    A kubelet that was restarted while its API server is unreachable lists no pods at all meanwhile.
    """
    listing = answers.listing
    if isinstance(listing, str):
        return listing
    if answers.refusal:
        return answers.refusal
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
            "the kubelet has reached the API server"
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
        return Proof(doubt=f"the device held by {', '.join(sorted(strange))} is unknown")
    return Proof(doubt=usage) if isinstance(usage, str) else by_usage(card, usage)


def _strike_out(
    ledger: Ledger, asked: Collection[Card], answers: Answers, terms: Terms, facts: Facts
) -> Ledger:
    """Drop grants that have ended."""
    unused: set[str] = set()
    for card in asked:
        usage = answers.usages[card.address]
        if isinstance(usage, str):
            continue
        here = unused_devices(card, usage)
        unused |= here
        if len(here) == len(card.devices):  # then also ids without a device
            unused |= {id for id in ledger if card_of(id, facts) == card.address}
    return after_word(ledger, word_of(answers, terms), terms.settle, unused)


def word_of(answers: Answers, terms: Terms) -> Word:
    """Return the kubelet's part of the answers."""
    listing = answers.listed
    return Word(
        began=answers.began,
        life=answers.life,
        listing=listing,
        whole=None if terms.own_pod is None else listing is not None and terms.own_pod in listing.pods,
        trusted=listing is not None and not distrust(answers, terms),
        checkpoint=None if answers.checkpoint is None else _ids(answers.checkpoint),
        own=answers.own,
        ended=answers.ended,
        seen=answers.seen,
        finished=answers.finished,
        lingering=_ids(answers.lingering),
    )


def _ids(holdings: Iterable[Holding]) -> frozenset[str]:
    return frozenset(id for holding in holdings for id in holding.ids)


# --- the driver -----------------------------------------------------------------------------------


def unused_devices(card: Card, usage: Usage) -> set[str]:
    """Return the ids of a card's devices without processes, as far as the driver reports them."""
    return {device.id for device in card.devices if usage.processes.get(device.address) == ()}


def by_usage(card: Card, usage: Usage) -> Proof:
    """Prove a card idle by the driver's and sysfs's answers about its functions."""
    holders = []
    for device in card.devices:
        processes = usage.processes.get(device.address)
        if processes is None:
            return Proof(doubt=f"the driver does not report the processes of {device.id}")
        holders += [_named(device, process.host_pid) for process in processes]
    own = usage.drivers.get(card.address)
    if own is None:
        return Proof(doubt=f"sysfs does not show the driver of {card.address}")
    if len(usage.drivers) - 1 != card.vfs:
        return Proof(doubt=f"sysfs shows {len(usage.drivers) - 1} VFs of {card.address}, not {card.vfs}")
    holders += [
        f"{driver or 'no driver'} bound to {address}"
        for address, driver in sorted(usage.drivers.items())
        if driver != own
    ]
    return Proof(holders=tuple(dict.fromkeys(holders)))


def _named(device: Device, host_pid: int | None) -> str:
    """Name a process; a pid of another namespace is left out."""
    who = "a process" if host_pid is None else f"process {host_pid}"
    return f"{who} at {device.path}"
