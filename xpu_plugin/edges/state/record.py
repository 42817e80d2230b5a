# SPDX-License-Identifier: Apache-2.0
"""A record in --state-dir: its content in memory and on the disk, and one complaint for each trouble."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from xpu_plugin.edges.state.disk import state_thread
from xpu_plugin.edges.state.state_file import DAMAGED, StateFile, reason
from xpu_plugin.log import Message, Once


logger = logging.getLogger(__name__)

READ_SECONDS = 2.0  # for the disk; then the record counts as one that cannot be read now

T = TypeVar("T")


class Record(Generic[T]):
    """The content of one file, as it was read or written last.

    name: names the record in complaints
    encode, decode: JSON of the content and back; the file of a content without JSON is removed
    empty: the content if there is no file, or a damaged one
    waits: the consequence while the file cannot be read; lost: the consequence if it cannot be written
    """

    def __init__(
        self,
        file: Path,
        *,
        name: str,
        encode: Callable[[T], object],
        decode: Callable[[Any], T],
        empty: T,
        waits: str,
        lost: str,
        apart: bool = False,
    ) -> None:
        self._file = StateFile(file, apart=apart)
        self._disk = state_thread()
        self._name = name
        self._encode = encode
        self._decode = decode
        self._empty = empty
        self._waits = waits
        self._lost = lost
        self._read_trouble, self._write_trouble = Once(), Once()
        self.path = file
        self.content = empty
        self.unread = True
        """Whether the file was not read yet, or could not be. It must not be written before it is read."""

    def read_now(self) -> bool:
        """As `read`, before the event loop serves."""
        with self._reading():
            self._take_in(self._disk.call_now(READ_SECONDS, self._file.load, self._decode))
        return not self.unread

    async def read(self) -> bool:
        """Take in the file; return whether that was possible. A damaged file counts as empty."""
        with self._reading():
            async with asyncio.timeout(READ_SECONDS):
                self._take_in(await self._disk.call(self._file.load, self._decode))
        return not self.unread

    async def write(self, content: T) -> bool:
        """Keep this content and no other; return whether that was possible."""
        try:
            await self.replace(content)
        except OSError as error:
            if self._write_trouble.changed(error.strerror):
                logger.warning(
                    Message(
                        "cannot write a record",
                        record=self._name,
                        path=self.path,
                        error=error.strerror,
                        consequence=self._lost,
                    )
                )
            return False
        return True

    async def replace(self, content: T) -> None:
        """Write this content to the disk. Raises OSError."""
        document = self._encode(content)
        if document is None:
            await self._disk.call(self.path.unlink, missing_ok=True)
        else:
            await self._disk.call(self._file.replace, document)
        self.content = content
        self._write_trouble.healed()

    async def missing(self) -> bool:
        """Return whether the file is surely not there."""
        try:
            return not await self._disk.call(self.path.exists)
        except OSError:
            return False

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # a lack of threads, too
            self.unread = True
            if self._read_trouble.changed(why := disk_trouble(error)):
                logger.warning(
                    Message(
                        "cannot read a record; it is tried again",
                        record=self._name,
                        path=self.path,
                        error=why,
                        consequence=self._waits,
                    )
                )
        except DAMAGED as error:
            self._take_in(None)
            if self._read_trouble.changed(why := reason(error)):
                logger.warning(
                    Message(
                        "a damaged record counts as empty; it is kept aside when a new one is written",
                        record=self._name,
                        path=self.path,
                        error=why,
                    )
                )
        else:
            self._read_trouble.healed()

    def _take_in(self, found: T | None) -> None:
        self.content, self.unread = self._empty if found is None else found, False


def disk_trouble(error: OSError) -> str:
    """Return the reason why the disk did not do its work."""
    return error.strerror or "the disk does not answer"
