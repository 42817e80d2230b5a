# SPDX-License-Identifier: Apache-2.0
"""Rebinds beside a kubelet that stands still: `python -m tests.endurance.rebinds [--rounds N] [--seed S]`

A real kubelet is stopped (SIGSTOP) again and again. Meanwhile the plugin binds new sockets, which it
is told of and cannot dial until it goes on (SIGCONT). The plugin binds anew because it is killed, ended, or
gets no answer to its registration. A round is one socket with a new name. The kubelet's log never says
"already connected", and after each stop the kubelet has all devices; in the end the Node offers them and a
pod gets all. Ends with status 1 if that is not so.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.machine import CARDS, granted
from tests.e2e.plugin import Plugin, closing, serve
from tests.e2e.waiting import wait_until
from tests.endurance.node import Node, a_node, verdict
from tests.endurance.witnesses import Kubelet


REFUSED = "already connected"
STOPPED_ROUNDS = 3
"""New sockets in one stop of the kubelet, at most."""
UNANSWERED = 0.1
"""Of all stops, those in which the plugin runs on and binds anew by itself: they last longer."""
BIND_SECONDS = 30
BACK_SECONDS = 60
LOG_SECONDS = 60


def listener(socket: Path) -> int:
    """The process that listens at a socket."""
    listening = "00010000"
    inodes = {
        fields[6]
        for fields in map(str.split, Path("/proc/net/unix").read_text(errors="replace").splitlines())
        if fields[7:] == [str(socket)] and fields[3] == listening
    }
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
        except OSError:  # it is gone by now
            continue
        if target.removeprefix("socket:[").removesuffix("]") in inodes:
            return int(link.parts[2])
    raise AssertionError(f"no process listens at {socket}")


@contextmanager
def standing_still(kubelet: Path) -> Iterator[None]:
    """Stop the kubelet, and let it go on in the end."""
    pid = listener(kubelet)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Rebinds:
    """Binds new sockets, and counts them."""

    def __init__(self, plugin: Plugin, chance: random.Random) -> None:
        self.kinds = dict.fromkeys(("killed", "ended", "unanswered"), 0)
        self._plugin = plugin
        self._chance = chance
        self._known = set(plugin.sockets())

    @property
    def number(self) -> int:
        return sum(self.kinds.values())

    def again(self, most: int) -> None:
        """Bind so many new sockets at most."""
        if self._chance.random() < UNANSWERED:
            self._restart("killed")
            if most > 1:
                self._wait_for_another("unanswered")
            return
        for _ in range(self._chance.randint(1, most)):
            self._restart(self._chance.choice(("killed", "ended")))
            time.sleep(self._chance.uniform(0, 0.5))  # a registration may be on its way, or not yet

    def _restart(self, kind: str) -> None:
        if kind == "killed":
            self._plugin.kill()
        else:
            self._plugin.terminate()
        self._plugin.launch()
        self._wait_for_another(kind)

    def _wait_for_another(self, kind: str) -> None:
        new = wait_until(
            "a socket with a new name",
            lambda: set(self._plugin.sockets()) - self._known,
            bool,
            seconds=BIND_SECONDS,
        )
        self._known |= new
        self.kinds[kind] += 1


def refusals(log: str) -> int:
    return len(re.findall(REFUSED, log))


def run(node: Node, options: argparse.Namespace) -> int:
    hooks = node.hooks
    if not hooks.kubelet_log:
        raise SystemExit("XPU_E2E_KUBELET_LOG is not set: a command that prints the kubelet's log")

    def kubelet_log() -> str:
        return subprocess.run(
            hooks.kubelet_log,
            check=True,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LOG_SECONDS,
        ).stdout

    directory = hooks.device_plugin_directory
    command = (
        *hooks.plugin,
        *node.machine.options,
        f"--device-plugin-dir={directory}",
        f"--pod-resources-socket={hooks.pod_resources_socket}",
        f"--state-dir={node.place / 'state'}",
    )
    plugin = Plugin(command, directory=directory, log=node.place / "plugin.log")
    before, slowest, stops = refusals(kubelet_log()), 0.0, 0
    began = time.monotonic()
    with closing(plugin, node.cluster):
        serve(plugin, node.cluster)
        rebinds = Rebinds(plugin, random.Random(options.seed))
        kubelet = Kubelet(hooks.pod_resources_socket, directory)
        while rebinds.number < options.rounds:
            with standing_still(directory / "kubelet.sock"):
                rebinds.again(min(STOPPED_ROUNDS, options.rounds - rebinds.number))
            stops += 1
            back = time.monotonic()
            plugin.wait_for_new_stream(frozenset())
            wait_until(
                "the kubelet has all devices",
                kubelet.count,
                lambda count: count == CARDS,
                seconds=BACK_SECONDS,
            )
            slowest = max(slowest, time.monotonic() - back)
        kubelet.close()
        node.cluster.wait_for_allocatable(CARDS)
        pod = node.cluster.run_pod("user", devices=CARDS)
        assert granted(node.machine, pod, CARDS) == node.machine.ids().keys()
    found = refusals(kubelet_log()) - before
    print(
        f"{rebinds.number} rebinds {rebinds.kinds} in {stops} stops of the kubelet, seed {options.seed}, "
        f"{time.monotonic() - began:.0f} s\n"
        f"all devices again after {slowest * 1000:.0f} ms at most\n"
        f'"{REFUSED}" in the log of the kubelet: {found}'
    )
    return verdict([f'the kubelet has said "{REFUSED}" {found} times'] if found else [])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=300, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with a_node() as node:
        return run(node, options)


if __name__ == "__main__":
    sys.exit(main())
