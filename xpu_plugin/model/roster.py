# SPDX-License-Identifier: Apache-2.0
"""The pods that hold devices: the pods API and the checkpoint -> the ends of holders.

The pods API knows whether a container has ended, and no device. The checkpoint knows the devices, and no end.
Both have the pod's UID. A pod that is missing in the API proves nothing: one that is deleted by force leaves
it before its containers end.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from xpu_plugin.frozen import frozen
from xpu_plugin.model.ownership import Answers, Holding
from xpu_plugin.model.pods import Pod, ends


LINGER_SECONDS = 10.0  # beyond a pod's own time to end, for the runtime to kill its containers


@frozen
class Known:
    """A pod with devices, and its devices by the last checkpoint that named it."""

    pod: Pod
    holdings: tuple[Holding, ...]
    at: float  # time of the request, or of the news, that showed the pod so
    gone: float | None = None  # time since which the API has it no more

    def ended(self, holding: Holding) -> bool:
        return _name(holding) in ends(self.pod)

    def lingers(self, now: float) -> bool:
        """Return whether a container may still run although the pod is gone."""
        return (
            self.gone is not None
            and now < self.gone + self.pod.grace + LINGER_SECONDS
            and not all(map(self.ended, self.holdings))
        )

    def is_current(self, now: float, *, followed: bool) -> bool:
        """Return whether no ended container can have started again: each start is reported, or the pod has
        been gone for long."""
        if self.gone is None:
            return followed
        return now >= self.gone + self.pod.grace + LINGER_SECONDS


Roster = Mapping[str, Known]
"""The pods with devices, by UID."""


def after_list(
    roster: Roster,
    pods: Mapping[str, Pod],
    checkpoint: Iterable[Holding],
    now: float,
    *,
    began: float,
    followed: bool = True,
) -> Roster:
    """Return the roster after a complete answer of the API.

    began: time of the request
    followed: each end was reported until now. If not, a pod that is missing has ended in most cases; only the
    checkpoint may still name it.
    checkpoint: as it was before that answer
    """
    named: dict[str, tuple[Holding, ...]] = {}
    for holding in checkpoint:
        if holding.ids:
            named[_uid(holding)] = (*named.get(_uid(holding), ()), holding)
    new: dict[str, Known] = {}
    for uid in dict.fromkeys((*named, *roster)):
        before = roster.get(uid)
        if uid in pods:
            if uid in named:
                new[uid] = Known(pod=pods[uid], holdings=named[uid], at=began)
        elif before is not None:
            known = replace(before, holdings=named.get(uid, before.holdings))
            if not followed and known.gone is None and not all(map(known.ended, known.holdings)):
                continue
            known = known if known.gone is not None else replace(known, gone=now)
            if uid in named or known.lingers(now):
                new[uid] = known
    return new


def after_event(roster: Roster, uid: str, pod: Pod | None, now: float) -> Roster:
    """Return the roster after news of one pod; None: it is gone."""
    before = roster.get(uid)
    if before is None or (pod is None and before.gone is not None):
        return roster
    known = replace(before, gone=now) if pod is None else replace(before, pod=pod, gone=None, at=now)
    return {**roster, uid: known}


def open_holders(roster: Roster) -> frozenset[str]:
    """Return the containers with devices that are not known to have ended, of pods that are there."""
    return frozenset(
        holding.container
        for known in roster.values()
        if known.gone is None
        for holding in known.holdings
        if not known.ended(holding)
    )


def applied(
    answers: Answers,
    roster: Roster,
    pods: Mapping[str, Pod] | str | None,
    *,
    ahead: float,
    followed: bool = False,
) -> Answers:
    """Return the answers with the ends of holders that the API has shown.

    pods: the API's answer; None without the API or without an answer; a text: why it refuses to answer
    ahead: seconds by which the wall clock is ahead of the caller's
    followed: as for `after_list`
    """
    refusal = pods if isinstance(pods, str) else ""
    checkpoint = answers.checkpoint or ()
    over: dict[Holding, float] = {}
    seen: dict[str, float] = {}
    for holding in checkpoint:
        known = roster.get(_uid(holding))
        if known is not None and known.ended(holding):
            over[holding] = ends(known.pod)[_name(holding)].finished - ahead
            at = answers.began if known.is_current(answers.began, followed=followed) else known.at
            seen.update({id: min(at, seen.get(id, at)) for id in holding.ids})
    ended = {id: at for holding, at in over.items() for id in holding.ids}
    for holding in checkpoint:
        if holding not in over:
            ended = {id: at for id, at in ended.items() if id not in holding.ids}
    listing = answers.listed
    finished, succeeded = _finished(pods.values(), ahead) if isinstance(pods, Mapping) else ({}, {})
    if listing is not None:
        listing = replace(
            listing, holdings=tuple(own for own in listing.holdings if own.container not in finished)
        )
    gone = [known for known in roster.values() if known.lingers(answers.done)]
    lingering = tuple(
        replace(holding, container=f"{known.pod.name}/{_name(holding)}")
        for known in gone
        for holding in known.holdings
        if not known.ended(holding)
    )
    kept = tuple(holding for holding in checkpoint if holding not in over)
    fading: tuple[Holding, ...] = ()
    if isinstance(pods, Mapping):
        shown = {*pods, *(known.pod.uid for known in gone)}
        fading = tuple(holding for holding in kept if _uid(holding) not in shown)
    return replace(
        answers,
        listing=listing if answers.listed is not None else answers.listing,
        checkpoint=kept if answers.checkpoint is not None else None,
        ended=ended,
        seen={id: seen[id] for id in ended},
        finished=finished,
        succeeded=succeeded,
        lingering=lingering,
        fading=fading,
        refusal=refusal,
        witness=isinstance(pods, Mapping),
    )


def _finished(pods: Collection[Pod], ahead: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return `namespace/pod/container` of each container that has ended in each pod of that name, with the
    time; and of those with exit code 0."""
    over = {f"{pod.name}/{name}": end for pod in pods for name, end in ends(pod).items()}
    open_ = {f"{pod.name}/{name}" for pod in pods for name in pod.containers.keys() - ends(pod).keys()}
    gone = {name: end for name, end in over.items() if name not in open_}
    return (
        {name: end.finished - ahead for name, end in gone.items()},
        {name: end.finished - ahead for name, end in gone.items() if end.code == 0},
    )


def _uid(holding: Holding) -> str:
    """Return the pod of a holding of the checkpoint."""
    return holding.container.partition("/")[0]


def _name(holding: Holding) -> str:
    return holding.container.partition("/")[2]
