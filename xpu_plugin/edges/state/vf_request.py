# SPDX-License-Identifier: Apache-2.0
"""The record of a request for VFs to the driver, and of changes that are not over. By it the next process
withholds that card.

The driver may carry out a request after the death of the process that sent it.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from xpu_plugin.edges.state.record import Record
from xpu_plugin.frozen import frozen
from xpu_plugin.model.vf_reconcile import Request


WRITE_SECONDS = 10.0  # for the disk
_FILE = "vf-change.json"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@frozen
class _Contents:
    """The content of the file, as for `VfRecord.write`."""

    request: Request | None = None
    begun: Mapping[str, int] = field(default_factory=dict)


_NOTHING = _Contents()


class VfRecord:
    """At most one request, and the cards without their former VFs, in `directory`/vf-change.json.

    Only the instance that holds the lock uses it. What is of another boot is void.
    """

    def __init__(self, directory: Path, *, apart: bool = False, boot_id: Path = BOOT_ID) -> None:
        self._record: Record[_Contents] = Record(
            directory / _FILE,
            name="a change of VFs",
            encode=self._encoded,
            decode=self._decoded,
            empty=_NOTHING,
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
        return self._record.content.request

    @property
    def begun(self) -> Mapping[str, int]:
        """Card -> its VFs that a change has taken, likewise."""
        return self._record.content.begun

    @property
    def unread(self) -> bool:
        """Whether the file was not read yet, or could not be. It must not be written before."""
        return self._record.unread

    async def read(self) -> None:
        """Take in the file; `unread` tells whether that was possible."""
        await self._record.read()

    def says(self, request: Request | None, *, begun: Mapping[str, int] | None = None) -> bool:
        """Return whether the file is known to hold exactly this."""
        wanted = _Contents(request=request, begun=begun or {})
        return not (self.unread or self._doubtful) and self._record.content == wanted

    async def write(self, request: Request | None, *, begun: Mapping[str, int] | None = None) -> None:
        """Write this; it is on the disk when this returns. Raises OSError."""
        self._doubtful = True
        async with asyncio.timeout(WRITE_SECONDS):
            await self._record.replace(_Contents(request=request, begun=begun or {}))
        self._doubtful = False

    def _encoded(self, contents: _Contents) -> object:
        request, begun = contents.request, contents.begun
        change = request and {"card": request.card, "number": request.number, "boot": self._boot}
        return {"change": change} | ({"begun": {"cards": dict(begun), "boot": self._boot}} if begun else {})

    def _decoded(self, document: Any) -> _Contents:
        change, begun = (
            document["change"],
            document.get("begun"),
        )  # a file of a former version lacks the latter
        request = Request(change["card"], change["number"]) if self._of_this_boot(change) else None
        cards = dict(begun["cards"]) if self._of_this_boot(begun) else {}
        for card, number in (*cards.items(), *([(request.card, request.number)] if request else [])):
            if not (isinstance(card, str) and isinstance(number, int)):
                raise TypeError(f"a card {card!r} and a number {number!r}")
        return _Contents(request=request, begun=cards)

    def _of_this_boot(self, part: Any) -> bool:
        return part is not None and not (self._boot and part["boot"] != self._boot)


def boot(file: Path) -> str:
    """Return an id of this boot of the host; empty if there is none."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
