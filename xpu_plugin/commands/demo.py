# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin demo`: the real plugin between a simulated machine and a kubelet stand-in, step by step.

It needs no hardware, no Kubernetes and no privilege; all files are in a temporary directory. The plugin with
all its processes is real, and so are the protocols on both sides of it. Each step checks its own result.
"""

import asyncio
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from xpu_plugin.config import LONGEST_SOCKET_PATH, PROGRAM, SIMULATOR, Parser
from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import CONTROL_PATH
from xpu_plugin.simulation.machine import Machine, MachineError, cards
from xpu_plugin.xpuml import State


# gRPC reads this at its import; else it prints to stderr for each connection that ends.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from xpu_plugin.simulation.kubelet import (
    HEALTHY,
    PODS_API_SOCKET,
    UNHEALTHY,
    AdmissionError,
    Assignment,
    Kubelet,
    ListedDevice,
)


RESOURCE = "baidu.com/xpu"
CARDS: Mapping[str, Sequence[Mapping[str, str]]] = {
    "R200": (
        {"model": "R200", "pci": "0000:3b:00.0", "numa": "0"},
        {"model": "R200", "pci": "0000:3c:00.0", "numa": "0"},
        {"model": "R200", "pci": "0000:b1:00.0", "numa": "1"},
        {"model": "R200", "pci": "0000:b2:00.0", "numa": "1"},
        {"model": "K200", "pci": "0000:d8:00.0", "numa": "1"},
    ),
    "P800": cards(6, "P800"),
}
"""By the machine's model."""
IN_WORDS = {"R200": "four R200 cards and a K200 board", "P800": "six P800 cards"}
PROCESS = (sys.executable, "-P", "-m", "xpu_plugin")
OFFERED = 6
"""One device for each R200 or P800, two for the K200."""
GRANTED = 2
HEALTH_INTERVAL = 0.2
HEALTH_RECOVERY = 1.0

START_SECONDS = 20.0
"""Until the plugin has listed its devices: the start of an interpreter, a worker and a scan."""
CHANGE_SECONDS = 10.0
"""Until a change of the machine reaches the kubelet."""
REGISTER_SECONDS = 10.0
"""Until a restarted kubelet knows the devices again."""
STOP_SECONDS = 5.0
"""From SIGTERM to the end of the plugin."""

LOG_LINES = 15

INTRODUCTION = """\
The plugin at work, without hardware and without Kubernetes.
  real       the plugin, its worker process, and the protocol it speaks over unix sockets
  simulated  the machine ({cards}), the kubelet, the pod
  files      {directory}, removed at the end"""

INTERRUPTED = 130
"""Exit status after Ctrl-C during the steps, as in shells."""

_Result = TypeVar("_Result")


class StepError(PluginError):
    """A step failed."""

    def __init__(self, *, expected: str, seen: str) -> None:
        super().__init__(expected, seen)
        self.expected = expected
        self.seen = seen


# --- the screen ---


class Screen:
    """Standard output, with some colour on a terminal."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def say(self, text: str = "") -> None:
        print(text, flush=True)

    def heading(self, text: str) -> None:
        self.say(f"\n{self._paint('1', text)}")

    def detail(self, text: str) -> None:
        for line in text.splitlines():
            self.say(f"      {line}")

    def good(self, text: str) -> None:
        self.say(f"  {self._paint('32', 'ok')}  {text}")

    def bad(self, error: StepError) -> None:
        self.say(f"  {self._paint('31', 'FAILED')}")
        self.detail(f"expected: {error.expected}")
        self.detail(f"seen: {error.seen}")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        lines = [head, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            self.detail("   ".join(cells).rstrip())

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text


# --- the parts ---


@frozen(kw_only=False)
class Layout:
    """The places of one demo's files."""

    root: Path

    @property
    def plugins(self) -> Path:
        return self.root / "device-plugins"

    @property
    def pod_resources(self) -> Path:
        return self.root / "pod-resources"

    @property
    def pods_api(self) -> Path:
        return self.root / "pods-api"

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


class PluginProcess:
    """The real plugin as a process of its own; its output goes to its log."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self._ended = asyncio.create_task(process.wait())

    @classmethod
    async def start(cls, layout: Layout) -> "PluginProcess":
        options: Mapping[str, object] = {
            "--resource-name": RESOURCE,
            "--device-plugin-dir": layout.plugins,
            "--pod-resources-socket": layout.pod_resources / "kubelet.sock",
            "--pods-api-socket": layout.pods_api / PODS_API_SOCKET,
            "--state-dir": layout.state,
            "--dev-root": layout.dev,
            "--sysfs-root": layout.sysfs,
            "--xpuml-library": SIMULATOR,
            "--simulator-file": layout.machine,
            "--health-interval": HEALTH_INTERVAL,
            "--health-recovery": HEALTH_RECOVERY,
        }
        with layout.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *PROCESS,
                *(f"{option}={value}" for option, value in options.items()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={name: value for name, value in os.environ.items() if not name.startswith("XPU_PLUGIN_")},
                process_group=0,  # Ctrl-C reaches only the demo, which then stops the plugin
            )
        return cls(process, layout.log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def last_lines(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-LOG_LINES:])

    async def outlives(self, wait: Awaitable[_Result]) -> _Result:
        """Wait for a condition, but only while the plugin runs."""
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
        """Stop the plugin by SIGTERM; return its exit status, None if it had to be killed."""
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
    """The common state of the steps."""

    screen: Screen
    layout: Layout
    machine: Machine
    kubelet: Kubelet
    plugin: PluginProcess
    cards: Sequence[Mapping[str, str]]
    grants: list[Assignment] = field(default_factory=list)
    complete: bool = False
    """True once every step has succeeded."""

    def devices(self) -> dict[str, ListedDevice]:
        return self.kubelet.devices(RESOURCE)

    def sick(self) -> set[str]:
        return {device.id for device in self.devices().values() if not device.healthy}

    async def until(self, predicate: Callable[[], object], *, seconds: float, what: str) -> float:
        """Wait until the kubelet sees a condition; return the seconds that it took."""
        begin = time.monotonic()
        try:
            await self.plugin.outlives(self.kubelet.until(predicate, timeout=seconds))
        except TimeoutError:
            raise StepError(expected=f"{what} within {seconds:g} s", seen=self.kubelet.describe()) from None
        return time.monotonic() - begin

    def spare_card(self) -> int:
        """Return a card that offers one device without a holder."""
        held = {id_ for grant in self.grants for id_ in grant.ids}
        free = self.devices().keys() - held
        return next(number for number, card in enumerate(self.cards) if card["pci"] in free)

    def show_devices(self) -> None:
        holders = {id_: grant.pod for grant in self.grants for id_ in grant.ids}
        rows = [
            (device.id, device.health, ",".join(map(str, device.numa)) or "-", holders.get(device.id, "-"))
            for device in self.devices().values()
        ]
        self.screen.table(("ID", "HEALTH", "NUMA", "HELD BY"), rows)


# --- the steps ---


async def offer(demo: Demo) -> None:
    seconds = await demo.until(
        lambda: demo.kubelet.allocatable(RESOURCE) == OFFERED,
        seconds=START_SECONDS,
        what=f"{OFFERED} healthy devices of {RESOURCE}",
    )
    demo.show_devices()
    demo.screen.good(f"{OFFERED} devices, all healthy, {seconds:.2f} s after the plugin was started")


async def allocate(demo: Demo) -> None:
    try:
        grant = await demo.plugin.outlives(demo.kubelet.allocate(RESOURCE, GRANTED, pod="pretend-pod"))
    except AdmissionError as error:
        raise StepError(expected=f"a grant of {GRANTED} devices", seen=str(error)) from error
    demo.grants.append(grant)
    demo.screen.table(
        ("NODE ON THE HOST", "IN THE CONTAINER", "ACCESS"),
        [(node.host_path, node.container_path, node.permissions) for node in grant.nodes],
    )
    for name, value in sorted(grant.env.items()):
        demo.screen.detail(f"{name}={value}")
    paths = {node.host_path for node in grant.nodes}
    if len(paths) != GRANTED + 1 or CONTROL_PATH not in paths:
        raise StepError(expected=f"{GRANTED} device nodes and {CONTROL_PATH}", seen=f"{sorted(paths)}")
    if set(",".join(grant.env.values()).split(",")) != set(grant.ids):
        raise StepError(expected=f"the ids {grant.ids} in the environment", seen=f"{grant.env}")
    demo.screen.good(f"{grant.pod} got {GRANTED} devices, and the control node that each container needs")


async def break_one(demo: Demo) -> None:
    number = demo.spare_card()
    id_ = demo.cards[number]["pci"]
    demo.machine.set_card(number, {"state": str(int(State.ERROR))})
    seconds = await demo.until(
        lambda: demo.sick() == {id_}, seconds=CHANGE_SECONDS, what=f"{UNHEALTHY}: {id_} and no other"
    )
    demo.show_devices()
    demo.screen.good(
        f"{id_} is {UNHEALTHY}, {seconds:.2f} s after it broke (looked at every {HEALTH_INTERVAL} s)"
    )


async def heal(demo: Demo) -> None:
    [id_] = demo.sick()
    number = next(number for number, card in enumerate(demo.cards) if card["pci"] == id_)
    demo.machine.set_card(number, {"state": ""})
    seconds = await demo.until(
        lambda: not demo.sick(), seconds=CHANGE_SECONDS, what=f"all {OFFERED} devices {HEALTHY}"
    )
    demo.screen.good(
        f"{id_} is {HEALTHY} again, {seconds:.2f} s after it was healed (it has to answer well for "
        f"{HEALTH_RECOVERY:g} s)"
    )


async def restart_kubelet(demo: Demo) -> None:
    before = set(demo.devices())
    [grant] = demo.grants
    lists = demo.kubelet.lists(RESOURCE)
    registrations = len(demo.kubelet.registrations)
    await demo.kubelet.stop()
    begin = time.monotonic()
    await demo.kubelet.start()
    await demo.until(
        lambda: demo.kubelet.lists(RESOURCE) > lists and demo.devices().keys() == before,
        seconds=REGISTER_SECONDS,
        what=f"a registration, and the same {OFFERED} ids listed",
    )
    listed = time.monotonic()
    registration, *more = demo.kubelet.registrations[registrations:]
    if more:
        raise StepError(expected="one registration", seen=f"{1 + len(more)}")
    demo.screen.good(
        f"registered {_milliseconds(registration.time - begin)} after the kubelet was started, once"
    )
    demo.screen.good(
        f"the same {len(before)} ids listed {_milliseconds(listed - begin)} after it was started"
    )
    try:
        await demo.plugin.outlives(demo.kubelet.restart_container(grant))
    except AdmissionError as error:
        raise StepError(expected=f"{grant.pod} keeps its devices", seen=str(error)) from error
    if demo.sick() or demo.kubelet.grants != (grant,):
        raise StepError(expected=f"{grant.pod} keeps its devices, all healthy", seen=demo.kubelet.describe())
    demo.screen.good(f"{grant.pod} still holds {' and '.join(grant.ids)}; its container may start again")


@frozen(kw_only=False)
class Scene:
    title: str
    run: Callable[[Demo], Awaitable[None]]


STEPS = (
    Scene(f"The plugin offers devices as {RESOURCE}", offer),
    Scene(f"A pretend pod asks for {GRANTED}", allocate),
    Scene(f"A card breaks: its state becomes {int(State.ERROR)}", break_one),
    Scene("The card is healed", heal),
    Scene("The kubelet is restarted", restart_kubelet),
)


async def watch(demo: Demo) -> None:
    """Print every change of the list, until cancelled."""
    number = demo.spare_card()
    command = shlex.join([*_program(), "simulate", "set", f"--simulator-file={demo.layout.machine}"])
    demo.screen.heading(
        "Everything stays up until Ctrl-C. To break a card and to heal it, in another terminal:"
    )
    demo.screen.detail(f"{command} card {number} state={int(State.ERROR)}\n{command} card {number} state=")
    demo.screen.say()
    known: dict[str, str] = {}
    while True:
        now = {id_: device.health for id_, device in demo.devices().items()}
        for id_ in sorted(known.keys() | now.keys() if known else ()):
            if known.get(id_) != now.get(id_):
                change = f"{known.get(id_, 'absent')} -> {now.get(id_, 'absent')}"
                demo.screen.detail(f"{time.strftime('%H:%M:%S')}  {id_}  {change}")
        known = now
        await demo.plugin.outlives(demo.kubelet.changed())


async def take_down(demo: Demo) -> None:
    """Stop the plugin. Raises StepError if it does not end as it should."""
    begin = time.monotonic()
    status = await demo.plugin.stop()
    seconds = time.monotonic() - begin
    left = [path.name for path in demo.layout.plugins.iterdir() if path.is_socket()]
    if status == -signal.SIGTERM and not demo.kubelet.registrations:
        demo.screen.good("the plugin was ended while it was starting")
        return
    if status != 0:
        seen = f"killed after {STOP_SECONDS:g} s" if status is None else f"exit status {status}"
        raise StepError(expected="exit status 0", seen=seen)
    if left != [demo.kubelet.socket.name]:
        raise StepError(expected="no socket left but the kubelet's", seen=", ".join(left))
    demo.screen.good(f"the plugin ended {seconds:.2f} s after SIGTERM: exit status 0, its socket removed")


# --- putting it together ---


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _program() -> list[str]:
    """Return the command by which this program was started."""
    return [sys.argv[0]] if Path(sys.argv[0]).name == PROGRAM else [*PROCESS]


async def _play(demo: Demo, *, once: bool) -> None:
    for number, step in enumerate(STEPS, 1):
        demo.screen.heading(f"{number}  {step.title}")
        await step.run(demo)
    demo.complete = True
    if not once:
        await watch(demo)


async def _status(demo: Demo, part: "asyncio.Task[None]") -> int:
    """Return the exit status of a part of the demo, once it has ended."""
    await asyncio.wait({part})
    if part.cancelled():
        return 0 if demo.complete else INTERRUPTED
    error = part.exception()
    if error is None:
        return 0
    if not isinstance(error, StepError):
        raise error
    demo.screen.bad(error)
    demo.screen.detail(f"the plugin's last lines:\n{demo.plugin.last_lines()}")
    return 1


async def _run(screen: Screen, layout: Layout, model: str, *, once: bool) -> int:
    machine = Machine(layout.machine, dev_root=layout.dev, sysfs_root=layout.sysfs)
    machine.init(CARDS[model], {"model": model})
    kubelet = Kubelet(layout.plugins, pod_resources_dir=layout.pod_resources)
    kubelet.pods_api_dir = layout.pods_api
    async with kubelet:
        plugin = await PluginProcess.start(layout)
        demo = Demo(screen, layout, machine, kubelet, plugin, CARDS[model])
        playing = asyncio.create_task(_play(demo, once=once))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, playing.cancel)
        try:
            status = await _status(demo, playing)
            if status != 1:
                screen.heading("Everything is taken down")
                status = await _status(demo, asyncio.create_task(take_down(demo))) or status
        finally:
            await plugin.stop()
        return status


def main(arguments: list[str]) -> int:
    """Return 0 if every step succeeded, 1 if one failed, 130 if Ctrl-C came before the last."""
    parser = Parser(
        prog=f"{PROGRAM} demo",
        description="Runs the real plugin between a simulated machine and a stand-in for the kubelet, in a "
        "temporary directory. Needs no hardware, no Kubernetes and no privilege.",
    )
    parser.add_argument("--once", action="store_true", help="end after the last step instead of at Ctrl-C")
    parser.add_argument(
        "--model", choices=CARDS, default="R200", metavar="MODEL", help="of the machine: R200 or P800 [R200]"
    )
    options = parser.parse_args(arguments)
    screen = Screen()
    with tempfile.TemporaryDirectory(prefix="xpu-demo-") as directory:
        layout = Layout(Path(directory))
        if len(os.fsencode(layout.plugins / f"{PROGRAM}-01234567.sock")) > LONGEST_SOCKET_PATH:
            print(f"{PROGRAM} demo: TMPDIR is too long for sockets: {directory}", file=sys.stderr)
            return 1
        screen.say(INTRODUCTION.format(cards=IN_WORDS[options.model], directory=directory))
        try:
            return asyncio.run(_run(screen, layout, options.model, once=options.once))
        except MachineError as error:
            print(f"{PROGRAM} demo: no simulated machine: {error}", file=sys.stderr)
            return 1
