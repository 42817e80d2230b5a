# SPDX-License-Identifier: Apache-2.0
"""The holders of devices: the kubelet's pod resources API, and its checkpoint as a second witness.

Neither is complete. The API leaves out ordinary init containers (it lists sidecars, from 1.29 on), lags a
grant, and lists no pods while a restarted kubelet cannot reach its API server. The checkpoint names no pods,
and keeps the devices of a dead pod until the next grant. A holder that either of them names counts. The
checkpoint also has the Allocate answer of each container.
"""

import asyncio
import base64
import contextlib
import errno
import json
import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from xpu_plugin.edges.kubelet.channel import address, held, reached, told
from xpu_plugin.edges.kubelet.engine import require_room
from xpu_plugin.edges.state import state_file
from xpu_plugin.edges.state.disk import DiskThread
from xpu_plugin.errors import PluginError
from xpu_plugin.log import Message
from xpu_plugin.model.allocation import Kept
from xpu_plugin.model.inventory import is_xpu_node, may_be_ours
from xpu_plugin.model.obstacles import Obstacle
from xpu_plugin.model.ownership import Checkpoint, Holding, Listing
from xpu_plugin.proto import deviceplugin_pb2 as api
from xpu_plugin.proto import podresources_v1_pb2 as v1
from xpu_plugin.proto import podresources_v1alpha1_pb2 as v1alpha1


logger = logging.getLogger(__name__)

LIST_SECONDS = 2.0
CHECKPOINT = "kubelet_internal_checkpoint"
LONGEST_ANSWER = 16 << 20  # bytes; a node's 250 pods with a hundred devices each have about two mebibytes
LONGEST_GRANT = 1 << 17  # characters in base64 of one Allocate answer; a thousand devices have half of that
LONGEST_ID = 256  # characters of a device id; newer kubelets take 63
MOST_IDS = 8192  # in one answer; a node of 64 cards with 64 functions each has half of that
DOMAINS = frozenset({"baidu.com"})
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),  # for the reason in `kubelet`
    ("grpc.max_receive_message_length", LONGEST_ANSWER),
)
# The fields that are read here are equal in both versions. `Any`: the messages are generated.
_VERSIONS: tuple[tuple[str, Any], ...] = (("v1", v1), ("v1alpha1", v1alpha1))


class UnknownHoldersError(PluginError):
    """A source that exists could not be read; it must not count as empty."""


@cache
def reader() -> DiskThread:
    """Return the thread that parses answers and reads the checkpoint, so that the event loop does not
    wait."""
    return DiskThread("kubelet reader")


async def list_pods(socket: Path, *, domains: Collection[str] = DOMAINS) -> Listing | None:
    """Return the pods that the pod resources API lists, by v1 or else v1alpha1. None without such a socket.

    domains: of our resource names, as in `checked`

    Raises UnknownHoldersError if the socket exists and there is no valid answer.
    """
    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(held(socket))
            require_room()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UnknownHoldersError(
                str(Obstacle(path=str(socket), code=error.errno or errno.EIO))
            ) from None
        return await _list(own, socket, domains)


async def _list(own: Path, socket: Path, domains: Collection[str]) -> Listing:
    """Return the result of `list_pods`. own: the socket by a name that URIs can carry"""
    async with grpc.aio.insecure_channel(address(own), options=_OPTIONS) as channel:
        for version, messages in _VERSIONS:
            # The raw answer: gRPC would parse it on the event loop, and return None for an invalid one.
            ask = channel.unary_unary(f"/{version}.PodResourcesLister/List", None, None)
            try:
                async with asyncio.timeout(LIST_SECONDS + 1.0):  # gRPC itself failed for a lack of threads
                    answer = await ask(b"", timeout=LIST_SECONDS)
            except TimeoutError:
                raise UnknownHoldersError(f"{socket}: no answer within {LIST_SECONDS:g} s") from None
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    continue
                refusal = Obstacle(path=str(socket), code=reached(own))
                if refusal.remedy is not None:
                    raise UnknownHoldersError(str(refusal)) from None
                raise UnknownHoldersError(f"{socket}: {told(error, socket)}") from None
            try:
                return await reader().call(_listing, answer, messages, domains)
            except DecodeError:
                raise UnknownHoldersError(f"{socket}: the answer cannot be parsed") from None
            except (ValueError, OSError) as error:  # the latter where there is no thread to parse it
                raise UnknownHoldersError(f"{socket}: {error}") from None
    raise UnknownHoldersError(f"{socket}: neither v1 nor v1alpha1 of the pod resources API")


def _listing(answer: bytes, messages: Any, domains: Collection[str]) -> Listing:
    """Parse an answer. Raises DecodeError, and ValueError as `checked` does."""
    parsed = messages.ListPodResourcesResponse.FromString(answer)
    return Listing(
        pods=frozenset(f"{pod.namespace}/{pod.name}" for pod in parsed.pod_resources),
        holdings=checked(
            (
                Holding(
                    container=f"{pod.namespace}/{pod.name}/{container.name}",
                    resource=devices.resource_name,
                    ids=tuple(devices.device_ids),
                )
                for pod in parsed.pod_resources
                for container in pod.containers
                for devices in container.devices
            ),
            domains,
        ),
    )


def checked(holdings: Iterable[Holding], domains: Collection[str]) -> tuple[Holding, ...]:
    """Return the holdings without ids that are too long or not printable; other plugins may use such ids.

    With more than MOST_IDS ids, those of other plugins in another form than ours are left out, as the event
    loop reads each id.

    domains: of our resource names. Raises ValueError for such an id under one of these names, and for too
    many
    ids: the holders of our devices are unknown then.
    """
    good: list[Holding] = []
    number, crowded = 0, False
    for holding in holdings:
        bad = {id for id in holding.ids if len(id) > LONGEST_ID or not id.isprintable()}
        if bad and holding.resource.partition("/")[0] in domains:
            raise ValueError(f"{holding.resource} has a device id that is too long or not printable")
        if bad:
            _ignore(holding.resource)
        ids = tuple(id for id in dict.fromkeys(holding.ids) if id not in bad)
        own = holding if ids == holding.ids else replace(holding, ids=ids)
        good.append(_of_interest(own, domains) if crowded else own)
        number += len(good[-1].ids)
        if number > MOST_IDS and not crowded:
            crowded, good = True, [_of_interest(one, domains) for one in good]
            number = sum(len(one.ids) for one in good)
        if number > MOST_IDS:
            raise ValueError(f"more than {MOST_IDS} device ids that may be ours")
    return tuple(good)


def _of_interest(holding: Holding, domains: Collection[str]) -> Holding:
    """Return the holding; one of another plugin without the ids that cannot be ours."""
    if holding.resource.partition("/")[0] in domains:
        return holding
    return replace(holding, ids=tuple(filter(may_be_ours, holding.ids)))


@cache
def _ignore(resource: str) -> None:
    """Report ignored ids once for each resource."""
    logger.info(
        Message("device ids that are too long or not printable are ignored", resource=resource[:LONGEST_ID])
    )


async def checkpoint_of(device_plugin_dir: Path, *, domains: Collection[str] = DOMAINS) -> Checkpoint:
    """Call `read_checkpoint` without blocking the event loop."""
    try:
        return await reader().call(read_checkpoint, device_plugin_dir, domains=domains)
    except OSError as error:
        raise UnknownHoldersError(f"{device_plugin_dir / CHECKPOINT}: {error}") from None


def read_checkpoint(device_plugin_dir: Path, *, domains: Collection[str] = DOMAINS) -> Checkpoint:
    """Read the kubelet's checkpoint. It is empty without a file, as before the first grant on a node.

    Raises UnknownHoldersError for a file that cannot be read or is invalid.
    """
    file = device_plugin_dir / CHECKPOINT
    try:
        written_ns = file.stat().st_mtime_ns  # before the read: newer content must not count as older
        data = _data(file)
        registered = data.get("RegisteredDevices")
        return Checkpoint(
            holdings=checked(_holdings(data["PodDeviceEntries"] or []), domains),
            registered=None
            if registered is None
            else {str(name): frozenset(map(str, ids or ())) for name, ids in registered.items()},
            written_ns=written_ns,
        )
    except (FileNotFoundError, NotADirectoryError):
        return Checkpoint()
    except (OSError, *state_file.DAMAGED) as error:
        raise UnknownHoldersError(f"{file}: {state_file.reason(error)}") from None


async def kept_in(device_plugin_dir: Path, resource: str, ids: Collection[str]) -> Kept:
    """Call `read_kept` without blocking the event loop."""
    try:
        return await reader().call(read_kept, device_plugin_dir, resource, ids)
    except OSError as error:
        return Kept(trouble=f"{device_plugin_dir / CHECKPOINT}: {error}")


def read_kept(device_plugin_dir: Path, resource: str, ids: Collection[str]) -> Kept:
    """Return the Allocate answers in the checkpoint for containers with exactly these ids of a resource."""
    file, wanted = device_plugin_dir / CHECKPOINT, frozenset(ids)
    try:
        entries = _data(file)["PodDeviceEntries"] or []
        answers = [
            _answer(entry.get("AllocResp"))
            for entry, holding in zip(entries, _holdings(entries), strict=True)
            if holding.resource == resource and wanted == frozenset(holding.ids)
        ]
        return Kept(
            nodes=frozenset(None if answer is None else _xpu_nodes(answer) for answer in answers),
            files=frozenset.intersection(*map(_mounts, answers)) if answers else frozenset(),
        )
    except (FileNotFoundError, NotADirectoryError):
        return Kept()
    except (OSError, *state_file.DAMAGED) as error:
        return Kept(trouble=f"{file}: {state_file.reason(error)}")


def _answer(answer: object) -> api.ContainerAllocateResponse | None:
    """Parse an answer in base64; None if it cannot be parsed."""
    if not isinstance(answer, str) or len(answer) > LONGEST_GRANT:
        return None
    try:
        return api.ContainerAllocateResponse.FromString(base64.b64decode(answer, validate=True))
    except (ValueError, DecodeError):
        return None


def _xpu_nodes(answer: api.ContainerAllocateResponse) -> tuple[str, ...]:
    """Return the host's paths of the XPU nodes, sorted. A container's name of a node may differ."""
    return tuple(sorted(spec.host_path for spec in answer.devices if is_xpu_node(spec.host_path)))


def _mounts(answer: api.ContainerAllocateResponse | None) -> frozenset[str]:
    """Return the host's paths of the mounts."""
    return frozenset(() if answer is None else (mount.host_path for mount in answer.mounts))


def _data(file: Path) -> Any:
    """Return the content of the checkpoint without its checksum. `Any`: JSON from outside."""
    return json.loads(state_file.read(file))["Data"]


def _holdings(entries: list[dict[str, Any]]) -> Iterator[Holding]:
    for entry in entries:
        ids = entry["DeviceIDs"] or []
        lists = list(ids.values()) if isinstance(ids, dict) else [ids]  # from 1.20 on: by NUMA node
        if not all(isinstance(own, list) for own in lists):
            raise TypeError(f"DeviceIDs is {ids!r}")
        yield Holding(
            container=_text(f"{entry['PodUID']}/{entry['ContainerName']}"),
            resource=_text(entry["ResourceName"]),
            ids=tuple(str(id) for own in lists for id in own),
        )


def _text(value: object) -> str:
    """Return a text that can be encoded: JSON may hold half of a surrogate pair."""
    return str(value).encode(errors="replace").decode()
