# SPDX-License-Identifier: Apache-2.0
"""The record of grants: which node path each device id was last granted as.

A restarting container gets its old Allocate answer again from the kubelet, whatever has changed since.
This record is how PreStartContainer knows what that answer said. Losing it means that such containers
are refused until their pod is created anew; it never means that one gets a wrong device.
"""

import asyncio
import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Container, Mapping
from pathlib import Path


logger = logging.getLogger(__name__)

_FILE = "grants.json"
_LARGEST = 1 << 20  # bytes


class GrantRecord:
    """id -> path, in memory and, from a container's first start on, in `directory`/grants.json."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / _FILE
        self._written: dict[str, str] = _read(self._file)
        self.paths: dict[str, str] = dict(self._written)
        self._complained = False
        self._writing = asyncio.Lock()

    def granted(self, paths: Mapping[str, str]) -> None:
        """Allocate answered; the container has not started yet."""
        self.paths.update(paths)

    async def started(self, paths: Mapping[str, str], known: Container[str]) -> None:
        """A container starts with these: write them down, if they are not yet, and forget ids not `known`.

        A directory that cannot be written is complained of once and costs no more than the record.
        """
        async with self._writing:
            if all(self._written.get(id) == path for id, path in paths.items()):
                return
            wanted = {id: path for id, path in {**self._written, **paths}.items() if id in known}
            await self._write(wanted)

    async def _write(self, wanted: dict[str, str]) -> None:
        text = json.dumps({"grants": wanted}, indent=1, sort_keys=True)
        try:
            await asyncio.to_thread(_replace, self._file, text)  # a disk may take its time
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


def _read(file: Path) -> dict[str, str]:
    try:
        with file.open("rb") as stream:
            grants = json.loads(stream.read(_LARGEST))["grants"]
        return {str(id): str(path) for id, path in grants.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("the record of grants %s cannot be read and counts as empty: %s", file, error)
        return {}


def _replace(file: Path, text: str) -> None:
    """Write a file whole or not at all, and so that it is there after a power failure."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)  # noqa: PTH105
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
