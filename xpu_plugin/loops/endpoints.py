# SPDX-License-Identifier: Apache-2.0
"""One endpoint for each resource name that was ever offered."""

import asyncio
from collections.abc import Callable, Sequence

from xpu_plugin.edges.kubelet.endpoint import Endpoint
from xpu_plugin.loops.picture import Picture
from xpu_plugin.observable import until


class Endpoints:
    """Runs an endpoint for each resource name, from the first picture with that name.

    A name without devices keeps its endpoint: the empty list tells the kubelet.
    make: makes the endpoint of a resource name
    always: names that have an endpoint also without devices
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

    async def held(self) -> None:
        """Wait until no list and no registration is under way."""
        for endpoint in self.all:
            await until(endpoint.service.sending, 0)
            await until(endpoint.registering, False)

    async def ended(self) -> None:
        """Wait for the end of all sockets and streams."""
        for endpoint in self.all:
            await until(endpoint.serving, False)

    async def shown(self) -> None:
        """Wait until each resource has an open stream that has had a list."""
        while hidden := [shown for endpoint in self.all if not (shown := endpoint.service.shown).current]:
            await hidden[0].beyond(hidden[0].version)

    async def run(self) -> None:
        """Run all endpoints. Never returns; a cancellation ends them first."""
        async with asyncio.TaskGroup() as group:
            async for inventory in self._picture.changes():
                for resource in sorted((inventory.resources | self._always) - self._all.keys()):
                    endpoint = self._all[resource] = self._make(resource)
                    group.create_task(endpoint.run(), name=f"endpoint {resource}")
