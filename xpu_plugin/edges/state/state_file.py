# SPDX-License-Identifier: Apache-2.0
"""Small files: reads are bounded and of regular files only; a file is replaced whole or not at all."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from xpu_plugin.edges.state import replacing


MOST_BYTES = 4 << 20
"""Of a checkpoint or a record; one that names ten thousand devices has about one mebibyte."""
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading or decoding raises for content that is not as it should be."""

LONGEST_REASON = 200
"""Characters of a sentence about content from outside, which Python may quote whole."""

_CHUNK = 1 << 20  # bytes of one read

T = TypeVar("T")


def read(file: Path, *, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file, without the wait of a FIFO.

    Raises OSError if it cannot be read now, and ValueError if it is no regular file or longer than `most`
    bytes.
    """
    if not stat.S_ISREG(os.stat(file).st_mode):  # noqa: PTH116 - an open of a device node may have effects
        raise ValueError("not a regular file")
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > most:
            raise ValueError(f"more than {most} bytes")
        content = bytearray()
        while part := os.read(descriptor, _CHUNK):
            content += part
            if len(content) > most:
                raise ValueError(f"more than {most} bytes")
        return bytes(content)
    finally:
        os.close(descriptor)


def reason(error: Exception) -> str:
    """Return why a file cannot be used, in one bounded line: type and text of the error."""
    text = str(error)
    return f"{type(error).__name__}: {text[:LONGEST_REASON]}{'...' if len(text) > LONGEST_REASON else ''}"


class StateFile:
    """One JSON file that outlives the process. Its only writer is the instance that holds the lock.

    apart: a child process writes it, which may wait for a disk for ever
    """

    def __init__(self, file: Path, *, apart: bool = False) -> None:
        self.path = file
        self._apart = apart
        self._damaged = False
        self._tidied = False

    def load(self, decode: Callable[[Any], T]) -> T | None:
        """Return the decoded content; None without a file. Changes nothing on the disk.

        Raises OSError if the file cannot be read now; it must not count as empty. Raises one of DAMAGED for
        invalid content; `replace` then keeps that file aside.
        """
        self._damaged = False
        try:
            return decode(json.loads(read(self.path)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except DAMAGED:
            self._damaged = True
            raise

    def replace(self, document: object) -> None:
        """Write the file whole or not at all; it survives a power failure.

        A damaged file is kept beside it as `NAME.damaged`. The drafts of killed processes are removed. Raises
        OSError.
        """
        text = json.dumps(document, indent=1, sort_keys=True)
        replace = replacing.replace_apart if self._apart else replacing.replace
        replace(os.fspath(self.path), text.encode(), tidy=not self._tidied, aside=self._damaged)
        self._tidied, self._damaged = True, False
