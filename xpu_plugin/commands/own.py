# SPDX-License-Identifier: Apache-2.0
"""Answers like the running plugin's, by a worker of our own, if no plugin runs."""

from dataclasses import asdict, replace
from typing import Any

from xpu_plugin.commands.output import scanned
from xpu_plugin.config import Config
from xpu_plugin.edges.worker.client import LibraryError, WorkerClient, WorkerError
from xpu_plugin.loops.control import listed
from xpu_plugin.model.device_table import holders
from xpu_plugin.model.devices import Found, Host, identify
from xpu_plugin.model.inventory import Facts, after_scan, unusable_serials
from xpu_plugin.model.unlisted import Unlisted, unlisted
from xpu_plugin.plugin import kubelet_of, policy, target
from xpu_plugin.xpuml import Failure, XpumlError


class Own:
    """The node's state by one scan. A change of nodes or sysfs leads to another scan."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._worker = WorkerClient(target(config), call_timeout=config.call_timeout)
        self._view = kubelet_of(config)
        self._host: Host | None = None
        self._found = Found(devices={})
        self._unlisted: tuple[Unlisted, ...] = ()

    async def list(self, *, wide: bool = False) -> dict[str, Any]:
        """Answer like the running plugin's `list`. Raises WorkerError, LibraryError, XpumlError."""
        await self._look()
        facts, rules = after_scan(Facts(), self._found), policy(self._config)
        refusal = unusable_serials(rules, self._found.devices.values())
        problems = (*self._found.problems, *([refusal] if refusal else []))
        answer = listed(facts, rules, problems, self._unlisted)
        if wide:
            answers = await self._view.answers(oldest=0.0)
            answer["holders"] = holders(answers.shown, facts, rules)
            answer["problems"] = [*problems, *answers.complaints]
        return answer

    async def top(self) -> dict[str, Any]:
        """Answer like the running plugin's `top`. Raises WorkerError, LibraryError, XpumlError."""
        answer = await self.list()
        try:
            gauges = {(gauge.index, gauge.pci): gauge for gauge in await self._worker.gauges()}
        except (WorkerError, LibraryError, XpumlError):
            self._host = None
            raise
        answer["readings"] = {
            id: asdict(gauges[key])
            for id, device in self._found.devices.items()
            if (key := (device.index, device.address)) in gauges
        }
        return answer

    async def close(self) -> None:
        await self._worker.close()

    async def _look(self) -> None:
        try:
            if self._host is None or await self._worker.host() != self._host:
                scan = await scanned(self._worker)
                self._host, self._found = scan.host, identify(scan, self._found)
                self._unlisted = unlisted(scan, self._found)
            else:
                await self._ask_states()
        except (WorkerError, LibraryError, XpumlError):
            self._host = None  # the next look scans again
            raise

    async def _ask_states(self) -> None:
        answers = await self._worker.sweep()
        devices = {}
        for id, device in self._found.devices.items():
            answer = answers[device.index]
            if answer is not None and answer.code:
                failure = Failure(function="xpumlDeviceGetState", code=answer.code, text="")
                devices[id] = replace(device, state=None, failure=failure)
            elif answer is not None:
                devices[id] = replace(device, state=answer.state, failure=None)
        self._found = replace(self._found, devices=devices)
