# SPDX-License-Identifier: Apache-2.0
"""Who holds what: the kubelet's pod resources API, and its checkpoint as a second witness.

Neither is the whole truth. The API leaves out init containers, lags a grant, and lists no pods at all
while a restarted kubelet cannot reach its API server. The checkpoint names no pods and keeps a dead
pod's devices until the next grant. A holder that either of them names is a holder.
"""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from xpu_plugin.model.holders import Holding, Listing
from xpu_plugin.proto import podresources_v1_pb2 as v1
from xpu_plugin.proto import podresources_v1_pb2_grpc as v1_grpc
from xpu_plugin.proto import podresources_v1alpha1_pb2 as v1alpha1
from xpu_plugin.proto import podresources_v1alpha1_pb2_grpc as v1alpha1_grpc
from xpu_plugin.record import record


logger = logging.getLogger(__name__)

LIST_SECONDS = 2.0
CHECKPOINT = "kubelet_internal_checkpoint"
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),  # for the reason in `kubelet`
    ("grpc.max_receive_message_length", 64 << 20),
)
# Generated stubs and messages; the messages of both versions are alike as far as they are read here.
_VERSIONS: tuple[tuple[Any, Any], ...] = (
    (v1_grpc.PodResourcesListerStub, v1.ListPodResourcesRequest()),
    (v1alpha1_grpc.PodResourcesListerStub, v1alpha1.ListPodResourcesRequest()),
)


class UnknownHoldersError(Exception):
    """A source that exists could not be read: it must not be taken for "nobody"."""


async def list_pods(socket: Path) -> Listing | None:
    """What the pod resources API lists, v1 or else v1alpha1. None when the kubelet has no such socket.

    Raises UnknownHoldersError when it is there and does not answer.
    """
    if not os.path.exists(socket):  # noqa: ASYNC240, PTH110 - a look, no wait
        return None
    async with grpc.aio.insecure_channel(f"unix://{socket}", options=_OPTIONS) as channel:
        for stub, request in _VERSIONS:
            try:
                answer = await stub(channel).List(request, timeout=LIST_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    continue
                raise UnknownHoldersError(f"{socket}: {error.code().name}: {error.details()}") from None
            return _listing(answer)
    raise UnknownHoldersError(f"{socket}: neither v1 nor v1alpha1 of the pod resources API")


@record
class Witnesses:
    """What both sources said. listing, checkpoint: None where there is none, or it could not be read;
    list_trouble, checkpoint_trouble: a sentence for one that is there and could not"""

    listing: Listing | None = None
    checkpoint: tuple[Holding, ...] | None = None
    list_trouble: str | None = None
    checkpoint_trouble: str | None = None

    @property
    def complaints(self) -> tuple[str, ...]:
        return tuple(trouble for trouble in (self.list_trouble, self.checkpoint_trouble) if trouble)

    @property
    def named(self) -> tuple[Holding, ...]:
        """Whatever either of them names as held."""
        return (*(self.listing.holdings if self.listing else ()), *(self.checkpoint or ()))

    @property
    def shown(self) -> tuple[Holding, ...]:
        """The same for people: by the list, which has names of pods, and beyond that by the checkpoint."""
        listed = self.listing.holdings if self.listing else ()
        known = {(holding.resource, id) for holding in listed for id in holding.ids}
        rest = (
            replace(holding, ids=tuple(id for id in holding.ids if (holding.resource, id) not in known))
            for holding in self.checkpoint or ()
        )
        return (*listed, *(holding for holding in rest if holding.ids))


async def ask_both(socket: Path, device_plugin_dir: Path) -> Witnesses:
    """Who holds what, by the pod resources API and the checkpoint."""
    witnesses = Witnesses()
    try:
        witnesses = replace(witnesses, listing=await list_pods(socket))
    except UnknownHoldersError as error:
        witnesses = replace(witnesses, list_trouble=str(error))
    try:
        return replace(witnesses, checkpoint=tuple(read_checkpoint(device_plugin_dir)))
    except UnknownHoldersError as error:
        return replace(witnesses, checkpoint_trouble=str(error))


def _listing(answer: v1.ListPodResourcesResponse) -> Listing:
    return Listing(
        pods=frozenset(f"{pod.namespace}/{pod.name}" for pod in answer.pod_resources),
        holdings=tuple(
            Holding(
                container=f"{pod.namespace}/{pod.name}/{container.name}",
                resource=devices.resource_name,
                ids=tuple(devices.device_ids),
            )
            for pod in answer.pod_resources
            for container in pod.containers
            for devices in container.devices
        ),
    )


def read_checkpoint(device_plugin_dir: Path) -> list[Holding]:
    """What the kubelet wrote down. Empty when there is no file, as before the first grant of a node.

    Raises UnknownHoldersError when the file is there and cannot be understood.
    """
    file = device_plugin_dir / CHECKPOINT
    try:
        document = json.loads(file.read_bytes())
        return list(_holdings(document["Data"]["PodDeviceEntries"] or []))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnknownHoldersError(f"{file}: {error!r}") from None


def _holdings(entries: list[dict[str, Any]]) -> Iterator[Holding]:
    for entry in entries:
        ids = entry["DeviceIDs"] or []
        lists = list(ids.values()) if isinstance(ids, dict) else [ids]  # from 1.20 on: by NUMA node
        if not all(isinstance(own, list) for own in lists):
            raise TypeError(f"DeviceIDs is {ids!r}")
        yield Holding(
            container=f"{entry['PodUID']}/{entry['ContainerName']}",
            resource=str(entry["ResourceName"]),
            ids=tuple(str(id) for own in lists for id in own),
        )
