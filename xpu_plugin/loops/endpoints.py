# SPDX-License-Identifier: Apache-2.0
"""One endpoint for each resource name that has ever been offered."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from xpu_plugin.loops.picture import Picture


class Endpoints:
    """Runs `run(resource)` for each resource name, from the picture that first has it on.

    A name whose devices are gone keeps its endpoint: its empty list is how the kubelet learns of it.
    always: names that get an endpoint even while nothing is offered under them
    """

    def __init__(
        self,
        picture: Picture,
        run: Callable[[str], Coroutine[Any, Any, None]],
        *,
        always: frozenset[str],
    ) -> None:
        self._picture = picture
        self._run = run
        self._always = always

    async def run(self) -> None:
        """Never returns; cancelled, it ends all endpoints first."""
        running = frozenset[str]()
        async with asyncio.TaskGroup() as group:
            async for inventory in self._picture.changes():
                for resource in sorted((inventory.resources | self._always) - running):
                    group.create_task(self._run(resource), name=f"endpoint {resource}")
                running |= inventory.resources | self._always
