# SPDX-License-Identifier: Apache-2.0
"""One kind of write to the API server: when it is due, and its trouble, reported once."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from xpu_plugin.edges.apiserver.client import (
    AWAY,
    BROKEN,
    REFUSED,
    ApiServerClient,
    Failed,
    NodeMetadata,
    advice,
)
from xpu_plugin.log import Message, Once
from xpu_plugin.model.refusals import Speaker


logger = logging.getLogger(__name__)

AGAIN_SECONDS = (1.0, 60.0)  # back-off: first, most

Delays = Callable[[float, float], Iterator[float]]
"""A back-off: (first, most) seconds -> what to wait, time after time."""
Task = tuple[float, Callable[[ApiServerClient], None]]
"""The time from which it may be done, and the work."""

WHO_WE_ARE = (Speaker.AUTHENTICATOR, Speaker.AUTHORIZER)
"""Speakers that refuse us, not the content."""


class Duty(Protocol):
    """A part of the Node that is written beside its labels. All but the work is called under the writer's
    lock."""

    def saw(self, metadata: NodeMetadata, /) -> None:
        """Take the present Node."""

    def answered(self) -> None:
        """Take note of the first answer after an outage."""

    def tasks(self) -> Iterator[Task]:
        """Yield what is to be done."""

    @property
    def unwritten(self) -> tuple[str, ...]:
        """A sentence if the last attempt failed."""


class Errand:
    """One kind of write: its next time, and the last report on its failure."""

    def __init__(self, what: str, delays: Delays, seconds: tuple[float, float] | None = None) -> None:
        self.what = what
        self.due = self._soonest = 0.0
        self.complaint = Once()  # the kind of the present trouble
        self.unwritten: tuple[str, ...] = ()
        self._seconds = seconds or AGAIN_SECONDS
        self._delays = delays
        self._again = delays(*self._seconds)
        self._unreachable = False

    def renew(self) -> None:
        """Begin the waits anew, as there is new content."""
        self._again = self._delays(*self._seconds)
        self.due = min(self.due, self._soonest)

    def hurry(self) -> None:
        """Try soon, as there are answers again, if only an answer was missing."""
        if self._unreachable:
            self.renew()

    def put_off(self, least: float = 0.0) -> None:
        """Wait for the next delay, and `least` seconds at least. After a quiet time the delays begin anew."""
        now = time.monotonic()
        if now - self.due > self._seconds[1]:
            self.renew()
        self.due = now + max(next(self._again), least)
        self._soonest = now + max(self._seconds[0], least)

    def failed(self, failure: Failed, others: Iterable[object] = ()) -> None:
        """Report a failure once. The watch reports an unreachable server. others: reports of the other
        parts"""
        self.put_off(failure.retry_after)
        self._unreachable = failure.status is None and failure.kind == AWAY
        why = advice(failure) if failure.speaker in WHO_WE_ARE else str(failure)
        self.unwritten = (_failed(failure),)
        complaint = REFUSED if failure.speaker in WHO_WE_ARE else BROKEN
        if self._unreachable or not self.complaint.changed(complaint) or complaint in others:
            logger.debug(Message("cannot write to the API server", error=failure))
        else:
            logger.warning(Message("cannot write to the API server", error=why))

    def dropped(self, failure: Failed) -> None:
        """Report content that is given up; the next content may be written."""
        if failure.speaker is not Speaker.ADMISSION:
            logger.warning(Message("an event about this node is dropped", error=failure))
            return
        text = advice(failure)
        self.unwritten = (f"events about this node are dropped: {text}",)
        if self.complaint.changed(text):
            logger.warning(Message("events about this node are dropped", error=text))

    def succeeded(self, others: Iterable[object] = ()) -> None:
        """Report the end of trouble, unless another part has the same trouble."""
        self._unreachable = False
        self.unwritten = ()
        last = self.complaint.last
        if self.complaint.healed() and last not in others:
            logger.info(Message("the API server takes a request again", request=self.what))


def _failed(failure: Failed) -> str:
    if failure.speaker in WHO_WE_ARE:
        return advice(failure)
    return f"cannot write to the API server: {failure}"
