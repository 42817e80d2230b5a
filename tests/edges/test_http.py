# SPDX-License-Identifier: Apache-2.0
"""The HTTP server: what is on a page comes from the event loop, and when that is stuck the answer says so."""

import asyncio
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from tests.support.failures import Failed
from tests.support.waiting import SECONDS, until
from xpu_plugin.edges import http as http_module
from xpu_plugin.edges.http import MOST_CONNECTIONS, HttpServer, Page, UnreadyError, plain
from xpu_plugin.edges.listeners import listen
from xpu_plugin.errors import UNHEEDED, Failures


Start = Callable[..., HttpServer]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    before = set(threading.enumerate())
    servers: list[HttpServer] = []

    def make(
        pages: Mapping[str, Callable[[], str] | Page],
        host: str = "127.0.0.1",
        failures: Failures = UNHEEDED,
    ) -> HttpServer:
        made = {path: page if isinstance(page, Page) else plain(page) for path, page in pages.items()}
        servers.append(HttpServer(listen((host, 0)), made, failures))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
    await until(
        lambda: not {t for t in set(threading.enumerate()) - before if t.name.startswith(("http", "Thread"))},
        "the end of all threads",
    )


def ask(port: int, path: str, *, host: str = "127.0.0.1", method: str = "GET") -> tuple[int, str]:
    status, _, text = ask_whole(port, path, host=host, method=method)
    return status, text


def ask_whole(
    port: int, path: str, *, host: str = "127.0.0.1", method: str = "GET"
) -> tuple[int, str | None, str]:
    """Status, kind, text."""
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read().decode()
    finally:
        connection.close()


async def test_a_page_may_tell_why_it_is_not_ready(start: Start) -> None:
    failures = Failed()

    def page() -> str:
        raise UnreadyError("node: another one has it")

    server = start({"/readyz": page}, failures=failures)
    assert await asyncio.to_thread(ask, server.port, "/readyz") == (503, "node: another one has it\n")
    assert failures.errors == []


async def test_a_page_is_made_on_the_event_loop(start: Start) -> None:
    made_by: list[int] = []

    def page() -> str:
        made_by.append(threading.get_ident())
        return "fine\nand well"

    server = start({"/readyz": page})
    assert await asyncio.to_thread(ask, server.port, "/readyz?verbose=1") == (200, "fine\nand well\n")
    assert made_by == [threading.get_ident()]


@pytest.mark.parametrize(("path", "status"), [("/readyz", 200), ("/later", 503), ("/none", 404)])
async def test_head_is_get_without_the_text(path: str, status: int, start: Start) -> None:
    async def nothing() -> None:
        return None

    server = start({"/readyz": lambda: "fine", "/later": Page(contents=nothing, content_type="x/y")})

    def raw(method: bytes) -> tuple[list[bytes], bytes]:
        with socket.create_connection(("127.0.0.1", server.port), SECONDS) as connection:
            connection.sendall(method + b" " + path.encode() + b" HTTP/1.0\r\n\r\n")
            with connection.makefile("rb") as stream:
                head, _, text = stream.read().partition(b"\r\n\r\n")
        return [line for line in head.splitlines() if not line.startswith(b"Date")], text

    headers, text = await asyncio.to_thread(raw, b"GET")
    assert int(headers[0].split()[1]) == status
    assert f"Content-Length: {len(text)}".encode() in headers
    assert text
    assert await asyncio.to_thread(raw, b"HEAD") == (headers, b"")


async def test_a_page_with_a_name_that_is_not_utf_8_is_shown(start: Start) -> None:
    server = start({"/readyz": lambda: "no /tmp/\udcff"})
    assert await asyncio.to_thread(ask, server.port, "/readyz") == (200, "no /tmp/\\udcff\n")


async def test_a_page_of_a_kind_of_its_own_is_gathered_on_the_event_loop_and_written_on_another_thread(
    start: Start,
) -> None:
    threads: list[int] = []

    async def contents() -> Callable[[], str]:
        await asyncio.sleep(0)
        threads.append(threading.get_ident())

        def text() -> str:
            threads.append(threading.get_ident())
            return "a 1\n"

        return text

    server = start({"/metrics": Page(contents=contents, content_type="text/plain; version=0.0.4")})
    answer = await asyncio.to_thread(ask_whole, server.port, "/metrics")
    assert answer == (200, "text/plain; version=0.0.4", "a 1\n")
    assert threads[0] == threading.get_ident() != threads[1]


async def test_a_page_with_nothing_to_show_yet_says_so(start: Start) -> None:
    async def contents() -> None:
        return None

    server = start({"/metrics": Page(contents=contents)})
    assert await asyncio.to_thread(ask, server.port, "/metrics") == (503, "nothing to show yet\n")


async def test_a_page_that_takes_too_long_is_given_up_and_others_go_on(start: Start) -> None:
    given_up = asyncio.Event()

    async def contents() -> Callable[[], str]:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        raise AssertionError

    server = start({"/slow": Page(contents=contents, seconds=0.05), "/healthz": lambda: "ok"})
    status, _ = await asyncio.to_thread(ask, server.port, "/slow")
    assert status == 503
    async with asyncio.timeout(SECONDS):
        await given_up.wait()
    assert await asyncio.to_thread(ask, server.port, "/healthz") == (200, "ok\n")


async def test_what_is_not_there_is_not_found_and_says_what_is(start: Start) -> None:
    server = start({"/healthz": lambda: "ok", "/readyz": lambda: "ok"})
    status, text = await asyncio.to_thread(ask, server.port, "/")
    assert (status, text) == (404, "there are /healthz and /readyz\n")
    status, _ = await asyncio.to_thread(ask, server.port, "/healthz", method="POST")
    assert status == 501


async def test_a_stuck_event_loop_is_told(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "ANSWER_SECONDS", 0.05)
    server = start({"/healthz": lambda: "ok"})
    answers: list[tuple[int, str]] = []
    asking = threading.Thread(target=lambda: answers.append(ask(server.port, "/healthz")))
    asking.start()
    deadline = time.monotonic() + SECONDS
    while not answers and time.monotonic() < deadline:
        time.sleep(0.01)  # noqa: ASYNC251 - this is the stuck event loop
    asking.join()
    assert answers == [(503, "the event loop does not answer\n")]
    assert await asyncio.to_thread(ask, server.port, "/healthz") == (200, "ok\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_empty_host_is_both_families(start: Start, host: str) -> None:
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    server = start({"/healthz": lambda: "ok"}, "")
    assert await asyncio.to_thread(ask, server.port, "/healthz", host=host) == (200, "ok\n")


async def test_a_client_that_says_nothing_or_breaks_off_harms_nobody(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    server = start({"/healthz": lambda: "ok"})
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
    with socket.create_connection(("127.0.0.1", server.port)) as rude:
        rude.sendall(b"GET /healthz HTTP/1.1\r\n")
    assert await asyncio.to_thread(ask, server.port, "/healthz") == (200, "ok\n")
    for one in silent:
        one.close()
    assert capfd.readouterr() == ("", "")


async def test_a_probe_is_answered_without_a_thread_of_its_own(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a lack of threads that passes would be the end of the container."""
    server = start({"/healthz": lambda: "ok"})
    ours, begin = threading.current_thread(), threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        if threading.current_thread() is not ours and thread.name.startswith("Thread-"):
            raise RuntimeError("can't start new thread")
        begin(thread)

    probe = asyncio.create_task(asyncio.to_thread(ask, server.port, "/healthz"))
    monkeypatch.setattr(threading.Thread, "start", none_left)
    assert await probe == (200, "ok\n")


async def test_whoever_keeps_many_connections_open_gets_few_threads_and_keeps_nobody_out(
    start: Start,
) -> None:
    """Also when each says a byte now and then, so that none is ever idle."""
    server = start({"/healthz": lambda: "ok"})
    before = threading.active_count()
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3 * MOST_CONNECTIONS)]
    for one in slow:
        with contextlib.suppress(OSError):  # those that had to go
            one.sendall(b"G")
    assert await asyncio.to_thread(ask, server.port, "/healthz") == (200, "ok\n")
    await until(lambda: threading.active_count() <= before + MOST_CONNECTIONS + 1, "few threads")
    for one in slow:
        one.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"\xff" * 70_000,
        b"GET " + b"/" * 70_000,
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 1000,
        b"GET /\0 HTTP/9\r\n\r\n",
    ],
    ids=["noise", "an endless line", "a thousand headers", "a wrong version"],
)
async def test_what_is_no_request_is_refused_and_harms_nobody(
    start: Start, capfd: pytest.CaptureFixture[str], request_: bytes
) -> None:
    server = start({"/healthz": lambda: "ok"})

    def send() -> bytes:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
        with connection, contextlib.suppress(OSError):  # it need not be heard to the end
            connection.sendall(request_)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1 << 16)
        return b""

    heard = await asyncio.to_thread(send)
    assert b"ok" not in heard
    assert await asyncio.to_thread(ask, server.port, "/healthz") == (200, "ok\n")
    assert capfd.readouterr() == ("", "")


async def test_an_address_that_is_taken_is_refused(start: Start) -> None:
    server = start({})
    with pytest.raises(OSError, match="in use"):
        listen(("127.0.0.1", server.port))


def broken() -> str:
    raise RuntimeError("planted")


async def broken_when_written() -> Callable[[], str]:
    return broken


@pytest.mark.parametrize("page", [broken, Page(contents=broken_when_written)])
async def test_a_page_that_fails_is_status_500_and_others_are_served(
    start: Start, page: Callable[[], str] | Page
) -> None:
    """Be it on the event loop or on the thread, as when an import there fails."""
    failures = Failed()
    server = start({"/x": page, "/y": lambda: "ok"}, failures=failures)
    status, text = await asyncio.to_thread(ask, server.port, "/x")
    assert (status, text) == (500, "this page failed: see the log\n")
    assert (await asyncio.to_thread(ask, server.port, "/y"))[0] == 200
    assert [str(error) for error in failures.errors] == ["planted"]
