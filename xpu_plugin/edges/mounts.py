# SPDX-License-Identifier: Apache-2.0
"""What is mounted where, as a container sees directories of its host.

A mount stays with the directory that it was made of. When the host deletes that and makes another of the same
name, the container sees the former one, which is empty, until a new container mounts the present one.
"""

import re
from collections.abc import Mapping
from pathlib import Path


_DELETED = "//deleted"  # how the root of such a mount ends in mountinfo


def deleted(path: Path | str) -> str | None:
    """The mount that `path` is on or below whose directory is deleted; None where there is none."""
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
    """Without the octal numbers that stand for blanks."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
