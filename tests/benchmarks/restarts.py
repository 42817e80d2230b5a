# SPDX-License-Identifier: Apache-2.0
"""The time from a new kubelet.sock to the first list, over many restarts of a kubelet, beside busy processes.

    python -m tests.benchmarks.restarts [--restarts N] [--hogs N] [--most MS] [-- OPTION ...]

starts the plugin over the simulator, with the options after `--`, and so many processes that use all the CPU
they get. The measuring kubelet has the highest priority where it may, so that it does not measure its own
waits. It prints the distributions in milliseconds. With `--most` it ends with status 1 if a first list took
longer.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks.kubelet import Kubelet
from tests.benchmarks.subjects import machine_file, make_machine, simulator


DEVICES = 8
AWAY_SECONDS = (0.1, 0.8)  # that a kubelet is away
SETTLE_SECONDS = 0.3  # after a list, for what follows it
FIRST_SECONDS = 3.0  # after the start, for what is loaded after the first list
HIGHEST = -20
CHECKPOINT = "kubelet_internal_checkpoint"
SHARES = (0.5, 0.9, 0.99)


def checkpoint(pods: int) -> str:
    """The checkpoint of a node with so many pods, each with a device of another plugin."""
    entries = [
        {
            "PodUID": f"00000000-0000-0000-0000-{number:012}",
            "ContainerName": "main",
            "ResourceName": "example.com/accelerator",
            "DeviceIDs": {"-1": [f"accelerator-{number}"]},
            "AllocResp": "",
        }
        for number in range(pods)
    ]
    return json.dumps({"Data": {"PodDeviceEntries": entries, "RegisteredDevices": {}}, "Checksum": 0})


@contextlib.contextmanager
def hogs(number: int) -> Iterator[None]:
    """So many processes that are always busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@contextlib.contextmanager
def plugin(place: Path, directory: Path, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The plugin over the simulator; its log stays in `place`."""
    make_machine(place, DEVICES)
    command = [
        sys.executable,
        "-P",
        "-m",
        "xpu_plugin",
        "--xpuml-library=simulator",
        f"--simulator-file={machine_file(place, DEVICES)}",
        f"--device-plugin-dir={directory}",
        f"--pod-resources-socket={directory / 'pods.sock'}",
        f"--state-dir={place / 'state'}",
        *options,
    ]
    environment = {**os.environ, **simulator(place, DEVICES)}
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measured(
    kubelet: Kubelet, directory: Path, restarts: int, chance: random.Random
) -> list[tuple[float, float]]:
    """Seconds from the new socket to Register and to the first list, of each restart."""
    samples = []
    for _ in range(restarts):
        kubelet.end()
        time.sleep(chance.uniform(*AWAY_SECONDS))
        begin = kubelet.begin()
        (directory / CHECKPOINT).write_text(checkpoint(100))
        asked, endpoint = kubelet.registered()
        listed = kubelet.dial(endpoint)
        samples.append((asked - begin, listed - begin))
        kubelet.quiet(SETTLE_SECONDS)
    return samples


def described(name: str, seconds: Sequence[float]) -> str:
    own = sorted(seconds)
    shares = "  ".join(f"p{100 * share:g} {1e3 * own[int(share * (len(own) - 1))]:6.1f}" for share in SHARES)
    return f"{name:<10} {shares}  worst {1e3 * own[-1]:6.1f}  mean {1e3 * statistics.mean(own):6.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--restarts", type=int, default=300)
    parser.add_argument("--hogs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=float, metavar="MS")
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xpu-") as name:
        place = Path(name)
        directory = place / "plugins"
        directory.mkdir(mode=0o700)
        kubelet = Kubelet(directory)
        kubelet.begin()
        with plugin(place, directory, given.options) as process, hogs(given.hogs):
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, 0, HIGHEST)
            try:
                kubelet.dial(kubelet.registered()[1])
                kubelet.quiet(FIRST_SECONDS)
                samples = measured(kubelet, directory, given.restarts, random.Random(given.seed))
            except Exception:
                print((place / "log").read_text()[-2000:], file=sys.stderr)
                raise
            assert process.poll() is None
        kubelet.end()
    print(
        f"{given.restarts} restarts beside {given.hogs} busy processes on {os.cpu_count()} CPUs; milliseconds"
    )
    print(described("Register", [asked for asked, _ in samples]))
    print(described("first list", [listed for _, listed in samples]))
    slow = max(listed for _, listed in samples)
    if given.most is not None and 1e3 * slow > given.most:
        print(f"a first list took {1e3 * slow:.1f} ms; accepted: {given.most:g} ms at most")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
