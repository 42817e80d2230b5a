# SPDX-License-Identifier: Apache-2.0
"""The file of the rules for the kernel's log."""

from pathlib import Path

from xpu_plugin.errors import PluginError
from xpu_plugin.model import kernel_log_rules
from xpu_plugin.model.kernel_log_rules import Rules, parse


DEFAULT_RULES = Path(kernel_log_rules.__file__).with_suffix(".toml")
LONGEST_FILE = 1 << 18  # bytes


class RulesFileError(PluginError):
    """A file that cannot be used. The text names the option, the file, the fault and the accepted form."""


def read_rules(path: Path | None) -> Rules:
    """Return the rules of a file; the plugin's own without a path. Raises RulesFileError."""
    import tomllib  # noqa: PLC0415 - it is not needed before the first list

    file = path or DEFAULT_RULES
    try:
        return parse(tomllib.loads(_text(file)))
    except OSError as error:
        fault = f"{error.strerror}; accepted: a file that can be read"
    except tomllib.TOMLDecodeError as error:
        fault = f"{error}; accepted: TOML"
    except ValueError as error:
        fault = str(error)
    raise RulesFileError(f"--kernel-log-rules: {str(file)!r}: {fault}")


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():  # a read of a FIFO would wait
        raise ValueError("not a regular file; accepted: a TOML file")
    with path.open("rb") as stream:
        content = stream.read(LONGEST_FILE + 1)
    if len(content) > LONGEST_FILE:
        raise ValueError(f"more than {LONGEST_FILE} bytes; accepted: a smaller file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; accepted: TOML") from None
