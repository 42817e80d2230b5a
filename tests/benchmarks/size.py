# SPDX-License-Identifier: Apache-2.0
"""How many bytes there are to ship: what docker/prune.py leaves of the plugin and all that it asks for."""

import importlib.metadata
import runpy
import shutil
from pathlib import Path


ROOT = Path(__file__).parents[2]


def closure(name: str, prune: dict[str, object]) -> set[str]:
    """The names of a distribution and all that it asks for and is installed."""
    required, normal = prune["required"], prune["normal"]
    assert callable(required)
    assert callable(normal)
    found = {normal(name)}
    waiting = [name]
    while waiting:
        for other in required(importlib.metadata.distribution(waiting.pop())) - found:
            try:
                importlib.metadata.distribution(other)
            except importlib.metadata.PackageNotFoundError:
                continue  # for another system or Python
            found.add(other)
            waiting.append(other)
    return found


def shipped(place: Path) -> int:
    """Bytes, without byte code and without the interpreter, which the image has too."""
    prune = runpy.run_path(str(ROOT / "docker/prune.py"))
    site = place / "site-packages"
    site.mkdir()
    for name in closure("xpu-device-plugin", prune):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or []:
            source = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and source.is_file() and source.suffix not in (".pyc", ".pth"):
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, site / file)
    for step in ("remove_distributions", "remove_paths", "remove_empty"):
        take = prune[step]
        assert callable(take)
        take(site)
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    shutil.rmtree(site)
    return size
