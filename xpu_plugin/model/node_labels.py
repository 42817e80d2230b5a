# SPDX-License-Identifier: Apache-2.0
"""The labels of a node for node selectors, made of its cards."""

import re
from collections.abc import Iterable

from xpu_plugin.model.devices import Device, DeviceKind


PREFIX = "baidu.com/xpu."
MODEL, COUNT, MEMORY, DRIVER, VFS = LABELS = tuple(
    f"{PREFIX}{name}" for name in ("model", "count", "memory-mib", "driver-version", "vf-capable")
)
MIXED = "mixed"
"""The model if there are several: a selector compares whole values."""

_LONGEST = 63  # letters of a label's value


def sanitised(text: str) -> str | None:
    """Return the text as a label's value; None if no part of it is allowed."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:_LONGEST].strip("._-") or None


def node_labels(devices: Iterable[Device], driver_version: str) -> dict[str, str | None]:
    """Return all of LABELS, None for a label that the node shall not have.

    devices: all known devices, lost ones too: a failed card must not change the labels
    driver_version: by the driver; the text after the first blank is left out

    Cards are counted, not their parts: a split leaves the labels as they are. The memory is the smallest of
    all cards'.
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
    """Return a card's model; if its PF is not in sight, by the name of its VFs."""
    board = next((device for device in own if device.kind is not DeviceKind.VF), own[0])
    return board.model.partition("-VF-")[0]


def _memory(own: list[Device]) -> int:
    """Return a whole card's memory, 0 if unknown.

    A PF reports none if its card was split when the driver was loaded, and VFs have less than their share.
    """
    return sum(device.memory_bytes for device in own if device.kind is not DeviceKind.VF)
