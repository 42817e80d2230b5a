# SPDX-License-Identifier: Apache-2.0
"""The record of grants: the node path of each device id at its last grant.

A restarting container gets its old Allocate answer again from the kubelet, after any change of the devices.
PreStartContainer reads that answer from this record. Without the record, the kubelet's checkpoint counts. If
that does not help either, such containers are refused until their pod is created anew; none gets a wrong
device.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from xpu_plugin.edges.state.record import Record
from xpu_plugin.frozen import frozen
from xpu_plugin.log import Message
from xpu_plugin.model.timings import USUAL


logger = logging.getLogger(__name__)

_FILE = "grants.json"


@frozen(kw_only=False)
class Shown:
    """The holder of a device by the kubelet's last list.

    container: `namespace/pod/container`
    kubelet: that kubelet instance, as text
    """

    container: str
    kubelet: str


@frozen(kw_only=False)
class _Contents:
    """The content of the file.

    listed: ids that the kubelet's list of pods has shown since their grant
    holders: of those ids, as far as known
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
            waits="no card is split before, and a container that restarts waits",
            lost="after a restart of this plugin, containers that restart may be refused until their pods "
            "are created anew",
            apart=apart,
        )
        self.patience = patience  # for the disk, at a container's start
        self.paths: dict[str, str] = {}
        self.listed: set[str] = set()
        self.holders: dict[str, Shown] = {}
        self._writing = asyncio.Lock()
        self._due: dict[str, str] = {}  # devices of started containers that are not written yet
        self._writer: asyncio.Task[None] | None = None
        self._working: set[asyncio.Task[None]] = set()
        self._held = False  # nothing is written: two instances serve, and either may become the writer
        self._late = False  # the disk missed a deadline and has not answered since
        if self._record.read_now():
            self._take_in(_EMPTY)

    @property
    def unread(self) -> bool:
        """Whether the file exists and could not be read yet. It counts as neither empty nor known, and is not
        written before it was read."""
        return self._record.unread

    async def reread(self) -> bool:
        """Take in the file as another plugin has written it. Own grants that are not written yet stay.

        Return whether the file could be read.
        """
        async with self._writing:
            return await self._reread()

    def granted(self, paths: Mapping[str, str]) -> None:
        """Take note of an Allocate answer; the container has not started yet."""
        self.paths.update(paths)
        self.listed.difference_update(paths)
        self.holders = {id: shown for id, shown in self.holders.items() if id not in paths}

    def hold(self) -> None:
        """Keep devices of started containers in memory until `release` or `disown`."""
        self._held = True

    async def release(self) -> None:
        """Write down what was kept in memory. This is the only writer from now on."""
        self._held = False
        if self._due:
            await self.started({})

    def disown(self) -> None:
        """Forget all that is not in the file: another instance writes it from now on."""
        self._held = False
        self._due, self.paths = {}, {}
        self._take_in(self._record.content)

    async def written(self) -> None:
        """Wait for writes in progress."""
        async with self._writing:
            pass

    @property
    def due(self) -> Mapping[str, str]:
        """Devices of started containers that are not in the file yet."""
        return self._due

    async def started(self, paths: Mapping[str, str]) -> None:
        """Write down the devices of a container that starts.

        A device that is not offered now may still be held, so none is forgotten here. A directory that
        cannot be written is reported once and costs only the record. A disk that does not answer delays the
        write.
        """
        self._due.update(paths)
        if self._held:
            return
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
        """Remove ended grants. The callback is called at the moment of the write, as for `saw`.

        While the disk does not answer, no grant is removed.
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
        """Record the holders by the kubelet's list. The callback is called at the moment of the write, as a
        device may be granted anew before. While the disk does not answer, no holder is recorded."""
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
        """Wait a bounded time for work on the disk; after a missed deadline not again before it answers."""
        self._working.add(work)
        work.add_done_callback(self._answered)
        done, _ = await asyncio.wait({work}, timeout=0 if self._late else self.patience)
        if done:
            work.result()
        elif not self._late:
            self._late = True
            logger.warning(
                Message(
                    "the disk does not answer: the record of grants is written later, and containers start "
                    "without",
                    path=self._record.path,
                )
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
        """Take in the file, and keep grants of this process. before: the earlier content of the file"""
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
    # A file without these members is of an older release.
    return _Contents(grants, frozenset(map(str, document.get("listed", grants))), holders)
