# SPDX-License-Identifier: Apache-2.0
"""The decision which number of VFs counts, row by row: the label kept, what the API server shows, and what
counted before."""

import itertools

import pytest

from xpu_plugin.model.vf_label import LAST_SEEN, NEW_NODE, Kept, LabelSight, Unseen, decide
from xpu_plugin.model.vf_plan import LABEL, UNKNOWN, DesiredVfs, by_argument


ARGUMENT = 1
OLD, NEW = "uid-1", "uid-2"
LOST = Kept(label=None, node=OLD)
NOTHING = UNKNOWN
ARGUED = by_argument(ARGUMENT)
SEEN = DesiredVfs(number=2, origin=LAST_SEEN)
LABELLED = DesiredVfs(number=3, origin=f"label {LABEL}")


def kept(label: str | None = "2", node: str | None = OLD) -> Kept:
    return Kept(label=label, node=node)


def sight(label: str | None = None, uid: str | None = OLD) -> LabelSight:
    return LabelSight(uid=uid, label=label)


@pytest.mark.parametrize(
    ("memory", "seen", "before", "after", "then"),
    [
        # No label was ever seen.
        (None, sight("3"), NOTHING, (3, LABELLED.origin), kept("3")),
        (None, sight("3", None), NOTHING, (3, LABELLED.origin), kept("3", None)),
        (None, sight(), NOTHING, (ARGUMENT, ARGUED.origin), None),
        (None, sight(uid=NEW), ARGUED, (ARGUMENT, ARGUED.origin), None),
        (None, Unseen.REFUSED, NOTHING, (ARGUMENT, ARGUED.origin), None),
        (None, Unseen.AWAY, NOTHING, (None, None), None),
        # One was, on this Node.
        (kept(), sight("3"), SEEN, (3, LABELLED.origin), kept("3")),
        (kept(), sight("keep"), NOTHING, (None, LABELLED.origin), kept("keep")),
        (kept(), sight(), NOTHING, (ARGUMENT, ARGUED.origin), None),
        (kept(), sight(), LABELLED, (ARGUMENT, ARGUED.origin), None),
        (kept(), sight(uid=None), LABELLED, (ARGUMENT, ARGUED.origin), None),
        (kept(node=None), sight(), LABELLED, (ARGUMENT, ARGUED.origin), None),
        (kept(), Unseen.REFUSED, NOTHING, (2, LAST_SEEN), kept()),
        (kept(), Unseen.AWAY, NOTHING, (2, LAST_SEEN), kept()),
        (kept("keep"), Unseen.REFUSED, NOTHING, (None, LAST_SEEN), kept("keep")),
        # One was, on a Node that was deleted since.
        (kept(), sight("3", NEW), LABELLED, (3, LABELLED.origin), kept("3", NEW)),
        (kept(), sight(None, NEW), NOTHING, (None, NEW_NODE), LOST),
        (kept(), sight(None, NEW), LABELLED, (None, NEW_NODE), LOST),
        (kept(), sight(None, NEW), SEEN, (None, NEW_NODE), LOST),
        # And the new one has had none so far.
        (LOST, sight(None, NEW), NOTHING, (None, NEW_NODE), LOST),
        (LOST, sight(None, OLD), NOTHING, (None, NEW_NODE), LOST),
        (LOST, sight("3", NEW), NOTHING, (3, LABELLED.origin), kept("3", NEW)),
        (LOST, Unseen.REFUSED, NOTHING, (None, NEW_NODE), LOST),
        (LOST, Unseen.AWAY, NOTHING, (None, NEW_NODE), LOST),
    ],
)
def test_the_desired_count_and_the_label_to_keep(
    memory: Kept | None,
    seen: LabelSight | Unseen,
    before: DesiredVfs,
    after: tuple[int | None, str | None],
    then: Kept | None,
) -> None:
    desired, remembered = decide(seen, kept=memory, before=before, argument=ARGUMENT)
    assert (desired.number, desired.origin, remembered) == (*after, then)
    assert bool(desired.problem) is (desired.origin == NEW_NODE)


@pytest.mark.parametrize(
    ("memory", "silence", "before"),
    list(itertools.product((None, kept(), LOST), Unseen, (ARGUED, SEEN, LABELLED))),
)
def test_silence_changes_nothing_once_there_is_a_desired_count(
    memory: Kept | None, silence: Unseen, before: DesiredVfs
) -> None:
    assert decide(silence, kept=memory, before=before, argument=ARGUMENT) == (before, memory)


@pytest.mark.parametrize(
    ("memory", "uid", "before", "number"),
    [
        (None, OLD, NOTHING, None),
        (None, OLD, ARGUED, ARGUMENT),
        (kept(), OLD, LABELLED, LABELLED.number),
        (kept(), OLD, NOTHING, 2),
        (kept(), NEW, LABELLED, None),
        (kept(), NEW, NOTHING, None),
        (LOST, NEW, NOTHING, None),
    ],
)
def test_a_bad_label_is_told_not_kept_and_leaves_the_last_valid_desired_count_of_this_node(
    memory: Kept | None, uid: str, before: DesiredVfs, number: int | None
) -> None:
    desired, remembered = decide(sight("many", uid), kept=memory, before=before, argument=ARGUMENT)
    assert desired.number == number
    assert desired.origin
    assert "'many' is not accepted" in desired.problem
    assert remembered == memory


def test_a_new_node_is_no_problem_where_the_argument_leaves_every_card_as_well() -> None:
    desired, remembered = decide(sight(None, NEW), kept=kept(), before=NOTHING, argument=None)
    assert (desired.number, desired.problem) == (None, "")
    assert remembered == LOST, "the argument may be another one later"


def test_a_label_that_was_set_on_the_new_node_may_be_removed_again() -> None:
    memory: Kept | None = kept()
    desired = NOTHING
    for seen in (sight(None, NEW), sight("3", NEW), sight(None, NEW)):
        desired, memory = decide(seen, kept=memory, before=desired, argument=ARGUMENT)
    assert (desired, memory) == (ARGUED, None)
