# SPDX-License-Identifier: Apache-2.0
"""The kubelet's pods with their containers: which container has ended for good.

Only a container that the runtime has seen end counts. A pod may be Failed before its containers have ended:
they have no status then, or one without the runtime's id.
"""

from collections.abc import Mapping
from enum import StrEnum

from xpu_plugin.frozen import frozen


ALWAYS, ON_FAILURE = "Always", "OnFailure"
GRACE_SECONDS = 30.0  # of a pod that does not say how long its containers may take to end


class Kind(StrEnum):
    """The kinds of containers that can have devices."""

    MAIN = "main"
    INIT = "init"
    SIDECAR = "sidecar"  # an init container that is restarted always


@frozen
class Exit:
    """The end of a container's last run, which the runtime has seen."""

    code: int
    finished: float  # seconds since 1970, rounded down


@frozen
class Container:
    """A container of a pod."""

    kind: Kind = Kind.MAIN
    policy: str = ALWAYS  # the restart policy that counts for it
    exit: Exit | None = None  # None while it waits or runs, or if its end is not known


@frozen
class Pod:
    """A pod as the kubelet has it."""

    uid: str
    name: str  # `namespace/name`
    containers: Mapping[str, Container]
    over: bool = False  # it is being deleted, or has succeeded or failed: no container starts any more
    ruled: bool = False  # rules on exit codes may start its containers again
    grace: float = GRACE_SECONDS  # seconds that its containers may take to end


def ends(pod: Pod) -> dict[str, Exit]:
    """Return the containers that have ended and are not started again, each with its end.

    Only the loss of the pod's sandbox starts a finished init container again; `PreStartContainer` tells.
    """
    return {
        name: own.exit
        for name, own in pod.containers.items()
        if own.exit is not None and (pod.over or not (pod.ruled or _again(own, own.exit)))
    }


def _again(container: Container, end: Exit) -> bool:
    """Return whether the kubelet starts a container again."""
    if container.kind is Kind.SIDECAR:
        return True
    always = container.policy == ALWAYS and container.kind is Kind.MAIN
    return always or (container.policy in (ALWAYS, ON_FAILURE) and end.code != 0)
