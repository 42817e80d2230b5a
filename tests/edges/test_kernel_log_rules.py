# SPDX-License-Identifier: Apache-2.0
"""A file of rules for the kernel's log that cannot be used is told in one line."""

from pathlib import Path

import pytest

from xpu_plugin.edges.kernel_log_rules import LONGEST_FILE, read_rules
from xpu_plugin.edges.option_file import OptionFileError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"pods = ", "accepted: TOML"),
        (b"pods = 2", "pattern: missing"),
        (b"\xff", "not UTF-8 at byte 0; accepted: TOML"),
        (b"#" * (LONGEST_FILE + 1), "accepted: a smaller file"),
    ],
)
def test_a_file_of_rules_that_cannot_be_used_is_told_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(content)
    with pytest.raises(OptionFileError) as raised:
        read_rules(path)
    assert str(raised.value).startswith(f"--kernel-log-rules: '{path}': ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_of_rules_is_told(tmp_path: Path) -> None:
    with pytest.raises(OptionFileError, match="No such file or directory; accepted: a file that can be read"):
        read_rules(tmp_path / "rules.toml")
