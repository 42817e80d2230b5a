# SPDX-License-Identifier: Apache-2.0
"""The source of the desired VF count: the node's label, the label last seen, or the argument.

The label last seen is kept over restarts. Without it, a plugin that starts while the API server refuses
would use the argument and remove VFs. The kept label belongs to one Node object. A Node that was deleted and
created again lost its labels without an administrator's decision, so a missing label proves nothing.
"""

from dataclasses import replace
from enum import StrEnum

from xpu_plugin.frozen import frozen
from xpu_plugin.model.vf_plan import LABEL, UNKNOWN, DesiredVfs, by_argument, by_label, parse


LAST_SEEN = f"label {LABEL} as last seen"
NEW_NODE = "a new Node object without the label"


@frozen
class LabelSight:
    """The node as the API server shows it."""

    uid: str | None  # None if it is unknown
    label: str | None  # None for a node without the label


class Unseen(StrEnum):
    """The reason why the node is not seen."""

    AWAY = "away"  # no answer for a while: an outage, or credentials that are not accepted
    REFUSED = "refused"  # the authorizer refuses


@frozen
class Kept:
    """The label that was seen last."""

    label: str | None  # None if its Node object is gone and the next one has no label
    node: str | None  # UID of that Node object


def decide(
    sight: LabelSight | Unseen, *, kept: Kept | None, before: DesiredVfs, argument: int | None
) -> tuple[DesiredVfs, Kept | None]:
    """Return the desired VF count from now on, and the label to keep.

    before: the count until now; silence never changes it
    argument: the count for a node without the label
    """
    if isinstance(sight, Unseen):
        return _unseen(sight, kept, before, argument), kept
    anew = kept is not None and (kept.label is None or _another(kept.node, sight.uid))
    if sight.label is None:
        if kept is not None and anew:
            return _new_node(argument), replace(kept, label=None)
        return by_argument(argument), None
    last = before if before.origin is not None else _last_seen(kept, argument)
    desired = by_label(UNKNOWN if anew else last, sight.label, argument)
    return desired, kept if desired.problem else Kept(label=sight.label, node=sight.uid)


def _another(former: str | None, uid: str | None) -> bool:
    """Return whether both are known, and differ."""
    return None not in (former, uid) and former != uid


def _unseen(why: Unseen, kept: Kept | None, before: DesiredVfs, argument: int | None) -> DesiredVfs:
    if before.origin is not None:
        return before
    if kept is None and why is Unseen.REFUSED:
        return by_argument(argument)
    return _last_seen(kept, argument)


def _last_seen(kept: Kept | None, argument: int | None) -> DesiredVfs:
    """Return the desired VF count by the kept label."""
    if kept is None:
        return UNKNOWN
    return (
        _new_node(argument) if kept.label is None else DesiredVfs(number=parse(kept.label), origin=LAST_SEEN)
    )


def _new_node(argument: int | None) -> DesiredVfs:
    """Keep every card as it is. That is no problem if the argument says the same."""
    problem = (
        f"the Node object is new and has no label {LABEL}, which the former one had: set the label, or run "
        "'xpu-device-plugin cleanup' on this node to let the argument count"
    )
    return DesiredVfs(
        number=None,
        origin=NEW_NODE,
        problem="" if argument is None else problem,
        instead="until then every card stays as it is",
    )
