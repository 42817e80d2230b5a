# SPDX-License-Identifier: Apache-2.0
"""Witnesses of a real node: the API server's objects, the kubelet's own count of devices, its checkpoint.

Each looks by a thread of its own and keeps what it saw.
"""

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import grpc

from tests.e2e.cluster import RESOURCE
from tests.e2e.plugin import CHECKPOINT_NAME
from xpu_plugin.proto import podresources_v1_pb2 as v1
from xpu_plugin.proto.podresources_v1_pb2_grpc import PodResourcesListerStub


T = TypeVar("T")
Count = tuple[float, int]
"""A number of devices, and the monotonic time in seconds from which on it was seen."""

WATCH_SECONDS = 86_400
NAMED = 8  # objects in a complaint
ANSWER_SECONDS = 5


# --- the API server -------------------------------------------------------------------------------


class Watch(threading.Thread, Generic[T]):
    """Objects of one kind, by a watch of the API server, while the block runs.

    command: `kubectl`, and the arguments that go before any other
    path: of the collection, with its selector
    read: makes of an object what is kept of it
    """

    def __init__(self, command: Sequence[str], path: str, read: Callable[[dict[str, Any]], T]) -> None:
        super().__init__(daemon=True)
        self.changes: list[tuple[float, T]] = []
        """Each state of each object, and the monotonic time at which it was seen."""
        self.latest: dict[str, T] = {}
        """By uid, also of objects that are gone."""
        self.gone: set[str] = set()
        self._read = read
        self._news = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            (*command, "get", f"--raw={path}&watch=1&timeoutSeconds={WATCH_SECONDS}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.terminate()
            self.join()

    def run(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            if event["type"] == "ERROR":
                break
            uid, state = event["object"]["metadata"]["uid"], self._read(event["object"])
            with self._news:
                if event["type"] == "DELETED":
                    self.gone.add(uid)
                if self.latest.get(uid) != state:
                    self.latest[uid] = state
                    self.changes.append((time.monotonic(), state))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def present(self) -> dict[str, T]:
        """The objects that are not deleted."""
        with self._news:
            return {uid: state for uid, state in self.latest.items() if uid not in self.gone}

    def until(self, what: str, accept: Callable[[], object], *, seconds: float) -> None:
        """Wait for news that make the state acceptable; fail with the last one."""
        with self._news:
            self._news.wait_for(lambda: accept() or self._ended, seconds)
            why = "the watch has ended" if self._ended else f"not within {seconds:g} s"
            some = list(self.present.items())[:NAMED]
            assert accept(), f"{what}: {why}; last seen: {some}, {len(self.present)} in all"


# --- the kubelet ----------------------------------------------------------------------------------


class Kubelet:
    """How many healthy devices the kubelet has, and its checkpoint.

    The number is that of GetAllocatableResources, from Kubernetes 1.23 on; before, that of the registered
    devices in the checkpoint, which the kubelet writes at each list, but not at the end of a stream.
    """

    def __init__(self, socket: Path, directory: Path) -> None:
        self.source = "GetAllocatableResources"
        self._checkpoint = directory / CHECKPOINT_NAME
        self._channel = grpc.insecure_channel(f"unix://{socket}")
        self._ask = PodResourcesListerStub(self._channel).GetAllocatableResources  # type: ignore[no-untyped-call]
        try:
            self.count()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            self.source = "checkpoint"

    def close(self) -> None:
        self._channel.close()

    def count(self) -> int:
        if self.source == "checkpoint":
            return registered(self.checkpoint())
        answer = self._ask(v1.AllocatableResourcesRequest(), timeout=ANSWER_SECONDS, wait_for_ready=True)
        return sum(len(own.device_ids) for own in answer.devices if own.resource_name == RESOURCE)

    def checkpoint(self) -> dict[str, Any]:
        """What the checkpoint has as `Data`."""
        data: dict[str, Any] = json.loads(self._checkpoint.read_text())["Data"]
        return data


class Beside(threading.Thread):
    """A thread that runs beside a block of code, and ends with it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._end = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()

    def waits(self, due: float) -> bool:
        """Wait until a time of the monotonic clock; False at the end of the block."""
        return not self._end.wait(max(due - time.monotonic(), 0.0))


class Samples(Beside):
    """The kubelet's number of devices, and ids that it has granted twice, while the block runs."""

    def __init__(self, kubelet: Kubelet, *, hertz: float) -> None:
        super().__init__()
        self.number = 0
        self.counts: list[Count] = []
        """Each number of devices that differs from the one before."""
        self.longest_pause = 0.0
        """Seconds between two samples, at most: a shorter gap may be missed."""
        self.doubles: set[str] = set()
        """Ids that two containers had in the checkpoint at once."""
        self.error: Exception | None = None
        """Why there are no more samples."""
        self._kubelet = kubelet
        self._period = 1 / hertz

    def run(self) -> None:
        try:
            self._sample()
        except (OSError, ValueError, grpc.RpcError) as error:
            self.error = error

    def _sample(self) -> None:
        last = due = time.monotonic()
        while self.waits(due):
            try:
                count = self._kubelet.count()
            except grpc.RpcError as error:
                # A kubelet answers 100 such calls a second, the plugin's own among them.
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                due = time.monotonic() + self._period
                continue
            now = time.monotonic()
            if not self.counts or self.counts[-1][1] != count:
                self.counts.append((now, count))
            self.doubles |= granted_twice(self._kubelet.checkpoint())
            self.number += 1
            self.longest_pause = max(self.longest_pause, now - last)
            last, due = now, max(due + self._period, now)


def registered(checkpoint: dict[str, Any]) -> int:
    """How many healthy devices of our resource a checkpoint's `Data` has."""
    return len(checkpoint["RegisteredDevices"].get(RESOURCE) or ())


def granted_twice(checkpoint: dict[str, Any]) -> set[str]:
    """The ids that more than one container has in a checkpoint's `Data`."""
    numbers: Counter[str] = Counter()
    for entry in checkpoint["PodDeviceEntries"] or ():
        if entry["ResourceName"] == RESOURCE:
            own = entry["DeviceIDs"]
            numbers.update(own if isinstance(own, list) else (id for ids in own.values() for id in ids))
    return {id for id, number in numbers.items() if number > 1}


# --- gaps -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gaps:
    """The times in which a number was below what it has to be."""

    least: int
    seconds: tuple[float, ...]

    def __str__(self) -> str:
        if not self.seconds:
            return f"never below {self.least}"
        return (
            f"at least {self.least}; {len(self.seconds)} gaps, "
            f"{max(self.seconds) * 1000:.0f} ms the longest, {sum(self.seconds) * 1000:.0f} ms in all"
        )


def gaps(counts: Sequence[Count], wanted: int, end: float) -> Gaps:
    """What changes of a number say, from the first on that is whole: a watch may begin with an old state.

    end: when the last of them was still so
    """
    whole = next((turn for turn, (_, count) in enumerate(counts) if count >= wanted), 0)
    least, since, found = wanted, None, []
    for at, count in counts[whole:]:
        least = min(least, count)
        if count < wanted and since is None:
            since = at
        elif count >= wanted and since is not None:
            found.append(at - since)
            since = None
    if since is not None:
        found.append(end - since)
    return Gaps(least, tuple(found))
