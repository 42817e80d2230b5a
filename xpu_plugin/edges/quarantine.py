# SPDX-License-Identifier: Apache-2.0
"""The record of quarantined devices, so that a restart of the plugin sets none of them free."""

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from xpu_plugin.edges import files


logger = logging.getLogger(__name__)

_FILE = "quarantine.json"


class QuarantineRecord:
    """id -> the reason of its last illness, for what is in quarantine; in `directory`/quarantine.json.

    reasons: what the file says; one that cannot be read counts as empty, with a warning
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / _FILE
        self.reasons: Mapping[str, str] = _read(self._file)
        self._complained = False

    async def reread(self) -> Mapping[str, str]:
        """`reasons` as they are in the file now."""
        self.reasons = await asyncio.to_thread(_read, self._file)
        return self.reasons

    async def write(self, reasons: Mapping[str, str]) -> None:
        """Keep these, and nothing else. A directory that cannot be written is complained of once."""
        wanted = dict(reasons)
        text = json.dumps({"quarantined": wanted}, indent=1, sort_keys=True)
        try:
            await asyncio.to_thread(files.replace, self._file, text)  # a disk may take its time
        except OSError as error:
            if not self._complained:
                logger.warning(
                    "cannot write the record of quarantined devices %s: %s; a restart of this plugin offers "
                    "them again",
                    self._file,
                    error.strerror,
                )
            self._complained = True
            return
        self._complained = False
        self.reasons = wanted


def _read(file: Path) -> Mapping[str, str]:
    try:
        document = json.loads(files.read(file))
        return {str(id): str(reason) for id, reason in document["quarantined"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning(
            "the record of quarantined devices %s cannot be read and counts as empty: %s", file, error
        )
        return {}
