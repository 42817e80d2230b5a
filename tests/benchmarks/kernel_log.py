# SPDX-License-Identifier: Apache-2.0
"""From a fault to the list without the card: by the kernel's log, and by the poll of states.

`python -m tests.benchmarks.kernel_log --rounds 30` runs the real plugin with its usual intervals on a
simulated machine, beside a FIFO in place of /dev/kmsg and a kubelet of the tests. In each round a pod has had
an incident, another one has the card now, and its first line is written. The other figure is that of a state
query which returns an error. Then it prints the share of a CPU that a flood of lines takes.
"""

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from tests.support.daemon import IDS, Daemon, Node, a_node, shows
from tests.support.kernel_log import KernelLog
from tests.support.kubelets import own_pod
from tests.support.machines import RESOURCE
from tests.support.waiting import SECONDS
from xpu_plugin.edges.control_socket import ask
from xpu_plugin.edges.kernel_log_rules import DEFAULT_RULES
from xpu_plugin.simulation.kernel_log import Trouble
from xpu_plugin.simulation.kubelet import Kubelet


CARD = IDS[0]
TOGETHER = 0.2  # seconds of an incident; the usual ones would make a round last longer
FLOOD_SECONDS = 5.0


async def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with a_node(Path(directory), Node) as node, node.kubelet() as kubelet:
            assert node.machine.dev_root
            log = KernelLog(node.machine.dev_root / "kmsg")
            own_pod(kubelet)
            rules = node.place / "rules.toml"
            rules.write_text(
                DEFAULT_RULES.read_text().replace(
                    "together_seconds = 5\n", f"together_seconds = {TOGETHER}\n"
                )
            )
            daemon = node.start(
                "--kernel-log=act",
                f"--kernel-log-rules={rules}",
                "--health-interval=1",
                "--health-flaps=1000",
                "--pod-name=plugin",
                f"--status-socket={node.place}/status.sock",
            )
            await shows(kubelet, IDS)
            await daemon.says("the kernel's log is followed")
            _print("kernel log", [await by_log(node, log, kubelet) for _ in range(rounds)])
            _print("poll", [await by_poll(node, kubelet) for _ in range(rounds)])
            print(f"flood: {await flood(daemon, log):.0%} of a CPU")
            log.close()


async def by_log(node: Node, log: KernelLog, kubelet: Kubelet) -> float:
    """Milliseconds from the first line of a second pod to the list."""
    first = await kubelet.allocate(RESOURCE, 1)
    log.says(CARD, Trouble.HANG)
    await asyncio.sleep(2 * TOGETHER)
    kubelet.free(first)
    second = await kubelet.allocate(RESOURCE, 1)
    assert first.ids == second.ids == (CARD,)
    began = time.monotonic()
    log.says(CARD, Trouble.HANG)
    await _sick(kubelet)
    took = time.monotonic() - began
    kubelet.free(second)
    assert await asyncio.to_thread(ask, node.place / "status.sock", "clear", id=CARD) is True
    await shows(kubelet, IDS)
    await asyncio.sleep(2 * TOGETHER)
    return took * 1000


async def by_poll(node: Node, kubelet: Kubelet) -> float:
    """Milliseconds from a bad state to the list."""
    await asyncio.sleep(random.random())  # at any time of a round
    began = time.monotonic()
    node.machine.set_card(0, {"state": "207"})
    await _sick(kubelet)
    took = time.monotonic() - began
    node.machine.set_card(0, {"state": ""})
    await shows(kubelet, IDS)
    return took * 1000


async def flood(daemon: Daemon, log: KernelLog) -> float:
    """Return the plugin's share of a CPU while there are more lines than it reads."""
    began, before = time.monotonic(), _cpu(daemon.pid)
    while time.monotonic() - began < FLOOD_SECONDS:
        try:
            log.write("a driver in trouble prints a line of about so many characters, again and again")
        except BlockingIOError:
            await asyncio.sleep(0.001)
    return (_cpu(daemon.pid) - before) / (time.monotonic() - began)


async def _sick(kubelet: Kubelet) -> None:
    await kubelet.until(lambda: not kubelet.devices(RESOURCE)[CARD].healthy, timeout=SECONDS)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _print(name: str, milliseconds: list[float]) -> None:
    median, most = statistics.median(milliseconds), max(milliseconds)
    print(f"{name}: median {median:.1f} ms, maximum {most:.1f} ms, {len(milliseconds)} rounds", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    asyncio.run(main(parser.parse_args().rounds))
