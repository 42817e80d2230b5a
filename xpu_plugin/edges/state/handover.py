# SPDX-License-Identifier: Apache-2.0
"""The record of the last hand-over: a pod that gave the node away asks for it no more."""

from pathlib import Path
from typing import Any

from xpu_plugin.edges.state.record import Record
from xpu_plugin.edges.state.vf_request import BOOT_ID, boot
from xpu_plugin.frozen import frozen


_FILE = "handover.json"


@frozen(kw_only=False)
class Handover:
    """The UIDs of the two pods, in the order of their service."""

    giver: str
    taker: str


class HandoverRecord:
    """At most one hand-over, in `directory`/handover.json. One of another boot is void."""

    def __init__(self, directory: Path, *, apart: bool = False, boot_id: Path = BOOT_ID) -> None:
        self._boot = boot(boot_id)
        self._record: Record[Handover | None] = Record(
            directory / _FILE,
            name="the last hand-over",
            encode=self._encoded,
            decode=self._decoded,
            empty=None,
            waits="this instance asks no other one for a hand-over",
            lost="a restart of this container asks the next instance to hand the node back",
            apart=apart,
        )

    async def read(self) -> Handover | None:
        """Return the last hand-over of this boot, as far as it can be read."""
        await self._record.read()
        return self._record.content

    @property
    def unread(self) -> bool:
        """Whether the file could not be read."""
        return self._record.unread

    async def write(self, handover: Handover) -> None:
        """Replace the record; trouble is reported once."""
        await self._record.write(handover)

    def _encoded(self, handover: Handover | None) -> object:
        return handover and {"from": handover.giver, "to": handover.taker, "boot": self._boot}

    def _decoded(self, document: Any) -> Handover | None:
        giver, taker = document["from"], document["to"]
        if not (isinstance(giver, str) and isinstance(taker, str)):
            raise TypeError(f"pods {giver!r} and {taker!r}")
        return Handover(giver, taker) if document["boot"] == self._boot else None
