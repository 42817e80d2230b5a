# SPDX-License-Identifier: Apache-2.0
"""A file of rules for the kernel's log that cannot be used is told in one line."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from xpu_plugin.cli import main
from xpu_plugin.edges.kernel_log_rules import DEFAULT_RULES, LONGEST_FILE


OWN = DEFAULT_RULES.read_bytes()


def having(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def with_line(key: str, line: str) -> Callable[[Path], object]:
    """The plugin's own rules with another first line of a key."""
    changed, times = re.subn(rf"^{key} = .*$", line, OWN.decode(), count=1, flags=re.MULTILINE)
    assert times == 1
    return having(changed.encode())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "No such file or directory; accepted: a file that can be read"),
        (
            lambda path: path.symlink_to(path),
            "Too many levels of symbolic links; accepted: a file that can be",
        ),
        (Path.mkdir, "not a regular file; accepted: a TOML file"),
        (os.mkfifo, "not a regular file; accepted: a TOML file"),
        (having(b""), "pattern: missing; accepted: a value for it, as in the plugin's own rules"),
        (having(b"pods = "), "; accepted: TOML"),
        (having(b"pods 2"), "line 1, column 6); accepted: TOML"),
        (having(OWN + b"pods = " + b"[" * 9999), "; accepted: TOML"),
        (having(b"\xff"), "not UTF-8 at byte 0; accepted: TOML"),
        (having(OWN + b"#" * LONGEST_FILE), f"more than {LONGEST_FILE} bytes; accepted: a smaller file"),
        (having(b"colour = 1\n" + OWN), "the key: 'colour' is not accepted; accepted: address, "),
        (
            with_line("text", "text = '('"),
            "pattern 1: text: '(' is not accepted; accepted: a regular expression",
        ),
        (with_line("process", "process = 'pid'"), "process: 'pid' is not accepted; accepted: a regular "),
        (
            with_line("window_seconds", "window_seconds = -5"),
            "window_seconds: -5 is not accepted; accepted: a",
        ),
    ],
)
def test_a_file_of_rules_that_cannot_be_used_is_refused_before_anything_begins(
    place: Path, make: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "rules.toml"
    make(path)
    before = set(place.iterdir())
    directories = (f"--{name}={place}/{name}" for name in ("state-dir", "device-plugin-dir"))
    assert main([f"--kernel-log-rules={path}", "--kernel-log=off", *directories]) == 2
    assert set(place.iterdir()) == before
    out, error = capsys.readouterr()
    assert error.startswith(f"xpu-device-plugin: --kernel-log-rules: '{path}': ")
    assert message in error
    assert (out, error.count("\n")) == ("", 1)
