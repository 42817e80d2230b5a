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


class DriverErrorRecord(Record[Memory]):
    """The memory of one boot, in `directory`/driver-errors.json. One of another boot is void."""

    def __init__(self, directory: Path, *, apart: bool = False, boot_id: Path = BOOT_ID) -> None:
        self._boot = boot(boot_id)
        super().__init__(
            directory / _FILE,
            name="driver errors",
            encode=self._encoded,
            decode=self._decoded,
            empty=_NOTHING,
            waits="a device with a driver error is offered",
            lost="a restart of this plugin offers the devices again",
            apart=apart,
        )
        self.read_now()

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
