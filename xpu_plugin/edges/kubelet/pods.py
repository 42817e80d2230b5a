# SPDX-License-Identifier: Apache-2.0
"""The kubelet's pods API (Kubernetes 1.37 on): its pods with the present status of their containers.

While a kubelet has not yet heard from the API server since its start, it refuses to answer.
"""

import asyncio
import contextlib
import errno
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from pathlib import Path

import grpc
from google.protobuf.message import DecodeError

from xpu_plugin.edges.kubelet.channel import address, held, reached, told
from xpu_plugin.edges.kubelet.engine import require_room
from xpu_plugin.edges.kubelet.pod_resources import UnknownHoldersError, reader
from xpu_plugin.model.obstacles import Obstacle
from xpu_plugin.model.pods import ALWAYS, GRACE_SECONDS, Container, Exit, Kind, Pod
from xpu_plugin.proto import pod_v1_pb2 as core
from xpu_plugin.proto import pods_v1alpha1_pb2 as v1alpha1


LIST_SECONDS = 2.0
LONGEST_ANSWER = 64 << 20  # bytes; whole pods, of which a node has some hundred with up to 1 MiB each
MOST_PODS = 4096
_SERVICE = "/v1alpha1.Pods"
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", LONGEST_ANSWER),
)
_OVER = frozenset({"Succeeded", "Failed"})


async def pods_of(socket: Path) -> Mapping[str, Pod] | str | None:
    """Return the kubelet's pods by UID. None without such a socket; a text if the kubelet refuses to answer.

    Raises UnknownHoldersError if the socket exists and there is no valid answer.
    """
    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(_reachable(socket))
        except (FileNotFoundError, NotADirectoryError):
            return None
        async with grpc.aio.insecure_channel(address(own), options=_OPTIONS) as channel:
            # The raw answer, for the reasons in `pod_resources`.
            ask = channel.unary_unary(f"{_SERVICE}/ListPods", None, None)
            try:
                async with asyncio.timeout(LIST_SECONDS + 1.0):
                    answer = await ask(b"", timeout=LIST_SECONDS)
            except TimeoutError:
                raise UnknownHoldersError(f"{socket}: no answer within {LIST_SECONDS:g} s") from None
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    return f"the kubelet does not report its pods yet: {told(error, socket)}"
                raise _unknown(error, own, socket) from None
        try:
            return await reader().call(_listed, answer)
        except (DecodeError, ValueError, OSError) as error:
            raise UnknownHoldersError(f"{socket}: {error}") from None


News = tuple[str, Pod | None] | None
"""A pod's UID, and the pod, which is None once it is gone. None after the last of the first pods."""


async def news_of(socket: Path) -> AsyncGenerator[News]:
    """Yield all pods, then None, then each change of a pod.

    Raises UnknownHoldersError when the stream ends, and FileNotFoundError without such a socket.
    """
    with _reachable(socket) as own:
        async with grpc.aio.insecure_channel(address(own), options=_OPTIONS) as channel:
            call = channel.unary_stream(f"{_SERVICE}/WatchPods", None, None)(b"")
            try:
                async for event in call:
                    for news in await reader().call(_news, event):
                        yield news
            except grpc.aio.AioRpcError as error:
                raise _unknown(error, own, socket) from None
            except (DecodeError, ValueError, OSError) as error:
                raise UnknownHoldersError(f"{socket}: {error}") from None
            finally:
                call.cancel()
    raise UnknownHoldersError(f"{socket}: the stream has ended")


@contextlib.contextmanager
def _reachable(socket: Path) -> Iterator[Path]:
    """Return the socket by a name that URIs can carry. Raises FileNotFoundError, NotADirectoryError, and
    UnknownHoldersError where it cannot be used."""
    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(held(socket))
            require_room()
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            raise UnknownHoldersError(
                str(Obstacle(path=str(socket), code=error.errno or errno.EIO))
            ) from None
        yield own


def _unknown(error: grpc.aio.AioRpcError, own: Path, socket: Path) -> UnknownHoldersError:
    refusal = Obstacle(path=str(socket), code=reached(own))
    return UnknownHoldersError(
        str(refusal) if refusal.remedy is not None else f"{socket}: {told(error, socket)}"
    )


def _listed(answer: bytes) -> dict[str, Pod]:
    """Parse an answer. Raises DecodeError, and ValueError for too many pods."""
    raw = v1alpha1.ListPodsResponse.FromString(answer).pods
    if len(raw) > MOST_PODS:
        raise ValueError(f"more than {MOST_PODS} pods")
    return {pod.uid: pod for pod in map(parsed, raw)}


def _news(event: bytes) -> list[News]:
    """Parse an event. Raises DecodeError."""
    news = v1alpha1.WatchPodsEvent.FromString(event)
    match news.type:
        case v1alpha1.ADDED | v1alpha1.MODIFIED:
            pod = parsed(news.pod)
            return [(pod.uid, pod)]
        case v1alpha1.DELETED:
            return [(core.Pod.FromString(news.pod).metadata.uid, None)]
        case v1alpha1.INITIAL_SYNC_COMPLETE:
            return [None]
    return []


def parsed(raw: bytes) -> Pod:
    """Parse a pod of core/v1. Raises DecodeError."""
    pod = core.Pod.FromString(raw)
    statuses = {own.name: own for own in (*pod.status.containerStatuses, *pod.status.initContainerStatuses)}
    policy = pod.spec.restartPolicy or ALWAYS
    given = pod.spec.HasField("terminationGracePeriodSeconds")
    return Pod(
        uid=pod.metadata.uid,
        name=f"{pod.metadata.namespace}/{pod.metadata.name}",
        containers={
            **dict(_containers(pod.spec.initContainers, statuses, policy, init=True)),
            **dict(_containers(pod.spec.containers, statuses, policy, init=False)),
        },
        over=pod.metadata.HasField("deletionTimestamp") or pod.status.phase in _OVER,
        ruled=any(own.restartPolicyRules for own in (*pod.spec.initContainers, *pod.spec.containers)),
        grace=float(pod.spec.terminationGracePeriodSeconds) if given else GRACE_SECONDS,
    )


def _containers(
    specs: Iterable[core.Container],
    statuses: Mapping[str, core.ContainerStatus],
    policy: str,
    *,
    init: bool,
) -> Iterator[tuple[str, Container]]:
    for spec in specs:
        own = spec.restartPolicy or policy
        sidecar = init and spec.restartPolicy == ALWAYS
        kind = (Kind.SIDECAR if sidecar else Kind.INIT) if init else Kind.MAIN
        status = statuses.get(spec.name)
        yield spec.name, Container(kind=kind, policy=own, exit=_exit(status) if status else None)


def _exit(status: core.ContainerStatus) -> Exit | None:
    """Return a container's end. Without the runtime's id the kubelet has not seen it."""
    end = status.state.terminated
    if not status.state.HasField("terminated") or not end.containerID or not end.finishedAt.seconds:
        return None
    return Exit(code=end.exitCode, finished=float(end.finishedAt.seconds))
