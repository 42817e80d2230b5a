# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server for probes and metrics. It has threads of its own, and so reports a stuck event
loop."""

import asyncio
import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from xpu_plugin.errors import UNHEEDED, Failures, PluginError
from xpu_plugin.frozen import frozen


ANSWER_SECONDS = 2.0  # for the event loop to make the contents of a page
IDLE_SECONDS = 5.0  # for a client to send its request
MOST_CONNECTIONS = 16  # connections at a time, each with a thread; probes and scrapers are a few
ACCEPT_AGAIN_SECONDS = 0.1  # pause after a lack of descriptors
WAKE_SECONDS = 3600.0  # without work: a connection or `close` wakes it
PLAIN = "text/plain; charset=utf-8"

Text = Callable[[], str]
"""Makes a page's text of what is in it already; it may take its time and is called on a thread."""


@frozen
class Page:
    """One page. contents: is called on the event loop, and has `seconds` for it; it returns None while there
    is nothing to show yet"""

    contents: Callable[[], Awaitable[Text | None]]
    content_type: str = PLAIN
    seconds: float | None = None


class UnreadyError(PluginError):
    """The page says that something is not ready; it is answered by 503."""


def plain(text: Text) -> Page:
    """Make a page with a text that the event loop returns. text: may raise UnreadyError"""

    async def contents() -> Text:
        made = text()
        return lambda: f"{made}\n"

    return Page(contents=contents)


class HttpServer:
    """Serves `pages` by path: 200, or 503 for a page that is not ready, and while the event loop does not
    answer. Takes over the listener.

    failures: takes the unforeseen error of a page, which is answered by 500
    """

    def __init__(
        self,
        listener: socket.socket,
        pages: Mapping[str, Page],
        failures: Failures = UNHEEDED,
    ) -> None:
        self._pages = pages
        self._failures = failures
        self._loop = asyncio.get_running_loop()
        self._server = _Server(listener, self._handler())
        self.port: int = self._server.server_address[1]
        serve = partial(self._server.serve_forever, poll_interval=WAKE_SECONDS)
        threading.Thread(target=serve, name="http", daemon=True).start()

    def close(self) -> None:
        """Stop listening, and abandon the requests that are being answered."""
        # shutdown() waits for serve_forever, which may be in the middle of a request's start.
        threading.Thread(target=self._server.shutdown, name="http end", daemon=True).start()
        with contextlib.suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def _contents(self, page: Page) -> Text | None:
        """Return the contents of a page from the event loop. Raises TimeoutError."""

        async def asked() -> Text | None:
            return await page.contents()

        try:
            future = asyncio.run_coroutine_threadsafe(asked(), self._loop)
        except RuntimeError:
            raise TimeoutError("the loop has ended") from None
        try:
            return future.result(page.seconds or ANSWER_SECONDS)
        except TimeoutError:
            future.cancel()
            raise

    def _failed(self, error: Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._failures.failed, error)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        pages, contents_of, failed = self._pages, self._contents, self._failed

        class Handler(BaseHTTPRequestHandler):
            timeout = IDLE_SECONDS
            server_version = "xpu-device-plugin"
            sys_version = ""

            def do_GET(self) -> None:
                page = pages.get(self.path.partition("?")[0])
                if page is None:
                    self._answer(HTTPStatus.NOT_FOUND, f"there are {' and '.join(sorted(pages))}\n")
                    return
                try:
                    text = contents_of(page)
                    made = None if text is None else text()
                except (TimeoutError, CancelledError):
                    self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "the event loop does not answer\n")
                    return
                except UnreadyError as error:
                    self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n")
                    return
                except Exception as error:  # noqa: BLE001 - other pages are served
                    failed(error)
                    self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "this page failed: see the log\n")
                    return
                if made is None:
                    self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "nothing to show yet\n")
                else:
                    self._answer(HTTPStatus.OK, made, page.content_type)

            def _answer(self, status: HTTPStatus, text: str, kind: str = PLAIN) -> None:
                body = text.encode(errors="backslashreplace")
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - as the base class has it

            def log_message(self, format: str, *args: object) -> None:
                """Log no request."""

        return Handler


class _Server(ThreadingHTTPServer):
    """Closes the oldest connection when there are too many. So a probe is answered although other clients
    keep silent or slow connections open."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: deque[Any] = deque()
        self._lock = threading.Lock()
        super().__init__(listener.getsockname()[:2], handler, bind_and_activate=False)
        self.socket.close()  # one that was not bound
        self.socket = listener

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(ACCEPT_AGAIN_SECONDS)  # otherwise it would be requested again at once
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.append(request)
            oldest = self._open.popleft() if len(self._open) > MOST_CONNECTIONS else None
        if oldest is not None:
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread sees the end, and closes it
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started; without an answer the kubelet's probe would end us
            self.process_request_thread(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that breaks off."""
