# SPDX-License-Identifier: Apache-2.0
"""What a picture shows, sooner or later."""

import asyncio
from collections.abc import Callable

from tests.support.waiting import SECONDS
from xpu_plugin.loops.picture import NEVER, Picture
from xpu_plugin.model.inventory import Inventory


async def shown(
    picture: Picture, predicate: Callable[[Inventory], object], seconds: float = SECONDS
) -> Inventory:
    """Wait for an inventory of which `predicate` is true."""
    generation = NEVER
    try:
        async with asyncio.timeout(seconds):
            while True:
                inventory = await picture.beyond(generation)
                if predicate(inventory):
                    return inventory
                generation = inventory.generation
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s; the last picture: {picture.current}") from None


def health(inventory: Inventory | None) -> dict[str, str | None]:
    """The reason of each entry, None for a healthy one."""
    assert inventory
    return {id: entry.health.reason for id, entry in inventory.entries.items()}
