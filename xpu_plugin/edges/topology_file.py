# SPDX-License-Identifier: Apache-2.0
"""The administrator's file of link groups."""

from pathlib import Path

from xpu_plugin.edges import option_file
from xpu_plugin.model.topology import NO_LINKS, Links, parse_file


LONGEST = 1 << 16  # bytes


def read(path: Path | None) -> Links:
    """Return the link groups of a file; none without a path. Raises OptionFileError."""
    if path is None:
        return NO_LINKS
    return option_file.read("--topology-file", path, _links, form="a text file", longest=LONGEST)


def _links(content: bytes) -> Links:
    return parse_file(content.decode(errors="replace"))
