# SPDX-License-Identifier: Apache-2.0
"""The simulator's library, and the environment that names its machine."""

from importlib.util import find_spec
from pathlib import Path


FILE = "XPU_SIMULATOR_FILE"
DEV_ROOT = "XPU_SIMULATOR_DEV_ROOT"
SYSFS_ROOT = "XPU_SIMULATOR_SYSFS_ROOT"


def shipped() -> Path:
    """Return the simulator of this package; it is beside the binding."""
    spec = find_spec("xpu_plugin._xpuml")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("xpu_plugin is not built: `make run` or `pip install .` does it")
    return Path(spec.origin).parent / "simulation" / "libxpuml.so.1"


def environment(file: Path, dev_root: Path | None, sysfs_root: Path | None) -> dict[str, str]:
    """Return the environment variables for a process that loads the simulator; a root of None stays unset."""
    places = {FILE: file.absolute(), DEV_ROOT: dev_root, SYSFS_ROOT: sysfs_root}
    return {name: str(place) for name, place in places.items() if place is not None}
