# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin demo`: the real plugin between a simulated machine and a kubelet stand-in, step by step.

Needs no hardware, no Kubernetes and no privilege; everything lives in a temporary directory. What is real:
the plugin with all its processes, and the protocols on both sides of it. Each step checks what it shows.
"""

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from xpu_plugin.simulation.kubelet import HEALTHY, UNHEALTHY, AdmissionError, Device, Grant, Kubelet


RESOURCE = "baidu.com/xpu"
HEALTH_INTERVAL = 0.2

START_SECONDS = 20.0
"""Until the plugin has listed its devices: an interpreter, a worker, a scan."""
CHANGE_SECONDS = 10.0
"""Until a change of the machine has reached the kubelet."""
REGISTER_SECONDS = 10.0
"""Until a kubelet that came back knows the devices again."""
STOP_SECONDS = 5.0
"""From SIGTERM to the end of the plugin."""

LOG_LINES = 15
INTERRUPTED = 130
"""Exit status after Ctrl-C in the middle of the steps, as shells give it."""

_Result = TypeVar("_Result")


class StepError(Exception):
    """A step did not do what it says."""

    def __init__(self, *, expected: str, seen: str) -> None:
        super().__init__(expected, seen)
        self.expected = expected
        self.seen = seen


# --- the screen ---


class Screen:
    """Standard output, with a little colour where a person looks at it."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def say(self, text: str = "") -> None:
        print(text, flush=True)

    def heading(self, text: str) -> None:
        self.say(f"\n{self._paint('1', text)}")

    def detail(self, text: str) -> None:
        for line in text.splitlines():
            self.say(f"    {line}")

    def good(self, text: str) -> None:
        self.say(f"  {self._paint('32', 'ok')}  {text}")

    def bad(self, text: str) -> None:
        self.say(f"  {self._paint('31', 'FAILED')}  {text}")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        lines = [head, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            self.detail("   ".join(cells).rstrip())

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text


# --- what there is to look at ---


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of one demo lives."""

    root: Path

    @property
    def plugins(self) -> Path:
        return self.root / "device-plugins"

    @property
    def pod_resources(self) -> Path:
        return self.root / "pod-resources"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def dev(self) -> Path:
        return self.root / "dev"

    @property
    def sysfs(self) -> Path:
        return self.root / "sys"

    @property
    def machine(self) -> Path:
        return self.root / "machine"

    @property
    def log(self) -> Path:
        return self.root / "plugin.log"


class Plugin:
    """The real plugin as a process of its own; what it says goes to its log."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self._ended = asyncio.create_task(process.wait())

    @classmethod
    async def start(cls, layout: Layout) -> "Plugin":
        options: Mapping[str, object] = {
            "--resource-name": RESOURCE,
            "--device-plugin-dir": layout.plugins,
            "--pod-resources-socket": layout.pod_resources / "kubelet.sock",
            "--state-dir": layout.state,
            "--dev-root": layout.dev,
            "--sysfs-root": layout.sysfs,
            "--xpuml-library": "simulator",
            "--simulator-file": layout.machine,
            "--health-interval": HEALTH_INTERVAL,
        }
        with layout.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "xpu_plugin"),
                *(f"{option}={value}" for option, value in options.items()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={name: value for name, value in os.environ.items() if not name.startswith("XPU_PLUGIN_")},
                process_group=0,  # Ctrl-C is for the demo, which then takes the plugin down in its turn
            )
        return cls(process, layout.log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def last_lines(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-LOG_LINES:])

    async def outlives(self, wait: Awaitable[_Result]) -> _Result:
        """Wait for something that makes sense only while the plugin lives."""
        waiting = asyncio.ensure_future(wait)
        try:
            await asyncio.wait({waiting, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise StepError(
                    expected="a running plugin", seen=f"it ended with exit status {self._ended.result()}"
                )
            return waiting.result()
        finally:
            waiting.cancel()

    async def stop(self) -> int | None:
        """Ask with SIGTERM; the exit status, None if it had to be killed."""
        if not self._ended.done():
            self._process.terminate()
        try:
            return await asyncio.wait_for(asyncio.shield(self._ended), STOP_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._ended
            return None


@dataclass(slots=True)
class Demo:
    """What the steps share."""

    screen: Screen
    layout: Layout
    kubelet: Kubelet
    plugin: Plugin
    grants: list[Grant] = field(default_factory=list)

    def devices(self) -> dict[str, Device]:
        return self.kubelet.devices(RESOURCE)

    async def until(self, predicate: Callable[[], object], *, seconds: float, what: str) -> float:
        """Wait for the kubelet to see something; how many seconds it took."""
        begin = time.monotonic()
        try:
            await self.plugin.outlives(self.kubelet.until(predicate, timeout=seconds))
        except TimeoutError:
            raise StepError(expected=f"{what} within {seconds:g} s", seen=self.kubelet.describe()) from None
        return time.monotonic() - begin

    def show_devices(self) -> None:
        rows = []
        for device in self.devices().values():
            numa = ",".join(map(str, device.numa)) or "-"
            holder = next((grant.pod for grant in self.grants if device.id in grant.ids), "-")
            rows.append((device.id, device.health, numa, holder))
        self.screen.table(("ID", "HEALTH", "NUMA", "HELD BY"), rows)


# --- the steps ---


async def show_offer(demo: Demo) -> None:
    wanted = len(CARDS_SHOWN)
    seconds = await demo.until(
        lambda: demo.kubelet.allocatable(RESOURCE) == wanted,
        seconds=START_SECONDS,
        what=f"{wanted} healthy devices of {RESOURCE}",
    )
    demo.show_devices()
    demo.screen.good(f"{wanted} devices, all healthy, {seconds:.2f} s after the start of the plugin")


async def allocate_two(demo: Demo) -> None:
    count = 2
    try:
        grant = await demo.plugin.outlives(demo.kubelet.allocate(RESOURCE, count, pod="pretend-pod"))
    except AdmissionError as error:
        raise StepError(expected=f"a grant of {count} devices", seen=str(error)) from error
    demo.grants.append(grant)
    demo.screen.table(
        ("NODE ON THE HOST", "IN THE CONTAINER", "ACCESS"),
        [(node.host_path, node.container_path, node.permissions) for node in grant.nodes],
    )
    for name, value in sorted(grant.env.items()):
        demo.screen.detail(f"{name}={value}")
    paths = [node.host_path for node in grant.nodes]
    if len(grant.ids) != count or len(set(paths)) != count + 1 or CONTROL_PATH not in paths:
        raise StepError(expected=f"{count} device nodes and {CONTROL_PATH}", seen=", ".join(paths) or "none")
    demo.screen.good(f"{count} devices for {grant.pod}, and the control node every container needs")


async def break_one(demo: Demo) -> None:
    victim = demo.victim()
    demo.machine.set_state(victim, BROKEN)
    ...
