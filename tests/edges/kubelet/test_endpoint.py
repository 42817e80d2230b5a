# SPDX-License-Identifier: Apache-2.0
"""The endpoint against a kubelet's real sockets: registered once in each of its lives."""

import asyncio
import errno
import logging
import os
import re
import resource
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from tests.support.endpoint import NAME, PREFIX, Looks, Plugin, listed, registered
from tests.support.machines import RESOURCE
from tests.support.waiting import PROMPT_SECONDS, SECONDS, until
from xpu_plugin.edges.kubelet import channel
from xpu_plugin.edges.kubelet import endpoint as endpoint_module
from xpu_plugin.edges.kubelet import lock as lock_module
from xpu_plugin.edges.kubelet.directory import identity_of
from xpu_plugin.edges.kubelet.lock import InstanceLock
from xpu_plugin.model import registration
from xpu_plugin.proto import deviceplugin_pb2_grpc
from xpu_plugin.simulation.kubelet import Kubelet


pytestmark = pytest.mark.usefixtures("leaves_no_task")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience for tests; what makes a restart noticed at once stays as it is."""
    monkeypatch.setattr(registration, "DIAL_BACK_SECONDS", 0.3)
    monkeypatch.setattr(registration, "AGAIN_SECONDS", (0.05, 0.2))
    monkeypatch.setattr(registration, "STREAM_POLL_SECONDS", 0.02)
    monkeypatch.setattr(lock_module, "LOCK_SECONDS", 0.02)


@pytest.fixture
async def kubelet(place: Path, leaves_no_task: None) -> AsyncIterator[Kubelet]:
    async with Kubelet(place / "plugins") as kubelet:
        yield kubelet


# --- registration ---------------------------------------------------------------------------------


async def test_a_running_kubelet_is_registered_with_once(
    kubelet: Kubelet, plugin: Plugin, looks: Looks
) -> None:
    async with plugin.run():
        await listed(kubelet)
        await looks.more(40)  # more than twice the time in which a stream has to open
        assert plugin.socket.stat().st_mode & 0o777 == 0o600
    [accepted] = kubelet.registrations
    assert (accepted.resource, accepted.version) == (RESOURCE, "v1beta1")
    assert NAME.fullmatch(accepted.endpoint)
    assert accepted.pre_start_required
    assert accepted.preferred_allocation_available
    assert kubelet.lists(RESOURCE) == 1


@pytest.mark.parametrize("directory", [True, False])
async def test_a_kubelet_that_comes_later_is_waited_for(
    place: Path, plugin: Plugin, looks: Looks, caplog: pytest.LogCaptureFixture, directory: bool
) -> None:
    caplog.set_level(logging.INFO)
    if directory:
        (place / "plugins").mkdir()
    async with plugin.run():
        await (looks.more(10) if directory else asyncio.sleep(0))
        async with Kubelet(place / "plugins") as kubelet:
            await listed(kubelet)
    assert ("waiting for the kubelet's socket" in caplog.text) or not directory
    assert len(kubelet.registrations) == 1


async def test_sockets_left_by_killed_plugins_are_removed_and_no_others(
    kubelet: Kubelet, plugin: Plugin
) -> None:
    """Those with our prefix that no process listens at, and only by the plugin that has the lock."""
    directory = kubelet.directory
    stale = [f"{PREFIX}.sock", f"{PREFIX}-0123abcd.sock", f"{PREFIX}-R200-VF-8G-0123abcd.sock"]
    for name in (*stale, "other.sock"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(directory / name))
    (directory / f"{PREFIX}-file.sock").touch()
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(directory / f"{PREFIX}-fedcba98.sock"))
        living.listen()
        rival = InstanceLock(directory)
        rival.acquire_at_once()
        async with plugin.run():
            await until(lambda: plugin.lock.rival, "a plugin that waits for the lock")
            assert set(stale) < set(plugin.sockets())
            rival.release()
            await listed(kubelet)
            assert sorted(plugin.sockets()) == sorted(
                [plugin.socket.name, f"{PREFIX}-fedcba98.sock", f"{PREFIX}-file.sock"]
            )
            assert (directory / "other.sock").exists()


# --- a new life of the kubelet --------------------------------------------------------------------


async def test_registered_within_100_ms_of_the_kubelet_coming_back(kubelet: Kubelet, plugin: Plugin) -> None:
    """Also after it was away for seconds. The median, as this machine has other things to do."""
    delays = []
    async with plugin.run():
        for _ in range(7):
            await listed(kubelet)
            await kubelet.stop()
            await until(lambda: plugin.service.streams == 0)
            times = len(kubelet.registrations)
            await kubelet.start()
            back = time.monotonic()
            await registered(kubelet, times + 1)
            delays.append(kubelet.registrations[-1].time - back)
    assert statistics.median(delays) < 0.1


async def test_a_kubelet_that_is_away_for_long_is_still_looked_for(
    kubelet: Kubelet, plugin: Plugin, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "FAST_FOR_SECONDS", 0.05)
    async with plugin.run():
        await listed(kubelet)
        await kubelet.stop(remove_sockets=True)
        await until(lambda: plugin.service.streams == 0)
        await looks.more(10)
        await kubelet.start()
        await listed(kubelet)


async def test_a_kubelet_that_restarts_while_its_stream_lives_on_is_noticed(
    kubelet: Kubelet, plugin: Plugin, place: Path
) -> None:
    """The stream of the former life may take its time to end; the new socket alone is reason enough."""
    async with plugin.run():
        await listed(kubelet)
        async with Kubelet(place / "plugins") as successor:
            await listed(successor)
            assert len(successor.registrations) == 1


async def test_a_kubelet_that_is_replaced_just_before_it_is_asked_is_registered_with_once(
    kubelet: Kubelet, plugin: Plugin, monkeypatch: pytest.MonkeyPatch, looks: Looks
) -> None:
    """Between our look at its socket and the call another life may begin: that one then knows us."""

    acquire = plugin.tenures.acquire

    async def acquire_late() -> None:
        await acquire()
        monkeypatch.setattr(plugin.tenures, "acquire", acquire)
        await kubelet.restart()

    monkeypatch.setattr(plugin.tenures, "acquire", acquire_late)
    async with plugin.run():
        await listed(kubelet)
        await looks.more(40)
    assert len(kubelet.registrations) == 1


# --- again in the same life -----------------------------------------------------------------------


async def test_each_registration_is_by_a_socket_with_a_name_of_its_own(
    kubelet: Kubelet, plugin: Plugin
) -> None:
    """A kubelet 1.37 refuses a path that it knows, for ever."""
    async with plugin.run():
        for turn in range(3):
            await listed(kubelet)
            kubelet.cut(RESOURCE)
            await registered(kubelet, 2 * turn + 2)
            await listed(kubelet)
            await kubelet.restart()
            await registered(kubelet, 2 * turn + 3)
        await listed(kubelet)
    names = [accepted.endpoint for accepted in kubelet.registrations]
    assert len(names) == len(set(names)) == 7
    assert [accepted.life for accepted in kubelet.registrations] == [1, 1, 2, 2, 3, 3, 4]
    assert plugin.looks >= 7, "holders are looked at before each registration"


async def test_a_look_at_holders_does_not_count_for_a_kubelet_that_has_started_since(
    kubelet: Kubelet, plugin: Plugin
) -> None:
    """It may have lost its checkpoint."""

    async def another() -> None:
        kubelet.socket.chmod(0o600)  # by its times it may be another one

    plugin.restarts.append(another)
    async with plugin.run():
        await listed(kubelet)
    assert plugin.looks == 2


@pytest.mark.parametrize(
    "touch",
    [lambda path: path.chmod(0o700), os.utime, lambda path: os.chown(path, -1, -1)],
    ids=["chmod", "touch", "chown"],
)
async def test_a_touched_kubelet_socket_is_no_new_kubelet(
    kubelet: Kubelet, plugin: Plugin, looks: Looks, touch: Callable[[Path], object]
) -> None:
    """Only its times are others. To register would be refused, for ever, by a kubelet 1.37."""
    async with plugin.run():
        await listed(kubelet)
        former = identity_of(kubelet.socket)
        touch(kubelet.socket)
        assert identity_of(kubelet.socket) != former
        await looks.more(40)
        assert len(kubelet.registrations) == 1
        kubelet.cut(RESOURCE)
        await registered(kubelet, 2)
        await listed(kubelet)


async def test_a_cut_stream_is_replaced_at_once(
    kubelet: Kubelet, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a former plugin's stream cuts ours in kubelets before 1.37."""
    monkeypatch.setattr(registration, "AGAIN_SECONDS", (600.0, 600.0))
    async with plugin.run():
        await listed(kubelet)
        kubelet.cut(RESOURCE)
        await registered(kubelet, 2)
        await listed(kubelet)


async def test_a_registration_without_an_answer_ends_though_grpc_keeps_no_deadline(
    kubelet: Kubelet, plugin: Plugin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stub = deviceplugin_pb2_grpc.RegistrationStub
    ended: list[BaseException] = []

    class Silent:
        def __init__(self, channel: object) -> None:
            monkeypatch.setattr(deviceplugin_pb2_grpc, "RegistrationStub", stub)  # the next call is answered

        async def Register(self, request: object, *, timeout: float) -> None:  # noqa: N802, ASYNC109
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                ended.append(error)
                raise

    monkeypatch.setattr(deviceplugin_pb2_grpc, "RegistrationStub", Silent)
    monkeypatch.setattr(endpoint_module, "REGISTER_SECONDS", 0.1)
    monkeypatch.setattr(endpoint_module, "MARGIN_SECONDS", 0.05)
    async with plugin.run():
        await until(lambda: ended, "the end of a call")
        monkeypatch.setattr(endpoint_module, "REGISTER_SECONDS", SECONDS)
        await listed(kubelet)
    assert plugin.endpoint.failures == 1
    assert f'cannot register resource={RESOURCE} error="no answer within 0.15 s"' in caplog.messages


@pytest.mark.parametrize("mount", ["/var/lib/kubelet/device-plugins", None])
async def test_a_kubelet_that_stays_away_is_told_with_the_remedy(
    place: Path,
    plugin: Plugin,
    mount: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A new pod is needed where the host has deleted the directory since this one has started."""
    monkeypatch.setattr(endpoint_module, "deleted", lambda path: mount if path == plugin.directory else "")
    monkeypatch.setattr(registration, "ABSENT_SECONDS", 0.05)
    (place / "plugins").mkdir()
    async with plugin.run():
        await until(lambda: "no kubelet answers" in caplog.text, "a complaint")
        (said,) = [message for message in caplog.messages if "no kubelet answers" in message]
        async with Kubelet(place / "plugins") as kubelet:
            await listed(kubelet)
    if mount:
        assert f"mount={mount}" in said
        assert "delete the plugin's pod" in said
    else:
        assert "see that --device-plugin-dir is the kubelet's directory" in said


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _file(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize("kind", [(_circle, "ELOOP"), (_file, "ENOTSOCK")], ids=["a circle", "a file"])
async def test_a_kubelet_socket_that_refuses_is_not_taken_for_absent(
    place: Path,
    plugin: Plugin,
    kind: tuple[Callable[[Path], None], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is said at once and once, in the endpoint's state too; the kubelet is found when it comes."""
    monkeypatch.setattr(registration, "ABSENT_SECONDS", 0.1)
    make, name = kind
    looks = Looks(monkeypatch)
    path = place / "plugins/kubelet.sock"
    path.parent.mkdir()
    make(path)
    async with plugin.run():
        await until(lambda: plugin.endpoint.obstacle is not None, "an obstacle")
        await looks.more(20)
        [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert str(path) in warning
        assert f"({name})" in warning
        path.unlink()
        async with Kubelet(place / "plugins") as kubelet:
            await listed(kubelet)
            assert plugin.endpoint.obstacle is None


async def test_a_connection_that_is_denied_is_not_taken_for_absent(
    kubelet: Kubelet, plugin: Plugin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As by SELinux, which lets the file be looked at. Our socket's name stays: the kubelet was not told."""
    monkeypatch.setattr(registration, "ABSENT_SECONDS", 0.1)
    await kubelet.stop()  # the socket stays
    denied = True

    def reached(path: Path) -> int:
        return errno.EACCES if denied else channel.reached(path)

    monkeypatch.setattr(endpoint_module, "reached", reached)
    async with plugin.run():
        await until(lambda: plugin.endpoint.failures >= 4, "attempts")
        assert str(plugin.endpoint.obstacle).startswith(f"{kubelet.socket}: Permission denied (EACCES); ")
        [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert "privileged" in warning
        assert len(plugin.sockets()) == 1
        denied = False
        await kubelet.start()
        await listed(kubelet)
        assert plugin.endpoint.obstacle is None


async def test_a_socket_nobody_listens_on_is_tried_again(
    place: Path, plugin: Plugin, looks: Looks, kubelet: Kubelet
) -> None:
    await kubelet.stop()
    assert kubelet.socket.is_socket()
    async with plugin.run():
        await looks.more(5)
        await kubelet.start()
        await listed(kubelet)


# --- several endpoints, several plugins -----------------------------------------------------------


async def test_each_resource_has_a_socket_of_its_own(kubelet: Kubelet, place: Path) -> None:
    one, two = Plugin(place / "plugins"), Plugin(place / "plugins", "baidu.com/R200-VF-8G")
    two.endpoint._turn, two.watch.stage = one.tenures, one.tenures.stage
    async with one.run(), two.run():
        await kubelet.until(lambda: kubelet.streams_open == 2, timeout=SECONDS)
        await listed(kubelet, "baidu.com/R200-VF-8G")
        one_name, two_name = sorted((accepted.endpoint for accepted in kubelet.registrations), key=len)
        assert NAME.fullmatch(one_name)
        assert re.fullmatch(r"xpu-device-plugin-R200-VF-8G-[0-9a-f]{8}\.sock", two_name)
        await kubelet.restart()
        await kubelet.until(lambda: kubelet.streams_open == 2, timeout=SECONDS)
        assert len(kubelet.registrations) == 4


async def test_a_second_plugin_waits_saying_so_and_takes_over(
    kubelet: Kubelet, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Plugin(place / "plugins"), Plugin(place / "plugins")

    def waiting() -> list[str]:
        return [record.message for record in caplog.records if "another plugin works in" in record.message]

    async with AsyncExitStack() as first_life:
        await first_life.enter_async_context(first.run())
        await listed(kubelet)
        async with second.run():
            await until(waiting)
            await kubelet.restart()
            await listed(kubelet)
            assert (first.service.streams, second.service.streams) == (1, 0)
            [message] = waiting()
            assert str(place / "plugins") in message

            await first_life.aclose()
            await until(lambda: second.service.streams == 1)
            await listed(kubelet)
            assert second.socket.is_socket()
    assert second.sockets() == []


# --- the end --------------------------------------------------------------------------------------


async def test_stopping_ends_streams_and_removes_the_socket(kubelet: Kubelet, plugin: Plugin) -> None:
    async with plugin.run():
        await listed(kubelet)
        begin = time.monotonic()
    assert time.monotonic() - begin < PROMPT_SECONDS
    await kubelet.until(lambda: kubelet.streams_open == 0, timeout=SECONDS)
    assert plugin.sockets() == []


async def test_stopping_is_not_lost_in_the_stop_of_a_server(
    kubelet: Kubelet, plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a kubelet ends just before us, and gRPC swallows the cancellation of the bind that follows."""
    plugin.begin()
    task = asyncio.create_task(plugin.endpoint.run())
    await listed(kubelet)
    stop = plugin.endpoint._stop

    async def swallow() -> None:
        monkeypatch.setattr(plugin.endpoint, "_stop", stop)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(SECONDS)
        await stop()

    monkeypatch.setattr(plugin.endpoint, "_stop", swallow)
    kubelet.cut(RESOURCE)
    done, _ = await asyncio.wait({task}, timeout=SECONDS)
    plugin.lock.release()
    assert done == {task}
    assert plugin.sockets() == []


async def test_a_server_that_grpc_does_not_stop_is_left(
    kubelet: Kubelet, plugin: Plugin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endpoint_module, "STOP_SECONDS", 0.05)
    monkeypatch.setattr(endpoint_module, "MARGIN_SECONDS", 0.05)

    async def hang(grace: float) -> None:
        await asyncio.Event().wait()

    async with plugin.run():
        await listed(kubelet)
        server = plugin.endpoint._server
        assert server is not None
        with monkeypatch.context() as patch:
            patch.setattr(server, "stop", hang)
            await kubelet.restart()
            await listed(kubelet)
            grant = await kubelet.allocate(RESOURCE, 1)
        assert grant.nodes
        await server.stop(None)
    assert f"gRPC does not stop the server of a socket; it is left resource={RESOURCE}" in caplog.messages
    assert plugin.sockets() == []


async def test_stopping_without_a_kubelet_or_before_it_is_there(place: Path, plugin: Plugin) -> None:
    begin = time.monotonic()
    async with plugin.run():
        await asyncio.sleep(0)
    async with Kubelet(place / "plugins") as kubelet:
        async with plugin.run():
            await listed(kubelet)
            await kubelet.stop(remove_sockets=True)
            await until(lambda: plugin.service.streams == 0)
        assert plugin.sockets() == []
    assert time.monotonic() - begin < SECONDS


async def test_stopping_while_a_kubelet_does_not_answer(place: Path, plugin: Plugin) -> None:
    """One that has its socket and reads nothing from it."""
    (place / "plugins").mkdir()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(place / "plugins/kubelet.sock"))
        silent.listen()
        async with plugin.run():
            connection, _ = await asyncio.to_thread(silent.accept)
            begin = time.monotonic()
        assert time.monotonic() - begin < PROMPT_SECONDS
        connection.close()
    assert plugin.sockets() == []


async def test_a_socket_that_cannot_be_bound_is_said_once_and_tried_again(
    kubelet: Kubelet,
    plugin: Plugin,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: (b"\x01\x23\xab\xcd" * size)[:size])
    obstacle = kubelet.directory / f"{PREFIX}-0123abcd.sock"
    obstacle.mkdir()
    async with plugin.run():
        await until(lambda: "cannot bind" in caplog.text, "a complaint")
        obstacle.rmdir()
        await registered(kubelet, 1)
        await listed(kubelet)
    assert caplog.text.count("cannot bind") == 1
    assert "add_port" not in capfd.readouterr().err, "gRPC says nothing of its own"


@pytest.mark.parametrize("free", [0, 1])
async def test_a_lack_of_descriptors_at_a_registration_is_said_and_passes(
    kubelet: Kubelet, plugin: Plugin, caplog: pytest.LogCaptureFixture, free: int
) -> None:
    """It is neither an unforeseen error nor a kubelet that is away."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def lack() -> None:
        spare = [os.dup(0) for _ in range(free + 1)]
        for descriptor in spare:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare), hard))

    plugin.restarts.append(lack)
    try:
        async with plugin.run():
            await until(lambda: "cannot register" in caplog.text, "a complaint")
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await listed(kubelet)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in caplog.text
