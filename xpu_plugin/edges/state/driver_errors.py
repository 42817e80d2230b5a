# SPDX-License-Identifier: Apache-2.0
"""The record of incidents and verdicts by the kernel's log, so that a restart neither forgets nor repeats
one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xpu_plugin.edges.state.record import Record
from xpu_plugin.edges.state.vf_request import BOOT_ID, boot
from xpu_plugin.model.incidents import Attributed, Case, Holder, Memory, Sickness


_FILE = "driver-errors.json"
_NOTHING = Memory()


class DriverErrorRecord:
    """The memory of one boot, in `directory`/driver-errors.json. One of another boot is void."""

    def __init__(self, directory: Path, *, apart: bool = False, boot_id: Path = BOOT_ID) -> None:
        self._boot = boot(boot_id)
        self._record: Record[Memory] = Record(
            directory / _FILE,
            name="driver errors",
            encode=self._encoded,
            decode=self._decoded,
            empty=_NOTHING,
            waits="a device with a driver error is offered",
            lost="a restart of this plugin offers the devices again",
            apart=apart,
        )
        self._record.read_now()

    @property
    def memory(self) -> Memory:
        """The memory in the file, as it was read or written last."""
        return self._record.content

    @property
    def unread(self) -> bool:
        """Whether the file could not be read yet. It must not be written before."""
        return self._record.unread

    async def reread(self) -> Memory:
        """Return the present memory of the file; the former one if it cannot be read."""
        await self._record.read()
        return self.memory

    async def write(self, memory: Memory) -> None:
        """Keep exactly this. A directory that cannot be written is reported once."""
        await self._record.write(memory)

    def _encoded(self, memory: Memory) -> object:
        cases = {id: _case(case) for id, case in memory.cases.items()}
        return {"boot": self._boot, "record": memory.number, "devices": cases}

    def _decoded(self, document: Any) -> Memory:
        if document["boot"] != self._boot:
            return _NOTHING
        cases = {str(id): _read_case(case) for id, case in document["devices"].items()}
        return Memory(cases=cases, number=int(document["record"]))


def _case(case: Case) -> Mapping[str, object]:
    sick, never = case.sickness, case.ended == float("-inf")
    return {
        "incidents": [
            {
                "at": own.at,
                "record": own.number,
                "line": own.text,
                "pod": own.holder.pod,
                "granted": own.holder.since,
            }
            for own in case.incidents
        ],
        "sick": sick and {"at": sick.at, "line": sick.line, "why": sick.why},
        "ended": None if never else case.ended,
    }


def _read_case(fields: Any) -> Case:
    sick, ended = fields["sick"], fields["ended"]
    return Case(
        incidents=tuple(
            Attributed(
                at=float(own["at"]),
                number=int(own["record"]),
                text=str(own["line"]),
                holder=Holder(
                    pod=None if own["pod"] is None else str(own["pod"]),
                    since=None if own["granted"] is None else float(own["granted"]),
                ),
            )
            for own in fields["incidents"]
        ),
        sickness=sick and Sickness(at=float(sick["at"]), line=str(sick["line"]), why=str(sick["why"])),
        ended=float("-inf") if ended is None else float(ended),
    )
