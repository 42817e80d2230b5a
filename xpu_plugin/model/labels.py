# SPDX-License-Identifier: Apache-2.0
"""What a node is labelled with: cards -> labels that a pod's node selector may name."""

import re
from collections.abc import Iterable

from xpu_plugin.model.devices import Device, Kind


PREFIX = "baidu.com/xpu."
MODEL, COUNT, MEMORY, DRIVER, VFS = LABELS = tuple(
    f"{PREFIX}{name}" for name in ("model", "count", "memory-mib", "driver-version", "vf-capable")
)
MIXED = "mixed"
"""The model where there are several: a selector compares whole values."""

_LONGEST = 63  # letters of a label's value


def sanitised(text: str) -> str | None:
    """The text as a label's value; None where nothing of it may be one."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:_LONGEST].strip("._-") or None


def node_labels(devices: Iterable[Device], driver_version: str) -> dict[str, str | None]:
    """All of LABELS, None for one that the node is not to have.

    devices: all that are known, lost ones too, or a card that fails would make its node another kind of node
    driver_version: as the driver tells it; what follows the first blank is left out

    Cards are counted, not their parts: the labels stay as they are when a card is split. The memory is the
    smallest of all cards'.
    """
    boards: dict[str, list[Device]] = {}
    for device in devices:
        boards.setdefault(device.card, []).append(device)
    models = {_model(own) for own in boards.values()}
    memories = [memory for own in boards.values() if (memory := _memory(own))]
    version = driver_version.split()
    capable = any(device.max_vfs for own in boards.values() for device in own)
    return {
        MODEL: sanitised(models.pop()) if len(models) == 1 else MIXED if models else None,
        COUNT: str(len(boards)),
        MEMORY: str(min(memories) >> 20) if memories else None,
        DRIVER: sanitised(version[0]) if boards and version else None,
        VFS: str(capable).lower() if boards else None,
    }


def _model(own: list[Device]) -> str:
    """Of the card itself; of one that is not in sight, by the name of its VFs."""
    board = next((device for device in own if device.kind is not Kind.VF), own[0])
    return board.model.partition("-VF-")[0]


def _memory(own: list[Device]) -> int:
    """Of the whole card, 0 where that is not known: a PF tells nothing if the driver came up on a split card,
    and VFs have a little less than their share."""
    return sum(device.memory_bytes for device in own if device.kind is not Kind.VF)
