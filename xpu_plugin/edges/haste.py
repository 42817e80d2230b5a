# SPDX-License-Identifier: Apache-2.0
"""Real-time priority for moments: a kubelet that restarts ends pods if its plugins are late.

On a busy node a thread waits for milliseconds each time that it wakes. A registration wakes many threads, one
after the other.
"""

import contextlib
import os


LOWEST = 1  # of the real-time priorities


class Haste:
    """Gives all threads of this process real-time priority while there is a reason.

    Without the right to it (CAP_SYS_NICE), nothing changes.
    """

    def __init__(self) -> None:
        self._reasons: set[str] = set()

    def set(self, reason: str, *, present: bool) -> None:
        """Begin or end one reason."""
        before = bool(self._reasons)
        (self._reasons.add if present else self._reasons.discard)(reason)
        if before != bool(self._reasons):
            # Threads that gRPC starts meanwhile inherit the priority, and lose it here as well.
            for task in os.listdir("/proc/self/task"):  # noqa: PTH208 - names alone
                _schedule(int(task), urgent=not before)


def unhurried(pid: int) -> None:
    """Give a child that was just started the usual priority."""
    if os.sched_getscheduler(0) == os.SCHED_RR:
        _schedule(pid, urgent=False)


def _schedule(task: int, *, urgent: bool) -> None:
    policy, priority = (os.SCHED_RR, LOWEST) if urgent else (os.SCHED_OTHER, 0)
    with contextlib.suppress(OSError):  # it may have ended
        os.sched_setscheduler(task, policy, os.sched_param(priority))
