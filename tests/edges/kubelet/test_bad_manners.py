# SPDX-License-Identifier: Apache-2.0
"""The endpoint against kubelets with bad manners: registered exactly as often as it has to be, the right
devices in the end, and nothing left over."""

import asyncio
import gc
import os
import shutil
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.daemon import shows
from tests.support.devices import found
from tests.support.endpoint import CARDS, IDS, NAME, PREFIX, Looks, Plugin, registered
from tests.support.kubelets import Hesitant, Unread
from tests.support.machines import RESOURCE
from tests.support.processes import children, descriptors, unix_sockets
from tests.support.waiting import PROMPT_SECONDS, SECONDS, until
from xpu_plugin.edges.kubelet import endpoint as endpoint_module
from xpu_plugin.edges.kubelet import lock as lock_module
from xpu_plugin.edges.kubelet import service as service_module
from xpu_plugin.edges.kubelet.directory import identity_of
from xpu_plugin.edges.kubelet.service import listing, server_of
from xpu_plugin.model import registration
from xpu_plugin.model.health import HEALTHY, Health
from xpu_plugin.model.inventory import Entry, after_scan, after_verdicts
from xpu_plugin.model.registration import SocketIdentity
from xpu_plugin.proto import deviceplugin_pb2 as api
from xpu_plugin.proto import deviceplugin_pb2_grpc as api_grpc
from xpu_plugin.simulation.kubelet import Client as KubeletsEnd
from xpu_plugin.simulation.kubelet import Kubelet, Registration


SICK = Health("state-error", "state 207")
DIAL_BACK_SECONDS = 0.3
# grpc may keep a few descriptors of its own for a while; what leaks does so each time.
SLACK = 8
FEW = 3  # tasks that come and go; each stream or life that is left over would be one more

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience for tests."""
    monkeypatch.setattr(registration, "DIAL_BACK_SECONDS", DIAL_BACK_SECONDS)
    monkeypatch.setattr(registration, "AGAIN_SECONDS", (0.02, 0.1))
    monkeypatch.setattr(registration, "STREAM_POLL_SECONDS", 0.02)
    monkeypatch.setattr(lock_module, "LOCK_SECONDS", 0.02)


@pytest.fixture
async def nothing_left(place: Path, leaves_no_process: None) -> AsyncIterator[None]:
    """No task, descriptor, thread or process more than before. gRPC makes what it keeps in a first life."""
    async with Kubelet(place / "warm") as kubelet, Plugin(place / "warm").run():
        await listed(kubelet)

    await until(lambda: not tasks(), f"no task but {tasks()}")
    gc.collect()
    files, threads, processes = descriptors(), threading.enumerate(), children()
    yield
    await until(lambda: not tasks(), f"no task but {tasks()}")

    def more() -> list[str]:
        gc.collect()
        return descriptors()

    await until(lambda: len(more()) <= len(files) + SLACK, f"only {files}, now {more()}")
    assert len(threading.enumerate()) <= len(threads) + 1  # the executor's, which writes records
    assert children() <= processes


async def listed(kubelet: Kubelet) -> None:
    """Wait until the kubelet has both cards, healthy, by an open stream."""
    await shows(kubelet, IDS)


async def settle() -> None:
    """Let all tasks of this loop go on until they wait."""
    for _ in range(30):
        await asyncio.sleep(0)


def judge(plugin: Plugin, health: Health, id: str = IDS[0]) -> None:
    plugin.picture.submit(partial(after_verdicts, verdicts={id: health}))


def registrations_of(plugin: Plugin, kubelet: Kubelet) -> list[float]:
    """When it registered."""
    return [accepted.time for accepted in kubelet.registrations if NAME.fullmatch(accepted.endpoint)]


def assert_pauses(times: list[float], first: float, most: float) -> None:
    """Together the pauses are at least three quarters of ones that double from `first` to `most`.

    A single one may be another: a stream that is cut before it was noticed counts as one that did not open.
    """
    least = 0.75 * sum(min(first * 2**turn, most) for turn in range(len(times) - 1))
    assert times[-1] - times[0] > least, times


# --- readers --------------------------------------------------------------------------------------


MANY = [replace(CARDS[0], id=f"{domain:04x}:3b:00.0") for domain in range(2000)]
"""A list of these is some 50 KB."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each list that a service has made for a stream."""
    lengths: list[int] = []

    def count(entries: list[Entry]) -> bytes:
        lengths.append(len(entries))
        return listing(entries)

    monkeypatch.setattr(service_module, "listing", count)
    return lengths


async def test_a_kubelet_that_never_reads_is_registered_once_and_served_otherwise(
    place: Path, plugin: Plugin, looks: Looks, made: list[int]
) -> None:
    """An unread stream is an open one: no reason to register again, and in nobody's way."""
    plugin.picture.submit(lambda facts: after_scan(facts, found(*MANY), forget=True))
    async with Unread(place / "plugins") as kubelet, plugin.run():
        await kubelet.until(lambda: kubelet.streams_open, timeout=SECONDS)
        for change in range(20):
            judge(plugin, (SICK, HEALTHY)[change % 2], MANY[0].id)
            await settle()
        assert len(made) < 10, "a list without a reader is not made"
        await looks.more(int(3 * DIAL_BACK_SECONDS / 0.02))
        [end] = kubelet._endpoints.values()
        options = await end.stub.GetDevicePluginOptions(api.Empty(), timeout=SECONDS)
        assert options.pre_start_required
        assert len(kubelet.registrations) == 1
        begin = time.monotonic()
    assert time.monotonic() - begin < PROMPT_SECONDS
    assert plugin.sockets() == []
    assert plugin.service.streams == 0


async def test_an_unread_stream_that_is_cut_is_noticed_at_once(
    place: Path, plugin: Plugin, made: list[int]
) -> None:
    """Its end is not lost in the middle of a list; no garbage collection is needed to notice."""
    plugin.picture.submit(lambda facts: after_scan(facts, found(*MANY), forget=True))
    gc.disable()
    try:
        async with Unread(place / "plugins") as kubelet, plugin.run():
            for times in range(1, 6):
                await registered(kubelet, times)
                await until(lambda times=times: len(made) >= times and kubelet.streams_open)  # type: ignore[misc]
                await settle()
                kubelet.reads = times == 5
                if kubelet.reads:
                    plugin.picture.submit(lambda facts: after_scan(facts, found(*CARDS), forget=True))
                kubelet.cut(RESOURCE)
            await listed(kubelet)
            assert plugin.service.streams == 1
            assert len(kubelet.registrations) == 6
    finally:
        gc.enable()


class Cutting(Kubelet):
    """Ends the stream after a list, so many times."""

    cuts = 0

    async def receive(self, endpoint: KubeletsEnd) -> AsyncGenerator[api.ListAndWatchResponse, None]:
        async with aclosing(super().receive(endpoint)) as lists:
            async for response in lists:
                yield response
                if self.cuts:
                    self.cuts -= 1
                    return


async def test_streams_that_are_cut_again_and_again_are_replaced_ever_more_slowly(
    place: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each registration in one life costs the kubelet: the first is at once, and later ones wait. One stream
    that lasted makes it quick again."""
    monkeypatch.setattr(registration, "AGAIN_SECONDS", (0.04, 0.32))
    monkeypatch.setattr(registration, "DIAL_BACK_SECONDS", 2.0)
    async with Cutting(place / "plugins") as kubelet, plugin.run():
        kubelet.cuts = 6
        await kubelet.until(lambda: kubelet.cuts == 0, timeout=SECONDS)
        await listed(kubelet)
        times = registrations_of(plugin, kubelet)
        assert len(times) == 7
        assert_pauses(times[1:], 0.04, 0.32)

        monkeypatch.setattr(registration, "DIAL_BACK_SECONDS", 0.0)  # this stream has lasted
        monkeypatch.setattr(registration, "AGAIN_SECONDS", (600.0, 600.0))
        kubelet.cut(RESOURCE)
        await registered(kubelet, 8)
        monkeypatch.setattr(registration, "DIAL_BACK_SECONDS", 2.0)
        await listed(kubelet)


class Greedy(Kubelet):
    """Opens a second stream beside the first."""

    async def receive(self, endpoint: KubeletsEnd) -> AsyncGenerator[api.ListAndWatchResponse, None]:
        self.second: Any = endpoint.stub.ListAndWatch(api.Empty())
        async with aclosing(super().receive(endpoint)) as lists:
            async for response in lists:
                yield response

    async def end_second(self) -> None:
        self.second.cancel()
        await self.second.code()


async def test_registered_again_only_when_all_streams_ended(
    place: Path, plugin: Plugin, looks: Looks
) -> None:
    async with Greedy(place / "plugins") as kubelet, plugin.run():
        await listed(kubelet)
        await until(lambda: plugin.service.streams == 2)
        await kubelet.end_second()
        await until(lambda: plugin.service.streams == 1)
        await looks.more(40)
        assert len(kubelet.registrations) == 1
        kubelet.cut(RESOURCE)
        await registered(kubelet, 2)
        await listed(kubelet)
        await kubelet.end_second()
        assert len(kubelet.registrations) == 2


def tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


class Levels:
    """What there is of everything that could become more with each stream or life."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._tasks, self._threads, self._descriptors = self._now()

    def _now(self) -> tuple[int, int, int]:
        gc.collect()
        return len(tasks()), threading.active_count(), len(descriptors())

    async def are_back(self) -> None:
        """One stream by one connection, no other client at our socket, and nothing more than at the
        beginning."""

        def back() -> bool:
            number, threads, files = self._now()
            return (
                self._plugin.service.streams == 1
                and unix_sockets(self._plugin.socket) == 2
                and number <= self._tasks + FEW
                and threads <= self._threads + 1  # the executor's
                and files <= self._descriptors + SLACK
            )

        try:
            await until(back)
        except AssertionError:
            present = (*self._now(), self._plugin.service.streams, unix_sockets(self._plugin.socket))
            pytest.fail(f"{(self._tasks, self._threads, self._descriptors)} before, {present} now")


async def test_hundreds_of_streams_opened_and_cut_on_one_connection(
    place: Path, plugin: Plugin, looks: Looks
) -> None:
    """While the kubelet's own stays open they are no reason to register again."""
    async with Kubelet(place / "plugins") as kubelet, plugin.run():
        await listed(kubelet)
        levels = Levels(plugin)
        [end] = kubelet._endpoints.values()
        for _ in range(10):
            calls: list[Any] = [end.stub.ListAndWatch(api.Empty()) for _ in range(25)]
            for call in calls:
                assert len((await call.read()).devices) == len(IDS)
            assert plugin.service.streams == 1 + len(calls)
            for call in calls:
                call.cancel()
                await call.code()
        del calls, call
        await levels.are_back()
        await looks.more(40)
        assert len(kubelet.registrations) == 1
        judge(plugin, SICK)
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1, timeout=SECONDS)


async def test_hundreds_of_streams_cut_with_their_connections(
    place: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is replaced by one registration, and nothing of the former ones is kept."""
    monkeypatch.setattr(registration, "AGAIN_SECONDS", (0.0, 0.0))
    async with Kubelet(place / "plugins") as kubelet, plugin.run():
        await listed(kubelet)
        levels = Levels(plugin)
        for cuts in range(1, 201):
            kubelet.cut(RESOURCE)
            await registered(kubelet, cuts + 1)
            await listed(kubelet)
        await levels.are_back()
        assert len(kubelet.registrations) == 201


# --- lives ----------------------------------------------------------------------------------------


def bind(path: Path) -> tuple[socket.socket, os.stat_result]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return listener, path.stat()


async def test_lives_that_cannot_be_told_apart_are_still_noticed_by_their_streams(
    place: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same device, inode and change time: the stream that ended is reason enough."""

    def alike(path: Path) -> SocketIdentity | None:
        identity = identity_of(path)
        return SocketIdentity(1, 2, 3) if identity and not path.name.startswith(PREFIX) else identity

    monkeypatch.setattr(endpoint_module, "identity_of", alike)
    async with Kubelet(place / "plugins") as kubelet, plugin.run():
        for life in range(1, 6):
            await listed(kubelet)
            assert [accepted.life for accepted in kubelet.registrations] == [*range(1, life + 1)]
            await kubelet.restart()
        await listed(kubelet)


async def test_fifty_lives_are_registered_with_once_each_and_cost_nothing_that_stays(
    place: Path, plugin: Plugin
) -> None:
    async with Kubelet(place / "plugins") as kubelet, plugin.run():
        await listed(kubelet)
        levels = Levels(plugin)
        for life in range(2, 52):
            await kubelet.restart()
            await listed(kubelet)
            assert [accepted.life for accepted in kubelet.registrations] == [*range(1, life + 1)]
        await levels.are_back()
        assert len(kubelet.registrations) == 51


class Hasty(Kubelet):
    """Is back before any look, and its socket has the inode of the former life, as a file system
    may well give it again. The listener lives on, as only so that inode is certain to be had."""

    async def restart(self) -> None:
        servers, self._servers = self._servers, []
        await self.stop()
        begin = time.monotonic()
        self._life += 1
        spare = self.directory.with_name("spare")
        self.socket.rename(spare)
        self._clear()
        spare.rename(self.socket)
        self.away = time.monotonic() - begin
        self._servers = servers
        self._changed()


async def test_lives_a_moment_apart_with_the_same_inode_are_each_registered_with_at_once(
    place: Path, plugin: Plugin, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their change times differ. Another stream that was cut in one life would let it take minutes here."""
    monkeypatch.setattr(registration, "AGAIN_SECONDS", (600.0, 600.0))
    monkeypatch.setattr(registration, "DIAL_BACK_SECONDS", 600.0)
    away = []
    async with Hasty(place / "plugins") as kubelet, plugin.run():
        for life in range(2, 12):
            await listed(kubelet)
            await looks.more(3)
            former = kubelet.socket.stat()
            await kubelet.restart()
            present = kubelet.socket.stat()
            assert os.path.samestat(former, present)
            assert former.st_ctime_ns != present.st_ctime_ns
            away.append(kubelet.away)
            await registered(kubelet, life)
            assert [accepted.life for accepted in kubelet.registrations] == [*range(1, life + 1)]
        await listed(kubelet)
        await looks.more(10)
        assert len(kubelet.registrations) == 11
        assert min(away) < 0.001


async def test_all_sockets_deleted_while_the_kubelet_lives_on(
    place: Path, plugin: Plugin, looks: Looks
) -> None:
    """While our stream is open the kubelet is the same one; ours is bound anew when the stream has ended."""
    async with Kubelet(place / "plugins") as kubelet:
        (place / "spare").hardlink_to(kubelet.socket)
        async with plugin.run():
            await listed(kubelet)
            for path in (kubelet.socket, plugin.socket):
                path.unlink()
            await looks.more(40)
            assert len(kubelet.registrations) == 1
            kubelet.socket.hardlink_to(place / "spare")
            await looks.more(40)
            assert len(kubelet.registrations) == 1
            kubelet.cut(RESOURCE)
            await registered(kubelet, 2)
            await listed(kubelet)
            await looks.more(40)
            assert len(kubelet.registrations) == 2
            assert plugin.socket.is_socket()


@pytest.mark.parametrize("removed", [shutil.rmtree, lambda path: path.rename(path.with_name("former"))])
async def test_the_directory_recreated_many_times_under_a_living_kubelet(
    place: Path, plugin: Plugin, removed: Callable[[Path], object]
) -> None:
    """Registered once with each life, locked in the new directory, the old one's lock let go."""
    async with Kubelet(place / "plugins") as kubelet, plugin.run():
        for life in range(1, 8):
            await listed(kubelet)
            assert [accepted.life for accepted in kubelet.registrations] == [*range(1, life + 1)]
            assert plugin.lock.held()
            shutil.rmtree(place / "former", ignore_errors=True)
            removed(kubelet.directory)
            assert not plugin.lock.held()
            await kubelet.restart()
        await listed(kubelet)
        assert plugin.socket.is_socket()


@pytest.fixture
async def meanwhile(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What happens in the directory right after our socket was bound, once each and the last one first."""
    happens: list[Callable[[], object]] = []
    servers: Any = type(grpc.aio.server())
    bind_to = servers.add_insecure_port

    def add_insecure_port(server: grpc.aio.Server, address: str) -> int:
        port: int = bind_to(server, address)
        if happens and NAME.fullmatch(Path(address).name):
            happens.pop()()
        return port

    monkeypatch.setattr(servers, "add_insecure_port", add_insecure_port)
    return happens


@pytest.mark.parametrize("recreated", [False, True])
async def test_the_directory_cleared_or_recreated_while_our_socket_is_bound(
    place: Path,
    plugin: Plugin,
    meanwhile: list[Callable[[], object]],
    recreated: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Tried again until the socket stays; only then does the kubelet learn of it, and no listener is left
    behind."""
    directory, former = place / "plugins", place / "former"

    def clear() -> None:
        plugin.socket.unlink()

    def recreate() -> None:
        directory.rename(former)
        directory.mkdir()
        (former / "kubelet.sock").rename(directory / "kubelet.sock")
        shutil.rmtree(former)

    async with Kubelet(directory) as kubelet:
        meanwhile += [recreate if recreated else clear] * 5
        async with plugin.run():
            await listed(kubelet)
            assert meanwhile == []
            assert len(kubelet.registrations) == 1
            assert plugin.lock.held()
            assert plugin.socket.stat().st_mode & 0o777 == 0o600
            await until(lambda: unix_sockets(plugin.socket) == 2, "no other client at our socket")
            assert plugin.socket.is_socket()
            assert caplog.text.count("cannot bind") == 1
    assert plugin.sockets() == []


async def test_a_kubelet_that_restarts_while_our_socket_is_bound(
    place: Path, plugin: Plugin, meanwhile: list[Callable[[], object]], looks: Looks
) -> None:
    """It clears the directory after our socket was made and before it is told of it: it is told of the next
    one."""
    async with Kubelet(place / "plugins") as kubelet:

        def restart() -> None:
            kubelet.socket.rename(place / "spare")
            kubelet._clear()
            (place / "spare").rename(kubelet.socket)

        meanwhile.append(lambda: asyncio.get_running_loop().call_soon(restart))
        async with plugin.run():
            await listed(kubelet)
            await looks.more(40)
            assert meanwhile == []
            assert len(kubelet.registrations) == 1
            assert plugin.service.streams == 1
            assert plugin.socket.is_socket()


async def test_a_kubelet_that_restarts_while_holders_are_looked_at_is_told_of_a_socket_that_is_there(
    place: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It clears the directory when it starts: a name that is gone would cost it seconds without devices."""
    monkeypatch.setattr(registration, "DIAL_BACK_SECONDS", 600.0)
    async with Kubelet(place / "plugins") as kubelet:
        plugin.restarts.append(kubelet.restart)
        async with plugin.run():
            await listed(kubelet)
        assert plugin.restarts == []
        assert len(kubelet.registrations) == 1
        assert not any("no answer" in trouble for trouble in kubelet.troubles)


async def test_stopping_while_our_socket_is_bound_leaves_none(
    place: Path, plugin: Plugin, meanwhile: list[Callable[[], object]]
) -> None:
    async with Kubelet(place / "plugins") as kubelet:
        plugin.begin()
        task = asyncio.create_task(plugin.endpoint.run())
        paths: list[Path] = []

        def cancel() -> None:
            paths.append(plugin.socket)
            task.cancel()

        meanwhile.append(cancel)
        await asyncio.wait({task})
        plugin.lock.release()
        assert task.cancelled()
        assert meanwhile == []
        assert kubelet.registrations == []
        assert plugin.sockets() == []
        await until(lambda: unix_sockets(paths[0]) == 0, "no client at our socket")


# --- registrations --------------------------------------------------------------------------------


class Refusing(Kubelet):
    """Refuses registrations, and notes when."""

    refuses = True

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.asked: list[float] = []

    def refusal(self, request: api.RegisterRequest) -> str | None:
        self.asked.append(time.monotonic())
        return "never" if self.refuses else super().refusal(request)


async def test_a_kubelet_that_refuses_for_ever_is_asked_ever_more_seldom_and_told_of_once(
    place: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registration, "RETRY_SECONDS", (0.01, 0.16))
    async with Refusing(place / "plugins") as kubelet, plugin.run():
        await kubelet.until(lambda: len(kubelet.asked) > 4, timeout=SECONDS)
        before = len(descriptors())
        await kubelet.until(lambda: len(kubelet.asked) > 11, timeout=SECONDS)
        assert len(descriptors()) < before + SLACK
        assert kubelet.registrations == []
        kubelet.refuses = False
        await listed(kubelet)
        assert len(kubelet.registrations) == 1
    assert_pauses(kubelet.asked, 0.01, 0.16)
    [complaint] = [message for message in caplog.messages if "cannot register" in message]
    assert "never" in complaint
    assert RESOURCE in complaint


async def test_a_new_life_is_not_made_to_wait_for_what_the_former_one_refused(
    place: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "RETRY_SECONDS", (600.0, 600.0))
    async with Refusing(place / "plugins") as kubelet, plugin.run():
        await kubelet.until(lambda: kubelet.asked, timeout=SECONDS)
        kubelet.refuses = False
        await kubelet.restart()
        await listed(kubelet)
        assert len(kubelet.asked) == 2
        assert len(kubelet.registrations) == 1


class Ending(Kubelet):
    """Ends the stream of the plugin that had the resource before, as no kubelet does that is known."""

    def displace(self, former: KubeletsEnd) -> None:
        assert former.task
        former.task.cancel()


@asynccontextmanager
async def a_rival(plugin: Plugin) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A foreign plugin for our resource, which knows nothing of our lock; yields how it registers."""
    other = Plugin(plugin.socket.parent)
    server = server_of(other.service)
    server.add_insecure_port(f"unix:{plugin.socket.with_name('rival.sock')}")
    await server.start()
    request = api.RegisterRequest(version="v1beta1", endpoint="rival.sock", resource_name=RESOURCE)

    async def register() -> None:
        async with grpc.aio.insecure_channel(f"unix:{plugin.socket.with_name('kubelet.sock')}") as channel:
            await api_grpc.RegistrationStub(channel).Register(request)  # type: ignore[no-untyped-call]

    try:
        yield register
    finally:
        other.service.close()
        await server.stop(None)


async def test_a_rival_that_never_gives_up_is_answered_ever_more_slowly(
    place: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two plugins that take the resource from each other would else keep the kubelet busy for ever."""
    turns = 6
    monkeypatch.setattr(registration, "AGAIN_SECONDS", (0.04, 0.32))
    monkeypatch.setattr(registration, "DIAL_BACK_SECONDS", SECONDS)
    async with Ending(place / "plugins") as kubelet, plugin.run():
        await listed(kubelet)
        levels = Levels(plugin)
        async with a_rival(plugin) as register:
            for turn in range(1, turns + 1):
                await register()
                await registered(kubelet, 2 * turn + 1)
                await until(lambda: plugin.service.streams == 1, "our stream again")
                assert len(registrations_of(plugin, kubelet)) == turn + 1
        await listed(kubelet)
        await levels.are_back()
        times = registrations_of(plugin, kubelet)
        assert len(kubelet.registrations) == len(times) + turns
        assert_pauses(times[1:], 0.04, 0.32)


async def test_a_register_that_hangs_does_not_outlive_the_kubelet(
    place: Path, plugin: Plugin, looks: Looks
) -> None:
    """With its full deadline of seconds: the next life is there before that."""
    async with AsyncExitStack() as former:
        hesitant = await former.enter_async_context(Hesitant(place / "plugins"))
        async with plugin.run():
            await hesitant.until(lambda: hesitant.asked, timeout=SECONDS)
            await former.aclose()
            async with Kubelet(place / "plugins") as kubelet:
                await listed(kubelet)
                assert len(kubelet.registrations) == 1


async def test_a_register_answered_too_late_by_a_kubelet_that_has_its_stream_is_not_repeated(
    place: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch, looks: Looks
) -> None:
    """The stream says that the registration arrived; another one would replace it, and so on for ever."""
    monkeypatch.setattr(endpoint_module, "REGISTER_SECONDS", 0.2)
    async with Hesitant(place / "plugins") as kubelet:
        kubelet.eager = True
        async with plugin.run():
            await listed(kubelet)
            await looks.more(60)
            await listed(kubelet)
            assert len(kubelet.registrations) == 1


async def test_registered_again_when_no_stream_opens_in_time_and_no_sooner(
    place: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch, looks: Looks
) -> None:
    """A kubelet that never dials back costs nothing that stays."""

    class Deaf(Kubelet):
        deaf = True

        async def dial(self, registration: Registration) -> KubeletsEnd:
            if self.deaf:
                raise TimeoutError
            return await super().dial(registration)

    monkeypatch.setattr(registration, "DIAL_BACK_SECONDS", 0.02)
    async with Deaf(place / "plugins") as kubelet, plugin.run():
        await registered(kubelet, 5)
        before = len(descriptors())
        await registered(kubelet, 40)
        assert len(descriptors()) < before + SLACK
        assert plugin.service.streams == 0
        # From one answer to the next call: a registration's time is when the kubelet had read it.
        assert_pauses(registrations_of(plugin, kubelet), 0.02, 0.02)
        monkeypatch.setattr(registration, "DIAL_BACK_SECONDS", 0.3)
        kubelet.deaf = False
        await listed(kubelet)
        times = len(kubelet.registrations)
        await looks.more(40)
        assert len(kubelet.registrations) == times


@pytest.mark.parametrize("answers", [False, True])
async def test_a_socket_that_is_not_a_kubelets_is_left_for_one_that_is(
    place: Path, plugin: Plugin, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """It takes connections and is silent, or ends them at once."""
    monkeypatch.setattr(endpoint_module, "REGISTER_SECONDS", 0.1)
    directory = place / "plugins"
    directory.mkdir()
    connections: list[socket.socket] = []
    listener, _ = bind(directory / "kubelet.sock")
    listener.listen()
    listener.setblocking(False)

    def accept() -> None:
        with suppress(BlockingIOError):
            while True:
                connections.append(listener.accept()[0])
                if answers:
                    connections[-1].close()

    loop = asyncio.get_running_loop()
    loop.add_reader(listener.fileno(), accept)
    async with plugin.run():
        await until(lambda: len(connections) >= 4, "four attempts")
        async with Kubelet(directory) as kubelet:
            await listed(kubelet)
            assert len(kubelet.registrations) == 1
            loop.remove_reader(listener.fileno())
            for connection in (listener, *connections):
                connection.close()


# --- several at once ------------------------------------------------------------------------------


async def test_two_kubelets_whose_sockets_are_swapped_by_rename_are_each_registered_with(
    place: Path, plugin: Plugin, looks: Looks
) -> None:
    """Each swap is another socket file, registered with once, by a name of its own; the stream to the former
    kubelet ends first."""
    directory = place / "plugins"

    def put(name: str) -> None:
        (directory / "draft").hardlink_to(place / name)
        (directory / "draft").rename(directory / "kubelet.sock")

    async with AsyncExitStack() as lives:
        first = await lives.enter_async_context(Kubelet(directory))
        (place / "first").hardlink_to(first.socket)
        async with Kubelet(directory) as second:
            (place / "second").hardlink_to(second.socket)
            async with plugin.run():
                await listed(second)
                for turn in range(1, 6):
                    put("first")
                    await registered(first, turn)
                    await listed(first)
                    await second.until(lambda: not second.streams_open, timeout=SECONDS)
                    put("second")
                    await registered(second, turn + 1)
                    await listed(second)
                    await first.until(lambda: not first.streams_open, timeout=SECONDS)
                await looks.more(40)
                assert (len(first.registrations), len(second.registrations)) == (5, 6)
                names = [accepted.endpoint for accepted in (*first.registrations, *second.registrations)]
                assert len(set(names)) == len(names)
                judge(plugin, SICK)
                await second.until(lambda: second.allocatable(RESOURCE) == 1, timeout=SECONDS)
                judge(plugin, HEALTHY)
                await lives.aclose()
                directory.joinpath("kubelet.sock").unlink(missing_ok=True)
                put("second")
                await looks.more(40)
                assert len(second.registrations) == 6, "its stream has been open all the time"
                await listed(second)
