# SPDX-License-Identifier: Apache-2.0
"""The file of link groups: read whole, or refused in one line."""

import os
from pathlib import Path

import pytest

from xpu_plugin.edges.option_file import OptionFileError
from xpu_plugin.edges.topology_file import LONGEST, read
from xpu_plugin.model.topology import NO_LINKS, Links, LinkSource


A, B = "0000:3b:00.0", "0000:3c:00.0"


def test_groups_are_read_from_a_file_also_by_a_link(tmp_path: Path) -> None:
    """As a ConfigMap is mounted."""
    (tmp_path / "file").write_text(f"{A} {B}\n")
    (tmp_path / "link").symlink_to("file")
    assert read(tmp_path / "link") == Links(source=LinkSource.FILE, groups=(frozenset({A, B}),))
    assert read(None) == NO_LINKS


def test_a_file_that_cannot_be_used_is_refused_in_one_line_with_its_path(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\n" * 3)
    (tmp_path / "long").write_bytes(b"#" * (LONGEST + 1))
    said = {
        "none": "No such file",
        "pipe": "not a regular file",
        "": "not a regular file",
        "bytes": "line 1",
        "long": f"more than {LONGEST} bytes",
    }
    for name, why in said.items():
        with pytest.raises(OptionFileError, match=why) as refusal:
            read(tmp_path / name)
        text = str(refusal.value)
        assert text.startswith("--topology-file: ")
        assert str(tmp_path / name) in text
        assert "accepted: " in text
        assert "\n" not in text
