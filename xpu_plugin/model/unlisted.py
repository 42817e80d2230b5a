# SPDX-License-Identifier: Apache-2.0
"""Device nodes that the library does not list, with the reason.

libxpuml 4.0.12.1 leaves out a node that it cannot open, without a message. It lists 99 nodes at most, the
first by N.
"""

from collections.abc import Sequence
from errno import EACCES, EPERM
from os import strerror

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import Found, Scan


MOST_LISTED = 99


@frozen
class Unlisted:
    """A node /dev/xpuN without an index."""

    number: int
    errno: int = 0  # of our own open after the scan; 0 if that succeeded
    beyond: bool = False  # it comes after the last node that the library can list

    @property
    def path(self) -> str:
        return f"/dev/xpu{self.number}"

    @property
    def why(self) -> str:
        if self.beyond:
            return f"the library lists {MOST_LISTED} nodes at most"
        if self.errno:
            return f"it cannot be opened ({strerror(self.errno)})"
        return "the library left it out of its list, although it opens now"

    @property
    def denied(self) -> bool:
        """Return whether the container, or the node's mode, does not allow to open it."""
        return self.errno in (EACCES, EPERM)


def unlisted(scan: Scan, found: Found) -> tuple[Unlisted, ...]:
    """Return the nodes without an index in the scan.

    A node about which library and host contradict each other has an index: that is a problem of its own.
    """
    known = {device.node.number for device in found.devices.values()}
    short = len(scan.usable) != len(scan.readings)
    listed = [node.number for node in scan.host.nodes]
    beyond = listed[MOST_LISTED:] if len(scan.readings) <= MOST_LISTED else []
    return tuple(
        Unlisted(number=number, errno=scan.refused.get(number, 0), beyond=number in beyond)
        for number in listed
        if number not in known and (short or number in scan.refused)
    )


def sentences(nodes: Sequence[Unlisted]) -> list[str]:
    """Return one sentence for each node, and one for all beyond the library's list."""
    said = [f"{node.path}: {node.why}" for node in nodes if not node.beyond]
    beyond = [node.path for node in nodes if node.beyond]
    if beyond:
        named = beyond[0] if len(beyond) == 1 else f"{beyond[0]} to {beyond[-1]}"
        said.append(f"{named}: the library lists {MOST_LISTED} nodes at most")
    return said
