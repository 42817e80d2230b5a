# SPDX-License-Identifier: Apache-2.0
"""Programs in place of those of a vendor or an administrator."""

from pathlib import Path


def program(path: Path, script: str, *, shell: str = "/bin/sh") -> Path:
    """An executable file that runs this script."""
    draft = path.with_name(f".{path.name}")  # never executed while it is written
    draft.write_text(f"#!{shell}\n{script}\n")
    draft.chmod(0o755)
    draft.rename(path)
    return path
