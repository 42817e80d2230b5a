# SPDX-License-Identifier: Apache-2.0
"""Requests to the API server: credentials, one request, one answer or stream.

Only the lowest layer of the Kubernetes client is used, for credentials and HTTP: its models and APIs would
take 22 MB more on every node. The thread of the first request imports it.
"""

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeGuard

from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen
from xpu_plugin.log import Message, printable
from xpu_plugin.model.refusals import FORBIDDEN, UNAUTHORIZED, Speaker, speaker


if TYPE_CHECKING:
    import urllib3
    from kubernetes.client import ApiClient


logger = logging.getLogger(__name__)

TOKEN_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
CA_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
CLUSTER_ROLE = "deployment/xpu-operator_rbac.authorization.k8s.io_v1_clusterrole.yaml"
CLUSTER_ROLE_BINDING = "deployment/xpu-operator_rbac.authorization.k8s.io_v1_clusterrolebinding.yaml"
POD_EVENTS = "create events about pods"
_RIGHTS = {
    "patch nodes/status": "deployment/node-condition.yaml",
    POD_EVENTS: "deployment/pod-events.yaml",
}
"""Requests of options that need a role of their own."""
COMPONENT = "xpu-device-plugin"
NODES = "/api/v1/nodes"
# A server uses the first form that it knows; servers before 1.15 send the whole object.
ITEM = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"

STRATEGIC = "application/strategic-merge-patch+json"
"""A patch that merges a list by the key of its elements, such as conditions by their type."""

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 15.0  # of silence before an answer, except for a watch
RETRY_AFTER_MOST_SECONDS = 300.0  # upper limit for the time that the server asks for
RETRY_AFTER_ODD_SECONDS = 86400.0  # more than this is no request of a server that is well
LONGEST_LINE = 4 << 20  # bytes; a whole Node, from servers before 1.15, is less than 2 MiB
LONGEST_REFUSAL = 64 << 10  # bytes of an error's body that are read
LONGEST_WORDS = 600  # characters of the server's text that are quoted

_OK = range(200, 300)
_CHUNK = 64 << 10

AWAY, BROKEN, MISSING, REFUSED, STRANGER = "away", "broken", "missing", "refused", "stranger"
"""Why there is no answer. One kind of trouble is said once, however its text changes."""


def has_credentials(kubeconfig: Path | None) -> bool:
    """Return whether credentials exist. Imports nothing."""
    if kubeconfig is not None:
        return True
    address = (os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT"))
    return all(address) and TOKEN_FILE.is_file()


class FailureCounts:
    """Counts failed requests; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, int | None]] = Counter()

    def add(self, failure: "Failed") -> None:
        with self._lock:
            self._counts[failure.what, failure.status] += 1

    @property
    def counts(self) -> dict[tuple[str, int | None], int]:
        """Number of failures by request and HTTP status; None without a status."""
        with self._lock:
            return dict(self._counts)


class Failed(PluginError):  # noqa: N818 - not always an error: 410, and what only has to be tried again
    """A request failed. The text names the request and the reason, and holds no secrets.

    status, speaker, words: of an HTTP answer: its status, the part that refuses, and its text
    """

    def __init__(
        self,
        why: str,
        *,
        what: str = "",
        kind: str = AWAY,
        status: int | None = None,
        words: str = "",
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(why)
        self.what = what or why.partition(":")[0]  # each text begins with the request
        self.kind = kind
        self.status = status
        self.words = words
        self.speaker = None if status is None else speaker(status, words)
        asked = retry_after if 0 <= retry_after <= RETRY_AFTER_ODD_SECONDS else 0.0
        self.retry_after = min(float(asked), RETRY_AFTER_MOST_SECONDS)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn any error of the client into Failed."""
    try:
        yield
    except Failed:
        raise
    except Exception as error:  # noqa: BLE001 - the client may raise any error, and the next round tries again
        raise Failed(f"{what}: {_why(error)}", what=what) from None


# The client's modules import each other at their first use; two threads that do so at a time may deadlock.
_importing = threading.Lock()


def _why(error: Exception) -> str:
    """Return one line about an error. The text of an unknown error may quote a header, and so a token."""
    text: object = error if isinstance(error, OSError | ImportError) else type(error).__name__
    with suppress(Exception), _importing:  # the error may be one of importing
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415 - on the thread, not before
        from kubernetes.config import ConfigException  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        if isinstance(error, ApiException):
            text = error.reason
        elif isinstance(error, ConfigException | HTTPError):
            text = error
    return said(str(text))


class ApiServerClient:
    """The connection of one thread to the API server. It reads credentials at the first request, and again
    after each failure that they may have caused. The client itself reads the token each minute."""

    def __init__(self, kubeconfig: Path | None) -> None:
        self._kubeconfig = kubeconfig
        self._client: ApiClient | None = None

    def open(
        self,
        method: str,
        path: str,
        *,
        what: str,
        accept: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
        content: str | None = None,
        silence: float | None = None,
    ) -> "Answer":
        """Send a request; return an unread answer with a good status.

        content: the type of the body; for a patch, merge patch if not given
        silence: seconds that it may pause

        Raises Failed for anything else, at once. Only a request with older credentials that the server no
        longer accepts is repeated.
        """
        content = content or ("application/merge-patch+json" if method == "PATCH" else "application/json")
        headers = {"Accept": accept} | ({} if body is None else {"Content-Type": content})
        while True:
            fresh = self._client is None
            try:
                with _translated(what):
                    client = self._client = self._client or _client(self._kubeconfig)
                    request = client.param_serialize(
                        method,
                        path,
                        query_params=list((query or {}).items()),
                        header_params=dict(headers),
                        auth_settings=["BearerToken"],
                    )
                    method, url, sent, *_ = request
                    response = client.call_api(
                        method, url, sent, body, _request_timeout=(CONNECT_SECONDS, silence or ANSWER_SECONDS)
                    ).response
            except Failed:
                self._forget()
                raise
            answer = Answer(response, what)
            if response.status in _OK:
                return answer
            with answer:
                failure = answer.refusal()
            if failure.speaker is not Speaker.AUTHENTICATOR:
                raise failure
            self._forget()
            if fresh:
                raise failure

    def _forget(self) -> None:
        if self._client is not None:
            self._client.close()  # type: ignore[no-untyped-call]  # the client's
            self._client = None


def _client(kubeconfig: Path | None) -> "ApiClient":
    """Make a client with the present credentials."""
    with _importing:
        from kubernetes.client import ApiClient, Configuration  # noqa: PLC0415 - on the thread, not before
        from kubernetes.config import load_kube_config  # noqa: PLC0415
        from kubernetes.config.incluster_config import InClusterConfigLoader  # noqa: PLC0415

    configuration = Configuration()
    if kubeconfig is not None:
        load_kube_config(  # type: ignore[no-untyped-call]  # the client's
            config_file=str(kubeconfig), client_configuration=configuration, persist_config=False
        )
    else:
        loader = InClusterConfigLoader(TOKEN_FILE, CA_FILE)  # type: ignore[no-untyped-call]  # the client's
        loader.load_and_set(configuration)  # type: ignore[no-untyped-call]
    # urllib3 would try again by itself, with its own patience and its own log lines.
    configuration.retries = False
    configuration.connection_pool_maxsize = 1
    configuration.keep_alive = True  # the kernel notices a dead peer before the silence of a watch ends
    client = ApiClient(configuration)
    client.user_agent = COMPONENT
    return client


class Answer:
    """An open answer. Its connection is reused if the answer was read to its end."""

    def __init__(self, response: "urllib3.HTTPResponse", what: str) -> None:
        self._response = response
        self._what = what

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):  # its errors have no effect any more
            self._response.close()

    def whole(self, kind: str = AWAY) -> dict[str, Any]:
        """The JSON object that it is. kind: of the failure if it is none"""
        parts, size = [], 0
        with _translated(self._what):
            while part := self._response.read1(_CHUNK):
                size += len(part)
                if size > LONGEST_LINE:
                    raise Failed(f"{self._what}: an answer of more than {LONGEST_LINE} bytes")
                parts.append(part)
        return parsed(b"".join(parts), self._what, kind)

    def date(self) -> float | None:
        """Return the time of the answer by the server's clock, in seconds since 1970; None if unknown."""
        from email.utils import parsedate_to_datetime  # noqa: PLC0415 - for `doctor` only

        try:
            return parsedate_to_datetime(self._response.headers.get("Date", "")).timestamp()
        except ValueError:
            return None

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of the answer. A broken stream ends it; a line without its newline does not
        count."""
        rest = bytearray()
        while True:
            try:
                with _translated(self._what):
                    part = self._response.read1(_CHUNK)
            except Failed as failure:
                logger.debug(Message("the stream broke", error=failure))
                return
            if not part:
                return
            *lines, last = part.split(b"\n")
            for line in lines:
                yield bytes(rest) + line
                rest.clear()
            rest += last
            if len(rest) > LONGEST_LINE:
                raise Failed(f"{self._what}: a line of more than {LONGEST_LINE} bytes", kind=BROKEN)

    def refusal(self) -> Failed:
        """Return the reason of a refusal, in the API server's words."""
        status = self._response.status
        text = self._response.reason or ""
        with suppress(Failed), _translated(self._what):
            body = self._response.read(LONGEST_REFUSAL)
            with suppress(ValueError):
                text = str(json.loads(body)["message"])
        seconds = self._response.headers.get("Retry-After", "")
        words = said(text)
        return Failed(
            f"{self._what}: HTTP {status} {words}",
            what=self._what,
            status=status,
            words=words,
            retry_after=float(seconds) if seconds.isdecimal() else 0.0,
        )


def parsed(text: bytes, what: str, kind: str = AWAY) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Failed(f"{what}: what comes is no JSON object", kind=kind)
    return document


def member(document: object, key: str) -> dict[str, Any]:
    """Return a member that is an object; an absent or other member counts as an empty object."""
    part = document.get(key) if isinstance(document, dict) else None
    return part if isinstance(part, dict) else {}


@frozen
class NodeMetadata:
    """A node by its metadata. uid: None if the server does not send it"""

    name: str
    uid: str | None
    version: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def node_metadata(document: object, what: str) -> NodeMetadata:
    """Return the metadata of an object that is a Node, or a part of one. Raises Failed for anything else."""
    metadata = member(document, "metadata")
    name, version, uid = (metadata.get(key) for key in ("name", "resourceVersion", "uid"))
    labels, annotations = (metadata.get(key) or {} for key in ("labels", "annotations"))
    fine = isinstance(name, str) and isinstance(version, str) and isinstance(uid, str | None)
    if not (fine and version and _words(labels) and _words(annotations)):
        raise Failed(f"{what}: what comes is no node", kind=BROKEN)
    return NodeMetadata(
        name=str(name), uid=uid or None, version=version, labels=labels, annotations=annotations
    )


def _words(part: object) -> TypeGuard[dict[str, str]]:
    return isinstance(part, dict) and all(isinstance(value, str) for value in part.values())


def said(text: str) -> str:
    """Return foreign text as one printable line, cut off at a limit."""
    return printable(" ".join(text[: 2 * LONGEST_WORDS].split())[:LONGEST_WORDS])


def advice(failure: Failed) -> str:
    """Return the event and its remedy. Only a refusal by the authorizer leads to advice about rights."""
    match failure.speaker:
        case Speaker.AUTHENTICATOR:
            return (
                f"the API server does not accept our credentials (HTTP {UNAUTHORIZED} to {failure.what}): "
                f"see that the "
                "service account's token, or the kubeconfig, is valid"
            )
        case Speaker.AUTHORIZER:
            files = _RIGHTS.get(failure.what, f"{CLUSTER_ROLE} and {CLUSTER_ROLE_BINDING}")
            return (
                f"the API server does not let us {failure.what} (HTTP {FORBIDDEN}): the service account "
                f"lacks that right; apply {files}"
            )
        case Speaker.ADMISSION:
            return (
                f"the cluster's admission control refuses to {failure.what} (HTTP {failure.status}): "
                f"{failure.words}; ask its owner for an exception for this plugin's service account"
            )
    return str(failure)
