# SPDX-License-Identifier: Apache-2.0
"""A node in virtual time, for random search: cards, pods, a kubelet, an API server, and a plugin that may be
killed at every step, or hand the node to another one. What decides is the real thing; only the world and the
carrying out are made here.

    python -m tests.model.exploring [--steps N] [--seed S]

explores N steps (a million by default), prints how many of what kind there were, and ends with status 1 and
the way that led there when an invariant is broken:

* no Set call while a container holds the card or any of its VFs, or uses a process on it;
* what the driver does late, after the plugin that asked was killed, is done to a card without a holder;
* no device of a card in change is newly granted;
* no probe of a card while a container holds it, and no Set call while a probe runs, nor of its card;
* no Set call for a card that the driver has refused too often, and nothing has changed since;
* no device that a pod holds is granted to another one, also by a kubelet that has lost its checkpoint;
* each device that the kubelet counts as a pod's is in the list, and a device that is not there is Unhealthy;
* at rest, each card is as wished or there is a reason for it, and no card is kept back.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache

from tests.support.devices import device, found
from xpu_plugin.model import probe
from xpu_plugin.model.devices import DeviceKind, Found, Process, Usage
from xpu_plugin.model.health import PROBING, VF_CHANGE_PLANNED, Health
from xpu_plugin.model.incidents import Sickness
from xpu_plugin.model.inventory import (
    Entry,
    Facts,
    Policy,
    after_scan,
    card_of,
    entries,
    held_beyond,
    released,
    stale_ids,
)
from xpu_plugin.model.ownership import (
    FORMER,
    Answers,
    Grant,
    Holding,
    Ledger,
    Listing,
    Terms,
    Word,
    after_word,
    examine,
    forgotten,
    word_of,
)
from xpu_plugin.model.pods import Container, Exit, Kind
from xpu_plugin.model.pods import Pod as Shown
from xpu_plugin.model.reservation import Prove, Wait
from xpu_plugin.model.roster import Roster, after_list, applied, open_holders
from xpu_plugin.model.vf_plan import UNKNOWN, Card, VfAction, by_argument, by_label, cards, plan
from xpu_plugin.model.vf_reconcile import (
    MOST_REFUSALS,
    Decision,
    Limits,
    Memory,
    Request,
    Rescan,
    SetVfs,
    View,
    answered,
    decide,
    inherited,
)
from xpu_plugin.model.withholding import withheld


CARDS = ("0000:3b:00.0", "0000:5e:00.0", "0000:86:00.0")
MOST = (3, 3, 0)  # VFs that each card can have
POLICY = Policy(resource="baidu.com/xpu")
LIMITS = Limits(settle=10.0, timeout=60.0, pending=60.0)
OWN_POD = "kube-system/plugin"
LIST_SECONDS = 3.0
STATUS_SECONDS = 2.0  # until the pods API shows the end or the new start of a container
GRACE_SECONDS = 30.0  # that the container of a pod runs on which is deleted by force
LATE_SECONDS = 60.0  # that a wait may last at rest, also a shorter one: or most steps would be looks there
REST_SECONDS = 3 * 3600.0  # longer than any back-off


class BrokenInvariantError(Exception):
    """What must never be has been."""


@dataclass
class Pod:
    """A pod with one device, admitted at `born`.

    init: its container is an init container, which the kubelet never lists
    forgotten: the kubelet has lost its record of it; known: the plugin has seen it listed
    exit: when its container last ended; restarted: when that was started again
    failing: the pods API shows it as failed, and has no status of its container, which runs
    until: when its container is killed at the latest, as it was deleted by force and is in no list any more
    """

    name: str
    id: str
    card: str
    born: float = 0.0
    init: bool = False
    computes: bool = False
    forgotten: bool = False
    known: bool = False
    exit: float | None = None
    restarted: float | None = None
    failing: bool = False
    until: float | None = None

    @property
    def uid(self) -> str:
        return f"uid-{self.name}"

    @property
    def holding(self) -> Holding:
        return Holding(container=f"{self.uid}/main", resource=POLICY.resource, ids=(self.id,))

    @property
    def split(self) -> str:
        return split_of(self.id)


def split_of(id: str) -> str:
    """How its card is split for a device to have this id."""
    return id.partition("-")[2] or "whole"


@dataclass
class World:
    """The truth."""

    now: float = 1000.0
    vfs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CARDS, 0))
    sick: set[str] = field(default_factory=set)  # cards with a driver error
    busy: set[str] = field(default_factory=set)  # cards at which a process of the host computes
    pods: list[Pod] = field(default_factory=list)
    shown: dict[str, Entry] = field(default_factory=dict)  # the list as the scheduler knows it
    checkpoint: dict[str, str] = field(default_factory=dict)  # id -> container
    life: int = 1
    wrote: int = 0  # the life that has written the checkpoint
    born: float = 0.0
    synced: bool = True  # whether the kubelet has heard from the API server in this life
    api: bool = True
    label: str | None = None
    argument: int = 0
    refuses: bool = False
    crashes: bool = False
    stubborn: set[str] = field(default_factory=set)  # cards that the driver refuses, at every request
    request: Request | None = None  # on record
    late: tuple[Request, float] | None = None  # what a killed plugin has asked for, and when it is done
    recorded: dict[str, str | None] = field(default_factory=dict)  # id -> the pod it was seen listed with
    pods_api: bool = False  # the kubelet has it
    ended: list[Pod] = field(
        default_factory=list
    )  # pods that go on, with a container that has ended for good

    def lists(self, pod: Pod) -> bool:
        """Whether the kubelet lists a pod's device: soon after it was granted."""
        shown = self.synced and not pod.init and not pod.forgotten and pod.until is None
        return shown and self.now - pod.born > LIST_SECONDS

    def listing(self) -> Listing:
        """The kubelet's list: of every pod, but not of each device."""
        active = [pod for pod in (*self.pods, *self.ended) if pod.until is None]
        return Listing(
            pods=frozenset({OWN_POD, *(f"default/{pod.name}" for pod in active)} if self.synced else ()),
            holdings=tuple(
                Holding(container=f"default/{pod.name}/main", resource=POLICY.resource, ids=(pod.id,))
                for pod in active
                if self.lists(pod)
            ),
        )

    def api_pods(self) -> dict[str, Shown] | str | None:
        """The answer of the pods API."""
        if not self.pods_api:
            return None
        if not self.synced:
            return "the kubelet initializes"
        return {pod.uid: self._shown(pod) for pod in (*self.pods, *self.ended) if pod.until is None}

    def _shown(self, pod: Pod) -> Shown:
        """A pod with the status of its container, which is late."""
        changed = pod.exit if pod in self.ended else pod.restarted
        late = changed is not None and self.now - changed < STATUS_SECONDS
        over = pod.exit is not None and (pod in self.ended) != late
        end = Exit(code=0, finished=float(int(pod.exit))) if over and pod.exit is not None else None
        kind = Kind.INIT if pod.init else Kind.MAIN
        policy = "Always" if pod.init else "Never"
        return Shown(
            uid=pod.uid,
            name=f"default/{pod.name}",
            containers={"main": Container(kind=kind, policy=policy, exit=None if pod.failing else end)},
            over=pod.failing,
            grace=GRACE_SECONDS,
        )

    def write_checkpoint(self) -> None:
        """A kubelet that admits, or gets a list, forgets the dead, and those that were deleted by force."""
        active = [pod for pod in (*self.pods, *self.ended) if not pod.forgotten and pod.until is None]
        self.checkpoint = {pod.id: f"{pod.uid}/main" for pod in active}
        self.wrote = self.life


@cache
def found_of(vfs: tuple[int, ...]) -> Found:
    """What a scan finds."""
    devices, index = [], 0
    for number, (card, count, most) in enumerate(zip(CARDS, vfs, MOST, strict=True)):
        kind, split = (DeviceKind.PF, f"of{count}") if count else (DeviceKind.WHOLE, "whole")
        devices.append(device(card, number=number, index=index, max_vfs=most, kind=kind, split=split))
        index += 1
        for n in range(count):
            id = f"{card[:-4]}01.{n}-of{count}"
            devices.append(device(id, number=10 * (number + 1) + n, index=index, card=card))
            index += 1
    return found(*devices)


@cache
def cards_of(vfs: tuple[int, ...]) -> dict[str, Card]:
    return cards(after_scan(Facts(), found_of(vfs)), POLICY)


SICK = Sickness(at=0.0, line="a line", why="a rule").health


class Plugin:
    """What of the plugin decides, with its memory. `own_pod` None: it runs outside of a pod."""

    def __init__(self, world: World, *, label_mode: bool, own_pod: str | None, readable: bool = True) -> None:
        self.world = world
        self.terms = Terms(own_pod=own_pod, settle=LIMITS.settle)
        self.label_mode = label_mode
        self.desired = UNKNOWN if label_mode else by_argument(world.argument)
        self.memory = Memory(started=world.now)
        self.ledger: Ledger = self.recorded()
        self.proofs: dict[str, object] = {}
        self.scanned = tuple(world.vfs.values())
        self.facts = after_scan(Facts(), found_of(self.scanned), claimed=self.ledger)
        self.kept_back: dict[str, Health] = {}
        self.probe, self.probed = probe.Memory(), dict[str, Health]()
        self.probing = world.now  # end of the program
        self.paused: dict[str, float] = {}
        self.forgotten: frozenset[str] = frozenset()
        self.withheld: dict[str, Health] = {}
        self.roster: Roster = {}
        self.ended = 0.0  # when the end of a container was last seen
        self.scans = 1
        self.decision: Decision | None = None
        self.listen()
        self.adopt()
        self.driver, self.orders = "4.0.12", 0
        self.unread: float | None = world.now
        if readable:
            self.read_record()

    def recorded(self) -> Ledger:
        """The grants on record."""
        return {
            id: Grant(
                at=self.world.now - 0.001,
                inherited=True,
                shown=FORMER if seen else None,
                holder=seen,
                known_to=seen,
                noted=seen is not None,
            )
            for id, seen in self.world.recorded.items()
        }

    def read_record(self) -> None:
        if self.unread is not None and self.world.request is not None:
            self.memory = inherited(self.memory, self.view(), LIMITS, self.world.request)
        self.unread = None

    def claim(self) -> None:
        """What the kubelet counts as held stays listed, and only that."""
        self.facts = released(replace(self.facts, claimed=frozenset(self.ledger)))
        named = {pod.id for pod in self.world.pods if self.world.lists(pod)} | self.world.checkpoint.keys()
        self.facts = held_beyond(((id, POLICY.resource) for id in sorted(named)), self.facts, POLICY, {})

    def entries(self) -> dict[str, Entry]:
        return entries(
            replace(
                self.facts,
                kept_back=self.kept_back,
                withheld=self.withheld,
                probed=self.probed,
                driver_errors=dict.fromkeys(self.world.sick, SICK),
            ),
            POLICY,
        )

    def cards(self) -> dict[str, Card]:
        if not self.world.sick and not self.probed:
            return cards_of(self.scanned)
        facts = after_scan(Facts(), found_of(self.scanned))
        sick = dict.fromkeys(self.world.sick, SICK)
        return cards(replace(facts, probed=self.probed, driver_errors=sick), POLICY)

    def adopt(self) -> None:
        """What the kubelet knows, with or without the record."""
        named = {pod.id for pod in self.world.pods if self.world.lists(pod)} | self.world.checkpoint.keys()
        held = {id for id in named if not id.isdecimal() and card_of(id, self.facts)}
        adopted = dict.fromkeys(held, Grant(at=self.world.now, inherited=True, shown=FORMER))
        self.ledger = {**adopted, **self.ledger}
        self.claim()

    def hear(self) -> None:
        """The API server, if it can be reached."""
        if self.label_mode and self.world.api:
            self.desired = by_label(self.desired, self.world.label, self.world.argument)

    def allocate(self, id: str) -> bool:
        entry = self.entries().get(id)
        if entry is None or not entry.health.grantable:
            return False
        self.ledger = {**self.ledger, id: Grant(at=self.world.now, known_to=self.world.life)}
        self.world.recorded[id] = None
        return True

    def start(self, id: str) -> None:
        """A container is started again with its device."""
        self.ledger = {**self.ledger, id: Grant(at=self.world.now, known_to=self.world.life)}
        self.world.recorded[id] = None

    def learn(self, other: "Plugin") -> None:
        """Take note of the grants of another instance."""
        own = {id: grant for id, grant in other.ledger.items() if not grant.inherited}
        self.ledger = {**self.ledger, **own}
        self.claim()

    def listen(self, *, checkpoint_alone: bool = False) -> None:
        """The kubelet is asked who holds what, and what becomes of grants is written down."""
        world = self.world
        answers = self.answers(world.now, checkpoint_alone=checkpoint_alone)
        listing = answers.listed
        word = Word(
            began=world.now,
            life=world.life,
            listing=listing,
            whole=listing is not None and self.terms.own_pod in listing.pods,
            checkpoint=frozenset(id for holding in answers.checkpoint or () for id in holding.ids),
            own=world.wrote == world.life,
            ended=answers.ended,
            seen=answers.seen,
            finished=answers.finished,
            lingering=frozenset(id for holding in answers.lingering for id in holding.ids),
        )
        found = {
            id: Grant(at=world.now, inherited=True, shown=world.life, holder=container, known_to=world.life)
            for id, container in word.listed.items()
            if id not in self.ledger and card_of(id, self.facts)
        }
        self.ledger = after_word({**found, **self.ledger}, word, self.terms.settle)
        for pod in world.pods:
            pod.known |= pod.id in word.listed
        self.conclude(word)

    def answers(self, began: float, cards: Iterable[Card] = (), *, checkpoint_alone: bool = False) -> Answers:
        """The kubelet's answers, and those of the driver about the cards."""
        world = self.world
        answers = Answers(
            began=began,
            done=world.now,
            listing=None if checkpoint_alone else world.listing(),
            own=world.wrote == world.life,
            checkpoint=tuple(
                Holding(container=container, resource=POLICY.resource, ids=(id,))
                for id, container in world.checkpoint.items()
            ),
            life=world.life,
            age=world.now - world.born,
            usages={card.address: self._usage(card) for card in cards},
        )
        shown = None if checkpoint_alone else world.api_pods()
        if isinstance(shown, dict):
            before = self.roster
            self.roster = after_list(before, shown, answers.checkpoint or (), world.now, began=began)
            if open_holders(before) - open_holders(self.roster):
                self.ended = world.now
        return applied(answers, self.roster, shown, ahead=0.0)

    def conclude(self, word: Word) -> None:
        """What follows from it."""
        world = self.world
        self.claim()
        self.forgotten = forgotten(self.ledger, word, self.forgotten)
        holdings = word.listing.holdings if word.listing else ()
        self.withheld = withheld(holdings, self.ledger, self.forgotten, facts=self.facts, policy=POLICY)
        world.recorded = {
            id: self.ledger[id].holder or seen for id, seen in world.recorded.items() if id in self.ledger
        }

    def see_listed(self) -> None:
        self.listen()

    def view(self) -> View:
        taken = {card_of(id, self.facts) for id, grant in self.ledger.items() if not grant.inherited}
        return View(
            now=self.world.now,
            desired=self.desired,
            cards=self.cards(),
            proofs=self.proofs,  # type: ignore[arg-type] # filled from examine only
            taken=frozenset(card for card in taken if card),
            stale_ids=frozenset(stale_ids(self.facts)),
            scans=self.scans,
            unread=self.unread,
            driver=self.driver,
            orders=self.orders,
            ended=self.ended,
        )

    def decide(self) -> Decision:
        decision = decide(self.memory, self.view(), LIMITS)
        if decision.kept_back != self.kept_back:
            self.world.write_checkpoint()  # as with each list
        self.memory, self.kept_back = decision.memory, dict(decision.kept_back)
        if self.unread is None and self.memory.request is None:
            self.world.request = None
        self.decision = decision
        return decision

    def decide_probe(self) -> probe.Decision:
        """The part that probes, unless it waits for the end of the program."""
        view = self.view()
        kept_back = self.kept_back.values()
        decision = probe.decide(
            self.probe,
            probe.View(
                now=view.now,
                proofs=view.proofs,
                taken=view.taken,
                ended=view.ended,
                suspects={card: card for card in sorted(self.world.sick)},
                paused=self.paused,
                changing=any(health == VF_CHANGE_PLANNED or health.in_change for health in kept_back),
                stuck=self.world.now < self.probing,
            ),
            LIMITS.settle,
        )
        if dict(decision.withheld) != self.probed:
            self.world.write_checkpoint()
        self.probe, self.probed = decision.memory, dict(decision.withheld)
        return decision

    def scan(self) -> None:
        self.scanned = tuple(self.world.vfs.values())
        self.facts = after_scan(
            self.facts, found_of(self.scanned), claimed=self.ledger, forget=self.scans % 3 == 0
        )
        self.scans += 1

    def look(self, addresses: tuple[str, ...], began: float) -> None:
        known = cards_of(self.scanned)
        answers = self.answers(began, [known[address] for address in addresses])
        self.ledger, proofs = examine(
            self.ledger,
            [known[address] for address in addresses],
            answers,
            self.terms,
            facts=self.facts,
            policy=POLICY,
        )
        self.proofs = {**self.proofs, **proofs}
        self.conclude(word_of(answers, self.terms))

    def _usage(self, card: Card) -> Usage | str:
        world = self.world
        if world.vfs[card.address] != card.vfs:
            return "device index 0 is another one"
        busy = {pod.id for pod in world.pods if pod.computes}
        busy |= {card.address} if card.address in world.busy else set()
        return Usage(
            processes={
                own.address: (Process(pid=1, host_pid=None),) if own.id in busy else ()
                for own in card.devices
            },
            drivers={own.address: "kunlun" for own in card.devices},
        )


class Explorer:
    """One walk through the states, chosen by a random number generator."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.probes, self.chance = seed % 4 == 3, random.Random(~seed)
        self.world = World(argument=self.random.choice((0, 0, 2, 3)))
        self.own_pod = OWN_POD if self.random.random() < 0.8 else None
        self.label_mode = self.random.random() < 0.7
        self.world.pods_api = self.random.random() < 0.6
        # Granted by the former plugin, of which there is no record.
        self.world.pods = [
            Pod(f"former{n}", str(n), card) for n, card in enumerate(CARDS) if self.random.random() < 0.3
        ]
        self.world.write_checkpoint()
        self.plugin = self._start()
        self.counts: Counter[str] = Counter()
        self.way: list[str] = []
        self.names = 0
        self.refused: Counter[object] = Counter()  # by card and by what has to change, in a row
        self.asked_for: int | None = None
        self.asked: tuple[object, ...] | None = (
            None  # plugin and card of the last request, its scans until then
        )

    def _start(self) -> Plugin:
        readable = self.random.random() < 0.9
        plugin = Plugin(self.world, label_mode=self.label_mode, own_pod=self.own_pod, readable=readable)
        self.refused = Counter()
        plugin.decide()
        return plugin

    def note(self, what: str) -> None:
        self.counts[what.split(" ", maxsplit=1)[0]] += 1
        self.way.append(f"{self.world.now:.1f} {what}")

    # --- the world's moves ----------------------------------------------------------------------

    def disturb(self) -> None:
        """Something happens, or nothing."""
        moves = (
            (6, self.pod_starts),
            (5, self.pod_ends),
            (3, self.pod_turns),
            (2, self.container_ends),
            (1, self.container_starts_again),
            (1, self.pod_fails),
            (1, self.pod_is_deleted_by_force),
            (3, self.plugin.see_listed),
            (2, self.list_goes_out),
            (2, self.label_changes),
            (1, self.host_process),
            (1, self.kubelet_restarts),
            (1, self.kubelet_forgets),
            (1, self.api_turns),
            (1, self.foreign_split),
            (1, self.plugin_dies),
            (2, self.driver_turns),
            (1, self.order),
            (1, self.driver_is_another),
            (4, self.record_is_read),
            (1, self.hands_over),
            (11, lambda: None),
        )
        weights, calls = zip(*moves, strict=True)
        self.random.choices(calls, weights)[0]()

    def passes(self, seconds: float) -> None:
        """Time passes, and the driver comes to what it was asked for."""
        world = self.world
        world.now += seconds
        world.pods = [pod for pod in world.pods if pod.until is None or world.now < pod.until]
        if world.late is None or world.now < world.late[1]:
            return
        (request, _), world.late = world.late, None
        self.note(f"late {request}")
        if not self.driver_allows(request.card) or request.number == world.vfs[request.card]:
            return
        holders = [pod.name for pod in world.pods if pod.card == request.card]
        if holders:
            raise BrokenInvariantError(f"late Set of {request.card} while {', '.join(holders)} hold it")
        world.vfs[request.card] = request.number

    def order(self) -> None:
        """The administrator wants what is left alone to be tried again."""
        self.plugin.orders += 1
        self.refused.clear()
        self.note("order")

    def driver_is_another(self) -> None:
        self.plugin.driver = self.random.choice(("4.0.12", "4.0.13"))
        self.note(f"version {self.plugin.driver}")

    def record_is_read(self) -> None:
        if self.plugin.unread is not None:
            self.plugin.read_record()
            self.note("read")

    def list_goes_out(self) -> None:
        """The scheduler learns of the list with the next node status."""
        self.shows()
        self.note("list")

    def shows(self) -> None:
        world, plugin = self.world, self.plugin
        world.shown = plugin.entries()
        missing = [
            pod.name
            for pod in world.pods
            if pod.id in world.checkpoint and not pod.id.isdecimal() and pod.id not in world.shown
        ]
        if missing:
            raise BrokenInvariantError(f"not listed: what {', '.join(missing)} hold")
        for id, entry in world.shown.items():
            if id not in plugin.facts.devices and not id.isdecimal() and entry.health.healthy:
                raise BrokenInvariantError(f"{id} is not there, and is healthy")

    def pod_starts(self) -> None:
        world = self.world
        counted = [pod for pod in (*world.pods, *world.ended) if not pod.forgotten and pod.until is None]
        held = {pod.id for pod in counted} | {pod.card for pod in counted if pod.id.isdecimal()}
        free = [id for id, entry in world.shown.items() if entry.health.healthy and id not in held]
        if not free:
            return
        id = self.random.choice(free)
        card = card_of(id, self.plugin.facts)
        change = self.plugin.memory.change
        granted = self.plugin.allocate(id)
        self.note(f"{'granted' if granted else 'refused'} {id}")
        if not granted:
            return
        if any(probe.in_change for own, probe in self.plugin.probed.items() if own == card):
            raise BrokenInvariantError(f"{id} was granted while a probe has its card")
        if change is not None and change.sent and card == change.card:
            raise BrokenInvariantError(f"{id} was granted while its card is being changed")
        if self.asked == (self.plugin, card, self.plugin.scans):
            raise BrokenInvariantError(f"{id} was granted before a scan has shown what became of its card")
        others = [
            pod
            for pod in world.pods
            if pod.until is None  # the kubelet itself gives away what it does not know any more
            and pod.card == card
            and (pod.split != split_of(id) or pod.id == id or pod.id.isdecimal())
        ]
        if others:
            raise BrokenInvariantError(f"{id} was granted, and {others[0].name} has {others[0].id}")
        self.names += 1
        pod = Pod(f"pod{self.names}", id, str(card), born=world.now, init=self.random.random() < 0.2)
        world.pods.append(pod)
        world.write_checkpoint()

    def pod_ends(self) -> None:
        if self.world.ended and self.random.random() < 0.3:
            pod = self.world.ended.pop(self.random.randrange(len(self.world.ended)))
            self.note(f"ends {pod.name}, its container did before")
        elif self.world.pods:
            number = self.random.randrange(len(self.world.pods))
            if self.world.pods[number].id.isdecimal() and self.random.random() < 0.9:
                return  # those live long
            pod = self.world.pods.pop(number)
            self.note(f"ends {pod.name}")

    def pod_turns(self) -> None:
        """Its process starts or stops to compute."""
        if self.world.pods:
            pod = self.random.choice(self.world.pods)
            pod.computes = not pod.computes
            self.note(f"computes {pod.name} {pod.computes}")

    def container_ends(self) -> None:
        """For good, while its pod goes on. Without the pods API that is not known before the pod's end."""
        world = self.world
        pods = [pod for pod in world.pods if not (pod.id.isdecimal() or pod.forgotten or pod.until)]
        if world.pods_api and pods:
            pod = self.random.choice(pods)
            world.pods.remove(pod)
            pod.exit, pod.restarted, pod.computes, pod.failing = world.now, None, False, False
            world.ended.append(pod)
            self.note(f"exits {pod.name}")

    def container_starts_again(self) -> None:
        """An init container, as its sandbox was lost, if the plugin lets it."""
        world = self.world
        pods = [pod for pod in world.ended if pod.init and not pod.forgotten]
        if not pods:
            return
        pod = self.random.choice(pods)
        entry = self.plugin.entries().get(pod.id)
        if entry is None or entry.health.in_change or entry.health.lost:
            return
        self.plugin.start(pod.id)
        world.ended.remove(pod)
        pod.restarted = world.now
        world.pods.append(pod)
        self.note(f"restarts {pod.name}")

    def pod_fails(self) -> None:
        """It is shown as failed before its container has ended."""
        pods = [pod for pod in self.world.pods if not pod.failing]
        if self.world.pods_api and pods:
            pod = self.random.choice(pods)
            pod.failing = True
            self.note(f"fails {pod.name}")

    def pod_is_deleted_by_force(self) -> None:
        """No source names its container any more, which runs on. The plugin has seen it by the pods API."""
        world = self.world
        seen = [pod for pod in world.pods if pod.uid in self.plugin.roster and not pod.forgotten]
        if seen and world.synced:
            pod = self.random.choice(seen)
            pod.until = world.now + self.random.uniform(0.0, GRACE_SECONDS)
            self.note(f"forced {pod.name}")

    def label_changes(self) -> None:
        self.world.label = self.random.choice((None, "0", "1", "2", "3", "4", "keep", "abc", ""))
        self.note(f"label {self.world.label}")
        self.plugin.hear()

    def host_process(self) -> None:
        card = self.random.choice(CARDS)
        if card in self.world.busy:
            self.world.busy.remove(card)
        elif not any(pod.card == card for pod in self.world.pods):
            self.world.busy.add(card)
        self.note(f"process {card}")

    def kubelet_restarts(self) -> None:
        world = self.world
        world.life += 1
        world.born = world.now
        world.synced = world.api
        self.note(f"kubelet synced={world.synced}")
        self.registers()

    def kubelet_forgets(self) -> None:
        """It is started anew, without its checkpoint, and does not ask for devices of running pods again.

        Not while there is a holder of which neither we nor the kubelet's list can know: that may end by its
        process alone.
        """
        world = self.world
        unknown = [pod for pod in world.pods if not pod.known or pod.init]
        if self.own_pod is None or unknown or world.now - world.born < LIMITS.settle:
            return
        self.passes(0.1)
        world.checkpoint, world.wrote = {}, 0
        for pod in (*world.pods, *world.ended):
            pod.forgotten = True
        world.life += 1
        world.born = world.now
        world.synced = world.api
        self.note(f"forgets {len(world.pods)} pods")
        self.registers()

    def registers(self) -> None:
        """The plugin looks at the checkpoint, registers and sends its list, with which that is written."""
        world = self.world
        self.plugin.listen(checkpoint_alone=True)
        self.shows()
        world.wrote = world.life

    def api_turns(self) -> None:
        self.world.api = not self.world.api
        if self.world.api:
            self.world.synced = True
            self.plugin.hear()
        self.note(f"api {self.world.api}")

    def foreign_split(self) -> None:
        """Any container with the control node can do that, if no process has the card open, held or not."""
        card = CARDS[self.random.randrange(2)]
        late = self.world.late
        if (
            self.driver_allows(card)
            and not any(pod.card == card and pod.id.isdecimal() for pod in self.world.pods)
            and (late is None or late[0].card != card)
        ):
            self.world.vfs[card] = self.random.randrange(4)
            self.note(f"foreign {card} {self.world.vfs[card]}")
            if self.random.random() < 0.7:
                self.plugin.scan()

    def plugin_dies(self) -> None:
        self.note("killed")
        if self.random.random() < 0.1 and self.world.late is None:
            # With its records lost, only the kubelet's list knows.
            self.world.request = None
            self.world.pods = [pod for pod in self.world.pods if self.world.lists(pod)]
            self.world.recorded = {}
        self._forget_unknown()
        self.plugin = self._start()
        if self.world.api:
            self.plugin.hear()

    def _ask_what_is_known(self) -> None:
        """The other plugin may have seen a pod listed that this one has not."""
        for pod in self.world.pods:
            grant = self.plugin.ledger.get(pod.id)
            pod.known = grant is not None and grant.shown is not None

    def _forget_unknown(self) -> None:
        """A pod that was never on record and is forgotten by the kubelet is not known to the next plugin.

        Nothing but the memory of the plugin before knows the pods that were deleted by force.
        """
        self.world.pods = [pod for pod in self.world.pods if pod.until is None]
        for pod in self.world.pods:
            pod.known = bool(self.world.recorded.get(pod.id))
        self.world.pods = [pod for pod in self.world.pods if pod.known or not pod.forgotten]

    def hands_over(self) -> None:
        """Another plugin is started beside the first one, and takes over; or the first one goes on.

        Here the memories count: each knows the grants of the other, and neither decides meanwhile. The tables
        of `model.handover` are searched by tests/model/test_handover.py.
        """
        self._forget_unknown()
        first, second = self.plugin, self._start()
        first.probe, first.probing, first.probed = probe.Memory(), self.world.now, {}  # ended before
        if self.world.api:
            second.hear()
        for given, taken in ((first, second), (second, first)):
            self.plugin = given
            self.passes(self.random.choice((0.0, 0.1, 2.0)))
            self.pod_starts()
            taken.learn(given)
            if given is first:
                second.scan()
                self.plugin = second
                self.registers()
        if self.random.random() < 0.7:
            self.plugin = second
            self._ask_what_is_known()
            self.note("handover")
            return
        self.note("resumed")
        first.memory, first.proofs, first.unread = Memory(started=self.world.now), {}, self.world.now
        first.ledger = {**first.recorded(), **first.ledger}
        first.read_record()
        first.scan()
        first.decide()
        self.plugin = first
        self._ask_what_is_known()
        self.registers()

    def driver_turns(self) -> None:
        self.world.refuses = self.random.random() < 0.3
        self.world.crashes = self.random.random() < 0.3
        self.world.stubborn = {card for card in CARDS if self.random.random() < 0.3}
        self.note(f"driver {self.world.refuses=} {self.world.crashes=} {self.world.stubborn=}")

    # --- the plugin's moves ---------------------------------------------------------------------

    def step(self) -> None:
        """Carry out what was decided last, with something happening before, within and after."""
        self.disturb()
        self.probe_step()
        decision = self.plugin.decide()
        plugin = self.plugin
        if plugin.desired.number != self.asked_for:
            self.asked_for = plugin.desired.number
            self.refused.clear()
        self.note(type(decision.action).__name__)
        match decision.action:
            case Wait(seconds):
                most = 30.0 if seconds is None else seconds
                self.passes(most if self.random.random() < 0.6 else self.random.uniform(0.0, most))
            case Prove(addresses):
                began = self.world.now
                self.passes(self.random.choice((0.0, 0.1, 3.0)))
                plugin.look(addresses, began)
            case Rescan(seconds):
                if self.random.random() < 0.9:
                    self.passes(0.2)
                    plugin.scan()
                else:
                    self.passes(seconds)
            case SetVfs(card, number):
                self.set_vfs(card, number)
        self.random_scan()

    def random_scan(self) -> None:
        if self.random.random() < 0.1:
            self.plugin.scan()

    def driver_allows(self, card: str) -> bool:
        return card not in self.world.busy and not any(
            pod.card == card and pod.computes for pod in self.world.pods
        )

    def set_vfs(self, card: Card, number: int) -> None:
        world, plugin, address = self.world, self.plugin, card.address
        self.note(f"SetVfs {address} {world.vfs[address]} -> {number}")
        holders = [pod.name for pod in world.pods if pod.card == address]
        if holders and number != world.vfs[address]:
            raise BrokenInvariantError(f"Set of {address} while {', '.join(holders)} hold it")
        if number > MOST[CARDS.index(address)]:
            raise BrokenInvariantError(f"Set of {address} to {number}, above its maximum")
        if card.vfs and number:
            raise BrokenInvariantError(f"Set of {address} from {card.vfs} to {number} directly")
        if address in plugin.probed or PROBING in plugin.probed.values():
            raise BrokenInvariantError(f"Set of {address} in a probe: {plugin.probed}")
        if world.late is not None:
            raise BrokenInvariantError(f"Set of {address} while the driver has {world.late[0]} to do")
        why = (address, plugin.driver, world.vfs[address])
        if self.refused[why] >= MOST_REFUSALS:
            raise BrokenInvariantError(f"Set of {address}, which was refused {MOST_REFUSALS} times")
        failure = ""
        if self.random.random() < 0.05:  # a full disk
            plugin.memory = answered(
                plugin.memory, plugin.view(), LIMITS, failure="not recorded", asked=False
            )
            self._not_refused(address)
            return
        world.request = Request(address, number)
        # The kernel has nothing to do for the number that is there already (`sriov_numvfs`).
        if number != world.vfs[address] and self.random.random() < 0.15:
            world.late = (world.request, world.now + self.random.uniform(0.0, 0.99 * LIMITS.timeout))
            self.plugin_dies()
            return
        refused = world.refuses or address in world.stubborn or not self.driver_allows(address)
        if refused:
            failure = "refused"
            self.refused[why] += 1
        elif world.crashes and self.random.random() < 0.5:
            failure = "crashed"
            world.vfs[address] = self.random.choice((0, number, world.vfs[address]))
        else:
            world.vfs[address] = number
        if not refused:
            self._not_refused(address)
        # While the driver is at it, pods come.
        for _ in range(2):
            self.passes(self.random.uniform(0.0, 2.0))
            self.pod_starts()
        if self.random.random() < 0.05:
            self.plugin_dies()
            return
        plugin.memory = answered(plugin.memory, plugin.view(), LIMITS, failure=failure, refused=refused)
        self.asked = (plugin, address, plugin.scans)

    def _not_refused(self, address: str) -> None:
        for why in [why for why in self.refused if isinstance(why, tuple) and why[0] == address]:
            del self.refused[why]

    def falls_sick(self) -> None:
        """By the kernel's log; or the administrator clears it."""
        self.world.sick ^= {self.chance.choice(CARDS)}
        self.note(f"sick {sorted(self.world.sick)}")

    def probe_step(self) -> None:
        """The part that probes runs beside the one that changes VFs."""
        plugin, world = self.plugin, self.world
        if self.probes and self.chance.random() < 0.03:
            self.falls_sick()
        if PROBING in plugin.probed.values() and world.now < plugin.probing:
            return  # it waits for the program
        if PROBING in plugin.probed.values():
            card = next(iter(plugin.probed))
            if self.chance.random() < 0.3:
                world.sick.discard(card)
            elif self.chance.random() < 0.3:
                plugin.probing = world.now + self.chance.uniform(0.0, 60.0)  # it cannot be killed
            plugin.paused[card] = world.now + 30.0
        action = plugin.decide_probe().action
        if isinstance(action, Prove):
            plugin.look(action.cards, world.now)
        elif isinstance(action, probe.Run):
            self.note(f"probe {action.card}")
            holders = [pod.name for pod in world.pods if pod.card == action.card]
            if holders or world.late is not None:
                raise BrokenInvariantError(f"probe of {action.card}, {holders=}, {world.late=}")
            plugin.probing = world.now + self.chance.uniform(0.0, 60.0)
            self.pod_starts()

    # --- rest -----------------------------------------------------------------------------------

    def come_to_rest(self) -> None:
        """With nothing happening any more but time, everything has to end as wished or with a reason."""
        world = self.world
        world.refuses = world.crashes = False
        world.stubborn, world.sick, self.probes = set(), set(), False
        self.order()
        world.api = world.synced = True
        self.plugin.hear()
        end = world.now + REST_SECONDS
        for _ in range(20_000):
            self.record_is_read()
            self.probe_step()
            plugin, action = self.plugin, self.plugin.decide().action
            self.counts[type(action).__name__] += 1
            if world.now > end and isinstance(action, Wait):
                break
            match action:
                case Wait(seconds):
                    self.passes(600.0 if seconds is None else max(seconds, LATE_SECONDS))
                    plugin.scan()
                    plugin.listen()
                    if asked := {str(card_of(id, plugin.facts)) for id in plugin.forgotten}:
                        plugin.look(tuple(sorted(asked)), world.now)
                case Prove(addresses):
                    plugin.look(addresses, world.now)
                case Rescan():
                    plugin.scan()
                case SetVfs(card, number):
                    self.set_vfs(card, number)
        else:
            raise BrokenInvariantError("it does not come to rest")
        self.check_rest()

    def check_rest(self) -> None:
        plugin, decision = self.plugin, self.plugin.decide()
        if plugin.kept_back or plugin.probed:
            raise BrokenInvariantError(f"at rest, kept back: {plugin.kept_back} {plugin.probed}")
        for id, entry in plugin.entries().items():
            if not entry.health.healthy and not self._really_blocked(entry.device.card):
                raise BrokenInvariantError(f"at rest, {id} is {entry.health} without a holder")
        for step in decision.report.steps:
            if step.action is not VfAction.KEEP and not step.reason:
                raise BrokenInvariantError(f"at rest without a reason: {step}")
            if step.action is VfAction.APPLY:
                raise BrokenInvariantError(f"at rest and not done: {step}")
            if step.action is VfAction.BLOCKED and not self._really_blocked(step.card):
                raise BrokenInvariantError(f"at rest, blocked without a holder: {step}")
        wanted = {step.card: step.action for step in plan(plugin.desired, cards_of(plugin.scanned), {})}
        for address, action in wanted.items():
            told = next(step.action for step in decision.report.steps if step.card == address)
            if action is VfAction.KEEP and told is not VfAction.KEEP:
                raise BrokenInvariantError(f"{address} is as wished and said to be {told}")

    def _really_blocked(self, card: str) -> bool:
        """A pod's device, or one that only the kubelet's checkpoint still names, of a container without an
        end."""
        world = self.world
        facts = self.plugin.facts
        over = {f"{pod.uid}/main" for pod in world.ended}
        return (
            card in world.busy
            or any(pod.card == card for pod in world.pods)
            or any(card_of(id, facts) == card and by not in over for id, by in world.checkpoint.items())
        )


def explore(steps: int, seed: int, *, walk: int = 400) -> Counter[str]:
    """So many steps in walks of `walk`; raises BrokenInvariantError with the way there."""
    counts: Counter[str] = Counter()
    while counts.total() < steps:
        explorer = Explorer(seed)
        try:
            for _ in range(walk):
                explorer.step()
            explorer.come_to_rest()
        except BrokenInvariantError as error:
            way = "\n".join(explorer.way[-60:])
            raise BrokenInvariantError(f"seed {seed}: {error}\n{way}") from None
        counts += explorer.counts
        counts["walks"] += 1
        seed += 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        counts = explore(options.steps, options.seed)
    except BrokenInvariantError as error:
        print(error)
        return 1
    for what, times in sorted(counts.items()):
        print(f"{times:>9,} {what}")
    print(f"{counts.total():>9,} steps explored, no invariant broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
