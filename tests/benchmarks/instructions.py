# SPDX-License-Identifier: Apache-2.0
"""Instructions of the hot paths, counted by callgrind, against a baseline: `make bench-instructions`.

Unlike times they are the same on a busy machine. They are not the same with another interpreter, so the
baseline (instructions.json) says which one it is of; with any other there is nothing to compare, which is
said. `--update` writes a new baseline; why it differs belongs into the commit.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support.devices import CONTROL, device, found
from xpu_plugin.edges.kubelet.service import listing
from xpu_plugin.edges.worker.decoding import states_of
from xpu_plugin.model.allocation import grant, prefer
from xpu_plugin.model.devices import Device
from xpu_plugin.model.inventory import Facts, Inventory, Policy, after_scan, entries
from xpu_plugin.model.topology import Links, LinkSource


HERE = Path(__file__).parent
BASELINE = HERE / "instructions.json"
TOLERANCE = 0.10  # how many more there may be
TIMES = 5  # each path is gone; the first times are not counted
RESOURCE = "baidu.com/xpu"


def cards(number: int) -> list[Device]:
    return [
        device(f"0000:{n // 128:02x}:{n % 128:02x}.0", number=n, index=n, numa=2 * n // number)
        for n in range(number)
    ]


def paths() -> dict[str, Callable[[], object]]:
    """The hot paths, each ready to be gone."""
    policy = Policy(resource=RESOURCE)
    facts = after_scan(Facts(), found(*cards(512)))
    inventory = Inventory(generation=1, control=CONTROL, entries=entries(facts, policy))
    nodes = {
        f"xpu{entry.device.node.number}": entry.device.node.identity for entry in inventory.entries.values()
    }
    nodes["xpuctrl"] = (CONTROL, 1)
    ids = list(inventory.entries)
    # Four pairs across NUMA nodes: as many choices as eight cards can have.
    eight = entries(after_scan(Facts(), found(*cards(8))), policy)
    pairs = tuple(frozenset([*eight][n::4]) for n in range(4))
    linked = Inventory(
        generation=1,
        control=CONTROL,
        entries=eight,
        links=Links(source=LinkSource.FILE, groups=pairs),
    )
    answer = json.dumps({"id": 1, "result": [(0, 201)] * 512})
    return {
        "allocate 8 of 512": lambda: grant(inventory, RESOURCE, [ids[:8]], nodes.get),
        "prefer 4 of 8, linked": lambda: prefer(linked, RESOURCE, list(linked.entries), [], 4),
        "prefer 8 of 64": lambda: prefer(inventory, RESOURCE, ids[:64], [], 8),
        "list of 512": lambda: listing(inventory.of(RESOURCE)),
        "sweep of 512, decoded": lambda: states_of(json.loads(answer)["result"]),
        "picture of 512": lambda: entries(facts, policy),
    }


def go(library: str) -> None:
    """What runs within callgrind."""
    counting = ctypes.CDLL(library)
    for name, path in paths().items():
        for _ in range(TIMES):
            path()
        gc.collect()
        gc.disable()
        counting.count_begin()
        for _ in range(TIMES):
            path()
        counting.count_end(name.encode())
        gc.enable()


def count(seed: int) -> dict[str, int]:
    """Instructions of one go of each path."""
    with tempfile.TemporaryDirectory(prefix="xpu-instructions-") as directory:
        library = f"{directory}/callgrind.so"
        compiler = shlex.split(os.environ.get("CC", "cc"))
        subprocess.run(
            [*compiler, "-O2", "-shared", "-fPIC", "-o", library, HERE / "callgrind.c"], check=True
        )
        valgrind = (
            "valgrind",
            "--quiet",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={directory}/out",
        )
        subprocess.run(
            [*valgrind, sys.executable, "-m", "tests.benchmarks.instructions", "--go", library],
            check=True,
            cwd=HERE.parents[1],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "GRPC_VERBOSITY": "ERROR"},
        )
        found = {}
        for file in Path(directory).glob("out.*"):
            text = file.read_text()
            name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
            total = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
            if name and total:
                found[name[1]] = int(total[1]) // TIMES
        return found


def interpreter() -> str:
    """What a count belongs to."""
    optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return (
        f"{platform.python_implementation()} {platform.python_version()} {platform.python_compiler()} "
        f"{platform.machine()}{' optimised' if optimised else ''}, protobuf {version('protobuf')}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make bench-instructions", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--update", action="store_true", help="write the baseline")
    parser.add_argument("--seed", type=int, default=0, help="PYTHONHASHSEED, to see that it does not matter")
    parser.add_argument("--go", metavar="LIBRARY", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.go:
        go(options.go)
        return 0
    if shutil.which("valgrind") is None:
        print("instructions: skipped: there is no valgrind")
        return 0
    baseline: dict[str, Any] = json.loads(BASELINE.read_text())
    if not options.update and baseline["interpreter"] != interpreter():
        print(f"instructions: skipped: the baseline is of {baseline['interpreter']}, this is {interpreter()}")
        return 0
    counted = count(options.seed)
    if options.update:
        BASELINE.write_text(
            json.dumps({"interpreter": interpreter(), "instructions": counted}, indent=1) + "\n"
        )
        return 0
    worse = 0
    for name, before in baseline["instructions"].items():
        now = counted[name]
        worse += now > before * (1 + TOLERANCE)
        verdict = "TOO MANY" if now > before * (1 + TOLERANCE) else "ok"
        print(f"{name:24} {now:>12,} {100 * (now / before - 1):+7.2f} %  {verdict}")
    if counted.keys() != baseline["instructions"].keys():
        print("instructions: other paths than in the baseline; `make bench-instructions ARGS=--update`")
        return 1
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
