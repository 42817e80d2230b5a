# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the API server, over real sockets: one node, watches held open, and scripted misbehaviour.

Left alone it does what an API server does with a node: shows and lists it, streams its changes, applies
patches, of its status too and none for another version, and takes events. A reply put into a script is given
once instead. An admission webhook or policy may refuse patches by their keys, or write other values.
"""

import json
import queue
import socket
import ssl
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from tests.support.waiting import SECONDS


GET, LIST, WATCH, PATCH, POST = "get", "list", "watch", "patch", "post"
_END, _CUT = b"end", b"cut"

SECRET = "nobody-logs-this"  # noqa: S105 - of a server of ours

USER = 'User "system:serviceaccount:kube-system:xpu-device-plugin"'
FORBIDDEN = (
    f'nodes is forbidden: {USER} cannot do that to resource "nodes" in API group "" at the cluster scope'
)
"""As an authorizer says it."""
GATEKEEPER = (
    'admission webhook "validation.gatekeeper.sh" denied the request: [node-label-guard] labels of domain '
    "baidu.com may be set by the platform team only; see go/labels"
)
POLICY = (
    "nodes \"node-1\" is forbidden: ValidatingAdmissionPolicy 'node-labels' with binding 'x' denied request: "
    "label not in allow list"
)
KYVERNO = (
    'admission webhook "validate.kyverno.svc-fail" denied the request: \n\nresource Node//node-1 was blocked '
    "due to the following policies \n\nlabels: deny"
)
WEBHOOK_DOWN = (
    'Internal error occurred: failed calling webhook "validate.kyverno.svc-fail": failed to call webhook: '
    'Post "https://kyverno-svc.kyverno.svc:443/validate/fail?timeout=10s": no endpoints available for '
    'service "kyverno-svc"'
)


@dataclass(frozen=True, slots=True)
class Request:
    kind: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any  # JSON
    arrived: float

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").partition(" ")[2]


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer, given when `held` is set or the server closes."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    held: threading.Event | None = None

    @classmethod
    def refusal(cls, status: int, message: str | None = None, **headers: str) -> Self:
        """As the API server refuses; one that says nothing else is of the authorizer where that speaks."""
        if message is None:
            message = FORBIDDEN if status == 403 else "as scripted"
        body = json.dumps({"kind": "Status", "code": status, "message": message}).encode()
        return cls(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


class Stream:
    """One watch that is held open. What is sent at once comes as one chunk."""

    def __init__(self) -> None:
        self.chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def raw(self, chunk: bytes) -> None:
        self.chunks.put(b"=" + chunk)

    def send(self, *events: dict[str, object]) -> None:
        self.raw(b"".join(json.dumps(event).encode() + b"\n" for event in events))

    def end(self) -> None:
        """As a server does when the time that it was asked for is over."""
        self.chunks.put(_END)

    def cut(self) -> None:
        """As when the connection breaks."""
        self.chunks.put(_CUT)


class ApiServer:
    """The server; everything may be called from the test's thread while it runs."""

    def __init__(self, node: str, *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.node = node
        self.exists = True
        self.labels: dict[str, str] = {}
        self.annotations: dict[str, str] = {}
        self.taints: list[dict[str, str]] = []
        self.allocatable: dict[str, str] = {}
        self.conditions: list[dict[str, str]] = []
        self.uid = "00000000-0000-0000-0000-000000000001"
        self.version = 1000
        self.admission: Callable[[dict[str, str | None]], Reply | None] = lambda _: None  # of a patch's keys
        self.mutation: Callable[[str, str], str] = lambda _, value: value  # of each key and value
        self.tokens: set[str] | None = None  # that are accepted; None: any, and none
        self.denied: set[str] = set()  # `verb resource` that a review says may not be done
        self.scripts: dict[str, deque[Reply]] = {kind: deque() for kind in (GET, LIST, WATCH, PATCH, POST)}
        self.requests: list[Request] = []
        self.events: list[dict[str, Any]] = []
        self.streams: list[Stream] = []
        self._held: list[threading.Event] = []
        self._closed = False
        self._news = threading.Condition()
        self._connections: set[socket.socket] = set()
        outer = self

        class Handler(_Handler):
            server_of = outer

        self._server = _Listener(("127.0.0.1", port), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port: int = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more, and break every connection."""
        with self._news:
            self._closed = True
            for held in self._held:
                held.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for stream in self.streams:
            stream.cut()
        with self._news:
            connections = list(self._connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # its other end was quicker

    # --- what a test says and asks ------------------------------------------------------------------

    def script(self, kind: str, *replies: Reply) -> None:
        self.scripts[kind].extend(replies)

    def metadata(self) -> dict[str, object]:
        return {
            "name": self.node,
            "uid": self.uid,
            "resourceVersion": str(self.version),
            "labels": dict(self.labels),
            "annotations": dict(self.annotations),
        }

    def modified(self) -> dict[str, object]:
        return {"type": "MODIFIED", "object": {"metadata": self.metadata()}}

    def bookmark(self, version: int) -> dict[str, object]:
        return {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}

    def change(self, labels: dict[str, str | None], annotations: dict[str, str | None] | None = None) -> None:
        """Another client changes the node; every watch reports it."""
        with self._news:
            for own, changes in ((self.labels, labels), (self.annotations, annotations or {})):
                for key, value in changes.items():
                    own.pop(key, None)
                    if value is not None:
                        own[key] = value
            self.version += 1
            for stream in self.streams:
                stream.send(self.modified())

    def wait(self, kind: str, number: int = 1) -> list[Request]:
        """The requests of one kind, as soon as there are so many."""
        self._until(lambda: len(self.of(kind)) >= number, f"{number} requests: {kind}")
        return self.of(kind)

    def of(self, kind: str) -> list[Request]:
        return [request for request in list(self.requests) if request.kind == kind]

    def stream(self, number: int = 1) -> Stream:
        """The so manieth watch that was held open, as soon as it is."""
        self._until(lambda: len(self.streams) >= number, f"{number} streams")
        return self.streams[number - 1]

    def _until(self, predicate: Any, what: str) -> None:
        with self._news:
            assert self._news.wait_for(predicate, SECONDS), f"{what}; there were {self.requests}"

    # --- what the handler does with them ------------------------------------------------------------

    def connected(self, connection: socket.socket, there: bool) -> None:
        with self._news:
            (self._connections.add if there else self._connections.discard)(connection)

    def hold(self, held: threading.Event) -> None:
        with self._news:
            self._held.append(held)
            if self._closed:
                held.set()
        held.wait(SECONDS)

    def scripted(self, request: Request) -> Reply | None:
        with self._news:
            self.requests.append(request)
            self._news.notify_all()
            if self.tokens is not None and request.token not in self.tokens:
                return Reply.refusal(401, "Unauthorized")
            script = self.scripts[request.kind]
            return script.popleft() if script else None

    def listed(self) -> Reply:
        """The answer to a list, as of now."""
        items = [{"metadata": self.metadata()}] if self.exists else []
        return reply({"metadata": {"resourceVersion": str(self.version)}, "items": items})

    def usual(self, request: Request) -> Reply:
        with self._news:
            if request.kind == LIST:
                return self.listed()
            if request.kind == GET:
                return self.shown() if self.exists else Reply.refusal(404, "not found")
            if request.path.endswith("/selfsubjectaccessreviews"):
                asked = request.body["spec"]["resourceAttributes"]
                allowed = f"{asked['verb']} {asked['resource']}" not in self.denied
                return reply({**request.body, "status": {"allowed": allowed}}, 201)
            if request.kind == POST:
                self.events.append(request.body)
                self._news.notify_all()
                return reply(request.body, 201)
        changes = request.body.get("metadata", {})
        if changes.get("resourceVersion") not in (None, str(self.version)):
            return Reply.refusal(409, "the object has been modified; please apply your changes to the latest")
        self._merge(request)
        labels, annotations = changes.get("labels", {}), changes.get("annotations", {})
        if (refusal := self.admission({**labels, **annotations})) is not None:
            return refusal
        self.change(
            *(
                {key: value and self.mutation(key, value) for key, value in part.items()}
                for part in (labels, annotations)
            )
        )
        return reply({"metadata": self.metadata()})

    def _merge(self, request: Request) -> None:
        """Apply what a patch says of taints, or of conditions by their type."""
        with self._news:
            if "spec" in request.body:
                self.taints = request.body["spec"]["taints"] or []
            if request.path.endswith("/status"):
                assert request.headers["content-type"] == "application/strategic-merge-patch+json"
                for new in request.body["status"]["conditions"]:
                    old = [own for own in self.conditions if own["type"] == new["type"]]
                    if new.get("$patch") == "delete":
                        self.conditions = [own for own in self.conditions if own not in old]
                        continue
                    for own in old:
                        own.update(new)
                    self.conditions += [] if old else [dict(new)]

    def shown(self) -> Reply:
        """The whole node."""
        status = {"allocatable": self.allocatable, "conditions": self.conditions}
        return reply({"metadata": self.metadata(), "spec": {"taints": self.taints}, "status": status})

    def renewed(self, **facts: Any) -> None:
        """The node is deleted and made anew, with these facts."""
        with self._news:
            self.taints, self.allocatable, self.conditions = [], {}, []
            for name, value in facts.items():
                setattr(self, name, value)
            self.uid = f"{self.uid[:-1]}{int(self.uid[-1]) + 1}"
        self.change({})

    def opened(self, stream: Stream) -> None:
        with self._news:
            self.streams.append(stream)
            self._news.notify_all()


def reply(document: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(document).encode())


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is none."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: ApiServer

    def setup(self) -> None:
        super().setup()
        self.server_of.connected(self.connection, True)

    def finish(self) -> None:
        self.server_of.connected(self.connection, False)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        whole = "?" not in self.path and self.path.endswith(f"/nodes/{self.server_of.node}")
        self._serve(WATCH if "watch=true" in self.path else GET if whole else LIST)

    def do_PATCH(self) -> None:
        self._serve(PATCH)

    def do_POST(self) -> None:
        self._serve(POST)

    def _serve(self, kind: str) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        request = Request(
            kind,
            url.path,
            dict(parse_qsl(url.query)),
            {name.lower(): value for name, value in self.headers.items()},
            json.loads(self.rfile.read(length)) if length else None,
            time.monotonic(),
        )
        answer = self.server_of.scripted(request)
        if answer is None and kind == WATCH:
            self._stream()
            return
        answer = answer or self.server_of.usual(request)
        if answer.held:
            self.server_of.hold(answer.held)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        stream = Stream()
        self.server_of.opened(stream)
        while True:
            chunk = stream.chunks.get()
            if chunk == _CUT:
                self.close_connection = True
                return
            if chunk == _END:
                self.wfile.write(b"0\r\n\r\n")
                return
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk) - 1, chunk[1:]))


def certificate(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that is its own authority, and what a server needs to show it."""
    ca, key = directory / "ca.crt", directory / "tls.key"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=api"
    )
    extension = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command.split(), *extension, "-keyout", key, "-out", ca], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, key)
    return ca, context


def write_kubeconfig(file: Path, url: str, token: str = SECRET, **cluster: str) -> Path:
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "own",
                "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own"}}],
                "clusters": [{"name": "own", "cluster": {"server": url, **cluster}}],
                "users": [{"name": "own", "user": {"token": token}}],
            }
        )
    )
    return file
