# SPDX-License-Identifier: Apache-2.0
"""The sources of answers about this node: the running plugin, or a worker of our own if no plugin runs."""

import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from xpu_plugin.commands.output import scanned
from xpu_plugin.commands.shapes import SHAPES, misfit, shown
from xpu_plugin.config import PROGRAM, Config
from xpu_plugin.edges import topology_file
from xpu_plugin.edges.control_socket import ControlError, ask
from xpu_plugin.edges.state.grants import GrantRecord
from xpu_plugin.edges.worker.client import LibraryError, WorkerClient, WorkerError
from xpu_plugin.errors import PluginError
from xpu_plugin.log import Once
from xpu_plugin.loops.control import listed, planned, topo
from xpu_plugin.loops.exchange import exchange
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.links import links_of
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.device_table import holders
from xpu_plugin.model.devices import Found, Host, identify
from xpu_plugin.model.inventory import Facts, after_scan, unusable_serials
from xpu_plugin.model.topology import ranked
from xpu_plugin.model.unlisted import Unlisted, unlisted
from xpu_plugin.model.vf_plan import DesiredVfs, by_argument, document
from xpu_plugin.plugin import kubelet_of, node_of, policy, target, terms, xpu_smi
from xpu_plugin.xpuml import Failure, XpumlError


LABEL_SECONDS = 10.0  # for the API server to show the label


class UnknownDesiredVfsError(PluginError):
    """The API server did not answer in time."""


class Source(Protocol):
    """Answers questions by name, in the shapes of `shapes`."""

    async def ask(self, name: str, **arguments: object) -> Any:
        """Return the answer; None where there is none."""


class RunningPlugin:
    """The plugin behind a status socket, if there is one. Each trouble with it is printed once."""

    def __init__(self, socket: Path | None) -> None:
        self._socket = socket
        self._complaint = Once()

    def expected(self) -> bool:
        """Return whether a plugin may be there: False only if the socket surely does not exist."""
        if self._socket is None:
            return False
        try:
            self._socket.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            pass
        return True

    async def ask(self, name: str, **arguments: object) -> Any:
        """Return its answer, with printable texts; None without one."""
        if self._socket is None or not self.expected():
            return None
        try:
            answer = _checked(
                await asyncio.to_thread(ask, self._socket, name, **arguments), name, **arguments
            )
        except ControlError as error:
            if self._complaint.changed(str(error)):
                print(
                    f"{PROGRAM}: no running plugin answers: {error}; asking by a process of our own",
                    file=sys.stderr,
                )
            return None
        self._complaint.healed()
        return answer


class OwnWorker:
    """A worker that scans the node. A change of nodes or sysfs leads to another scan."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._worker = WorkerClient(target(config), call_timeout=config.call_timeout)
        self._view = kubelet_of(config)
        self._host: Host | None = None
        self._found = Found(devices={})
        self._unlisted: tuple[Unlisted, ...] = ()
        self._answers: Mapping[str, Callable[..., Any]] = {
            "list": self._list,
            "plan": self._plan,
            "top": self._top,
            "topo": self._topo,
        }

    async def ask(self, name: str, **arguments: object) -> Any:
        """Return an answer like the running plugin's.

        Raises WorkerError, LibraryError, XpumlError; UnknownDesiredVfsError for a plan; NoLinksError and
        OptionFileError for `topo`.
        """
        return await self._answers[name](**arguments)

    async def close(self) -> None:
        await self._worker.close()

    async def _list(self, *, wide: bool = False) -> dict[str, Any]:
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

    async def _top(self) -> dict[str, Any]:
        answer = await self._list()
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

    async def _topo(self) -> dict[str, Any]:
        await self._look()
        links, cards = topology_file.read(self._config.topology_file), ranked(self._found.devices.values())
        if (program := xpu_smi(self._config)) is not None and cards:
            links = await links_of(program, cards)
        return topo(after_scan(Facts(links=links), self._found)) | {"trouble": None}

    async def _plan(self, *, number: str | None = None) -> dict[str, Any]:
        """Return the changes for the configured number; without a number in the question, for the label's."""
        config = self._config
        desired = await _desired(config) if number is None else by_argument(config.sriov_num_vfs)
        await self._look()
        picture = Picture(policy(config))
        picture.submit(lambda facts: after_scan(facts, self._found))
        grants = Grants(picture, self._view, GrantRecord(config.state_dir), terms(config), settled=True)
        proof = IdleProof(self._worker, self._view, grants)
        report = await planned(desired, picture.facts, picture.policy, proof)
        return document(desired, report, proof.witnesses)

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


class Either:
    """The running plugin; where none answers, a worker of our own."""

    def __init__(self, config: Config) -> None:
        self._running, self._own = RunningPlugin(config.status_socket), OwnWorker(config)

    async def ask(self, name: str, **arguments: object) -> Any:
        """Return the first answer. Raises as `OwnWorker`."""
        return await self._running.ask(name, **arguments) or await self._own.ask(name, **arguments)

    async def close(self) -> None:
        await self._own.close()


def _checked(answer: Any, name: str, *, wide: object = False, **_: object) -> Any:
    """Return the answer with printable texts. Raises ControlError for another shape."""
    if name == "plan" and isinstance(answer, dict) and "trouble" in answer:
        name = "plan trouble"
    if wrong := misfit(answer, SHAPES["list wide" if wide else name]):
        raise ControlError(f"another release of the plugin, or another program: {wrong}")
    return shown(answer)


async def _desired(config: Config) -> DesiredVfs:
    """Return the desired VF count as the running plugin would: by the label, else by the argument."""
    between = exchange()
    node = node_of(config, between)
    if node is None:
        return by_argument(config.sriov_num_vfs)
    asking = asyncio.ensure_future(node.run())
    try:
        async with asyncio.timeout(LABEL_SECONDS + config.label_timeout):
            return await between.desired.beyond(0)
    except TimeoutError:
        raise UnknownDesiredVfsError(
            "the API server does not show the node's label; give --sriov-num-vfs to plan without"
        ) from None
    finally:
        asking.cancel()
