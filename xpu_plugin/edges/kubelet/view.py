# SPDX-License-Identifier: Apache-2.0
"""The one reader of the kubelet: its list of pods, its checkpoint, its instance.

Callers share answers, which are kept for a while. Each answer has the time of its request. No read blocks the
event loop.
"""

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import NoReturn

from xpu_plugin.edges.kubelet.directory import KUBELET_SOCKET, identity_of
from xpu_plugin.edges.kubelet.pod_resources import (
    CHECKPOINT,
    UnknownHoldersError,
    checkpoint_of,
    kept_in,
    list_pods,
)
from xpu_plugin.edges.kubelet.pods import news_of, pods_of
from xpu_plugin.frozen import frozen
from xpu_plugin.model import roster
from xpu_plugin.model.allocation import Kept
from xpu_plugin.model.ownership import Answers, Checkpoint, Listing
from xpu_plugin.model.pods import Pod
from xpu_plugin.model.registration import SocketIdentity
from xpu_plugin.observable import Value
from xpu_plugin.waiting import delays


FRESH_SECONDS = 5.0
AGAIN_SECONDS = (0.5, 5.0)  # between streams of the pods API: first, most
LASTING_SECONDS = 10.0  # a stream that lasted so long makes the pauses begin anew
READ_SECONDS = 5.0  # for a read from the disk of the kubelet's directory


@frozen
class Listed:
    """An answer of the pod resources API.

    began: time of the request, in seconds of the view's clock
    instance: the kubelet instance, if the same ran from the request to the answer; else None
    listing: None without such an API, or without an answer
    trouble: reason for which there is no answer
    """

    began: float
    instance: SocketIdentity | None = None
    listing: Listing | None = None
    trouble: str | None = None


@frozen
class Written:
    """The checkpoint as it was read.

    began, instance: as in `Listed`
    checkpoint: None if it cannot be read
    trouble: reason for which it cannot be read
    """

    began: float
    instance: SocketIdentity | None = None
    checkpoint: Checkpoint | None = None
    trouble: str | None = None


@frozen
class Shown:
    """An answer of the pods API.

    began: as in `Listed`
    pods: by UID; None without such an API, or without an answer; a text: why the kubelet refuses to answer
    trouble: reason for which there is no answer
    """

    began: float
    pods: Mapping[str, Pod] | str | None = None
    trouble: str | None = None


class KubeletView:
    """Reads the state of this node's kubelet.

    pods_api_socket: of the pods API; None: it is not asked
    """

    def __init__(
        self,
        *,
        device_plugin_dir: Path,
        pod_resources_socket: Path,
        pods_api_socket: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._checkpoint = device_plugin_dir / CHECKPOINT
        self._kubelet = device_plugin_dir / KUBELET_SOCKET
        self._directory = device_plugin_dir
        self._socket = pod_resources_socket
        self._pods_api = pods_api_socket
        self._roster: roster.Roster = {}
        self._following = False  # each end is reported
        self.ended: Value[float] = Value(float("-inf"))
        """Time at which the end of a container with a device was last seen, by an answer or by `follow`."""
        self._clock = clock
        self._wall_clock = wall_clock
        self._asking = asyncio.Lock()
        self._listed: Listed | None = None
        self._written: Written | None = None
        self._reading: asyncio.Task[None] | None = None
        self._searching: asyncio.Task[Kept] | None = None
        self._asked = self._read = self._done = (
            0  # numbers of requests for a list, of reads of the checkpoint begun, and ended
        )

    @property
    def instance(self) -> SocketIdentity | None:
        """The kubelet instance that runs now; None if there is none."""
        return identity_of(self._kubelet)

    @property
    def checkpoint_state(self) -> tuple[int, ...] | None:
        """The identity of the checkpoint's present content, for comparison; None without a file."""
        return _state(self._checkpoint)

    async def listing(self, *, oldest: float = FRESH_SECONDS) -> Listed:
        """Return the list of pods, requested at most `oldest` seconds ago. No state of the kubelet raises."""
        since, asked = self._clock() - oldest, self._asked
        async with self._asking:
            # A later request by another caller is new enough, too.
            if self._listed is None or (self._asked == asked and self._listed.began <= since):
                self._asked += 1
                began, instance = self._clock(), self.instance
                listing, trouble = None, None
                try:
                    listing = await list_pods(self._socket)
                except UnknownHoldersError as error:
                    trouble = str(error)
                self._listed = Listed(
                    began=began, instance=self._still(instance), listing=listing, trouble=trouble
                )
            return self._listed

    async def checkpoint(self, *, oldest: float = FRESH_SECONDS) -> Written:
        """Return the checkpoint, read at most `oldest` seconds ago. No state of the file raises.

        A read goes on after a cancellation or a deadline; the next caller waits for it first.
        """
        asked, read = self._clock(), self._read
        while self._written is None or (self._done <= read and self._written.began <= asked - oldest):
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._look(), name="kubelet's checkpoint")
            reading = self._reading  # another caller may begin the next one meanwhile
            await asyncio.wait({reading}, timeout=READ_SECONDS)
            if not reading.done():
                return Written(began=asked, trouble=self._late())
            reading.result()
        return self._written

    def _late(self) -> str:
        return f"{self._checkpoint}: no answer within {READ_SECONDS:g} s"

    async def _look(self) -> None:
        self._read += 1
        number = self._read
        began, instance = self._clock(), self.instance
        checkpoint, trouble = None, None
        try:
            checkpoint = await checkpoint_of(self._directory)
        except UnknownHoldersError as error:
            trouble = str(error)
        self._written, self._done = (
            Written(
                began=began,
                instance=self._still(instance),
                checkpoint=checkpoint,
                trouble=trouble,
            ),
            number,
        )

    async def kept(self, resource: str, ids: Collection[str]) -> Kept:
        """Return the Allocate answers that the checkpoint has now for exactly these ids. Nothing raises.

        One search goes on at a time, also after a cancellation or a deadline.
        """
        try:
            async with asyncio.timeout(READ_SECONDS):
                while self._searching is not None and not self._searching.done():
                    await asyncio.wait({self._searching})
                search = kept_in(self._directory, resource, ids)
                self._searching = asyncio.create_task(search, name="kubelet's record of a grant")
                return await asyncio.shield(self._searching)
        except TimeoutError:
            return Kept(trouble=self._late())

    async def shown(self) -> Shown:
        """Ask the pods API. No state of the kubelet raises."""
        began = self._clock()
        try:
            pods = None if self._pods_api is None else await pods_of(self._pods_api)
        except UnknownHoldersError as error:
            return Shown(began=began, trouble=str(error))
        return Shown(began=began, pods=pods)

    async def follow(self) -> NoReturn:
        """Follow the pods with devices, so that `ended` changes at once. Never returns.

        A stream that ends is opened again. It begins with all pods, so no end is missed.
        """
        pauses = delays(*AGAIN_SECONDS)
        while True:
            began = self._clock()
            try:
                if self._pods_api is not None:
                    await self._read_news(self._pods_api)
            except (UnknownHoldersError, FileNotFoundError, NotADirectoryError):
                pass  # `answers` has the reason
            finally:
                self._following = False
            if self._clock() - began > LASTING_SECONDS:
                pauses = delays(*AGAIN_SECONDS)
            await asyncio.sleep(next(pauses))

    async def _read_news(self, socket: Path) -> None:
        """Read a stream of the pods API to its end. Raises as `news_of`."""
        first: set[str] = set()  # then grows with the pods of this stream
        async with aclosing(news_of(socket)) as stream:
            async for news in stream:
                if news is None:
                    self._following = True
                    for uid in self._roster.keys() - first:
                        self._hear(uid, None)
                else:
                    first.add(news[0])
                    self._hear(*news)

    def _hear(self, uid: str, pod: Pod | None) -> None:
        now = self._clock()
        self._become(roster.after_event(self._roster, uid, pod, now), now)

    def _become(self, after: roster.Roster, now: float) -> None:
        before, self._roster = self._roster, after
        if roster.open_holders(before) - roster.open_holders(after):
            self.ended.set(now)

    def _still(self, instance: SocketIdentity | None) -> SocketIdentity | None:
        return instance if instance == self.instance else None

    async def answers(self, *, oldest: float = FRESH_SECONDS, checkpoint_alone: bool = False) -> Answers:
        """Return the kubelet's answers, each requested at most `oldest` seconds before this call.

        With `oldest` 0, two calls one after the other never share an answer.
        """
        listed = None if checkpoint_alone else await self.listing(oldest=oldest)
        written = await self.checkpoint(oldest=oldest)
        # After the checkpoint: so the pod of each device is known, unless it has gone.
        shown = None if checkpoint_alone else await self.shown()
        asked = (written,) if listed is None else (listed, written)
        instance = self.instance
        life = instance if all(own.instance == instance for own in asked) else None
        now = self._clock()
        if shown is not None and isinstance(shown.pods, Mapping) and written.checkpoint is not None:
            holdings = written.checkpoint.holdings
            after = roster.after_list(
                self._roster, shown.pods, holdings, now, began=shown.began, followed=self._following
            )
            self._become(after, now)
        answers = Answers(
            began=min(own.began for own in asked),
            done=now,
            listing=None if listed is None else listed.trouble or listed.listing,
            checkpoint=written.checkpoint.holdings if written.checkpoint else None,
            checkpoint_trouble=written.trouble,
            own=written_by(life, written.checkpoint),
            life=life,
            age=self._wall_clock() - life.changed_ns / 1e9 if life else 0.0,
            witness_trouble=None if shown is None else shown.trouble,
        )
        pods = None if shown is None else shown.pods
        ahead = self._wall_clock() - now
        return roster.applied(answers, self._roster, pods, ahead=ahead, followed=self._following)


def written_by(instance: SocketIdentity | None, checkpoint: Checkpoint | None) -> bool:
    """Return whether this instance has written the checkpoint, and not an earlier one."""
    return instance is not None and checkpoint is not None and (checkpoint.written_ns > instance.changed_ns)


def _state(file: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(file)  # noqa: PTH116 - a look, no wait
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
