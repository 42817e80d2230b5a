# SPDX-License-Identifier: Apache-2.0
"""The administrator's file of link groups."""

from pathlib import Path

from xpu_plugin.errors import PluginError
from xpu_plugin.model.topology import NO_LINKS, Links, parse_file


LONGEST = 1 << 16  # bytes


class TopologyFileError(PluginError):
    """A file that cannot be used. The text names the option, the file, the fault and the accepted form."""


def read(path: Path | None) -> Links:
    """Return the link groups of a file; none without a path. Raises TopologyFileError."""
    if path is None:
        return NO_LINKS
    try:
        return parse_file(_text(path))
    except OSError as error:
        fault = f"{error.strerror}; accepted: a file that can be read"
    except ValueError as error:
        fault = str(error)
    raise TopologyFileError(f"--topology-file: {str(path)!r}: {fault}")


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():  # a read of a FIFO would wait
        raise ValueError("not a regular file; accepted: a text file")
    with path.open("rb") as stream:
        content = stream.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise ValueError(f"more than {LONGEST} bytes; accepted: a smaller file")
    return content.decode(errors="replace")
