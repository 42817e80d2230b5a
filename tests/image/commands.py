# SPDX-License-Identifier: Apache-2.0
"""Where the sources of the image are, and commands on them."""

import os
import subprocess
from pathlib import Path


ROOT = Path(__file__).parents[2]

DOCKER = ROOT / "docker"

NETWORK_SECONDS = 600


def run(*command: str | Path, cwd: Path | None = None, seconds: float = NETWORK_SECONDS) -> str:
    """Its output; fails with all of it when the command fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, text=True, timeout=seconds,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout
