# SPDX-License-Identifier: Apache-2.0
"""The record of grants: which node path each device id was last granted as.

A restarting container gets its old Allocate answer again from the kubelet, whatever has changed since.
This record is how PreStartContainer knows what that answer said. Losing it means that such containers
are refused until their pod is created anew; it never means that one gets a wrong device.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from xpu_plugin.edges import files
from xpu_plugin.record import record


logger = logging.getLogger(__name__)

_FILE = "grants.json"


@record(kw_only=False)
class _Contents:
    """Of the file. listed: ids that the kubelet's list of pods has shown since they were granted"""

    paths: Mapping[str, str]
    listed: frozenset[str]


class GrantRecord:
    """id -> path, in memory and, from a container's first start on, in `directory`/grants.json; and which of
    the ids the kubelet has listed since."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / _FILE
        self._written = _read(self._file)
        self.paths: dict[str, str] = dict(self._written.paths)
        self.listed: set[str] = set(self._written.listed)
        self._complained = False
        self._writing = asyncio.Lock()

    async def reread(self) -> None:
        """Take in what another plugin has written since; what was granted here and is not written stays."""
        async with self._writing:
            ours = {id: path for id, path in self.paths.items() if self._written.paths.get(id) != path}
            self._written = await asyncio.to_thread(_read, self._file)
            self.paths = {**self._written.paths, **ours}
            self.listed = set(self._written.listed) - ours.keys()

    def granted(self, paths: Mapping[str, str]) -> None:
        """Allocate answered; the container has not started yet."""
        self.paths.update(paths)
        self.listed.difference_update(paths)

    async def started(self, paths: Mapping[str, str]) -> None:
        """A container starts with these: write them down, if they are not yet.

        A device that is not offered just now may be held still, so none is forgotten here. A directory that
        cannot be written is complained of once and costs no more than the record.
        """
        async with self._writing:
            written = self._written
            if all(written.paths.get(id) == path for id, path in paths.items()) and (
                self.listed.issuperset(written.listed.intersection(paths))
            ):
                return
            await self._write({**written.paths, **paths})

    async def forget(self, ids: Callable[[], Collection[str]]) -> None:
        """No container has these any more; asked for when there is nothing to wait for, as for `saw`."""
        async with self._writing:
            ended = frozenset(ids())
            self.paths = {id: path for id, path in self.paths.items() if id not in ended}
            self.listed -= ended
            if ended & self._written.paths.keys():
                await self._write({id: at for id, at in self._written.paths.items() if id not in ended})

    async def saw(self, ids: Callable[[], Collection[str]]) -> None:
        """The kubelet's list of pods shows these; asked for when there is nothing to wait for any more, as
        one of them may be granted anew meanwhile."""
        async with self._writing:
            self.listed.update(ids())
            if not self._written.listed.issuperset(self._written.paths.keys() & self.listed):
                await self._write(self._written.paths)

    async def _write(self, paths: Mapping[str, str]) -> None:
        wanted = _Contents(paths, frozenset(paths.keys() & self.listed))
        document = {"grants": dict(paths), "listed": sorted(wanted.listed)}
        text = json.dumps(document, indent=1, sort_keys=True)
        try:
            await asyncio.to_thread(files.replace, self._file, text)  # a disk may take its time
        except OSError as error:
            if not self._complained:
                logger.warning(
                    "cannot write the record of grants %s: %s; after a restart of this plugin, containers "
                    "that restart will be refused until their pods are created anew",
                    self._file,
                    error.strerror,
                )
            self._complained = True
            return
        self._complained = False
        self._written = wanted


def _read(file: Path) -> _Contents:
    try:
        document = json.loads(files.read(file))
        grants = {str(id): str(path) for id, path in document["grants"].items()}
        # Without the word, the file is of a release that did not ask.
        return _Contents(grants, frozenset(map(str, document.get("listed", grants))))
    except FileNotFoundError:
        return _Contents({}, frozenset())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("the record of grants %s cannot be read and counts as empty: %s", file, error)
        return _Contents({}, frozenset())
