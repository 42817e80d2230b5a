# SPDX-License-Identifier: Apache-2.0
"""The kubelet as it shows itself: its list of pods, its checkpoint, its instance. One reader for all.

Answers are shared between those who ask and kept for a while; each says when it was asked for. None of this
keeps the event loop waiting.
"""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from xpu_plugin.edges.kubelet.directory import KUBELET_SOCKET, identity_of
from xpu_plugin.edges.kubelet.pod_resources import CHECKPOINT, UnknownHoldersError, checkpoint_of, list_pods
from xpu_plugin.frozen import frozen
from xpu_plugin.model.ownership import Answers, Checkpoint, Listing
from xpu_plugin.model.registration import SocketIdentity


FRESH_SECONDS = 5.0
READ_SECONDS = 5.0  # for the disk of the kubelet's directory to answer


@frozen
class Listed:
    """An answer of the pod resources API.

    began: when it was asked for, in seconds of the view's clock
    instance: the kubelet instance that was there from then until the answer, else None
    listing: None where there is no such API, or no answer; trouble: why there is no answer
    """

    began: float
    instance: SocketIdentity | None = None
    listing: Listing | None = None
    trouble: str | None = None


@frozen
class Written:
    """The checkpoint as it was read.

    began, instance: as in `Listed`; state: the file's identity then, None where there is no file
    checkpoint: None where it cannot be read; trouble: why it cannot
    """

    began: float
    instance: SocketIdentity | None = None
    state: tuple[int, ...] | None = None
    checkpoint: Checkpoint | None = None
    trouble: str | None = None


class KubeletView:
    """Reads what the kubelet of one node shows of itself."""

    def __init__(
        self,
        *,
        device_plugin_dir: Path,
        pod_resources_socket: Path,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._checkpoint = device_plugin_dir / CHECKPOINT
        self._kubelet = device_plugin_dir / KUBELET_SOCKET
        self._directory = device_plugin_dir
        self._socket = pod_resources_socket
        self._clock = clock
        self._wall_clock = wall_clock
        self._asking = asyncio.Lock()
        self._listed: Listed | None = None
        self._written: Written | None = None
        self._reading: asyncio.Task[None] | None = None
        self._asked = self._read = self._done = 0  # lists asked for; checkpoints begun to be read, and read

    @property
    def instance(self) -> SocketIdentity | None:
        """The kubelet instance that is there now; None when there is none."""
        return identity_of(self._kubelet)

    @property
    def checkpoint_changed(self) -> bool:
        """Whether the checkpoint is another file than the one that was read last."""
        return self._written is None or self._written.state != _state(self._checkpoint)

    async def listing(self, *, oldest: float = FRESH_SECONDS) -> Listed:
        """The list of pods, asked for no earlier than `oldest` seconds ago. Never raises for the kubelet."""
        since, asked = self._clock() - oldest, self._asked
        async with self._asking:
            # Asked for after this call, by another caller, it is new enough too.
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
        """The checkpoint, read no earlier than `oldest` seconds ago. Never raises for the file.

        Cancelled, as by a deadline, or late, the reading goes on; the next caller waits for that one first.
        """
        asked, read = self._clock(), self._read
        while self._written is None or (self._done <= read and self._written.began <= asked - oldest):
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._look(), name="kubelet's checkpoint")
            reading = self._reading  # another caller may begin the next one meanwhile
            await asyncio.wait({reading}, timeout=READ_SECONDS)
            if not reading.done():
                why = f"{self._checkpoint}: no answer within {READ_SECONDS:g} s"
                return Written(began=asked, trouble=why)
            reading.result()
        return self._written

    async def _look(self) -> None:
        self._read += 1
        number = self._read
        began, instance, state = self._clock(), self.instance, _state(self._checkpoint)
        checkpoint, trouble = None, None
        try:
            checkpoint = await checkpoint_of(self._directory)
        except UnknownHoldersError as error:
            trouble = str(error)
        self._written, self._done = (
            Written(
                began=began,
                instance=self._still(instance),
                state=state,
                checkpoint=checkpoint,
                trouble=trouble,
            ),
            number,
        )

    def _still(self, instance: SocketIdentity | None) -> SocketIdentity | None:
        return instance if instance == self.instance else None

    async def answers(self, *, oldest: float = FRESH_SECONDS, checkpoint_alone: bool = False) -> Answers:
        """The kubelet's answers, each asked for no earlier than `oldest` seconds before this call.

        With `oldest` 0, two calls one after the other never share an answer.
        """
        listed = None if checkpoint_alone else await self.listing(oldest=oldest)
        written = await self.checkpoint(oldest=oldest)
        asked = (written,) if listed is None else (listed, written)
        instance = self.instance
        life = instance if all(own.instance == instance for own in asked) else None
        return Answers(
            began=min(own.began for own in asked),
            done=self._clock(),
            listing=None if listed is None else listed.trouble or listed.listing,
            checkpoint=written.checkpoint.holdings if written.checkpoint else None,
            checkpoint_trouble=written.trouble,
            own=written_by(life, written.checkpoint),
            life=life,
            age=self._wall_clock() - life.changed_ns / 1e9 if life else 0.0,
        )


def written_by(instance: SocketIdentity | None, checkpoint: Checkpoint | None) -> bool:
    """Whether this very instance has written the checkpoint; an earlier one may have, which is still read."""
    return instance is not None and checkpoint is not None and (checkpoint.written_ns > instance.changed_ns)


def _state(file: Path) -> tuple[int, ...] | None:
    try:
        status = os.stat(file)  # noqa: PTH116 - a look, no wait
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
