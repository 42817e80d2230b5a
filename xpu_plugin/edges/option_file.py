# SPDX-License-Identifier: Apache-2.0
"""A file that the administrator names by an option."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from xpu_plugin.errors import PluginError


T = TypeVar("T")


class OptionFileError(PluginError):
    """A file that cannot be used. The text names the option, the file, the fault and the accepted form."""


def read(option: str, path: Path, parse: Callable[[bytes], T], *, form: str, longest: int) -> T:
    """Return the parsed content of a file. Raises OptionFileError.

    parse: raises ValueError with the fault and the accepted form
    form: the accepted kind of file, in words
    longest: bytes
    """
    try:
        return parse(_content(path, form, longest))
    except OSError as error:
        fault = f"{error.strerror}; accepted: a file that can be read"
    except ValueError as error:
        fault = str(error)
    raise OptionFileError(f"{option}: {str(path)!r}: {fault}")


def check_program(option: str, path: Path) -> None:
    """Check that a file can be executed. Raises OptionFileError."""
    try:
        if path.is_file() and os.access(path, os.X_OK):
            return
        fault = "not executable" if path.is_file() else "not a regular file"
        path.stat()
    except OSError as error:
        fault = str(error.strerror)
    raise OptionFileError(
        f"{option}: {str(path)!r}: {fault}; accepted: an executable file, and its arguments"
    )


def _content(path: Path, form: str, longest: int) -> bytes:
    if path.exists() and not path.is_file():  # a read of a FIFO would wait
        raise ValueError(f"not a regular file; accepted: {form}")
    with path.open("rb") as stream:
        content = stream.read(longest + 1)
    if len(content) > longest:
        raise ValueError(f"more than {longest} bytes; accepted: a smaller file")
    return content
