# SPDX-License-Identifier: Apache-2.0
"""The child that owns the vendor library: one request, one answer, one thread.

Started as `python -m xpu_plugin.edges.worker.server SOCKET PROGRESS`, with two inherited descriptors. The
library may crash, hang, print and damage its environment; all of that ends with this process. The worker has
no deadlines and repairs nothing: the server watches and replaces it.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xpu_plugin import xpuml
from xpu_plugin._xpuml import Library, die_with_parent
from xpu_plugin.edges import host
from xpu_plugin.edges.installation import absence, located
from xpu_plugin.edges.worker.frames import HEADER, LONGEST_REQUEST
from xpu_plugin.edges.worker.opening import refusal
from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import Host
from xpu_plugin.model.unlisted import MOST_LISTED


HIDING_VARIABLE = "XPU_VISIBLE_DEVICES"
"""The library would hide devices by it, and cuts its value up while reading."""


class Worker:
    """Answers requests by methods named `call_...`; `Any` is a JSON value."""

    def __init__(self, progress_fd: int) -> None:
        self._progress_fd = progress_fd
        self._library: xpuml.Xpuml | None = None
        self._count = 0
        self._file: _File | None = None
        self._paths: list[str] = []
        self._root: str | None = None
        self._watch: host.Watch | None = None
        self._swept: list[tuple[int, int] | None] | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request, both without a number."""
        name = request.pop("call")
        call: Callable[..., Any] = getattr(self, f"call_{name}")
        try:
            return {"result": call(**request)}
        except xpuml.XpumlError as error:
            return _error("xpuml", error, code=error.code, function=error.function, library_text=error.text)
        except (xpuml.LibraryNotFoundError, xpuml.LibraryUnusableError) as error:
            return _error("library", error)
        except xpuml.WrongDeviceError as error:
            return _error("device", error)
        except ValueError as error:
            if call != self.call_set_sriov_vf_num:  # here the number is wrong; elsewhere it is a bug of ours
                raise
            return _error("value", error)
        except OSError as error:
            return _error("system", error)

    def call_ready(self) -> bool:
        return True

    def call_open(self, paths: list[str], root: str | None = None) -> dict[str, Any]:
        """Open the first of `paths` that is a libxpuml and initialise it. root: see `located`"""
        self._paths, self._root = paths, root
        failures: list[str] = []
        absent: dict[str, list[str]] = {}
        for path in paths:
            file, own = _File.at(path, root), _libraries()
            if "/" in path and file is None:
                absent.setdefault(absence(path, root), []).append(path)
                continue
            if file is not None and not Path(file.place).is_file():  # an open of a FIFO would wait
                failures.append(f"{path}: not a regular file")
                continue
            try:
                self._library = Library(file.place if file else path, self._progress_fd)
            except (xpuml.LibraryNotFoundError, xpuml.LibraryUnusableError) as error:
                failures.append(str(error))
                continue
            # The loader finds a bare name.
            found = next((_File.at(found, None) for found in sorted(_libraries() - own)), None)
            self._file = file or found
            return {"library": path, "library_version": _version(self._library.library_version)}
        failures[:0] = [f"{', '.join(paths)}: {why}" for why, paths in absent.items()]
        raise xpuml.LibraryNotFoundError("; ".join(failures))

    def call_scan(
        self, dev_root: str, sysfs_root: str, skip: list[int], only: int | None = None, *, simulated: bool
    ) -> dict[str, Any]:
        """Count the devices, read each of them, or one, and list the nodes of which the indexes are ranks.

        `stable` is false if nodes came or went meanwhile: such a scan proves nothing.
        """
        library = self._opened()
        before = host.list_nodes(Path(dev_root), simulated=simulated)
        count = self._count = library.count()
        left_out = skip if only is None else set(range(count)) - {only}
        readings = library.scan(left_out)
        nodes = host.list_nodes(Path(dev_root), simulated=simulated)
        numbers = [node.number for node in nodes]
        # Nodes are opened only if the library left one out, and only as many as it could list.
        asked = numbers if count > MOST_LISTED else numbers[:MOST_LISTED]
        refused = self._refused(dev_root, asked, simulated=simulated) if count < len(asked) else {}
        facts = self._look(dev_root, sysfs_root, simulated=simulated)
        return {
            "readings": readings,
            "usable": [number for number in numbers if number not in refused],
            "refused": {str(number): code for number, code in refused.items()},
            "stable": before == nodes == facts.nodes,
            "driver_version": _version(library.driver_version),
            "driver_release": host.driver_release(),
            "host": asdict(facts),
        }

    def call_opens(self, dev_root: str, number: int, simulator: str | None) -> bool:
        """Return whether a node opens. This worker has opened no library, which would open all nodes."""
        return not refusal(dev_root, number, simulator=simulator)

    def call_host(
        self, dev_root: str, sysfs_root: str, *, simulated: bool, changed: bool = False
    ) -> dict[str, Any] | None:
        """Return the facts of the host. The worker reads them, as sysfs waits while a driver holds the
        device. With `changed`, None stands for the facts of the last answer, here or with a scan."""
        before = self._watch.last if self._watch else None
        facts = self._look(dev_root, sysfs_root, simulated=simulated)
        return None if changed and facts is before else asdict(facts)

    def call_replaced(self) -> str | None:
        """Return the identity of the file that a fresh worker would open, "" for none; None while that is the
        open file, or if it is unknown."""
        if self._file is None or (now := _File.at(self._file.path, self._root)) == self._file:
            return None
        found = (_File.at(path, self._root) for path in self._paths if "/" in path)
        present = next(filter(None, found), now)
        return f"{present.place} {present.identity}" if present else ""

    def call_sweep(self, skip: list[int], *, changed: bool = False) -> list[tuple[int, int] | None] | None:
        """Ask for all states. With `changed`, None stands for the last answer."""
        before, self._swept = self._swept, self._opened().sweep(skip)
        return None if changed and self._swept is before else self._swept

    def call_gauges(self, skip: list[int]) -> list[dict[str, object]]:
        """Return the measurements and the number of processes of each device, as far as known."""
        library = self._opened()
        found: list[dict[str, object]] = []
        readings, processes = library.readings(skip), library.processes(skip)
        for reading, users in zip(readings, processes, strict=True):
            if reading["index"] in skip:
                continue
            gauges = {name: value for name, value in reading.items() if name != "failures"}
            gauges["pci"] = users.get("pci")
            if isinstance(own := users.get("processes"), list):
                gauges["processes"] = len(own)
            found.append(gauges)
        return found

    def call_processes(self, skip: list[int]) -> list[dict[str, object]]:
        return self._opened().processes(skip)

    def call_usage(self, indexes: list[int], card: str, sysfs_root: str) -> dict[str, Any]:
        """Return the processes on the devices of a card, and the drivers of its functions. No other device is
        touched."""
        library = self._opened()
        self._check(indexes)
        skip = set(range(self._count)).difference(indexes)
        devices = [record for record in library.processes(skip) if record["index"] not in skip]
        return {"devices": devices, "drivers": host.read_drivers(Path(sysfs_root), card)}

    def call_set_sriov_vf_num(self, index: int, number: int, pci: str) -> None:
        library = self._opened()
        self._check([index])
        library.set_sriov_vf_num(index, number, pci)

    def _look(self, dev_root: str, sysfs_root: str, *, simulated: bool) -> Host:
        if self._watch is None:
            self._watch = host.Watch(Path(dev_root), Path(sysfs_root), simulated=simulated)
        return self._watch.read()

    def _refused(self, dev_root: str, numbers: Iterable[int], *, simulated: bool) -> dict[int, int]:
        """Return N -> errno for the nodes that cannot be opened."""
        simulator = self._opened().path if simulated else None
        codes = {number: refusal(dev_root, number, simulator=simulator) for number in numbers}
        return {number: code for number, code in codes.items() if code}

    def _check(self, indexes: Iterable[int]) -> None:
        """Refuse indexes of another scan."""
        for index in indexes:
            if not 0 <= index < self._count:
                raise xpuml.WrongDeviceError(f"device index {index} is not one of {self._count}")

    def _opened(self) -> xpuml.Xpuml:
        if self._library is None:
            raise xpuml.LibraryNotFoundError("no library has been opened")
        return self._library


@frozen(kw_only=False)
class _File:
    """A file that differs from its replacement. place: target of `path`"""

    path: str
    place: str
    identity: tuple[int, ...]

    @classmethod
    def at(cls, path: str, root: str | None) -> "_File | None":
        try:
            status = os.stat(place := located(path, root))  # noqa: PTH116 - as short as that
        except OSError:
            return None
        return cls(path, place, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


def _libraries() -> set[str]:
    """Return the mapped files of this process that have the library's name."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return set()
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/" in line}
    return {path for path in paths if path.rpartition("/")[2].startswith("libxpuml.so")}


def _error(kind: str, error: Exception, **fields: object) -> dict[str, Any]:
    return {"error": {"kind": kind, "text": str(error), **fields}}


def _version(ask: Callable[[], str]) -> str:
    """Return a version's text; 'unknown' with the error if it cannot be read."""
    try:
        return ask()
    except xpuml.XpumlError as error:
        return f"unknown ({error})"


def serve(connection: socket.socket, worker: Worker) -> None:
    """Answer until the server closes the socket, or ends."""
    gone = contextlib.suppress(BrokenPipeError, ConnectionResetError)
    with gone, connection, connection.makefile("rb") as stream:
        while len(header := stream.read(HEADER.size)) == HEADER.size:
            (length,) = HEADER.unpack(header)
            if length > LONGEST_REQUEST:
                raise ValueError(f"a request of {length} bytes")
            request = json.loads(stream.read(length))
            answer = json.dumps({"id": request.pop("id"), **worker.answer(request)}).encode()
            connection.sendall(HEADER.pack(len(answer)) + answer)


def main(arguments: Iterable[str]) -> None:
    socket_fd, progress_fd = map(int, arguments)
    # Ctrl-C at the terminal is for the server, which closes the socket at its end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)  # from within a call that hangs, too
    os.environ.pop(HIDING_VARIABLE, None)
    serve(socket.socket(fileno=socket_fd), Worker(progress_fd))


if __name__ == "__main__":
    main(sys.argv[1:])
