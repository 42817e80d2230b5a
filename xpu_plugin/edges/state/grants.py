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

from xpu_plugin.edges.state.record import Record
from xpu_plugin.frozen import frozen
from xpu_plugin.model.timings import USUAL


logger = logging.getLogger(__name__)

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
    """

    def __init__(self, directory: Path, *, apart: bool = False, patience: float = USUAL.grant) -> None:
        self._record = Record(
            directory / _FILE,
            name="grants",
            encode=_encoded,
            decode=_decoded,
            empty=_EMPTY,
            waits=", and no card is split before",
            lost="after a restart of this plugin, containers that restart will be refused until their pods "
            "are created anew",
            apart=apart,
        )
        self.patience = patience  # of a container's start
        self.paths: dict[str, str] = {}
        self.listed: set[str] = set()
        self.holders: dict[str, Shown] = {}
        self._writing = asyncio.Lock()
        self._due: dict[str, str] = {}  # what containers have started with, to be written
        self._writer: asyncio.Task[None] | None = None
        self._working: set[asyncio.Task[None]] = set()
        self._late = False  # the disk has not answered in time, and not since
        if self._record.read_now():
            self._take_in(_EMPTY)

    @property
    def unread(self) -> bool:
        """Whether the file is there and could not be read yet. It counts as neither empty nor known; it is
        not written before it has been read."""
        return self._record.unread

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
                written = self._record.content
                if all(written.paths.get(id) == path for id, path in paths.items()) and (
                    self.listed.issuperset(written.listed.intersection(paths))
                ):
                    continue
                await self._record.write(self._wanted({**written.paths, **paths}))

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
            written = self._record.content.paths
            if ended & written.keys():
                await self._record.write(
                    self._wanted({id: path for id, path in written.items() if id not in ended})
                )

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
            written = self._record.content
            wanted = self._wanted(written.paths)
            if (wanted.listed, wanted.holders) != (written.listed, written.holders):
                await self._record.write(wanted)

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
                self._record.path,
            )

    def _answered(self, work: asyncio.Task[None]) -> None:
        self._working.discard(work)
        self._late = False

    async def _reread(self) -> bool:
        before = self._record.content
        if await self._record.read():
            self._take_in(before)
        return not self.unread

    def _take_in(self, before: _Contents) -> None:
        """Take in the file, and keep grants of this process. before: the file's content before"""
        found = self._record.content
        ours = {id: path for id, path in self.paths.items() if before.paths.get(id) != path}
        self.paths = {**found.paths, **ours}
        self.listed = set(found.listed) - ours.keys()
        self.holders = {id: shown for id, shown in found.holders.items() if id not in ours}

    def _wanted(self, paths: Mapping[str, str]) -> _Contents:
        holders = {id: self.holders[id] for id in paths.keys() & self.holders.keys()}
        return _Contents(paths, frozenset(paths.keys() & self.listed), holders)


def _encoded(contents: _Contents) -> object:
    return {
        "grants": dict(contents.paths),
        "listed": sorted(contents.listed),
        "holders": {id: [shown.container, shown.kubelet] for id, shown in contents.holders.items()},
    }


def _decoded(document: Any) -> _Contents:
    grants = {str(id): str(path) for id, path in document["grants"].items()}
    holders = {
        str(id): Shown(str(container), str(kubelet))
        for id, (container, kubelet) in document.get("holders", {}).items()
    }
    # Without the words, the file is of a release that did not ask.
    return _Contents(grants, frozenset(map(str, document.get("listed", grants))), holders)
