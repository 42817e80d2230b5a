# SPDX-License-Identifier: Apache-2.0
"""The record of a request for VFs to the driver. By it the next process withholds that card.

The driver may carry out a request after the death of the process that sent it.
"""

import asyncio
from pathlib import Path
from typing import Any

from xpu_plugin.edges.state.record import Record
from xpu_plugin.model.vf_reconcile import Request


WRITE_SECONDS = 10.0  # for the disk
_FILE = "vf-change.json"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class VfRecord:
    """At most one request, in `directory`/vf-change.json. Only the instance that holds the lock uses it.

    A request of another boot is void.
    """

    def __init__(self, directory: Path, *, apart: bool = False, boot_id: Path = BOOT_ID) -> None:
        self._record: Record[Request | None] = Record(
            directory / _FILE,
            name="a change of VFs",
            encode=self._encoded,
            decode=self._decoded,
            empty=None,
            waits="no card is changed",
            lost="no card is changed",
            apart=apart,
        )
        self._boot = boot(boot_id)
        self._doubtful = False  # a write began and its end is unknown

    @property
    def path(self) -> Path:
        return self._record.path

    @property
    def request(self) -> Request | None:
        """The request in the file, as it was read or written last."""
        return self._record.content

    @property
    def unread(self) -> bool:
        """Whether the file was not read yet, or could not be. It must not be written before."""
        return self._record.unread

    async def read(self) -> None:
        """Take in the file; `unread` tells whether that was possible."""
        await self._record.read()

    def says(self, request: Request | None) -> bool:
        """Return whether the file is known to hold exactly this."""
        return not (self.unread or self._doubtful) and self.request == request

    async def write(self, request: Request | None) -> None:
        """Write the request; it is on the disk when this returns. Raises OSError."""
        self._doubtful = True
        async with asyncio.timeout(WRITE_SECONDS):
            await self._record.replace(request)
        self._doubtful = False

    def _encoded(self, request: Request | None) -> object:
        return {"change": request and {"card": request.card, "number": request.number, "boot": self._boot}}

    def _decoded(self, document: Any) -> Request | None:
        fields = document["change"]
        if fields is None or (self._boot and fields["boot"] != self._boot):
            return None
        card, number = fields["card"], fields["number"]
        if not (isinstance(card, str) and isinstance(number, int)):
            raise TypeError(f"a card {card!r} and a number {number!r}")
        return Request(card, number)


def boot(file: Path) -> str:
    """Return an id of this boot of the host; empty if there is none."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
