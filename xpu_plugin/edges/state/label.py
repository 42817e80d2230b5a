# SPDX-License-Identifier: Apache-2.0
"""The record of the node's label, so that a restart while the API server is silent does not forget it."""

from pathlib import Path
from typing import Any

from xpu_plugin.edges.state.record import Record
from xpu_plugin.model.vf_label import Kept
from xpu_plugin.model.vf_plan import parse


_FILE = "label.json"


class LabelRecord(Record[Kept | None]):
    """The label of the node as it was last seen, in `directory`/label.json."""

    def __init__(self, directory: Path, *, apart: bool = False) -> None:
        super().__init__(
            directory / _FILE,
            name="the node's label",
            encode=lambda kept: kept and {"label": kept.label, "node": kept.node},
            decode=_decoded,
            empty=None,
            waits="only a label counts",
            lost="a restart of this plugin while the API server refuses goes by an older label, or by the "
            "argument",
            apart=apart,
        )


def forget(directory: Path) -> bool:
    """Remove the record; return whether there was one. Raises OSError."""
    try:
        (directory / _FILE).unlink()
    except FileNotFoundError:
        return False
    return True


def _decoded(document: Any) -> Kept:
    label, node = document["label"], document["node"]
    if label is not None:
        parse(label)
    if not isinstance(node, str | None):
        raise TypeError("the UID is no text")
    return Kept(label=label, node=node)
