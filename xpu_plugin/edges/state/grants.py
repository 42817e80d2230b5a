# SPDX-License-Identifier: Apache-2.0
"""The record of grants: which node path each device id was last granted as.

A restarting container gets its old Allocate answer again from the kubelet, whatever has changed since.
This record is how PreStartContainer knows what that answer said. Losing it means that such containers
are refused until their pod is created anew; it never means that one gets a wrong device.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from xpu_plugin.edges.state.disk import state_thread
from xpu_plugin.edges.state.state_file import DAMAGED, StateFile, reason
from xpu_plugin.frozen import frozen
from xpu_plugin.model.timings import USUAL


logger = logging.getLogger(__name__)

READ_SECONDS = 2.0  # for the disk; then the record counts as one that cannot be read now
_FILE = "grants.json"


@frozen(kw_only=False)
class Shown:
    """The holder of a device as the kubelet's list has shown it last.

    container: `namespace/pod/container`; kubelet: that kubelet instance, in a text
    """

    container: str
    kubelet: str


@frozen(kw_only=False)
class _Contents:
    """Of the file. listed: ids that the kubelet's list of pods has shown since they were granted

    holders: of those ids, as far as they are known
    """

    paths: Mapping[str, str]
    listed: frozenset[str]
    holders: Mapping[str, Shown]


_EMPTY = _Contents({}, frozenset(), {})


class GrantRecord:
    """id -> path, in memory and, from a container's first start on, in `directory`/grants.json; and which of
    the ids the kubelet has listed since, with their holders.

    unread: the file is there and could not be read yet. It counts as neither empty nor known; it is not
    written before it has been read.
    """

    def __init__(self, directory: Path, *, apart: bool = False, patience: float = USUAL.grant) -> None:
        self._file = StateFile(directory / _FILE, apart=apart)
        self._disk = state_thread()
        self.patience = patience  # of a container's start
        self._written = _EMPTY
        self.paths: dict[str, str] = {}
        self.listed: set[str] = set()
        self.holders: dict[str, Shown] = {}
        self._complained = False
        self._writing = asyncio.Lock()
        self._due: dict[str, str] = {}  # what containers have started with, to be written
        self._writer: asyncio.Task[None] | None = None
        self._working: set[asyncio.Task[None]] = set()
        self._late = False  # the disk has not answered in time, and not since
        self.unread = True
        self._unreadable: str | None = None
        try:
            self._take_in(self._disk.call_now(READ_SECONDS, self._read))
        except OSError as error:  # the disk does not answer, or there is no thread
            self._cannot_read(error)

    async def reread(self) -> bool:
        """Take in what another plugin has written since; what was granted here and is not written stays.

        Whether the file could be read.
        """
        async with self._writing:
            return await self._reread()

    def granted(self, paths: Mapping[str, str]) -> None:
        """Allocate answered; the container has not started yet."""
        self.paths.update(paths)
        self.listed.difference_update(paths)
        self.holders = {id: shown for id, shown in self.holders.items() if id not in paths}

    async def started(self, paths: Mapping[str, str]) -> None:
        """A container starts with these: write them down, if they are not yet.

        A device that is not offered just now may be held still, so none is forgotten here. A directory that
        cannot be written is complained of once and costs no more than the record, and so does a disk that
        does not answer: what it is asked to write is written when it does.
        """
        self._due.update(paths)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.ensure_future(self._write_due())
        await self._wait_for(self._writer)

    async def _write_due(self) -> None:
        async with self._writing:
            while self._due:
                paths, self._due = self._due, {}
                if self.unread and not await self._reread():
                    return
                written = self._written
                if all(written.paths.get(id) == path for id, path in paths.items()) and (
                    self.listed.issuperset(written.listed.intersection(paths))
                ):
                    continue
                await self._write({**written.paths, **paths})

    async def forget(self, ids: Callable[[], Collection[str]]) -> None:
        """No container has these any more; asked for when there is nothing to wait for, as for `saw`.

        While the disk does not answer nothing is forgotten.
        """
        if not self._late:
            await self._wait_for(asyncio.ensure_future(self._forget(ids)))

    async def _forget(self, ids: Callable[[], Collection[str]]) -> None:
        async with self._writing:
            if self.unread:
                return
            ended = frozenset(ids())
            self.paths = {id: path for id, path in self.paths.items() if id not in ended}
            self.listed -= ended
            self.holders = {id: shown for id, shown in self.holders.items() if id not in ended}
            if ended & self._written.paths.keys():
                await self._write({id: at for id, at in self._written.paths.items() if id not in ended})

    async def saw(self, holders: Callable[[], Mapping[str, Shown]]) -> None:
        """The kubelet's list of pods shows these; asked for when there is nothing to wait for any more, as
        one of them may be granted anew meanwhile. While the disk does not answer nothing is taken in."""
        if not self._late:
            await self._wait_for(asyncio.ensure_future(self._saw(holders)))

    async def _saw(self, holders: Callable[[], Mapping[str, Shown]]) -> None:
        async with self._writing:
            shown = holders()
            self.listed.update(shown)
            self.holders.update(shown)
            if self.unread:
                return
            wanted = self._wanted(self._written.paths)
            if (wanted.listed, wanted.holders) != (self._written.listed, self._written.holders):
                await self._write(self._written.paths)

    async def _wait_for(self, work: asyncio.Task[None]) -> None:
        """Wait for work on the disk to end, for a bounded time and not again before the disk answers."""
        self._working.add(work)
        work.add_done_callback(self._answered)
        done, _ = await asyncio.wait({work}, timeout=0 if self._late else self.patience)
        if done:
            work.result()
        elif not self._late:
            self._late = True
            logger.warning(
                "the disk does not answer: the record of grants %s is written later, and containers start "
                "without",
                self._file.path,
            )

    def _answered(self, work: asyncio.Task[None]) -> None:
        self._working.discard(work)
        self._late = False

    async def _reread(self) -> bool:
        try:
            async with asyncio.timeout(READ_SECONDS):
                self._take_in(await self._disk.call(self._read))
        except OSError as error:
            self._take_in(None)
            self._cannot_read(error)
        return not self.unread

    def _take_in(self, found: _Contents | None) -> None:
        if found is None:
            self.unread = True
            return
        ours = {id: path for id, path in self.paths.items() if self._written.paths.get(id) != path}
        self.unread, self._written = False, found
        self.paths = {**found.paths, **ours}
        self.listed = set(found.listed) - ours.keys()
        self.holders = {id: shown for id, shown in found.holders.items() if id not in ours}

    def _wanted(self, paths: Mapping[str, str]) -> _Contents:
        holders = {id: self.holders[id] for id in paths.keys() & self.holders.keys()}
        return _Contents(paths, frozenset(paths.keys() & self.listed), holders)

    async def _write(self, paths: Mapping[str, str]) -> None:
        wanted = self._wanted(paths)
        document = {
            "grants": dict(paths),
            "listed": sorted(wanted.listed),
            "holders": {id: [shown.container, shown.kubelet] for id, shown in wanted.holders.items()},
        }
        try:
            await self._disk.call(self._file.replace, document)
        except OSError as error:
            if not self._complained:
                logger.warning(
                    "cannot write the record of grants %s: %s; after a restart of this plugin, containers "
                    "that restart will be refused until their pods are created anew",
                    self._file.path,
                    error.strerror,
                )
            self._complained = True
            return
        self._complained = False
        self._written = wanted

    def _cannot_read(self, error: OSError) -> None:
        why = error.strerror or "the disk does not answer"
        if why != self._unreadable:
            self._unreadable = why
            logger.warning(
                "cannot read the record of grants %s: %s; it is tried again, and no card is split before",
                self._file.path,
                why,
            )

    def _read(self) -> _Contents | None:
        """The file's contents; None when it cannot be read now."""
        try:
            return self._file.load(_decoded) or _EMPTY
        except OSError as error:
            self._cannot_read(error)
            return None
        except DAMAGED as error:
            logger.warning(
                "the record of grants %s is damaged and counts as empty: %s; it is kept aside when a new one "
                "is written",
                self._file.path,
                reason(error),
            )
            return _EMPTY


def _decoded(document: Any) -> _Contents:
    grants = {str(id): str(path) for id, path in document["grants"].items()}
    holders = {
        str(id): Shown(str(container), str(kubelet))
        for id, (container, kubelet) in document.get("holders", {}).items()
    }
    # Without the words, the file is of a release that did not ask.
    return _Contents(grants, frozenset(map(str, document.get("listed", grants))), holders)
