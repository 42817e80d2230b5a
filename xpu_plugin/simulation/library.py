# SPDX-License-Identifier: Apache-2.0
"""Where the simulator's library is, and how it is told which machine to be."""

from importlib.util import find_spec
from pathlib import Path


FILE = "XPU_SIMULATOR_FILE"
DEV_ROOT = "XPU_SIMULATOR_DEV_ROOT"
SYSFS_ROOT = "XPU_SIMULATOR_SYSFS_ROOT"


def shipped() -> Path:
    """The simulator that came with this package; it lies beside the binding."""
    spec = find_spec("xpu_plugin._xpuml")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("xpu_plugin is not built: `make run` or `pip install .` does it")
    return Path(spec.origin).parent / "simulation" / "libxpuml.so.1"


def environment(file: Path, dev_root: Path, sysfs_root: Path) -> dict[str, str]:
    """What a process that loads the simulator needs in its environment."""
    return {FILE: str(file), DEV_ROOT: str(dev_root), SYSFS_ROOT: str(sysfs_root)}
