# SPDX-License-Identifier: Apache-2.0
"""The record of quarantined devices, so that a restart of the plugin sets none of them free."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xpu_plugin.edges.state.record import Record


_FILE = "quarantine.json"


class QuarantineRecord:
    """id -> last reason, for devices in quarantine; in `directory`/quarantine.json."""

    def __init__(self, directory: Path, *, apart: bool = False) -> None:
        self._record: Record[Mapping[str, str]] = Record(
            directory / _FILE,
            name="quarantined devices",
            encode=lambda reasons: {"quarantined": dict(reasons)},
            decode=_decoded,
            empty={},
            waits="a device that was in quarantine is offered",
            lost="a restart of this plugin offers the devices again",
            apart=apart,
        )
        self._record.read_now()

    @property
    def reasons(self) -> Mapping[str, str]:
        """The reasons in the file, as it was read or written last."""
        return self._record.content

    @property
    def unread(self) -> bool:
        """Whether the file could not be read yet. It must not be written before."""
        return self._record.unread

    async def reread(self) -> Mapping[str, str]:
        """Return the present `reasons` of the file; the former ones if it cannot be read."""
        await self._record.read()
        return self.reasons

    async def write(self, reasons: Mapping[str, str]) -> None:
        """Keep exactly these. A directory that cannot be written is reported once."""
        await self._record.write(dict(reasons))


def _decoded(document: Any) -> Mapping[str, str]:
    return {str(id): str(reason) for id, reason in document["quarantined"].items()}
