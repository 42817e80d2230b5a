# SPDX-License-Identifier: Apache-2.0
"""The link groups by xpu-smi: asked for each new set of cards, until it answers."""

import asyncio
import logging
from dataclasses import replace
from functools import partial

from xpu_plugin.edges.xpu_smi import XpuSmi, XpuSmiError
from xpu_plugin.errors import PluginError
from xpu_plugin.log import Message, Once
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.inventory import Facts, Inventory
from xpu_plugin.model.topology import Links, parse_matrix, ranked
from xpu_plugin.waiting import delays


logger = logging.getLogger(__name__)


class NoLinksError(PluginError):
    """xpu-smi reports no groups. The text tells why."""


async def links_of(program: XpuSmi, cards: tuple[str, ...]) -> Links:
    """Return the link groups by xpu-smi. cards: by the library's index. Raises NoLinksError."""
    try:
        return parse_matrix(await program.matrix(), cards)
    except XpuSmiError as error:
        raise NoLinksError(str(error)) from None
    except ValueError as error:
        raise NoLinksError(f"{program.path} topo -m: {error}") from None


class LinkFinder:
    """Brings the link groups into the picture. The last groups stay if xpu-smi fails: links do not change.

    pauses: seconds before it is asked again after a failure, the first and the longest
    """

    def __init__(self, program: XpuSmi, picture: Picture, *, pauses: tuple[float, float]) -> None:
        self._program = program
        self._picture = picture
        self._pauses = pauses
        self._complaint = Once()

    async def run(self) -> None:
        """Run for ever."""
        changed, asked, waits = asyncio.Event(), None, delays(*self._pauses)
        with self._picture.waking(changed):
            while True:
                changed.clear()
                cards, inventory = ranked(self._picture.facts.devices.values()), self._picture.current
                if not cards or cards == asked or inventory is None or _changing(inventory):
                    await changed.wait()
                    continue
                try:
                    links = await links_of(self._program, cards)
                except NoLinksError as error:
                    if self._complaint.changed(str(error)):
                        logger.warning(
                            Message("xpu-smi reports no link groups; the known ones count", error=error)
                        )
                    await asyncio.sleep(next(waits))
                    continue
                self._complaint.healed()
                asked, waits = cards, delays(*self._pauses)
                logger.info(
                    Message(
                        "link groups",
                        source=links.source,
                        groups=[" ".join(sorted(group)) for group in links.groups],
                    )
                )
                self._picture.submit(partial(_linked, links))


def _linked(links: Links, facts: Facts) -> Facts:
    return replace(facts, links=links)


def _changing(inventory: Inventory) -> bool:
    """Return whether the driver may be changing a card: it refuses while a node is open."""
    return any(entry.health.in_change for entry in inventory.entries.values())
