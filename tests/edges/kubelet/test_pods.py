# SPDX-License-Identifier: Apache-2.0
"""The pods API as it is read: pods of any state, refusals, nonsense, and a stream of news."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest

from tests.support.machines import RESOURCE
from xpu_plugin.edges.kubelet.pod_resources import UnknownHoldersError
from xpu_plugin.edges.kubelet.pods import News, news_of, parsed, pods_of
from xpu_plugin.model.pods import ALWAYS, GRACE_SECONDS, Container, Exit, Kind, Pod
from xpu_plugin.proto import pod_v1_pb2 as core
from xpu_plugin.simulation.kubelet import Kubelet


@pytest.fixture
async def kubelet(place: Path) -> AsyncIterator[Kubelet]:
    kubelet = Kubelet(place / "plugins")
    kubelet.pods_api_dir = place / "pods-api"
    async with kubelet:
        yield kubelet


def socket_of(kubelet: Kubelet) -> Path:
    assert kubelet.pods_api_socket
    return kubelet.pods_api_socket


async def test_pods_are_known_by_uid_with_the_ends_of_their_containers(kubelet: Kubelet) -> None:
    first = kubelet.hold(["0"], resource=RESOURCE, pod="train", container="first", init_container=True)
    main = kubelet.hold(["1"], resource=RESOURCE, pod="train")
    kubelet.pods[main.uid].restart_policy = "OnFailure"
    kubelet.pods[main.uid].grace = 5
    kubelet.end(first, code=3)
    pods = await pods_of(socket_of(kubelet))
    assert isinstance(pods, dict)
    finished = float(int(kubelet.pods[main.uid].exits["first"][1]))
    assert pods == {
        main.uid: Pod(
            uid=main.uid,
            name="default/train",
            containers={
                "first": Container(kind=Kind.INIT, policy="OnFailure", exit=Exit(code=3, finished=finished)),
                "main": Container(policy="OnFailure"),
            },
            grace=5.0,
        )
    }


def test_a_pod_of_which_nothing_is_known_is_one_that_goes_on() -> None:
    pod = parsed(core.Pod(spec=core.PodSpec(containers=[core.Container(name="c")])).SerializeToString())
    assert pod == Pod(uid="", name="/", containers={"c": Container(policy=ALWAYS)}, grace=GRACE_SECONDS)


def test_an_end_that_the_runtime_has_not_reported_is_none() -> None:
    state = core.ContainerState(
        terminated=core.ContainerStateTerminated(exitCode=137, finishedAt=core.Time(seconds=7))
    )
    pod = core.Pod(
        spec=core.PodSpec(containers=[core.Container(name="c")]),
        status=core.PodStatus(
            phase="Failed", containerStatuses=[core.ContainerStatus(name="c", state=state)]
        ),
    )
    assert parsed(pod.SerializeToString()).over
    assert parsed(pod.SerializeToString()).containers["c"].exit is None
    pod.status.containerStatuses[0].state.terminated.containerID = "containerd://1"
    assert parsed(pod.SerializeToString()).containers["c"].exit == Exit(code=137, finished=7.0)


def test_kinds_and_rules_are_seen() -> None:
    pod = core.Pod(
        metadata=core.ObjectMeta(deletionTimestamp=core.Time(seconds=1)),
        spec=core.PodSpec(
            restartPolicy="Never",
            initContainers=[core.Container(name="side", restartPolicy="Always")],
            containers=[
                core.Container(
                    name="c", restartPolicy="OnFailure", restartPolicyRules=[core.ContainerRestartRule()]
                )
            ],
        ),
    )
    known = parsed(pod.SerializeToString())
    assert known.over
    assert known.ruled
    assert known.containers == {
        "side": Container(kind=Kind.SIDECAR, policy="Always"),
        "c": Container(policy="OnFailure"),
    }


async def test_without_a_socket_there_is_no_such_api(place: Path) -> None:
    assert await pods_of(place / "none.sock") is None
    (place / "file").touch()
    assert await pods_of(place / "file" / "none.sock") is None
    with pytest.raises(FileNotFoundError):
        await anext(news_of(place / "none.sock"))


async def test_a_kubelet_that_initializes_refuses_and_says_so(kubelet: Kubelet) -> None:
    kubelet.api_server_away = True
    await kubelet.restart()
    refusal = await pods_of(socket_of(kubelet))
    assert refusal == (
        "the kubelet does not report its pods yet: FAILED_PRECONDITION: Kubelet is initializing"
    )
    with pytest.raises(UnknownHoldersError, match="Kubelet is initializing"):
        await anext(news_of(socket_of(kubelet)))


async def test_a_socket_that_nobody_serves_is_a_trouble(kubelet: Kubelet) -> None:
    await kubelet.stop()
    for ask in (pods_of(socket_of(kubelet)), anext(news_of(socket_of(kubelet)))):
        with pytest.raises(UnknownHoldersError, match=str(socket_of(kubelet))):
            await ask


async def test_nonsense_is_a_trouble(place: Path) -> None:
    async def answer(request: bytes, context: object) -> bytes:
        return b"\xff\xff"

    async def stream(request: bytes, context: object) -> AsyncIterator[bytes]:
        yield b"\xff\xff"

    handlers = {
        "ListPods": grpc.unary_unary_rpc_method_handler(answer),
        "WatchPods": grpc.unary_stream_rpc_method_handler(stream),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1alpha1.Pods", handlers),))
    socket = place / "pods-api.sock"
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        for ask in (pods_of(socket), anext(news_of(socket))):
            with pytest.raises(UnknownHoldersError, match=str(socket)):
                await ask
    finally:
        await server.stop(None)


async def test_news_are_all_pods_then_a_mark_then_changes(kubelet: Kubelet) -> None:
    first = kubelet.hold(["0"], resource=RESOURCE, pod="first")
    seen: asyncio.Queue[News] = asyncio.Queue()

    async def follow() -> None:
        async with aclosing(news_of(socket_of(kubelet))) as stream:
            async for news in stream:
                seen.put_nowait(news)

    task = asyncio.create_task(follow())
    added = await seen.get()
    assert added is not None
    assert added[0] == first.uid
    assert await seen.get() is None
    kubelet.pods[first.uid].restart_policy = "Never"
    kubelet.end(first)
    ended = await seen.get()
    assert ended is not None
    assert ended[1] is not None
    assert ended[1].containers["main"].exit is not None
    kubelet.delete_by_force(first)
    assert await seen.get() == (first.uid, None)
    await kubelet.stop()
    with pytest.raises(UnknownHoldersError):
        await task
