# SPDX-License-Identifier: Apache-2.0
"""The lock of the only plugin that works on a node."""

import asyncio
import errno
import fcntl
import logging
import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from xpu_plugin.log import Message, Once
from xpu_plugin.model.handover import Stage
from xpu_plugin.model.obstacles import Obstacle
from xpu_plugin.observable import Signal, Value


logger = logging.getLogger(__name__)

DESCRIPTORS = Path("/proc/self/fd")
"""A path that leads to an open descriptor, also after its name has changed hands."""
LOCK_SECONDS = 1.0  # between attempts to take the lock


class Alone(Protocol):
    """Tells when no other plugin may work on this node."""

    def work(self) -> AbstractAsyncContextManager[None]:
        """Wait until no other plugin may work; none does within this context."""


class Turn(Protocol):
    """Tells when we may register.

    stage: the present rights
    anew: fires when each resource has to be registered anew, also with an open stream
    """

    stage: Value[Stage]
    anew: Signal

    async def acquire(self) -> None:
        """Wait until we may register."""


class InstanceLock:
    """At most one plugin works in a device plugin directory: a lock on the directory itself, which ends
    with the process and leaves no file.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor: int | None = None
        self._complaint = Once()
        self.rival = False  # another plugin had the lock at the last attempt

    def acquire_at_once(self) -> None:
        """Take the lock if it is free. Call this before a read of any state that another plugin may
        change."""
        self._try()

    async def pause(self) -> None:
        """Wait until the next attempt: no event tells when another process releases the lock."""
        await asyncio.sleep(LOCK_SECONDS)

    def attempt(self) -> bool:
        """Take the lock if it is free; return whether it is ours."""
        ours = self._try()
        if ours:
            self._complaint.healed()
        return ours

    def part_with(self) -> int | None:
        """Return the open file that has the lock, for another process. The caller closes it. The lock belongs
        to the open file, not to a process."""
        descriptor, self._descriptor = self._descriptor, None
        return descriptor

    def adopt(self, descriptor: int) -> bool:
        """Take over an open file from another process; return whether it has the lock. Closes it
        otherwise."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no change for the file that has it
        except OSError:
            os.close(descriptor)
            return False
        self.release()
        self._descriptor, self.rival = descriptor, False
        self._complaint.healed()
        return self.held()

    def held(self) -> bool:
        """Whether the locked directory is still the one at that path."""
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._directory))  # noqa: PTH116
        except OSError:
            return False

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _try(self) -> bool:
        if self.held():
            return True
        self.release()
        if not DESCRIPTORS.is_dir():
            self._complain(
                Message("waiting: /proc is not mounted, or hides us; mount it to register", path=DESCRIPTORS)
            )
            return False
        try:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if not self._refused(error):
                self._complain(
                    Message(
                        "waiting for the kubelet's directory; where the kubelet has another one, name it by "
                        "--device-plugin-dir, in a pod by its hostPath",
                        path=self._directory,
                        error=error.strerror,
                    )
                )
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                self._refused(error)
                return False
            self.rival = True
            self._complain(
                Message("waiting: another plugin works in the kubelet's directory", path=self._directory)
            )
            return False
        self._descriptor, self.rival = descriptor, False
        return self.held()

    def _refused(self, error: OSError) -> bool:
        """Return whether the directory exists and refuses us, and report that."""
        obstacle = Obstacle(path=os.fspath(self._directory), code=error.errno or errno.EIO)
        if not obstacle.absent:
            self._complain(Message("cannot use the kubelet's directory", error=obstacle))
        return not obstacle.absent

    def _complain(self, message: Message) -> None:
        if self._complaint.changed(str(message)):
            logger.warning(message)
