# SPDX-License-Identifier: Apache-2.0
"""Small files that outlive the process: read within bounds, replaced whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path


LARGEST = 1 << 20  # bytes that are read


def read(file: Path) -> bytes:
    """The file, cut off where it is longer than anything of ours. Raises OSError."""
    with file.open("rb") as stream:
        return stream.read(LARGEST)


def replace(file: Path, text: str) -> None:
    """Write a file whole or not at all, and so that it is there after a power failure. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)  # noqa: PTH105
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
