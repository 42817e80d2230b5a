# SPDX-License-Identifier: Apache-2.0
"""The record of the node's label, so that a restart while the API server is silent does not forget it."""

import logging
from pathlib import Path
from typing import Any

from xpu_plugin.edges.state.disk import state_thread
from xpu_plugin.edges.state.state_file import DAMAGED, StateFile, reason
from xpu_plugin.log import Once
from xpu_plugin.model.vf_label import Kept
from xpu_plugin.model.vf_plan import parse


logger = logging.getLogger(__name__)

_FILE = "label.json"


class LabelRecord:
    """The label that the node had when it was last seen; in `directory`/label.json."""

    def __init__(self, directory: Path, *, apart: bool = False) -> None:
        self._file = StateFile(directory / _FILE, apart=apart)
        self._disk = state_thread()
        self._trouble = Once()

    async def read(self) -> Kept | None:
        """The label that is kept, None for none. A damaged file counts as none, with a warning.

        Raises OSError, with a warning, when the file cannot be read now.
        """
        try:
            found = await self._disk.call(self._file.load, _decoded)
        except OSError as error:
            if self._trouble.changed(error.strerror):
                logger.warning(
                    "cannot read the record of the node's label %s: %s; it is tried again",
                    self._file.path,
                    error.strerror,
                )
            raise
        except DAMAGED as error:
            if self._trouble.changed(why := reason(error)):
                logger.warning(
                    "the record of the node's label %s is damaged and counts as empty: %s; it is kept aside "
                    "when a new one is written",
                    self._file.path,
                    why,
                )
            return None
        self._trouble.healed()
        return found

    async def removed(self) -> bool:
        """Whether the file is surely not there."""
        try:
            return not await self._disk.call(self._file.path.exists)
        except OSError:
            return False

    async def write(self, kept: Kept | None) -> bool:
        """Keep this and nothing else; whether that was possible. If not, it is warned of once."""
        try:
            if kept is None:
                await self._disk.call(self._file.path.unlink, missing_ok=True)
            else:
                await self._disk.call(self._file.replace, {"label": kept.label, "node": kept.node})
        except OSError as error:
            if self._trouble.changed(error.strerror):
                logger.warning(
                    "cannot write the record of the node's label %s: %s; a restart of this plugin while the "
                    "API server refuses goes by an older label, or by the argument",
                    self._file.path,
                    error.strerror,
                )
            return False
        self._trouble.healed()
        return True


def forget(directory: Path) -> bool:
    """Remove the record; whether there was one. Raises OSError."""
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
