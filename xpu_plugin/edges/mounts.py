# SPDX-License-Identifier: Apache-2.0
"""Mounts of host directories, as a container sees them.

A mount keeps the directory that it was made of. If the host deletes that directory and makes another of the
same name, the container sees the deleted one, which is empty. Only a new container mounts the new one.
"""

import re
from collections.abc import Mapping
from pathlib import Path


_DELETED = "//deleted"  # how the root of such a mount ends in mountinfo


def deleted(path: Path | str) -> str | None:
    """Return the mount of a deleted directory at or above `path`; None if there is none."""
    return next((mount for mount, root in above(path).items() if root.endswith(_DELETED)), None)


def above(path: Path | str) -> Mapping[str, str]:
    """Mounts that `path` is on or below, and the directory of its file system that each shows; none without
    /proc."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return {}
    mounts = {
        _plain(fields[4]): _plain(fields[3]) for line in lines.splitlines() if (fields := line.split(" "))
    }
    return {mount: root for mount, root in mounts.items() if Path(path).is_relative_to(mount)}


def _plain(text: str) -> str:
    """Replace octal escapes by their characters."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
