# SPDX-License-Identifier: Apache-2.0
"""The file of the rules for the kernel's log."""

from pathlib import Path

from xpu_plugin.edges import option_file
from xpu_plugin.model import kernel_log_rules
from xpu_plugin.model.kernel_log_rules import Rules, parse


DEFAULT_RULES = Path(kernel_log_rules.__file__).with_suffix(".toml")
LONGEST_FILE = 1 << 18  # bytes


def read_rules(path: Path | None) -> Rules:
    """Return the rules of a file; the plugin's own without a path. Raises OptionFileError."""
    file = path or DEFAULT_RULES
    return option_file.read("--kernel-log-rules", file, _rules, form="a TOML file", longest=LONGEST_FILE)


def _rules(content: bytes) -> Rules:
    import tomllib  # noqa: PLC0415 - it is not needed before the first list

    try:
        return parse(tomllib.loads(content.decode()))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; accepted: TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{error}; accepted: TOML") from None
    except RecursionError:
        raise ValueError("values are nested too deep; accepted: TOML") from None
