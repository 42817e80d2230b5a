# SPDX-License-Identifier: Apache-2.0
"""The record of the VFs that the driver is asked for: the next process keeps that card closed by it.

The driver may carry out a request after the process that made it was killed.
"""

import asyncio
import logging
from pathlib import Path
from typing import Any

from xpu_plugin.edges.state import state_file
from xpu_plugin.edges.state.disk import state_thread
from xpu_plugin.edges.state.state_file import DAMAGED, StateFile
from xpu_plugin.log import Once
from xpu_plugin.model.vf_reconcile import Request


logger = logging.getLogger(__name__)

READ_SECONDS = 2.0  # for the disk, before the first list; after that it is tried again
WRITE_SECONDS = 10.0  # for the disk
_FILE = "vf-change.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class VfRecord:
    """At most one request, in `directory`/vf-change.json. Only the instance that holds the lock uses it.

    request: what the file says; a request of another boot is void, as is a damaged file, with a warning
    unread: the file was not read yet, or could not be; it is not to be written before
    """

    def __init__(self, directory: Path, *, apart: bool = False, boot_id: Path = _BOOT_ID) -> None:
        self._file = StateFile(directory / _FILE, apart=apart)
        self._disk = state_thread()
        self._boot = _boot(boot_id)
        self.request: Request | None = None
        self.unread = True
        self._doubtful = False  # whether a write was begun of which the end is not known
        self._complaint = Once()

    @property
    def path(self) -> Path:
        return self._file.path

    async def read(self) -> None:
        """Take in the file; `unread` says whether that was possible."""
        try:
            async with asyncio.timeout(READ_SECONDS):
                self.request = await self._disk.call(self._file.load, self._decoded)
        except OSError as error:
            self.unread = True
            self._complain("cannot read the record of a change of VFs %s: %s; it is tried again", error)
            return
        except DAMAGED as error:
            self._complain(
                "the record of a change of VFs %s is damaged and counts as empty: %s; it is kept aside when "
                "a new one is written",
                error,
            )
            self.request = None
        self.unread = False

    def says(self, request: Request | None) -> bool:
        """Whether this, and nothing else, is known to be in the file."""
        return not (self.unread or self._doubtful) and self.request == request

    async def write(self, request: Request | None) -> None:
        """Have the file say this; it is on the disk when this returns. Raises OSError."""
        fields = request and {"card": request.card, "number": request.number, "boot": self._boot}
        self._doubtful = True
        async with asyncio.timeout(WRITE_SECONDS):
            await self._disk.call(self._file.replace, {"change": fields})
        self.request, self._doubtful = request, False
        self._complaint.healed()

    def _decoded(self, document: Any) -> Request | None:
        fields = document["change"]
        if fields is None or (self._boot and fields["boot"] != self._boot):
            return None
        card, number = fields["card"], fields["number"]
        if not (isinstance(card, str) and isinstance(number, int)):
            raise TypeError(f"a card {card!r} and a number {number!r}")
        return Request(card, number)

    def _complain(self, text: str, error: Exception) -> None:
        why = reason(error) if isinstance(error, OSError) else state_file.reason(error)
        if self._complaint.changed(why):
            logger.warning(text, self.path, why)


def reason(error: OSError) -> str:
    """Why the disk did not do it."""
    return error.strerror or "the disk does not answer"


def _boot(file: Path) -> str:
    """An id of this boot of the host; empty where there is none."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
