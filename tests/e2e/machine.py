# SPDX-License-Identifier: Apache-2.0
"""The node's XPUs: a simulated machine with device nodes in the real /dev.

No driver serves their major number. So the kernel answers ENXIO to a process that may open such a node, and
the device cgroup answers EPERM to any other, before any driver would be asked: the two tell exactly what a
container was granted, without hardware.
"""

import os
import re
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .cluster import Pod


DEV = Path("/dev")
CARDS = 4
MODEL = "R200"
IDS_VARIABLE = "BAIDU_COM_XPU_DEVICE_IDS"
NODE_NAME = re.compile(r"xpu(?:ctrl|\d+)")
CONTROL = "xpuctrl"
SPARE_NUMBER = 9

MAJORS = range(240, 255)  # for local use, says the kernel; drivers that ask for any get one from the top
P800_MAJOR = 195
"""That users of P800 cards report; it is NVIDIA's too."""
CALL_SECONDS = 30

GRANTED = "No such device or address"  # ENXIO
DENIED = "Operation not permitted"  # EPERM


@dataclass(frozen=True, slots=True)
class View:
    """What a container knows of the node's XPUs.

    ids: as its environment names them
    visible: the nodes in its /dev, with the numbers they have on the host
    openable: the nodes that the device cgroup allows to open, be they visible or made by the
        container itself
    """

    ids: frozenset[str]
    visible: frozenset[str]
    openable: frozenset[str]


class Machine:
    """Cards of one model, until closed."""

    def __init__(
        self, plugin: Sequence[str], directory: Path, *, model: str = MODEL, cards: int = CARDS
    ) -> None:
        self.cards = cards
        self._model = model
        self._simulate = (*plugin, "simulate")
        self.file = directory / "machine"
        self.sysfs = directory / "sys"
        self._numbers: dict[str, int] = {}
        self._place = (f"--simulator-file={self.file}", f"--dev-root={DEV}", f"--sysfs-root={self.sysfs}")

    @property
    def options(self) -> tuple[str, ...]:
        """How the plugin is told to use this machine."""
        return ("--xpuml-library=simulator", *self._place)

    def create(self) -> None:
        """Make the cards and their nodes in /dev."""
        majors = (P800_MAJOR, *MAJORS) if self._model.startswith("P800") else MAJORS
        major = next(major for major in majors if major not in majors_in_use())
        made = (f"--cards={self.cards}", f"--model={self._model}", f"--major={major}")
        self._call("init", *self._place, *made)
        self._numbers = {device: int(name.removeprefix("xpu")) for device, name in self.ids().items()}
        assert len(self._numbers) == self.cards

    def close(self) -> None:
        """Take the nodes out of /dev."""
        remove_nodes()

    def set_card(self, card: int, **settings: object) -> None:
        """Change what is so of a card, `state=207` for instance."""
        words = [f"{name}={value}" for name, value in settings.items()]
        self._call("set", f"--simulator-file={self.file}", "card", str(card), *words)

    def remove_card(self, card: int) -> None:
        """Pull a card out; its node goes too."""
        self._call("set", f"--simulator-file={self.file}", "remove", "card", str(card))

    def set(self, **settings: object) -> None:
        """Change what is so of the whole machine, `driver=gone` for instance."""
        words = [f"{name}={value}" for name, value in settings.items()]
        self._call("set", f"--simulator-file={self.file}", *words)

    def add_fault(self, function: str, action: str, *, card: int) -> None:
        """Have a call of the library go wrong for one card."""
        words = (f"function={function}", f"action={action}", f"card={card}")
        self._call("set", f"--simulator-file={self.file}", "fault", *words)

    def clear_faults(self) -> None:
        self._call("set", f"--simulator-file={self.file}", "clear", "faults")

    def exchange_nodes(self, one: int, other: int) -> None:
        """Let two cards swap their nodes, as a new probe order after a reboot may do."""
        self.set_card(one, nodes=SPARE_NUMBER)
        self.set_card(other, nodes=one)
        self.set_card(one, nodes=other)

    def ids(self) -> dict[str, str]:
        """Device id -> node name of all that is to be offered, as the kernel would tell: a whole card's id
        is its PCI address, a VF's names also how many the card has. A card with VFs is not offered."""
        ids = {}
        for name in device_nodes().keys() - {CONTROL}:
            function = (self.sysfs / "class/xpu" / name / "device").resolve(strict=True)
            card = (function / "physfn").resolve() if (function / "physfn").exists() else None
            if card is not None:
                ids[f"{function.name}-of{vfs_of(card)}"] = name
            elif not vfs_of(function):
                ids[function.name] = name
        return ids

    def vfs(self) -> dict[str, int]:
        """How many VFs each card has, by its PCI address."""
        devices = (self.sysfs / "bus/pci/devices").iterdir()
        return {path.name: vfs_of(path) for path in sorted(devices) if (path / "sriov_numvfs").exists()}

    def address_of_card_of(self, device: str) -> str:
        """The PCI address of the card that a device is, or is a VF of."""
        function = self.sysfs / "bus/pci/devices" / device.partition("-")[0]
        return ((function / "physfn") if (function / "physfn").exists() else function).resolve().name

    def id_of(self, node: str) -> str:
        return next(device for device, name in self.ids().items() if name == node)

    def card_of(self, device: str) -> int:
        """The simulator's number of a card: that of its first node, wherever it has gone since."""
        return self._numbers[device]

    def nodes_of(self, ids: frozenset[str]) -> frozenset[str]:
        """All nodes that a container granted these ids is to have."""
        known = self.ids()
        return frozenset({known[device] for device in ids} | {CONTROL})

    def view_from(self, pod: Pod) -> View:
        """Try from inside a container what can be reached of any device."""
        return read_view(pod.execute(view_script(device_nodes())), device_nodes())

    def _call(self, *arguments: str) -> None:
        command = (*self._simulate, *arguments)
        done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_SECONDS, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()}"


@contextmanager
def present(machine: Machine) -> Iterator[Machine]:
    """The machine with its nodes in /dev, which are gone in the end."""
    try:
        machine.create()
        yield machine
    finally:
        machine.close()


def device_nodes() -> dict[str, tuple[int, int]]:
    """The XPU nodes in /dev and their major and minor numbers."""
    nodes = {}
    for path in sorted(DEV.glob("xpu*")):
        status = path.lstat()
        if NODE_NAME.fullmatch(path.name) and stat.S_ISCHR(status.st_mode):
            nodes[path.name] = os.major(status.st_rdev), os.minor(status.st_rdev)
    return nodes


def granted(machine: Machine, pod: Pod, devices: int) -> frozenset[str]:
    """The ids of a running pod, after a check from the inside that it reaches exactly these."""
    view = machine.view_from(pod)
    assert len(view.ids) == devices, f"{pod.name}: {IDS_VARIABLE} names {sorted(view.ids)}"
    nodes = machine.nodes_of(view.ids)
    assert (view.visible, view.openable) == (nodes, nodes), f"{pod.name} was granted {sorted(view.ids)}"
    return view.ids


def vfs_of(function: Path) -> int:
    """How many VFs sysfs shows of a PCI function; 0 for one that cannot have any."""
    number = function / "sriov_numvfs"
    return int(number.read_text()) if number.exists() else 0


def majors_in_use() -> frozenset[int]:
    """The major numbers of character devices that have a driver."""
    section = Path("/proc/devices").read_text().partition("Block devices:")[0]
    return frozenset(int(number) for number in re.findall(r"^ *(\d+) ", section, re.MULTILINE))


def real_nodes() -> list[str]:
    """XPU nodes that are not the suite's own making: a driver serves them."""
    ours = {P800_MAJOR, *MAJORS} - majors_in_use()
    return [name for name, (major, _) in device_nodes().items() if major not in ours]


def remove_nodes() -> None:
    """Take every XPU node that no driver serves out of /dev, those of a crashed run too."""
    for name in device_nodes().keys() - set(real_nodes()):
        (DEV / name).unlink(missing_ok=True)


def view_script(nodes: dict[str, tuple[int, int]]) -> str:
    """A shell script that prints one line a fact, for `read_view`.

    A container may make nodes of its own as far as the device cgroup lets it use them. So every node of the
    host is tried: at its place in /dev if it is there, else at one made for the attempt.
    """
    lines = [
        f'echo "ids ${IDS_VARIABLE}"',
        "for node in /dev/xpu*; do",
        '  [ -c "$node" ] && echo "visible ${node#/dev/} $(stat -c "%t %T" "$node")"',
        "done",
        "attempt() {",
        "  node=/dev/$1",
        '  [ -c "$node" ] || { node=/tmp/$1; mkdir -p /tmp; mknod "$node" c "$2" "$3" || exit 3; }',
        '  echo "open $1 $( (exec 3<>"$node") 2>&1 )"',
        "}",
        *(f"attempt {name} {major} {minor}" for name, (major, minor) in nodes.items()),
        "rm -f /tmp/xpu*",
    ]
    return "\n".join(lines) + "\n"


def read_view(text: str, nodes: dict[str, tuple[int, int]]) -> View:
    """What `view_script` printed; every node has to have been tried, with one of the two outcomes."""
    facts = [line.split(maxsplit=2) for line in text.splitlines()]
    ids = next(fact[1] if len(fact) > 1 else "" for fact in facts if fact[0] == "ids")
    visible = set()
    for _, name, numbers in (fact for fact in facts if fact[0] == "visible"):
        major, minor = (int(number, 16) for number in numbers.split())
        assert nodes.get(name) == (major, minor), (
            f"/dev/{name} is {major}:{minor} inside; the host has {nodes}"
        )
        visible.add(name)
    outcomes = {fact[1]: fact[2] for fact in facts if fact[0] == "open" and len(fact) == 3}
    strange = {name: outcomes.get(name) for name in nodes if not decided(outcomes.get(name, ""))}
    assert not strange, f"opening is neither granted nor denied: {strange}; the container said:\n{text}"
    return View(
        ids=frozenset(ids.split(",")) - {""},
        visible=frozenset(visible),
        openable=frozenset(name for name, outcome in outcomes.items() if GRANTED in outcome),
    )


def decided(outcome: str) -> bool:
    return (GRANTED in outcome) != (DENIED in outcome)
