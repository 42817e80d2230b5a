# SPDX-License-Identifier: Apache-2.0
"""Host files for containers: those that the host has now. A container runtime makes an empty directory of one
that is missing."""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from xpu_plugin.edges.installation import absence, located
from xpu_plugin.edges.mounts import above
from xpu_plugin.edges.state.disk import DiskThread
from xpu_plugin.frozen import frozen
from xpu_plugin.log import Message, Once


logger = logging.getLogger(__name__)


@frozen
class Lack:
    """Why the host seems to lack a file. seen: the plugin sees its directory, so the host surely lacks it"""

    reason: str
    seen: bool = True


class HostFiles:
    """Files and directories of the host that containers get.

    paths: as the host has them
    root: the directory of the host's mounts in the plugin's container; outside of one there is none
    seconds: until a look has ended, or the one before counts
    """

    def __init__(self, paths: Sequence[str], *, root: Path, seconds: float) -> None:
        self.paths = tuple(paths)
        self._root = root
        self._seconds = seconds
        self._thread = DiskThread("host-files") if paths else None
        self._look: asyncio.Task[Mapping[str, Lack]] | None = None
        self._missing: Mapping[str, Lack] | None = None  # before the first look
        self._complaint, self._silence = Once(), Once()

    async def present(self) -> tuple[str, ...]:
        """Return those that the host has. While its disk hangs, those of the last look; none before one."""
        await self._looked()
        missing = self.paths if self._missing is None else self._missing
        return tuple(path for path in self.paths if path not in missing)

    async def absent(self) -> Mapping[str, str]:
        """Return those that the host surely lacks, each with the reason. While its disk hangs, as above."""
        await self._looked()
        return {path: lack.reason for path, lack in (self._missing or {}).items() if lack.seen}

    async def _looked(self) -> None:
        if self._thread is None:
            return
        if self._look is None or self._look.done():  # else one hangs, and the thread takes no other
            self._look = asyncio.create_task(self._thread.call(missing, self.paths, self._root))
        look = self._look
        await asyncio.wait({look}, timeout=self._seconds)
        if look.done():
            self._take(look)
        elif self._silence.changed(True):
            logger.warning(
                Message(
                    "looking for host files takes too long; containers get those of the last look",
                    seconds=self._seconds,
                )
            )

    def _take(self, look: asyncio.Task[Mapping[str, Lack]]) -> None:
        try:
            self._missing = look.result()
        except OSError as error:  # no thread
            if self._silence.changed(str(error)):
                logger.warning(
                    Message("cannot look for host files; containers get those of the last look", error=error)
                )
            return
        self._silence.healed()
        if not self._missing:
            if self._complaint.healed():
                logger.info(Message("all host files for containers are there"))
        elif self._complaint.changed(self._missing):
            for path, lack in self._missing.items():
                logger.warning(
                    Message(
                        "the host has no such file; new containers start without it",
                        path=path,
                        error=lack.reason,
                    )
                )


def missing(paths: Sequence[str], root: Path) -> dict[str, Lack]:
    """Return those of the paths that the host does not have, each with the reason. May wait for a disk."""
    within = root.is_dir()
    return {path: lack for path in paths if (lack := _lack(path, root if within else None)) is not None}


def _lack(path: str, root: Path | None) -> Lack | None:
    given = path if root is None else f"{root}{path}"
    top = None if root is None else str(root)
    try:
        place = located(given, top)
    except OSError as error:
        return Lack(reason=error.strerror or str(error))
    if os.path.exists(place):  # noqa: PTH110 - pathlib raises for some errors
        return None
    if top is not None and place == given and max(above(place), key=len, default="") in ("/", top):
        above_it, here = os.path.dirname(path), os.path.dirname(given)  # noqa: PTH120
        return Lack(reason=f"the plugin's pod does not mount {above_it} of the host at {here}", seen=False)
    return Lack(reason=absence(given, top))
