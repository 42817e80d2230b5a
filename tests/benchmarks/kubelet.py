# SPDX-License-Identifier: Apache-2.0
"""The measuring kubelet: starts one plugin, is its kubelet for a while, and writes down what that took.

`python -m tests.benchmarks.kubelet` reads a Session as JSON from standard input and prints figures as JSON.
One thread, no gRPC library, the kubelet's own API messages: what it adds to a call is some 30 microseconds,
the same for each subject.
"""

import fcntl
import http.client
import json
import os
import random
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.benchmarks.http2 import ClosedError, Connection, Stream
from tests.benchmarks.processes import cpu_ms, memory, threads
from tests.support.processes import tree
from xpu_plugin.proto import deviceplugin_pb2 as api


SERVICE = "/v1beta1.DevicePlugin/"
SECONDS = 90.0  # for anything; nothing takes so long when all is well
SERIES_SECONDS = 4.0  # for calls one after the other
SETTLE_SECONDS = 12.0  # after a start, before it counts as idle: some things are done once more, then rarely
PROBES_SECONDS = {"/healthz": 10.0, "/readyz": 5.0}  # as in the manifest
CHECKPOINT = "kubelet_internal_checkpoint"
PODS = "pods.sock"  # the pod resources API, which a real kubelet has in a directory of its own
SICK = "Unhealthy"

Figures = dict[str, list[float]]
"""Name of a figure -> the samples of this session."""


@dataclass(slots=True, kw_only=True)
class Session:
    """One life of a plugin, and what is to be measured in it.

    command: with {directory} for the kubelet's directory; machine: the simulator's file, for faults
    cold: files to be thrown out of the page cache before the start
    calls: of Allocate, for one and for eight devices each; many: after so many, memory is looked at again
    restarts, away: of the kubelet, and for how many seconds each
    idle: seconds; probes: port of the HTTP server that is asked as a kubelet does
    """

    command: list[str]
    directory: str
    environment: dict[str, str] = field(default_factory=dict)
    log: str = os.devnull
    machine: str | None = None
    cold: list[str] = field(default_factory=list)
    seed: int = 0
    calls: int = 0
    preferences: int = 0
    many: int = 0
    faults: bool = False
    crash: bool = False
    interval: float = 1.0
    restarts: int = 0
    away: list[float] = field(default_factory=lambda: [0.5, 1.5])
    idle: float = 0.0
    memory: bool = False
    probes: int | None = None


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(16)
    return listener


class Kubelet:
    """The kubelet's side of both sockets; one plugin with one resource."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "kubelet.sock"
        self._listener: socket.socket | None = None
        self._pods: socket.socket | None = None
        self._registrars: list[Connection] = []
        self._askers: list[Connection] = []
        self.registrations = 0
        self.endpoint: Connection | None = None
        self.stream: Stream | None = None
        self.lists = 0
        self.list_bytes = 0

    def begin(self) -> float:
        """Clear the directory as a kubelet does, and listen. The moment from which a plugin can register."""
        for entry in self._directory.iterdir():
            if not entry.is_dir() and entry.name != CHECKPOINT:
                entry.unlink()
        self._pods = _listen(self._directory / PODS)
        self._listener = _listen(self._path)
        return time.perf_counter()

    def record(self) -> None:
        """Write the checkpoint of a kubelet that has given all devices to one container.

        After a restart without it, the plugin withholds each device that was granted before.
        """
        entry = {
            "PodUID": "6d1f0c9e-5f6a-4d0e-9d5e-3f1f5a3b7c11",
            "ContainerName": "main",
            "ResourceName": "baidu.com/xpu",
            "DeviceIDs": {"-1": [device.ID for device in self.devices]},
        }
        content = {"Data": {"PodDeviceEntries": [entry], "RegisteredDevices": None}, "Checksum": 0}
        (self._directory / CHECKPOINT).write_text(json.dumps(content))

    def end(self) -> None:
        """As a kubelet that is killed: every connection breaks, the socket's file stays."""
        endpoints = [self.endpoint] if self.endpoint else []
        for open_one in (*self._registrars, *self._askers, *endpoints, self._listener, self._pods):
            if open_one is not None:
                open_one.close()
        self._registrars, self._askers, self.endpoint, self.stream = [], [], None, None

    def registered(self) -> tuple[float, str]:
        """Wait for a call of Register, and answer it: the moment when it was here whole, and the endpoint."""
        deadline = time.perf_counter() + SECONDS
        while (left := deadline - time.perf_counter()) > 0:
            for connection, stream in self._calls(left):
                request = api.RegisterRequest.FromString(stream.messages.popleft())
                moment = time.perf_counter()
                connection.answer(stream, b"")
                self.registrations += 1
                return moment, request.endpoint
        raise TimeoutError("the plugin has not registered")

    def _calls(self, seconds: float) -> list[tuple[Connection, Stream]]:
        """The calls of Register that have come whole once there is news of any kind, or the time is over.

        A request for the list of pods is answered on the way: there are none.
        """
        assert self._listener
        assert self._pods
        connections = (*self._registrars, *self._askers)
        sockets = [self._listener, self._pods, *(connection.socket for connection in connections)]
        ready, _, _ = select.select(sockets, [], [], seconds)
        for listener, own in ((self._listener, self._registrars), (self._pods, self._askers)):
            if listener in ready:
                accepted, _ = listener.accept()
                own.append(Connection(accepted, server=True))
        calls = []
        for connection in connections:
            if connection.socket not in ready:
                continue
            asks = connection in self._askers
            try:
                whole = [stream for stream in connection.receive() if stream.messages and stream.ended]
                if not asks:
                    calls += [(connection, stream) for stream in whole]
                    continue
                for stream in whole:
                    connection.answer(stream, b"")
            except ClosedError:
                (self._askers if asks else self._registrars).remove(connection)
                connection.close()
        return calls

    def dial(self, endpoint: str) -> float:
        """Dial back and open the stream; the moment when the first list was here whole."""
        self.endpoint = Connection.to(str(self._directory / endpoint), SECONDS)
        self.endpoint.unary(SERVICE + "GetDevicePluginOptions", b"")
        self.stream = self.endpoint.call(SERVICE + "ListAndWatch", b"")
        moment, self.devices = self.next_list()
        return moment

    def next_list(self) -> tuple[float, list[api.Device]]:
        assert self.endpoint
        assert self.stream
        while not self.stream.messages:
            self.endpoint.receive()
            if self.stream.ended:
                raise ClosedError("the stream ended")
        message = self.stream.messages.popleft()
        moment = time.perf_counter()
        self.lists += 1
        self.list_bytes += len(message)
        return moment, list(api.ListAndWatchResponse.FromString(message).devices)

    def until_sick(self, number: int) -> float:
        """The moment when a list was here on which so many devices are Unhealthy."""
        while True:
            moment, devices = self.next_list()
            if sum(device.health == SICK for device in devices) == number:
                return moment

    def quiet(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        """Listen for so long, and count what comes. `each` is called a few times a second."""
        assert self.endpoint
        assert self.stream
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            each()
            ready, _, _ = select.select([self.endpoint.socket], [], [], min(left, 0.2))
            if ready:
                self.endpoint.receive()
            while self.stream.messages:
                self.next_list()
            for connection, stream in self._calls(0):
                stream.messages.clear()
                connection.answer(stream, b"")
                self.registrations += 1


# --- what is measured -----------------------------------------------------------------------------


def run(session: Session) -> Figures:
    """Raises TimeoutError, ClosedError or RuntimeError when the plugin does not do what a plugin does."""
    figures: Figures = {}
    directory = Path(session.directory)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, mode=0o700)
    kubelet = Kubelet(directory)
    kubelet.begin()
    for file in session.cold:
        _evict(file)
    command = [part.replace("{directory}", session.directory) for part in session.command]
    with Path(session.log).open("ab") as log:
        begin = time.perf_counter()
        plugin = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **session.environment},
        )
    try:
        moment, endpoint = kubelet.registered()
        spent = cpu_ms(tree(plugin.pid))
        figures["start_ms"] = [_ms(moment - begin)]
        listed = kubelet.dial(endpoint)
        figures["first_list_ms"] = [_ms(listed - moment)]
        figures["start_cpu_ms"] = [spent]
        if not session.cold:
            _measure(session, kubelet, plugin.pid, figures)
    finally:
        end = time.perf_counter()
        plugin.send_signal(signal.SIGTERM)
        try:
            plugin.wait(10)
            figures["stop_ms"] = [_ms(time.perf_counter() - end)]
        except subprocess.TimeoutExpired:
            plugin.kill()
            plugin.wait()
        kubelet.end()
    return figures


def _measure(session: Session, kubelet: Kubelet, pid: int, figures: Figures) -> None:
    chance = random.Random(session.seed)
    if session.calls or session.preferences:
        _calls(session, kubelet, figures)
        kubelet.record()
    if session.idle or session.memory:
        kubelet.quiet(SETTLE_SECONDS)
    if session.memory:
        _memory(session, kubelet, pid, figures)
    if session.idle:
        _idle(session, kubelet, pid, figures)
    for _ in range(session.restarts):
        away = chance.uniform(*session.away)
        kubelet.end()
        time.sleep(away)
        begin = kubelet.begin()
        moment, endpoint = kubelet.registered()
        figures.setdefault("back_ms", []).append(_ms(moment - begin))
        kubelet.dial(endpoint)
        kubelet.quiet(0.2)
    if session.faults and session.machine:
        _faults(session, kubelet, pid, figures, chance)


def _calls(session: Session, kubelet: Kubelet, figures: Figures) -> None:
    ids = [device.ID for device in kubelet.devices]
    for number in (1, 8):
        requests = [
            _allocate([ids[(first + n) % len(ids)] for n in range(number)])
            for first in range(0, number * 64, number)
        ]
        times = _times(kubelet, SERVICE + "Allocate", requests, session.calls)
        times = times[len(times) // 10 :]  # the first ones warm the plugin up
        if times:
            figures[f"allocate_{number}_p50_us"] = [statistics.median(times)]
            figures[f"allocate_{number}_p99_us"] = [sorted(times)[len(times) * 99 // 100]]
    if session.calls:
        figures["allocate_per_second_8_callers"] = [_throughput(kubelet, requests_of_one(ids), session.calls)]
    if session.preferences and len(ids) <= 512:
        wanted = 8 if len(ids) > 8 else 4
        request = api.PreferredAllocationRequest(
            container_requests=[
                api.ContainerPreferredAllocationRequest(available_deviceIDs=ids, allocation_size=wanted)
            ]
        ).SerializeToString()
        times = _times(kubelet, SERVICE + "GetPreferredAllocation", [request], session.preferences)
        figures["prefer_p50_us"] = [statistics.median(times)]


def requests_of_one(ids: list[str]) -> list[bytes]:
    return [_allocate([id]) for id in ids[:64]]


def _allocate(ids: list[str]) -> bytes:
    return api.AllocateRequest(
        container_requests=[api.ContainerAllocateRequest(devices_ids=ids)]
    ).SerializeToString()


def _times(kubelet: Kubelet, path: str, requests: list[bytes], most: int) -> list[float]:
    """Microseconds of each of so many calls, one after the other; of fewer if they take too long."""
    endpoint = kubelet.endpoint
    assert endpoint
    times: list[float] = []
    end = time.perf_counter() + SERIES_SECONDS
    while len(times) < most and time.perf_counter() < end:
        request = requests[len(times) % len(requests)]
        begin = time.perf_counter_ns()
        endpoint.unary(path, request)
        times.append((time.perf_counter_ns() - begin) / 1e3)
    return times


def _throughput(kubelet: Kubelet, requests: list[bytes], calls: int) -> float:
    """Calls a second, eight at a time on one connection as a kubelet has it; fewer if they take too long."""
    endpoint = kubelet.endpoint
    assert endpoint
    begin = time.perf_counter()
    end = begin + SERIES_SECONDS
    begun = done = 0
    waiting: set[int] = set()
    while waiting or (begun < calls and time.perf_counter() < end):
        while len(waiting) < 8 and begun < calls and time.perf_counter() < end:
            waiting.add(endpoint.call(SERVICE + "Allocate", requests[begun % len(requests)]).number)
            begun += 1
        for stream in endpoint.receive():
            if stream.ended and stream.number in waiting:
                waiting.remove(stream.number)
                endpoint.finish(stream)
                done += 1
    return done / (time.perf_counter() - begin)


def _faults(session: Session, kubelet: Kubelet, pid: int, figures: Figures, chance: random.Random) -> None:
    """Break the first device, at any moment of an interval; then the second one, while a plugin that watches
    them is killed. How soon they are well again is up to options."""
    assert session.machine
    file = Path(session.machine)
    well = file.read_text()
    one = _broken(well, 0)
    kubelet.quiet(chance.uniform(0.2, 0.2 + session.interval))
    begin = _become(file, one)
    try:
        figures["fault_ms"] = [_ms(kubelet.until_sick(1) - begin)]
        if session.crash:
            kubelet.quiet(chance.uniform(0.2, 0.2 + session.interval))
            begin = _become(file, _broken(one, 1))
            for worker in tree(pid)[1:]:
                os.kill(worker, signal.SIGKILL)
            figures["crash_ms"] = [_ms(kubelet.until_sick(2) - begin)]
    finally:
        _become(file, well)


def _broken(text: str, card: int) -> str:
    line = next(line for line in text.splitlines() if line.startswith(f"card {card} "))
    return text.replace(line, f"{line} state=207", 1)


def _become(file: Path, text: str) -> float:
    """Replace the machine as the simulator's own command does; the moment."""
    with Path(f"{file}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new = Path(f"{file}.new")
        new.write_text(text)
        moment = time.perf_counter()
        new.rename(file)
    return moment


def _memory(session: Session, kubelet: Kubelet, pid: int, figures: Figures) -> None:
    before = memory(tree(pid))
    figures["pss_kib"] = [before.pss]
    figures["alone_kib"] = [before.alone]
    figures["threads"] = [threads(tree(pid))]
    if session.many:
        requests = requests_of_one([device.ID for device in kubelet.devices])
        _throughput(kubelet, requests, session.many // 10)  # all that is made once exists now
        before = memory(tree(pid))
        _throughput(kubelet, requests, session.many)
        after = memory(tree(pid))
        figures["alone_after_many_kib"] = [after.alone]
        figures["growth_percent"] = [100 * (after.alone / before.alone - 1)]


def _idle(session: Session, kubelet: Kubelet, pid: int, figures: Figures) -> None:
    """Nothing changes, and only the probes ask."""
    assert kubelet.endpoint
    due = dict.fromkeys(PROBES_SECONDS, time.perf_counter())

    def probe() -> None:
        now = time.perf_counter()
        for page, at in due.items():
            if session.probes is not None and now >= at:
                due[page] = now + PROBES_SECONDS[page]
                asked = http.client.HTTPConnection("127.0.0.1", session.probes, timeout=SECONDS)
                asked.request("GET", page)
                asked.getresponse().read()
                asked.close()

    probe()
    lists, size, registrations = kubelet.lists, kubelet.list_bytes, kubelet.registrations
    received = kubelet.endpoint.received
    pids = tree(pid)
    begin, spent = time.perf_counter(), cpu_ms(pids)
    kubelet.quiet(session.idle, probe)
    minute = 60 / (time.perf_counter() - begin)
    figures["idle_cpu_ms_per_minute"] = [(cpu_ms(pids) - spent) * minute]
    figures["idle_messages"] = [kubelet.lists - lists + kubelet.registrations - registrations]
    figures["idle_list_bytes_per_minute"] = [(kubelet.list_bytes - size) * minute]
    figures["idle_socket_bytes_per_minute"] = [(kubelet.endpoint.received - received) * minute]


def _evict(file: str) -> None:
    """Out of the page cache, unless a process has it mapped."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _ms(seconds: float) -> float:
    return seconds * 1e3


def main() -> None:
    session = Session(**json.load(sys.stdin))
    json.dump(run(session), sys.stdout)


def measured(session: Session, *, python: str = sys.executable) -> subprocess.Popen[str]:
    """Start a process that does the session, for `figures_of`."""
    process = subprocess.Popen(
        [python, "-m", "tests.benchmarks.kubelet"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin
    json.dump(asdict(session), process.stdin)
    process.stdin.close()
    process.stdin = None
    return process


def figures_of(process: subprocess.Popen[str]) -> Figures:
    """What it measured. Raises RuntimeError when it could not."""
    text, _ = process.communicate()
    if process.returncode:
        raise RuntimeError("the measuring kubelet failed; its last words are above")
    figures: Figures = json.loads(text)
    return figures


if __name__ == "__main__":
    main()
