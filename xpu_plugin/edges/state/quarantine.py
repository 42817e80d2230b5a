# SPDX-License-Identifier: Apache-2.0
"""The record of quarantined devices, so that a restart of the plugin sets none of them free."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xpu_plugin.edges.state.disk import state_thread
from xpu_plugin.edges.state.state_file import DAMAGED, StateFile, reason
from xpu_plugin.log import Once


logger = logging.getLogger(__name__)

READ_SECONDS = 2.0  # for the disk; then the record counts as one that cannot be read now
_FILE = "quarantine.json"


class QuarantineRecord:
    """id -> the reason of its last illness, for what is in quarantine; in `directory`/quarantine.json.

    reasons: what the file says; a damaged one counts as empty, with a warning
    unread: the file is there and could not be read yet; it is not to be written before it has been read
    """

    def __init__(self, directory: Path, *, apart: bool = False) -> None:
        self._file = StateFile(directory / _FILE, apart=apart)
        self._disk = state_thread()
        self._unwritable, self._unreadable = Once(), Once()
        self.reasons: Mapping[str, str] = {}
        self.unread = True
        try:
            self._take_in(self._disk.call_now(READ_SECONDS, self._read))
        except OSError as error:  # the disk does not answer, or there is no thread
            self._cannot_read(error)

    async def reread(self) -> Mapping[str, str]:
        """`reasons` as they are in the file now; as they were where it cannot be read."""
        try:
            async with asyncio.timeout(READ_SECONDS):
                self._take_in(await self._disk.call(self._read))
        except OSError as error:
            self._take_in(None)
            self._cannot_read(error)
        return self.reasons

    async def write(self, reasons: Mapping[str, str]) -> None:
        """Keep these, and nothing else. A directory that cannot be written is complained of once."""
        wanted = dict(reasons)
        try:
            await self._disk.call(self._file.replace, {"quarantined": wanted})
        except OSError as error:
            if self._unwritable.changed(True):
                logger.warning(
                    "cannot write the record of quarantined devices %s: %s; a restart of this plugin offers "
                    "them again",
                    self._file.path,
                    error.strerror,
                )
            return
        self._unwritable.healed()
        self.reasons = wanted

    def _take_in(self, found: Mapping[str, str] | None) -> None:
        self.unread = found is None
        if found is not None:
            self.reasons = found

    def _cannot_read(self, error: OSError) -> None:
        why = error.strerror or "the disk does not answer"
        if self._unreadable.changed(why):
            logger.warning(
                "cannot read the record of quarantined devices %s: %s; it is tried again",
                self._file.path,
                why,
            )

    def _read(self) -> Mapping[str, str] | None:
        """The file's contents; None when it cannot be read now."""
        try:
            return self._file.load(_decoded) or {}
        except OSError as error:
            self._cannot_read(error)
            return None
        except DAMAGED as error:
            logger.warning(
                "the record of quarantined devices %s is damaged and counts as empty: %s; it is kept aside "
                "when a new one is written",
                self._file.path,
                reason(error),
            )
            return {}


def _decoded(document: Any) -> Mapping[str, str]:
    return {str(id): str(reason) for id, reason in document["quarantined"].items()}
