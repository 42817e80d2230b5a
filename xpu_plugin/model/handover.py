# SPDX-License-Identifier: Apache-2.0
"""The hand-over of a node from one instance to another: what each side does after each event.

The giver has the lock and serves; the taker waits beside it. Both are tables without time and I/O. Lines
between them arrive in order, or the connection ends. The tables rest on these facts:

* The lock passes within the last line. So it is never free in between, and only its owner changes anything.
* The kubelet shows the list that came last. So the giver sends no list while the taker registers.
* The kubelet asks the plugin that registered last. So a giver that resumes registers anew, after the end of
  the last moment in which the taker may register: the taker closes the connection after its sockets.
"""

from collections.abc import Mapping
from enum import IntEnum, StrEnum

from xpu_plugin.frozen import frozen


PROTOCOL = 1


class Stage(IntEnum):
    """The rights of an instance on its node. Each stage includes the rights of the stages before it."""

    WAITING = 0  # no socket
    FROZEN = 1  # open streams stay, without a new list; no registration
    QUIET = 2  # lists and registrations
    WORKING = 3  # with the lock: changes of cards and records


class Event(StrEnum):
    """An event at either side. Lines of the other side have the names that they have on the wire."""

    # Lines of the taker.
    HELLO = "hello"
    READY = "ready"
    REGISTERING = "registering"
    STREAMING = "streaming"
    # Lines of the giver.
    REFUSED = "refused"
    QUIET = "quiet"
    FROZEN = "frozen"
    DONE = "done"
    # Our own.
    STOPPED = "stopped"  # no change is in progress, and all records are written
    HELD = "held"  # no list is under way
    ENDED = "ended"  # our streams and sockets
    SENT = "sent"  # the line of this phase
    PREPARED = "prepared"  # records are read, devices are scanned
    SHOWN = "shown"  # a stream of each resource is open and has a list
    LOCKED = "locked"  # the lock is ours
    RIVAL = "rival"  # another process has it
    LATE = "late"  # the deadline of a phase has passed
    LOST = "lost"  # the connection has ended, or failed


class Do(StrEnum):
    """An action. Each `SAY_*` sends a line. If that fails, the actions behind it are dropped, and LOST comes
    after the lines that are still to be read."""

    # The giver's.
    QUIETEN = "quieten"  # begin no change, and let those in progress end
    SAY_QUIET = "say quiet"
    FREEZE = "freeze"
    SAY_FROZEN = "say frozen"
    END = "end"  # streams and sockets
    SAY_DONE = "say done"  # with the lock
    RESUME = "resume"
    RESUME_ANEW = "resume anew"  # with a new registration
    HANG_UP = "hang up"  # send no more, and listen on
    # Of both.
    TRY_LOCK = "try lock"  # as the other side may have ended; the taker sends no list meanwhile
    FORGET = "forget"  # grants that the other side has
    # The taker's.
    SAY_HELLO = "say hello"
    PREPARE = "prepare"
    SAY_READY = "say ready"
    SAY_REGISTERING = "say registering"
    SERVE = "serve"  # register, unless the connection has ended
    SAY_STREAMING = "say streaming"
    ADOPT = "adopt"  # the lock that came with the line
    INHERIT = "inherit"  # register anew, read all records again, and scan: the giver may have worked again
    WORK = "work"
    WITHDRAW = "withdraw"  # end streams and sockets, then the connection


class Giving(StrEnum):
    """The giver's phases."""

    IDLE = "idle"
    STOPPING = "stopping"
    QUIET = "quiet"
    HOLDING = "holding"
    FROZEN = "frozen"
    YIELDING = "yielding"
    ENDING = "ending"
    PARTING = "parting"
    PARTED = "parted"  # until the taker has closed the connection: its last grants may be on their way
    DOUBTING = "doubting"  # whether the taker has the lock or has ended
    GIVEN = "given"
    WARY = "wary"  # it works again, and the taker may not know yet ...
    LINGERING = "lingering"  # ... and may have registered


class Taking(StrEnum):
    """The taker's phases."""

    IDLE = "idle"
    ASKING = "asking"
    PREPARING = "preparing"
    READY = "ready"
    ANNOUNCING = "announcing"
    REGISTERING = "registering"
    STREAMING = "streaming"
    ADOPTING = "adopting"
    DOUBTING = "doubting"  # the giver has ended, or works again
    INHERITING = "inheriting"
    TAKEN = "taken"


@frozen(kw_only=False)
class Given:
    """The giver's next phase and its actions."""

    phase: Giving
    actions: tuple[Do, ...] = ()


@frozen(kw_only=False)
class Taken:
    """The taker's next phase and its actions."""

    phase: Taking
    actions: tuple[Do, ...] = ()


_G, _T, _E = Giving, Taking, Event

_GIVE: Mapping[tuple[Giving, Event], Given] = {
    (_G.IDLE, _E.HELLO): Given(_G.STOPPING, (Do.QUIETEN,)),
    (_G.STOPPING, _E.STOPPED): Given(_G.QUIET, (Do.SAY_QUIET,)),
    (_G.QUIET, _E.READY): Given(_G.HOLDING, (Do.FREEZE,)),
    (_G.HOLDING, _E.HELD): Given(_G.FROZEN, (Do.SAY_FROZEN,)),
    (_G.FROZEN, _E.REGISTERING): Given(_G.YIELDING),
    (_G.YIELDING, _E.STREAMING): Given(_G.ENDING, (Do.END,)),
    (_G.ENDING, _E.ENDED): Given(_G.PARTING, (Do.SAY_DONE,)),
    (_G.PARTING, _E.SENT): Given(_G.PARTED),
    (_G.PARTED, _E.LOST): Given(_G.DOUBTING, (Do.TRY_LOCK,)),
    (_G.DOUBTING, _E.RIVAL): Given(_G.GIVEN, (Do.FORGET,)),
    (_G.DOUBTING, _E.LOCKED): Given(_G.IDLE, (Do.RESUME_ANEW,)),
    # The taker registers after FROZEN at the earliest, and closes after its end.
    **{
        (phase, event): Given(_G.IDLE, (Do.RESUME,))
        for phase in (_G.STOPPING, _G.QUIET, _G.HOLDING)
        for event in (_E.LATE, _E.LOST)
    },
    (_G.FROZEN, _E.LOST): Given(_G.IDLE, (Do.RESUME,)),
    (_G.FROZEN, _E.LATE): Given(_G.WARY, (Do.HANG_UP, Do.RESUME)),
    (_G.WARY, _E.LOST): Given(_G.IDLE),
    (_G.WARY, _E.REGISTERING): Given(_G.LINGERING, (Do.RESUME_ANEW,)),
    (_G.YIELDING, _E.LOST): Given(_G.IDLE, (Do.RESUME_ANEW,)),
    (_G.YIELDING, _E.LATE): Given(_G.LINGERING, (Do.HANG_UP, Do.RESUME_ANEW)),
    (_G.ENDING, _E.LOST): Given(_G.IDLE, (Do.RESUME_ANEW,)),
    (_G.ENDING, _E.LATE): Given(_G.LINGERING, (Do.HANG_UP, Do.RESUME_ANEW)),
    (_G.PARTING, _E.LOST): Given(_G.IDLE, (Do.RESUME_ANEW,)),
    (_G.LINGERING, _E.LOST): Given(_G.IDLE, (Do.RESUME_ANEW,)),
    (_G.LINGERING, _E.REGISTERING): Given(_G.LINGERING),
    (_G.LINGERING, _E.STREAMING): Given(_G.LINGERING),
}

_TAKE: Mapping[tuple[Taking, Event], Taken] = {
    (_T.IDLE, _E.HELLO): Taken(_T.ASKING, (Do.SAY_HELLO,)),
    (_T.ASKING, _E.QUIET): Taken(_T.PREPARING, (Do.PREPARE,)),
    (_T.PREPARING, _E.PREPARED): Taken(_T.READY, (Do.SAY_READY,)),
    (_T.READY, _E.FROZEN): Taken(_T.ANNOUNCING, (Do.SAY_REGISTERING,)),
    (_T.ANNOUNCING, _E.SENT): Taken(_T.REGISTERING, (Do.SERVE,)),
    (_T.ANNOUNCING, _E.LOST): Taken(_T.IDLE, (Do.FORGET,)),
    (_T.REGISTERING, _E.SHOWN): Taken(_T.STREAMING, (Do.SAY_STREAMING,)),
    (_T.STREAMING, _E.DONE): Taken(_T.ADOPTING, (Do.ADOPT,)),
    (_T.ADOPTING, _E.LOCKED): Taken(_T.TAKEN, (Do.WORK,)),
    (_T.ADOPTING, _E.RIVAL): Taken(_T.IDLE, (Do.WITHDRAW,)),
    (_T.ASKING, _E.REFUSED): Taken(_T.IDLE),
    **{
        (phase, event): Taken(_T.IDLE)
        for phase in (_T.ASKING, _T.PREPARING, _T.READY)
        for event in (_E.LATE, _E.LOST)
    },
    # From here on there is no deadline: our devices are the kubelet's, and the giver may be stopped.
    (_T.REGISTERING, _E.LOST): Taken(_T.DOUBTING, (Do.TRY_LOCK,)),
    (_T.STREAMING, _E.LOST): Taken(_T.DOUBTING, (Do.TRY_LOCK,)),
    (_T.DOUBTING, _E.LOCKED): Taken(_T.INHERITING, (Do.INHERIT,)),
    (_T.INHERITING, _E.PREPARED): Taken(_T.TAKEN, (Do.WORK,)),
    (_T.DOUBTING, _E.RIVAL): Taken(_T.IDLE, (Do.WITHDRAW,)),
}

OVERDUE = frozenset({_E.STOPPED, _E.HELD, _E.ENDED, _E.PREPARED, _E.SHOWN, _E.LATE})
"""Events of ours that may come when the phase has passed: they have no effect then."""


def give(phase: Giving, event: Event) -> Given:
    """Return the giver's next phase and actions. An unexpected line counts as the end of the connection."""
    known = _GIVE.get((phase, event))
    if known is not None:
        return known
    return Given(phase) if event in OVERDUE or event is _E.LOST else give(phase, _E.LOST)


def take(phase: Taking, event: Event) -> Taken:
    """Return the taker's next phase and actions, as `give`."""
    known = _TAKE.get((phase, event))
    if known is not None:
        return known
    return Taken(phase) if event in OVERDUE or event is _E.LOST else take(phase, _E.LOST)


class Peer(StrEnum):
    """The instance that has the lock, as far as a waiting instance knows it."""

    UNKNOWN = "unknown"
    SILENT = "silent"  # it knows no hand-over
    IDLE = "idle"  # it has no stream
    SERVING = "serving"


@frozen
class HandoverPace:
    """The deadlines of a hand-over, in seconds. A pair is a wait that grows."""

    stop: float = 15.0
    """For the giver's change in progress and its records, beyond --vf-timeout."""
    prepare: float = 120.0
    """For the taker's scan."""
    show: float = 5.0
    """For the taker's streams, while the giver sends no list."""
    end: float = 5.0
    """For each further step."""
    lock: float = 2.0
    """For the lock of a giver that is ending: it has the lock until its process has ended."""
    again: tuple[float, float] = (1.0, 60.0)
    """Between two requests of the taker."""
