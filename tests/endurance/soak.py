# SPDX-License-Identifier: Apache-2.0
"""The whole plugin in a storm: `python -m tests.endurance.soak [--minutes N] [--seed S] [--restarts N]`

Over the simulator, a kubelet and a stand-in for the API server, at random: faults of the library, sick
cards, cards that are pulled out, drivers unloaded, workers killed and stopped, plugins killed, stopped,
ended, doubled and rolled out, kubelets restarted, streams cut, sockets deleted and touched, other plugins
that register the same resource and end, pods admitted, restarted and ended, the node's label changed, cards
split by another program, also under a container, logs that find no reader, disks that do not answer, odd
answers of the kubelet, odd checkpoints. What the hardware is, is read from the simulated sysfs alone.

At every step: no hardware is held by two containers, each has the node of the very device that its kubelet
asked for, and no card that is held has been changed by the plugin. Now and then the storm lies: then the
list is exactly the hardware, all healthy, idle cards are split as the label says, every container may
restart, and the plugin has no more descriptors, threads or children than when it was young, nor has it had
much more memory at any time.
--restarts appends so many restarts of the kubelet alone. Ends with status 1 at the first thing that is not
so, with the seed and the steps that led there.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from tests.endurance.watched import TIMINGS, Relay, Relayed, Scene, Watched
from tests.support.api_server import ApiServer, write_kubeconfig
from tests.support.daemon import SOCKETS, Daemon, shows
from tests.support.impatient import impatient
from tests.support.machines import RESOURCE
from tests.support.processes import MIB, Level, descriptors, has_ended, peak, tree
from tests.support.rival import Rival
from tests.support.waiting import until
from xpu_plugin.model import rivals, vf_reconcile
from xpu_plugin.model.vf_plan import LABEL
from xpu_plugin.proto.podresources_v1_pb2 import ListPodResourcesResponse
from xpu_plugin.simulation.kubelet import AdmissionError, Assignment, Release, StartError
from xpu_plugin.simulation.machine import cards
from xpu_plugin.xpuml import OLD_FUNCTIONS


NODE = "node"
CARDS = 4
STEPS_BETWEEN_LOOKS = 60
QUIET_SECONDS = 90.0  # for everything to come to rest on a busy machine
ANOTHER = 0.15  # chance of another plugin after a rest
ROLLOUT_SECONDS = 8.0  # for a hand-over, at most
HUP_SECONDS = 5.0  # between two signals to look again
PAUSE_SECONDS = 0.15  # between steps, at most
GROWTH = 24 * MIB  # of a plugin between its second rest and any later one
OWN_GROWTH = 64  # descriptors of this process
SERVING = 2  # processes at least of a plugin that has a worker
HUGE_BYTES = 64 << 20  # of a checkpoint, without a block on the disk
LOG_SECONDS = 1.0  # for a log that had no reader
LOG_BYTES = 60_000  # of a plugin, that are shown when something is not as it must be
PROGRAM = impatient(
    replace(
        TIMINGS,
        rivalry=rivals.RivalPace(look=0.2, confirm=0.5, returns=(0.2, 1.0)),
        vfs=vf_reconcile.VfPace(look=0.1, check=0.05, retry=(0.2, 0.5), drift=(0.2, 0.5)),
    ),
    before="""
import os, time
from xpu_plugin.edges.state import replacing
def replace(*what, was=replacing.replace_apart, **how):
    while os.path.exists("frozen"):
        time.sleep(0.05)
    was(*what, **how)
replacing.replace_apart = replace
""",
)


STEPS = {
    "admit": 12, "end": 6, "restart_container": 2, "kubelet": 2, "cut": 2, "sockets": 1, "touch": 1,
    "rival": 1, "fault": 3, "mend": 4, "count": 1, "sick": 2, "pull": 1, "plug": 2, "driver": 1, "hup": 1,
    "label": 1, "foreign": 2, "worker": 2, "stop": 1, "second": 1, "rollout": 1, "pipe": 2, "disk": 2,
    "odd": 2,
}  # fmt: skip
"""What happens, and how often beside the others."""


def with_id(resource: str, id: str) -> Callable[[ListPodResourcesResponse], bytes]:
    """An answer in which one more container holds that id."""

    def answer(true: ListPodResourcesResponse) -> bytes:
        container = true.pod_resources.add(name="odd", namespace="default").containers.add(name="odd")
        container.devices.add(resource_name=resource, device_ids=[id])
        return true.SerializeToString()

    return answer


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(HUGE_BYTES)


ODD_ANSWERS: tuple[Callable[[ListPodResourcesResponse], bytes], ...] = (
    with_id(RESOURCE, "x" * 1000),
    with_id(RESOURCE, "0000:3b:00.0\n"),
    with_id("example.com/other", "x" * 1000),
    with_id("example.com/other", "\0"),
    lambda _: b"\xff\xff\xff",
)
ODD_CHECKPOINTS: tuple[Callable[[Path], object], ...] = (
    os.mkfifo,
    huge,
    lambda path: path.write_bytes(b'\xff{"Data"'),
    lambda path: path.write_bytes(b'{"Data": ' + b"9" * 5000 + b"}"),
    lambda path: path.write_bytes(b""),
)


class LostError(Exception):
    """Something is not as it must be."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A container, and the hardware that it was given: PCI address by node."""

    grant: Assignment
    hardware: dict[str, str]

    @property
    def cards(self) -> set[str]:
        return {card_of(address) for address in self.hardware.values()}


def card_of(address: str) -> str:
    """VFs are one slot further than their card, which has function 0."""
    bus, _, rest = address.rpartition(":")
    slot, _, _ = rest.partition(".")
    return f"{bus}:00.0" if slot == "01" else address


class Storm:
    """One run; every method named `step_...` is something that may happen."""

    def __init__(self, place: Path, server: ApiServer, seed: int) -> None:
        self.scene = Scene(place)
        self.server = server
        self.chance = random.Random(seed)
        self.kubelet: Watched = self.scene.watched(release=self.chance.choice(list(Release)))
        self.kubeconfig = write_kubeconfig(place / "kubeconfig", server.url)
        self.daemon: Daemon | None = None
        self.second: Daemon | None = None
        self.rival: Rival | None = None
        self.holders: list[Holder] = []
        self.given: set[str] = set()  # ids that a container has or had
        self.robbed: list[Holder] = []  # those under whom another program has split their card
        self.desired = 0
        self.young: Level | None = None
        self.rests = 0  # of this plugin's life
        self.own = 0  # descriptors of ours when the first rest came
        self.counts: Counter[str] = Counter()
        self.way: deque[str] = deque(maxlen=80)
        self.unplugged: set[int] = set()
        self.looks = 0
        self.frozen = self.scene.place / "frozen"  # while it is there, no record is written

    # --- the truth ----------------------------------------------------------------------------------

    @property
    def sys(self) -> Path:
        assert self.scene.machine.sysfs_root
        return self.scene.machine.sysfs_root

    def address(self, node: str) -> str:
        """The PCI address behind /dev/xpuN now."""
        return (self.sys / "class/xpu" / node.rpartition("/")[2] / "device").readlink().name

    def number(self, card: str) -> int:
        return int((self.sys / f"bus/pci/devices/{card}/sriov_numvfs").read_text())

    def hardware(self) -> dict[str, str]:
        """Address by id of all that there is to be offered."""
        found: dict[str, str] = {}
        for card in self.cards():
            number = self.number(card)
            bus = card[:-4]
            found |= {f"{bus}01.{vf}-of{number}": f"{bus}01.{vf}" for vf in range(number)} or {card: card}
        return found

    def cards(self) -> list[str]:
        return [keys["pci"] for index, keys in enumerate(cards(CARDS)) if index not in self.unplugged]

    def held(self) -> set[str]:
        return {card for holder in self.holders for card in holder.cards}

    def free_card(self) -> int | None:
        held = self.held()
        free = [
            index
            for index, keys in enumerate(cards(CARDS))
            if keys["pci"] not in held and index not in self.unplugged
        ]
        return self.chance.choice(free) if free else None

    def check(self) -> None:
        """What must be at every instant."""
        seen: dict[str, Holder] = {}
        wholes = {
            card for holder in self.holders for card in holder.hardware.values() if card.endswith("00.0")
        }
        for holder in self.holders:
            for node, address in holder.hardware.items():
                if address in seen:
                    raise LostError(f"{address} is held by {seen[address].grant} and {holder.grant}")
                if address not in wholes and card_of(address) in wholes:
                    raise LostError(f"{address} is held, and so is its whole card")
                seen[address] = holder
                if holder in self.robbed:
                    continue
                with suppress(FileNotFoundError):  # while the driver is gone
                    if self.address(node) != address:
                        raise LostError(
                            f"{node} of {holder.grant} is {self.address(node)} now, not {address}"
                        )

    # --- pods ---------------------------------------------------------------------------------------

    async def step_admit(self) -> None:
        try:
            grant = await self.kubelet.allocate(
                RESOURCE, self.chance.choice((1, 1, 1, 2)), init_container=self.chance.random() < 0.1
            )
        except StartError as error:
            self.kubelet.free(error.grant)
            self.counts["refused to start"] += 1
            return
        except AdmissionError:
            self.counts["refused"] += 1
            return
        nodes = [node.host_path for node in grant.nodes if node.host_path != "/dev/xpuctrl"]
        hardware = {node: self.address(node) for node in nodes}
        if sorted(hardware.values()) != sorted(id.partition("-")[0] for id in grant.ids):
            raise LostError(f"{grant} was given {hardware}")
        self.holders.append(Holder(grant, hardware))
        self.given.update(grant.ids)
        self.counts["admitted"] += 1

    async def step_end(self) -> None:
        if self.holders:
            self._end(self.chance.choice(self.holders))

    def _end(self, holder: Holder) -> None:
        self.holders.remove(holder)
        if holder in self.robbed:
            self.robbed.remove(holder)
        self.kubelet.free(holder.grant)
        self.kubelet.write_checkpoint()

    async def step_restart_container(self) -> None:
        if self.holders:
            with suppress(StartError):
                await self.kubelet.restart_container(self.chance.choice(self.holders).grant)

    # --- the kubelet --------------------------------------------------------------------------------

    async def step_kubelet(self) -> None:
        await self.kubelet.restart()

    async def step_odd(self) -> None:
        """What the kubelet says of holders cannot be understood, or can again."""
        if self.kubelet.odd_answer or self.kubelet.odd_checkpoint:
            self._even()
            return
        if self.chance.random() < 0.7:
            self.kubelet.odd_answer = self.chance.choice(ODD_ANSWERS)
        if self.chance.random() < 0.7:
            self.kubelet.odd_checkpoint = self.chance.choice(ODD_CHECKPOINTS)
        self.kubelet.write_checkpoint()

    def _even(self) -> None:
        self.kubelet.odd_answer = self.kubelet.odd_checkpoint = None
        self.kubelet.write_checkpoint()

    async def step_cut(self) -> None:
        self.kubelet.cut(RESOURCE)

    async def step_sockets(self) -> None:
        for path in self.scene.plugins.glob(SOCKETS):
            path.unlink(missing_ok=True)
        self.kubelet.cut(RESOURCE)

    async def step_touch(self) -> None:
        """No other kubelet: to register again would be refused for ever."""
        self.kubelet.socket.chmod(self.kubelet.socket.stat().st_mode & 0o7777)

    async def step_rival(self) -> None:
        """Another plugin registers our resource, or ends."""
        if self.rival is None:
            self.rival = Rival(self.scene.plugins)
            with suppress(grpc.aio.AioRpcError):
                await self.rival.start()
        else:
            await self.rival.stop()
            self.rival = None

    # --- library, cards, driver -------------------------------------------------------------------------

    async def step_fault(self) -> None:
        function = self.chance.choice([name for name in OLD_FUNCTIONS if name != "xpumlDeviceSetSriovVfNum"])
        action = self.chance.choice(("hang", "crash", "fpe", "abort", "code:999", "code:-5", "delay:100"))
        present = [index for index in range(CARDS) if index not in self.unplugged]
        card = self.chance.choice(present) if function.startswith("xpumlDeviceGet") else None
        if function == "xpumlDeviceGetCount":
            card = None
        times = self.chance.choice((1, 3, None))
        self.scene.machine.add_fault(function, action, card=card, times=times)

    async def step_mend(self) -> None:
        self.scene.machine.clear_faults()
        self.scene.machine.set({"wrong-count": ""})

    async def step_count(self) -> None:
        self.scene.machine.set({"wrong-count": self.chance.choice(("0", "1", "3", "7", "99"))})

    async def step_sick(self) -> None:
        card = self.chance.randrange(CARDS)
        if card not in self.unplugged:
            self.scene.machine.set_card(card, {"state": self.chance.choice(("207", "205", "208", "201", ""))})

    async def step_pull(self) -> None:
        card = self.free_card()
        if card is not None and len(self.unplugged) < 2:
            self.unplugged.add(card)
            self.scene.machine.remove_card(card)
            await self._noticed()

    async def step_plug(self) -> None:
        if self.unplugged:
            for card in sorted(self.unplugged):
                self.scene.machine.set_card(card, cards(CARDS)[card])
            self.unplugged.clear()
            await self._noticed()

    async def step_driver(self) -> None:
        """A driver in use cannot be unloaded."""
        if not self.holders:
            self.scene.machine.set({"driver": "gone"})
            await asyncio.sleep(self.chance.random())
            self.scene.machine.set({"driver": ""})
            await self._noticed()

    async def step_hup(self) -> None:
        self._signal(signal.SIGHUP)

    # --- VFs ----------------------------------------------------------------------------------------

    async def step_label(self) -> None:
        self.desired = self.chance.randrange(4)
        self.server.change({LABEL: str(self.desired)})

    async def step_foreign(self) -> None:
        """Another program splits a card at which no process computes just now; a container may hold it."""
        card = self.chance.choice([index for index in range(CARDS) if index not in self.unplugged])
        address, number = cards(CARDS)[card]["pci"], self.chance.randrange(4)
        if number != self.number(address):
            robbed = [holder for holder in self.holders if address in holder.cards]
            self.counts["robbed"] += len(robbed)
            self.robbed += [holder for holder in robbed if holder not in self.robbed]
            self.scene.machine.set_card(card, {"vfs": str(number)})
            await self._noticed()

    async def _noticed(self) -> None:
        """Hardware that another program has changed is not asked for before the plugin has seen it: until
        then a node may be another device's, with the same numbers. No plugin can tell in that moment."""
        await self.step_mend()
        self._even()
        await self._until(self._unseen)

    def _unseen(self) -> str:
        """What the list lacks or has too much. What was given to a container stays on it, as unhealthy: while
        a card is away, nothing proves that no process uses it."""
        listed, there = self.kubelet.devices(RESOURCE), set(self.hardware())
        more = {id for id in listed.keys() - there if listed[id].healthy or id not in self.given}
        if self.kubelet.streams_open and there <= listed.keys() and not more:
            return ""
        return f"{sorted(there)} is there, {sorted(listed)} is listed"

    # --- processes ----------------------------------------------------------------------------------

    async def step_worker(self) -> None:
        if self.daemon is not None:
            with self._no_split_begun():
                for pid in tree(self.daemon.pid)[1:]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, self.chance.choice((signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV)))

    def _no_split_begun(self) -> AbstractContextManager[None]:
        """Within, no worker splits a card: the simulator's driver dies with its caller, and leaves
        nodes and sysfs behind its machine file; a kernel's goes on to the end."""
        return self.scene.machine._lock()

    async def step_stop(self) -> None:
        self._signal(signal.SIGSTOP)
        await asyncio.sleep(self.chance.random())
        self._signal(signal.SIGCONT)

    async def step_second(self) -> None:
        """Another plugin takes over, and is ended then or before: the first one takes the node back."""
        if self.second is None:
            self.second = self.begin()
        else:
            await self._recorded()
            self.second.process.send_signal(signal.SIGTERM)
            await self._gone(self.second)
            self.second = None

    async def step_rollout(self) -> None:
        """Another plugin takes over, and the first one is ended; or it is late."""
        assert self.daemon
        if self.second is None:
            self.second = self.begin()
        with suppress(AssertionError):
            await until(self._taken_over, seconds=ROLLOUT_SECONDS * self.chance.random())
        if not self._taken_over():
            return
        self.counts["rollout done"] += 1
        former, self.daemon, self.second = self.daemon, self.second, None
        with self._no_split_begun():
            former.process.send_signal(self.chance.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGKILL)))
        pid = former.pid
        await until(lambda: has_ended(pid), "the end of a plugin")
        await self._gone(former)
        self.young, self.rests = None, 0

    async def _recorded(self) -> None:
        """Wait until the record has each grant of a container: the end of a plugin would lose it."""
        self.frozen.unlink(missing_ok=True)
        file = self.scene.place / "state/grants.json"
        ids = {id for holder in self.holders for id in holder.grant.ids}
        with suppress(AssertionError):
            await until(lambda: file.exists() and all(id in file.read_text() for id in ids), seconds=5.0)

    def _taken_over(self) -> bool:
        return self.second is not None and "this instance has taken the node over" in self.second.log

    async def step_pipe(self) -> None:
        """The reader of the log stops to read, or goes on."""
        if self.daemon is not None:
            reads = self._relay(self.daemon).reads
            if reads.is_set():
                reads.clear()
            else:
                reads.set()

    async def step_disk(self) -> None:
        """The disk of the records does not answer any more, or does again."""
        if self.frozen.exists():
            self.frozen.unlink()
        else:
            self.frozen.touch()

    def _relay(self, daemon: Daemon) -> Relay:
        assert isinstance(daemon, Relayed)
        return daemon.relay

    def _signal(self, number: signal.Signals) -> None:
        for daemon in (self.daemon, self.second):
            if daemon is not None and "starting" in daemon.log and daemon.process.poll() is None:
                daemon.process.send_signal(number)

    async def another(self) -> None:
        """The plugin ends, in any way, and another takes over."""
        assert self.daemon
        number = self.chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        self.counts[f"plugin {number.name}"] += 1
        self._relay(self.daemon).reads.clear()
        self.frozen.touch()
        with self._no_split_begun():
            self.daemon.process.send_signal(number)
        pid = self.daemon.pid
        await until(lambda: has_ended(pid), "the end of a plugin")
        self.frozen.unlink()
        await self._gone(self.daemon)
        self.daemon, self.second = self.second or self.begin(), None
        self.young, self.rests = None, 0
        await self._serves()

    async def _serves(self) -> None:
        """Until then another one that is begun may be first."""
        assert self.daemon
        with suppress(AssertionError):  # said in time or not, it is found out at the next rest
            await self.daemon.says("registered resource")

    async def _gone(self, daemon: Daemon) -> None:
        await daemon.ends()
        if "Traceback" in daemon.log:
            raise LostError(daemon.log[-4000:])
        self.scene.daemons.remove(daemon)
        daemon.log_file.unlink()
        daemon.output_file.unlink()

    def begin(self) -> Daemon:
        return self.scene.begin(
            f"--kubeconfig={self.kubeconfig}",
            f"--node-name={NODE}",
            "--pod-name=plugin",
            "--pod-list-delay=0.3",
            "--vf-timeout=2",
            "--sriov-num-vfs=keep",
            "--vf-decision-wait=1",
            program=PROGRAM,
        )

    # --- the run ------------------------------------------------------------------------------------

    async def blow(self, until: float) -> None:
        self.daemon = self.begin()
        await self._serves()
        await self.rest()
        while time.monotonic() < until:
            for _ in range(STEPS_BETWEEN_LOOKS):
                [name] = self.chance.choices(list(STEPS), list(STEPS.values()))
                self.way.append(name)
                self.counts[name] += 1
                step: Callable[[], Coroutine[Any, Any, None]] = getattr(self, f"step_{name}")
                await step()
                self.check()
                if self.daemon.process.poll() is not None:
                    raise LostError(f"the plugin has ended: {self.daemon.log[-4000:]}")
                await asyncio.sleep(PAUSE_SECONDS * self.chance.random())
            await self.rest()
            if self.chance.random() < ANOTHER and time.monotonic() < until:
                await self.another()

    async def restarts(self, number: int) -> None:
        """Of the kubelet, and nothing else."""
        for turn in range(1, number + 1):
            await self.kubelet.restart()
            await shows(self.kubelet, sorted(self.hardware()))
            self.counts["kubelet alone"] += 1
            self.check()
            if turn % 1000 == 0 or turn == number:
                await self.rest()

    async def rest(self) -> None:
        """Everything is mended; then everything has to come right."""
        self.way.append("rest")
        if self.rival is not None:
            await self.step_rival()
        for holder in list(self.robbed):
            self._end(holder)
        assert self.daemon
        for daemon in (self.daemon, self.second):
            if daemon is not None:
                self._relay(daemon).reads.set()
        self.frozen.unlink(missing_ok=True)
        if self.second is not None:  # one that serves beside a plugin that waits is weighed later
            await self.step_second()
        self._even()
        await self.step_mend()
        await self.step_plug()
        for card in range(CARDS):
            self.scene.machine.set_card(card, {"state": ""})
        await self._until(self._unrest)
        self.check()
        for holder in self.holders:
            await self.kubelet.restart_container(holder.grant)
        await self._weigh()
        self.looks += 1

    async def _until(self, wrong: Callable[[], str]) -> None:
        """Wait until nothing is wrong; a worker may have been stopped meanwhile, a card lost."""
        assert self.daemon
        deadline, again = time.monotonic() + QUIET_SECONDS, 0.0
        while why := wrong():
            now = time.monotonic()
            self.kubelet.expire()
            if now > deadline:
                raise LostError(f"{why}\n{self.kubelet.describe()}\n{self.daemon.log[-4000:]}")
            if now > again:
                self._signal(signal.SIGCONT)
                self._signal(signal.SIGHUP)
                again = now + HUP_SECONDS
            if self.daemon.process.poll() is not None:
                raise LostError(f"the plugin has ended: {self.daemon.log[-4000:]}")
            await asyncio.sleep(0.05)

    def _unrest(self) -> str:
        """What is not yet as it has to be, "" when all is."""
        assert self.daemon
        wanted = self.hardware()
        listed = {device.id: device.healthy for device in self.kubelet.devices(RESOURCE).values()}
        if not self.kubelet.streams_open:
            return "no stream"
        if listed != dict.fromkeys(wanted, True):
            return f"the hardware is {sorted(wanted)}, listed is {listed}"
        idle = set(self.cards()) - self.held()
        if wrong := {card: self.number(card) for card in idle if self.number(card) != self.desired}:
            return f"{self.desired} VFs are wished, and there are {wrong}"
        if self.young and (level := Level.of(self.daemon.pid)).exceeds(self.young, memory=GROWTH):
            return f"{level} is more than {self.young}"
        return ""

    async def _weigh(self) -> None:
        assert self.daemon
        self.rests += 1
        if self.rests == 2:  # all that is made once has been made
            self.young = await self._serving(self.daemon)
        if self.young and (most := peak(self.daemon.pid)) > self.young.memory + GROWTH:
            raise LostError(f"the plugin had {most} KiB at once, and when it was young {self.young}")
        own = len(descriptors())
        self.own = self.own or own
        if own > self.own + OWN_GROWTH:
            raise LostError(f"this side has {own} descriptors, at first it had {self.own}")
        log = self.daemon.log
        if "Traceback" in log:
            raise LostError(log[log.index("Traceback") - 2000 :][:6000])

    async def _serving(self, daemon: Daemon) -> Level:
        """Its level while it has a worker, which it has not for a moment between two of them."""
        async with asyncio.timeout(QUIET_SECONDS):
            while (level := Level.of(daemon.pid)).processes < SERVING:  # noqa: ASYNC110 - nothing tells us
                await asyncio.sleep(0.05)
        return level


async def storm(place: Path, options: argparse.Namespace) -> int:
    with ApiServer(NODE) as server:
        server.labels[LABEL] = "0"
        run = Storm(place, server, options.seed)
        failed = 0
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(run.kubelet)
            run.kubelet.hold([], resource="none", pod="plugin", namespace="kube-system")
            stack.callback(ended, run.scene)
            try:
                await run.blow(began + 60 * options.minutes)
                await run.restarts(options.restarts)
            except (LostError, AssertionError, TimeoutError, StartError) as error:
                failed = 1
                for daemon in run.scene.daemons:
                    run._relay(daemon).reads.set()
                await asyncio.sleep(LOG_SECONDS)
                print(f"FAILED after {', '.join(run.way)}\n{type(error).__name__}: {error}")
                print(run.kubelet.describe())
                for daemon in run.scene.daemons:
                    print(f"plugin {daemon.pid}:\n{daemon.log[-LOG_BYTES:]}")
            level = Level.of(run.daemon.pid) if run.daemon else None
        seconds, registrations = time.monotonic() - began, len(run.kubelet.registrations)
        print(f"seed {options.seed}, {seconds:.0f} s, {registrations} registrations")
        for name, times in sorted(run.counts.items()):
            print(f"{times:>7} {name}")
        print(f"young: {run.young}\nat the end: {level}")
        print(f"{run.looks} passed, {failed} failed")
        return failed


def ended(scene: Scene) -> None:
    """No plugin and no worker outlives the run."""
    pids = [pid for daemon in scene.daemons for pid in tree(daemon.pid)]
    for daemon in scene.daemons:
        daemon.process.kill()
        daemon.process.wait()
    deadline = time.monotonic() + 10
    while not all(map(has_ended, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--restarts", type=int, default=0, metavar="N")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="xpu-") as place:
        return asyncio.run(storm(Path(place), options))


if __name__ == "__main__":
    sys.exit(main())
