# SPDX-License-Identifier: Apache-2.0
"""Edits the machine file of the simulated libxpuml, and makes the host match it.

docs/simulator.md has the grammar. This module edits only the text. The simulator itself decides whether it is
valid, which numbers the driver assigns, and which device nodes and sysfs entries follow.
"""

import contextlib
import ctypes
import fcntl
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from xpu_plugin.edges.state import state_file
from xpu_plugin.errors import PluginError
from xpu_plugin.simulation import library


SETTLED_BY_MODEL = ("nodes", "minors", "state", "vfs")
SETTLED_BY_VFS = ("vf-nodes", "vf-minors", "vf-states")
WRONG_HOST = 2
MOST_TEXT = 1 << 20
"""Bytes of the description of the largest machine."""

_COMMENT = re.compile(r"(?:^|\s)#.*")


class MachineError(PluginError):
    """The input makes no valid machine; the text names the fault and the accepted values in one line."""


class HostError(MachineError):
    """The machine is valid, but this host cannot have it: no permission, or device nodes of another
    machine."""


MODELS = (
    "K100", "K200", "R200", "R300", "R200-8F", "R200-8FS", "R100", "R420", "RG800", "RG800-PRO", "P800",
    "P800-PCIe",
)  # fmt: skip
_BUSES = range(0x3B, 0xBB)
# Of a server with P800 cards, by N. Reported are 03, 16 (N is 2), 84 and b6 (N is 5).
_BUSES_OF_P800 = (0x03, 0x29, 0x16, 0x3C, 0x84, 0xB6, 0x97, 0xC9)


def cards(number: int, model: str = "R200") -> list[dict[str, str]]:
    """Return the keys of equal cards, the first half of them on NUMA node 0, the others on 1.

    P800 cards are on one NUMA node by fours.
    """
    by_fours = model.startswith("P800")
    buses = _BUSES_OF_P800 if by_fours else _BUSES
    return [
        {
            "model": model,
            "pci": f"{n // len(buses):04x}:{buses[n % len(buses)]:02x}:00.0",
            "numa": str(n // 4 % 2 if by_fours else 2 * n // number),
        }
        for n in range(number)
    ]


class Machine:
    """A machine file, and its device nodes and sysfs tree on the host.

    Every change is checked first, and made under the lock of the file and by a rename. When the method
    returns, the host matches. Raises MachineError or HostError; after a MachineError nothing was changed.

    dev_root, sysfs_root: the places of device nodes and the sysfs tree; None: those that `init` recorded
    library: the simulator; None: the installed one
    """

    def __init__(
        self,
        path: Path | str,
        *,
        dev_root: Path | str | None = None,
        sysfs_root: Path | str | None = None,
        library: Path | str | None = None,
    ) -> None:
        self.path = Path(path)
        self.dev_root = None if dev_root is None else Path(dev_root).absolute()
        self.sysfs_root = None if sysfs_root is None else Path(sysfs_root).absolute()
        self.library = None if library is None else Path(library)
        if self.sysfs_root is not None and Path("/sys") in (
            self.sysfs_root.resolve(),
            *self.sysfs_root.resolve().parents,
        ):
            raise MachineError(f"sysfs-root '{sysfs_root}'; accepted: a directory that is not below /sys")

    def init(
        self,
        cards: Iterable[Mapping[str, str]],
        settings: Mapping[str, str] | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Write a new machine and record the roots in it.

        An existing machine is an error, or with `force` is removed first.
        """
        if self.path.exists():
            if not self.path.is_file():
                raise MachineError(f"{self.path} is not a regular file; accepted: another file")
            if not force:
                raise MachineError(f"{self.path} exists already; accepted: another file, or --force")
            with contextlib.suppress(MachineError):
                Machine(self.path, library=self.library).remove()
        remembered = {"dev-root": str(self.dev_root or "/dev")}
        if self.sysfs_root is not None:
            remembered["sysfs-root"] = str(self.sysfs_root)
        lines = [f"set {key}={value}" for key, value in {**remembered, **(settings or {})}.items()]
        lines += [_card_line(number, keys) for number, keys in enumerate(cards)]
        self._check(lines)
        try:
            for directory in (self.path.parent, self.dev_root, self.sysfs_root):
                if directory is not None:
                    directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(f"cannot make {directory}: {error.strerror}") from error
        with self._lock():
            try:
                self._settle(lines)
            except HostError:
                self.path.unlink(missing_ok=True)
                raise

    def text(self) -> str:
        """Return the content of the file."""
        try:
            return state_file.read(self.path).decode()
        except UnicodeDecodeError as error:
            raise MachineError(f"{self.path} is not a text") from error
        except OSError as error:
            why = error.strerror
        except ValueError as error:
            why = str(error)
        raise MachineError(f"cannot read {self.path}: {why}; accepted: a file made by 'simulate init'")

    def nodes(self) -> list[tuple[str, ...]]:
        """Return the device nodes in the order of the library's indexes, then the control node.

        Each with its device (`240:0`), PCI address, NUMA node and model.
        """
        text = ctypes.create_string_buffer(MOST_TEXT)
        self._call("xpumlSimulatorDescribe", os.fsencode(self.path), text, ctypes.c_uint(len(text)))
        return [tuple(line.split("\t")) for line in text.value.decode().splitlines()]

    def environment(self) -> dict[str, str]:
        """Return the environment variables by which a process finds this machine in the library."""
        return library.environment(self.path, self.dev_root, self.sysfs_root)

    def set(self, settings: Mapping[str, str]) -> None:
        """Change settings of the machine; an empty value restores the default."""
        with self._edit() as lines:
            kept = [line for line in lines if _key_of_setting(line) not in settings]
            lines[:] = [*(f"set {key}={value}" for key, value in settings.items() if value), *kept]

    def set_card(self, number: int, keys: Mapping[str, str]) -> None:
        """Change a card or plug one in; an empty value restores the default."""
        with self._edit() as lines:
            lines[:] = _with_card(lines, number, keys)

    def remove_card(self, number: int) -> None:
        """Pull a card out, with its faults and processes. Other cards keep their numbers."""
        with self._edit() as lines:
            if not any(_words(line)[:2] == ["card", str(number)] for line in lines):
                raise MachineError(f"there is no card {number}")
            lines[:] = [line for line in lines if not _concerns(line, number)]

    def add_fault(
        self,
        function: str,
        action: str,
        *,
        card: int | None = None,
        half: int | None = None,
        vf: int | None = None,
        times: int | None = None,
    ) -> None:
        """Make calls of a function fail, for one device or for all."""
        target = {"card": card, "half": half, "vf": vf, "times": times}
        self.add_line("fault", _join({"function": function, **target, "action": action}))

    def add_process(
        self, pid: int, *, card: int, half: int | None = None, vf: int | None = None, memory: int = 0
    ) -> None:
        """Add a process that runs on a device, with so many MiB of its memory."""
        self.add_line("process", _join({"pid": pid, "card": card, "half": half, "vf": vf, "memory": memory}))

    def add_line(self, word: str, keys: str) -> None:
        """Add a line of the kind `fault` or `process`."""
        with self._edit() as lines:
            lines.append(f"{word} {keys}")

    def clear_faults(self) -> None:
        self._clear("fault")

    def clear_processes(self) -> None:
        self._clear("process")

    def settle(self) -> None:
        """Make the host match a file that was edited by other means."""
        with self._edit():
            pass

    def remove(self) -> None:
        """Remove the machine: its nodes, its sysfs entries, its file."""
        with self._lock():
            lines = self.text().splitlines()
            self._check(lines)  # a file that is no machine's stays
            kept = [line for line in lines if _key_of_setting(line) not in (None, "driver")]
            self._settle([*kept, "set driver=gone"])
            self.path.unlink()

    def _clear(self, word: str) -> None:
        with self._edit() as lines:
            lines[:] = [line for line in lines if _words(line)[:1] != [word]]

    @contextlib.contextmanager
    def _edit(self) -> Iterator[list[str]]:
        with self._lock():
            lines = self.text().splitlines()
            yield lines
            self._settle(lines)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the lock that the library also takes when it splits a card."""
        path = f"{self.path}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise MachineError(f"cannot lock {path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _check(self, lines: list[str]) -> None:
        self._call("xpumlSimulatorCheck", _text(lines))

    def _settle(self, lines: list[str]) -> None:
        roots = [None if root is None else os.fsencode(root) for root in (self.dev_root, self.sysfs_root)]
        self._call("xpumlSimulatorSettle", os.fsencode(self.path), _text(lines), *roots)

    def _call(self, function: str, *arguments: object) -> None:
        try:
            simulator = ctypes.CDLL(str(self.library or library.shipped()))
        except OSError as error:
            raise MachineError(f"cannot load the simulator: {error}") from error
        reason = ctypes.create_string_buffer(1024)
        code = simulator[function](*arguments, reason, ctypes.c_uint(len(reason)))
        if code != 0:
            kind = HostError if code == WRONG_HOST else MachineError
            raise kind(f"{self.path}: {reason.value.decode(errors='replace')}")


def _text(lines: list[str]) -> bytes:
    try:
        return "".join(f"{line}\n" for line in lines).encode()
    except UnicodeEncodeError as error:
        name = error.object[error.start : error.end]
        raise MachineError(f"{name!r} in a name or a value; accepted: UTF-8") from error


def _words(line: str) -> list[str]:
    return _COMMENT.sub("", line).split()


def _join(keys: Mapping[str, object]) -> str:
    return " ".join(f"{key}={value}" for key, value in keys.items() if value is not None)


def _key_of_setting(line: str) -> str | None:
    words = _words(line)
    return words[1].partition("=")[0] if words[:1] == ["set"] and len(words) > 1 else None


def _concerns(line: str, card: int) -> bool:
    words = _words(line)
    return words[:2] == ["card", str(card)] or (
        words[:1] in (["fault"], ["process"]) and f"card={card}" in words
    )


def _card_line(number: int, keys: Mapping[str, str]) -> str:
    return " ".join([f"card {number}", *(f"{key}={value}" for key, value in keys.items() if value)])


def _with_card(lines: list[str], number: int, keys: Mapping[str, str]) -> list[str]:
    """Return the lines with the card's changed, or added.

    After a change of the model or of the number of VFs, the simulator assigns the dependent values anew.
    """
    selector = ["card", str(number)]
    place = next((n for n, line in enumerate(lines) if _words(line)[:2] == selector), len(lines))
    line = lines[place] if place < len(lines) else ""
    comment = _COMMENT.search(line)
    present = dict(word.split("=", 1) for word in _words(line)[2:] if "=" in word)
    if "model" in keys:
        present = {key: value for key, value in present.items() if key not in SETTLED_BY_MODEL}
    if "model" in keys or "vfs" in keys:
        present = {key: value for key, value in present.items() if key not in SETTLED_BY_VFS}
    present |= keys
    changed = _card_line(number, present) + (comment.group() if comment else "")
    return [*lines[:place], changed, *lines[place + 1 :]]
