# SPDX-License-Identifier: Apache-2.0
"""The record of quarantined devices, so that a restart of the plugin sets none of them free."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xpu_plugin.edges.state.record import Record


_FILE = "quarantine.json"


class QuarantineRecord(Record[Mapping[str, str]]):
    """id -> last reason, for devices in quarantine; in `directory`/quarantine.json."""

    def __init__(self, directory: Path, *, apart: bool = False) -> None:
        super().__init__(
            directory / _FILE,
            name="quarantined devices",
            encode=lambda reasons: {"quarantined": dict(reasons)},
            decode=_decoded,
            empty={},
            waits="a device that was in quarantine is offered",
            lost="a restart of this plugin offers the devices again",
            apart=apart,
        )
        self.read_now()


def _decoded(document: Any) -> Mapping[str, str]:
    return {str(id): str(reason) for id, reason in document["quarantined"].items()}
