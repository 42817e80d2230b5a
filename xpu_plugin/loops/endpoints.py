# SPDX-License-Identifier: Apache-2.0
"""One endpoint for each resource name that has ever been offered."""

import asyncio
from collections.abc import Callable, Sequence

from xpu_plugin.edges.kubelet.endpoint import Endpoint
from xpu_plugin.loops.picture import Picture


class Endpoints:
    """Runs an endpoint for each resource name, from the picture that first has it on.

    A name whose devices are gone keeps its endpoint: its empty list is how the kubelet learns of it.
    make: makes the endpoint of a resource name
    always: names that get an endpoint even while nothing is offered under them
    """

    def __init__(
        self, picture: Picture, make: Callable[[str], Endpoint], *, always: frozenset[str] = frozenset()
    ) -> None:
        self._picture = picture
        self._make = make
        self._always = always
        self._all: dict[str, Endpoint] = {}

    @property
    def all(self) -> Sequence[Endpoint]:
        return tuple(self._all.values())

    async def run(self) -> None:
        """Never returns; cancelled, it ends all endpoints first."""
        async with asyncio.TaskGroup() as group:
            async for inventory in self._picture.changes():
                for resource in sorted((inventory.resources | self._always) - self._all.keys()):
                    endpoint = self._all[resource] = self._make(resource)
                    group.create_task(endpoint.run(), name=f"endpoint {resource}")
