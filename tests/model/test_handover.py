# SPDX-License-Identifier: Apache-2.0
"""Both sides of a hand-over and a kubelet in all interleavings, with a stop, a death and deadlines anywhere.

The tables are the real ones. The world is made here: two processes, two pipes, the lock, and three kubelets.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from xpu_plugin.model.handover import Do, Event, Giving, Stage, Taking, give, take
from xpu_plugin.simulation.kubelet import Release


MOST_GRANTS = 2
ALIVE, STOPPED, DEAD = "alive", "stopped", "dead"
# A giver with a change in progress is STOPPED, a taker that scans is PREPARED, and so on: done at any time.
GIVERS = {Giving.STOPPING: Event.STOPPED, Giving.HOLDING: Event.HELD}
LATE = {Giving.STOPPING, Giving.QUIET, Giving.HOLDING, Giving.FROZEN, Giving.YIELDING, Giving.ENDING}
TAKERS_LATE = {Taking.ASKING, Taking.PREPARING, Taking.READY}


@dataclass(frozen=True)
class Side:
    """One process. socket: the number of its registration, 0 without a socket

    anew: it has to register; knows: grants; working: since when it could change cards, as a stage
    """

    life: str = ALIVE
    stage: Stage = Stage.WAITING
    socket: int = 0
    anew: bool = False
    knows: frozenset[int] = frozenset()


@dataclass(frozen=True)
class World:
    """One state. Lines are tuples of a word and grants."""

    giver: Side
    taker: Side
    giving: Giving = Giving.IDLE
    taking: Taking = Taking.IDLE
    to_taker: tuple[tuple[str, frozenset[int]], ...] = ()
    to_giver: tuple[tuple[str, frozenset[int]], ...] = ()
    giver_sends: bool = False  # its direction of the connection is open
    taker_sends: bool = False
    lock: str = "giver"  # or taker, line, free
    streams: tuple[tuple[str, int], ...] = ()  # (side, socket), the last one registered is last
    healthy: bool = True  # the kubelet has a list of an open stream
    grants: int = 0
    registered: int = 1
    asked: bool = False  # for the hand-over, once
    stops: int = 0
    failed: bool = False  # something has stopped or died, or was late
    resumed: bool = False  # the giver has worked again beside the taker
    taken: bool = False  # the taker has worked
    scans: bool = False  # the taker does

    @property
    def called(self) -> str | None:
        """The side that the kubelet asks."""
        return self.streams[-1][0] if self.streams else None


class BrokenError(Exception):
    """A state that must not be."""


def begin() -> World:
    giver = Side(stage=Stage.WORKING, socket=1)
    return World(giver=giver, taker=Side(), streams=(("giver", 1),))


def every(world: World) -> frozenset[int]:
    """All grants that the kubelet knows."""
    return frozenset(range(1, world.grants + 1))


def side(world: World, name: str) -> Side:
    return world.giver if name == "giver" else world.taker


def with_side(world: World, name: str, **changes: object) -> World:
    return replace(world, **{name: replace(side(world, name), **changes)})  # type: ignore[arg-type]


# --- the kubelet ----------------------------------------------------------------------------------


def stream_ends(world: World, name: str, release: Release) -> World:
    """One side's stream ends, if it has one."""
    gone = [stream for stream in world.streams if stream[0] == name]
    world = with_side(world, name, socket=0)
    if not gone:
        return world
    was_called = world.streams[-1] == gone[-1]
    rest = tuple(stream for stream in world.streams if stream[0] != name)
    if was_called:
        promoted = bool(rest) and release is Release.V1_37
        # Up to 1.36 a displaced stream stays open, and counts no more.
        return replace(world, streams=rest if promoted else (), healthy=promoted)
    if release is Release.V1_36 and rest:
        return replace(with_side(world, rest[-1][0], socket=0), streams=(), healthy=False)
    return replace(world, streams=rest)


def registers(world: World, name: str, release: Release) -> World:
    """A side binds a new socket, registers it, and its list goes out."""
    own = side(world, name)
    if own.stage < Stage.QUIET:
        raise BrokenError(f"the {name} registers and lists in {own.stage!r}")
    if any(stream[0] == name for stream in world.streams):
        world = stream_ends(world, name, release)
    number = world.registered + 1
    streams = (*(stream for stream in world.streams if stream[0] != name), (name, number))
    world = with_side(world, name, socket=number, anew=False)
    return replace(world, streams=streams, healthy=True, registered=number)


# --- actions --------------------------------------------------------------------------------------


def gives(world: World, event: Event, release: Release) -> World:
    given = give(world.giving, event)
    world = replace(world, giving=given.phase)
    for do in given.actions:
        done = giver_does(world, do, release)
        if done is None:
            return replace(world, giver_sends=False)
        world = done
        if do is Do.SAY_DONE:
            return gives(world, Event.SENT, release)
        if do is Do.TRY_LOCK:
            free = world.lock == "free"
            world = replace(world, lock="giver") if free else world
            return gives(world, Event.LOCKED if free else Event.RIVAL, release)
    if world.giving in (Giving.IDLE, Giving.GIVEN):
        world = replace(world, giver_sends=False, to_giver=())
    return world


def takes(world: World, event: Event, release: Release) -> World:
    taken = take(world.taking, event)
    world = replace(world, taking=taken.phase)
    for do in taken.actions:
        done = taker_does(world, do, release)
        if done is None:
            return replace(world, taker_sends=False)
        world = done
        match do:
            case Do.SAY_REGISTERING:
                return takes(world, Event.SENT, release)
            case Do.ADOPT:
                return takes(world, Event.LOCKED, release)
            case Do.INHERIT:
                return takes(world, Event.PREPARED, release)
    if world.taking in (Taking.IDLE, Taking.TAKEN):
        world = replace(world, taker_sends=False, to_taker=())
    return world


def says(world: World, name: str, word: str, knows: frozenset[int] = frozenset()) -> World | None:
    """A line goes into the pipe; None if the other end is closed."""
    if name == "giver":
        open_ = world.giver_sends and world.taker.life != DEAD and world.taking is not Taking.IDLE
        return replace(world, to_taker=(*world.to_taker, (word, knows))) if open_ else None
    open_ = world.taker_sends and world.giver.life != DEAD and receiving(world)
    return replace(world, to_giver=(*world.to_giver, (word, knows))) if open_ else None


def receiving(world: World) -> bool:
    """Whether the giver's end is open for reading."""
    return world.giving is not Giving.GIVEN and (world.giving is not Giving.IDLE or world.giver_sends)


def giver_does(world: World, do: Do, release: Release) -> World | None:
    match do:
        case Do.QUIETEN:
            return with_side(world, "giver", stage=Stage.QUIET)
        case Do.SAY_QUIET:
            return says(world, "giver", "quiet")
        case Do.FREEZE:
            return with_side(world, "giver", stage=Stage.FROZEN)
        case Do.SAY_FROZEN:
            return says(world, "giver", "frozen", world.giver.knows)
        case Do.END:
            return with_side(world, "giver", stage=Stage.WAITING)
        case Do.SAY_DONE:
            done = says(world, "giver", "done")
            return done and replace(done, lock="line")
        case Do.RESUME:
            return with_side(world, "giver", stage=Stage.WORKING)
        case Do.RESUME_ANEW:
            # Grants of a taker that has worked are those of a plugin that has ended: the kubelet knows them.
            knows = world.giver.knows | (every(world) if world.taken else frozenset())
            return with_side(world, "giver", stage=Stage.WORKING, anew=True, knows=knows)
        case Do.HANG_UP:
            return replace(world, giver_sends=False, resumed=True)
        case Do.TRY_LOCK | Do.FORGET:
            return world
    raise AssertionError(do)


def taker_does(world: World, do: Do, release: Release) -> World | None:
    match do:
        case Do.SAY_HELLO:
            return says(world, "taker", "hello")
        case Do.PREPARE:
            return replace(world, scans=True)
        case Do.SAY_READY:
            return says(world, "taker", "ready")
        case Do.SAY_REGISTERING:
            return says(world, "taker", "registering")
        case Do.SERVE:
            if not world.to_taker and not (world.giver_sends and world.giver.life != DEAD):
                return None  # it looks whether the connection has ended
            return with_side(world, "taker", stage=Stage.QUIET)
        case Do.SAY_STREAMING:
            return says(world, "taker", "streaming")
        case Do.FORGET:
            return world
        case Do.ADOPT:
            return replace(world, lock="taker")
        case Do.TRY_LOCK:
            return with_side(world, "taker", stage=Stage.FROZEN)
        case Do.INHERIT:
            if every(world) - world.taker.knows and not world.resumed:
                raise BrokenError(f"of grants {every(world)} the taker knows {world.taker.knows}")
            return with_side(world, "taker", stage=Stage.QUIET, knows=every(world), anew=True)
        case Do.WORK:
            return replace(with_side(world, "taker", stage=Stage.WORKING), taken=True)
        case Do.WITHDRAW:
            return with_side(stream_ends(world, "taker", release), "taker", stage=Stage.WAITING)
    raise AssertionError(do)


# --- moves ----------------------------------------------------------------------------------------


def moves(world: World, release: Release) -> Iterator[tuple[str, World]]:
    """Every thing that may happen next."""
    yield from disasters(world, release)
    yield from serving(world, release)
    if world.giver.life == ALIVE:
        yield from giver_moves(world, release)
    if world.taker.life == ALIVE:
        yield from taker_moves(world, release)


def disasters(world: World, release: Release) -> Iterator[tuple[str, World]]:
    for name in ("giver", "taker"):
        own = side(world, name)
        if own.life == STOPPED:
            yield f"{name} wakes up", with_side(world, name, life=ALIVE)
        if world.stops < 1 and own.life == ALIVE:
            failed = replace(world, stops=world.stops + 1, failed=True)
            yield f"{name} stops", with_side(failed, name, life=STOPPED)
            yield f"{name} dies", dies(failed, name, release)


def dies(world: World, name: str, release: Release) -> World:
    """The kernel ends its streams, its pipes and its lock. What it has sent arrives."""
    world = stream_ends(world, name, release)
    lock = "free" if world.lock == name else world.lock
    if name == "taker":
        lock = "free" if lock == "line" else lock
        world = replace(world, taker_sends=False, to_taker=(), taking=Taking.IDLE)
    else:
        world = replace(world, giver_sends=False, to_giver=(), giving=Giving.IDLE)
    return with_side(replace(world, lock=lock), name, life=DEAD, stage=Stage.WAITING, anew=False)


def serving(world: World, release: Release) -> Iterator[tuple[str, World]]:
    """Registrations and grants."""
    for name in ("giver", "taker"):
        own = side(world, name)
        due = own.anew or not own.socket  # a displaced plugin does not see that it is
        if due and own.life == ALIVE and own.stage >= Stage.QUIET:
            yield f"{name} registers", registers(world, name, release)
    called = world.called
    if called is not None and world.grants < MOST_GRANTS and side(world, called).life == ALIVE:
        yield from grant(world, called)


def grant(world: World, name: str) -> Iterator[tuple[str, World]]:
    own, number = side(world, name), frozenset({world.grants + 1})
    granted = with_side(replace(world, grants=world.grants + 1), name, knows=own.knows | number)
    if name == "giver":
        if world.giving in (Giving.FROZEN, Giving.YIELDING, Giving.ENDING):
            yield "giver grants", says(granted, "giver", "granted", number) or granted
        else:
            yield "giver grants", granted
        return
    if own.stage is Stage.WORKING:
        yield "taker grants", granted
        return
    told = says(granted, "taker", "granted", number)
    if told and (world.to_taker or world.giver_sends):  # else it waits for the lock
        yield "taker grants", told


def giver_moves(world: World, release: Release) -> Iterator[tuple[str, World]]:
    phase = world.giving
    if world.to_giver:
        (word, knows), rest = world.to_giver[0], world.to_giver[1:]
        heard = replace(world, to_giver=rest)
        if word == "granted":
            yield "giver learns", with_side(heard, "giver", knows=world.giver.knows | knows)
        else:
            yield f"giver hears {word}", gives(heard, Event(word), release)
    elif phase not in (Giving.IDLE, Giving.GIVEN) and not world.taker_sends:
        yield "giver sees the end", gives(world, Event.LOST, release)
    if phase in GIVERS:
        yield f"giver: {GIVERS[phase]}", gives(world, GIVERS[phase], release)
    if phase is Giving.ENDING:
        if world.giver.socket:
            yield "giver ends", stream_ends(world, "giver", release)
        else:
            yield "giver: ended", gives(world, Event.ENDED, release)
    if phase in LATE:
        yield "giver: late", gives(replace(world, failed=True), Event.LATE, release)
    if phase is Giving.GIVEN and world.giver.stage is Stage.WAITING and world.lock == "free":
        own = with_side(world, "giver", stage=Stage.WORKING, anew=True, knows=every(world))
        yield "giver takes the lock", replace(own, lock="giver", giving=Giving.IDLE)


def taker_moves(world: World, release: Release) -> Iterator[tuple[str, World]]:
    phase = world.taking
    waits = phase is Taking.IDLE and world.taker.stage is Stage.WAITING
    if waits and not world.asked and world.giver.life != DEAD and world.giver.stage is Stage.WORKING:
        opened = replace(world, asked=True, giver_sends=True, taker_sends=True)
        yield "taker asks", takes(opened, Event.HELLO, release)
    if waits and world.lock == "free":
        # It reads records and looks for holders: it knows each grant that the kubelet knows.
        own = with_side(world, "taker", stage=Stage.WORKING, knows=every(world))
        yield "taker takes the lock", replace(own, lock="taker", taking=Taking.TAKEN, taken=True)
    if phase in (Taking.IDLE, Taking.TAKEN):
        return
    if world.to_taker:
        (word, knows), rest = world.to_taker[0], world.to_taker[1:]
        heard = with_side(replace(world, to_taker=rest), "taker", knows=world.taker.knows | knows)
        if word == "granted":
            yield "taker learns", heard
        else:
            yield f"taker hears {word}", takes(heard, Event(word), release)
    elif not (world.giver_sends and world.giver.life != DEAD):
        yield "taker sees the end", takes(world, Event.LOST, release)
    if phase is Taking.PREPARING and world.scans:
        yield "taker: prepared", takes(replace(world, scans=False), Event.PREPARED, release)
    if phase is Taking.REGISTERING and ("taker", world.taker.socket) in world.streams:
        yield "taker: shown", takes(world, Event.SHOWN, release)
    if phase in TAKERS_LATE:
        yield "taker: late", takes(replace(world, failed=True), Event.LATE, release)
    if phase is Taking.DOUBTING:
        # Waiting for the lock lasts longer than a death.
        if world.lock in ("free", "taker"):
            locked = replace(world, lock="taker")
            yield "taker: locked", takes(locked, Event.LOCKED, release)
        elif world.giver.life != DEAD:
            yield "taker: rival", takes(world, Event.RIVAL, release)


# --- what must hold -------------------------------------------------------------------------------


GIVER_STAGES = {
    Giving.STOPPING: Stage.QUIET,
    Giving.QUIET: Stage.QUIET,
    **dict.fromkeys((Giving.HOLDING, Giving.FROZEN, Giving.YIELDING), Stage.FROZEN),
    **dict.fromkeys((Giving.ENDING, Giving.PARTING, Giving.PARTED), Stage.WAITING),
}
TAKER_STAGES = {
    **dict.fromkeys((Taking.ASKING, Taking.PREPARING, Taking.READY, Taking.ANNOUNCING), Stage.WAITING),
    **dict.fromkeys((Taking.REGISTERING, Taking.STREAMING, Taking.ADOPTING), Stage.QUIET),
    Taking.DOUBTING: Stage.FROZEN,
}
"""The rights in each phase at most."""


def check(world: World) -> None:
    if world.giver.stage > GIVER_STAGES.get(world.giving, Stage.WORKING):
        raise BrokenError(f"the giver may do too much in {world.giving}")
    if world.taker.stage > TAKER_STAGES.get(world.taking, Stage.WORKING):
        raise BrokenError(f"the taker may do too much in {world.taking}")
    for name in ("giver", "taker"):
        own = side(world, name)
        if own.stage is Stage.WORKING and world.lock != name:
            raise BrokenError(f"the {name} changes cards without the lock")
    if world.giver.stage is Stage.WORKING and world.taker.stage is Stage.WORKING:
        raise BrokenError("both change cards")
    for name, phase in (("giver", world.giving), ("taker", world.taking)):
        own, resting = side(world, name), phase in (Giving.IDLE, Taking.TAKEN)
        unread = world.to_giver if name == "giver" else world.to_taker
        if own.stage is Stage.WORKING and resting and own.life != DEAD and not unread:
            lost = set(range(1, world.grants + 1)) - own.knows
            if lost and other_is_gone(world, name):
                raise BrokenError(f"the {name} works and does not know grants {lost}")
    if not world.failed and not world.healthy and not cut(world):
        raise BrokenError("the kubelet has no device, and nothing has failed")


def cut(world: World) -> bool:
    """Up to 1.36 the end of the giver's stream cuts the taker's, which registers anew at once."""
    return world.taker.stage >= Stage.QUIET and world.giver.stage is Stage.WAITING


def other_is_gone(world: World, name: str) -> bool:
    other = world.taker if name == "giver" else world.giver
    return other.stage is Stage.WAITING


def at_rest(world: World) -> None:
    """With no move left, one side serves, if one lives."""
    if DEAD in (world.giver.life, world.taker.life) and {world.giver.life, world.taker.life} == {DEAD}:
        return
    works = [name for name in ("giver", "taker") if side(world, name).stage is Stage.WORKING]
    if len(works) != 1:
        raise BrokenError(f"at rest, {works} work")
    if not world.healthy or world.called != works[0]:
        raise BrokenError(f"at rest, {works[0]} works and the kubelet asks {world.called}")


def search(
    release: Release,
    moves: Callable[[World, Release], Iterator[tuple[str, World]]] = moves,
    at_rest: Callable[[World], None] = at_rest,
) -> int:
    """Go through all states; return their number. Raises BrokenError with the shortest way."""
    first = begin()
    came: dict[World, tuple[World, str] | None] = {first: None}
    queue = deque([first])
    while queue:
        world = queue.popleft()
        final = True
        try:
            check(world)
            for name, after in moves(world, release):
                # A life may stop at any time; rest is where nothing else happens.
                final = final and (after == world or name.endswith((" stops", " dies", " grants")))
                if after not in came:
                    came[after] = world, name
                    queue.append(after)
            if final:
                at_rest(world)
        except BrokenError as error:
            raise BrokenError(f"{error}\n{way(came, world)}\n{world}") from None
    return len(came)


def way(came: dict[World, tuple[World, str] | None], world: World) -> str:
    names: list[str] = []
    while (step := came[world]) is not None:
        world, name = step
        names.append(name)
    return "; ".join(reversed(names))


def smoothly(world: World, release: Release) -> Iterator[tuple[str, World]]:
    """The moves of two sides that neither stop nor are late."""
    for name, after in moves(world, release):
        if not after.failed:
            yield name, after


def in_time(world: World, release: Release) -> Iterator[tuple[str, World]]:
    """The moves of two sides of which one may stop or die, and none is late."""
    for name, after in moves(world, release):
        if not name.endswith(": late"):
            yield name, after


def for_ever(world: World, release: Release) -> Iterator[tuple[str, World]]:
    """The moves beside a side that has stopped for ever."""
    for name, after in moves(world, release):
        if not name.endswith(("wakes up", "dies")):
            yield name, after


def goes_on(world: World) -> None:
    """At rest beside a taker that has stopped, the giver serves, unless the taker has the lock.

    A taker that registers in the moment of the giver's return, and stops just then, is asked until it ends.
    """
    momentary = world.resumed and world.taker.socket > world.giver.socket
    if world.taker.life == STOPPED and world.lock == "giver" and not momentary:
        at_rest(world)


def taken_over(world: World) -> None:
    if world.taker.stage is not Stage.WORKING:
        raise BrokenError("at rest, the taker does not work")


@pytest.mark.parametrize("release", Release)
def test_without_a_failure_the_taker_works_in_the_end(release: Release) -> None:
    assert search(release, smoothly, taken_over) > 100


@pytest.mark.parametrize("release", Release)
def test_an_end_alone_is_enough_for_the_other_side(release: Release) -> None:
    assert search(release, in_time) > 500


@pytest.mark.parametrize("release", Release)
def test_a_taker_that_stops_for_ever_does_not_keep_the_giver_from_its_work(release: Release) -> None:
    assert search(release, for_ever, goes_on) > 500


@pytest.mark.parametrize("release", Release)
def test_in_no_order_of_events_anything_is_lost_or_done_twice(release: Release) -> None:
    assert search(release) > 1000
