# SPDX-License-Identifier: Apache-2.0
"""Files of the vendor's installation, below host directories that the container mounts."""

import errno
import os
from pathlib import Path

from xpu_plugin.edges.mounts import above, deleted


MOST_LINKS = 40  # in one path, as Linux has it


def located(path: str, root: str | None) -> str:
    """Return the path that opens the host's file `path`, which is given with `root` in front.

    root: the container's directory for the host's `/`. Links below it are followed as on the host: an
    absolute target begins at `root`. A path that is not below `root` is returned unchanged.

    Raises OSError for an endless chain of links.
    """
    if root is None or not Path(path).is_relative_to(root):
        return path
    top = place = Path(root)
    names = [*reversed(Path(path).relative_to(top).parts)]
    links = 0
    while names:
        name = names.pop()
        if name == "..":
            place = place.parent if place != top else top
            continue
        try:
            target = (place / name).readlink()
        except OSError:  # no link, or nothing there
            place /= name
            continue
        if (links := links + 1) > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.is_absolute():
            place = top
        names += reversed([part for part in target.parts if part != "/"])
    return str(place)


def absence(path: str, root: str | None) -> str:
    """Return the reason why there is no file at `path`, as far as mounts and links show it."""
    try:
        place = located(path, root)
    except OSError as error:
        return str(error.strerror)
    if (mount := deleted(place)) is not None:
        return f"{mount} was deleted on the host since this pod has started; a new pod has the present one"
    nearest = max(above(place), key=len, default="/")
    if nearest != "/" and _is_empty(nearest):
        return f"no such file: {nearest} is empty"
    if root is not None and place != path and nearest == "/":
        return f"no such file: a link leads to {place.removeprefix(root)} of the host, which is not mounted"
    return "no such file"


def _is_empty(directory: str) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is None
    except OSError:
        return False
