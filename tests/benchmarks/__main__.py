# SPDX-License-Identifier: Apache-2.0
"""`make bench`: sessions of all subjects in turns, round by round; then a table, and build/bench.json."""

import argparse
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks import pace, report, size, sweep
from tests.benchmarks.kubelet import Figures, figures_of, measured
from tests.benchmarks.subjects import (
    FAST,
    FLOOR,
    LABEL,
    OURS,
    REPLAY,
    Subject,
    make_machine,
    simulator,
    subjects,
    write_kubeconfig,
)
from tests.support.api_server import ApiServer, certificate


NODE = "node-1"
DEVICES = (8, 64, 512, 4096)
IDLE_DEVICES = (64, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured. replays: rounds in which the replay, which sleeps a lot, takes part"""

    rounds: int
    replays: int
    calls: int
    preferences: int
    restarts: int
    cold: int
    idle_rounds: int
    idle_seconds: float
    many: int
    sweeps: int
    size: bool


FULL = Plan(
    rounds=10,
    replays=10,
    calls=1000,
    preferences=40,
    restarts=1,
    cold=5,
    idle_rounds=3,
    idle_seconds=20.0,
    many=5000,
    sweeps=10,
    size=True,
)
QUICK = Plan(
    rounds=2,
    replays=1,
    calls=300,
    preferences=10,
    restarts=1,
    cold=0,
    idle_rounds=1,
    idle_seconds=5.0,
    many=1000,
    sweeps=2,
    size=False,
)


class Bench:
    """One run. Sessions come one after the other, but for those that only idle."""

    def __init__(self, place: Path, measured_ones: dict[str, Subject], plan: Plan) -> None:
        self._place = place
        self._subjects = measured_ones
        self._plan = plan
        self.samples: report.Samples = {name: {} for name in measured_ones}
        self.extra: dict[str, list[float]] = {}

    def _keep(self, subject: str, devices: int, number: int, figures: Figures) -> None:
        own = self.samples[subject].setdefault(devices, {})
        for figure, values in figures.items():
            rounds = own.setdefault(figure, [])
            rounds += [[] for _ in range(number + 1 - len(rounds))]
            rounds[number] += values

    def latencies(self) -> None:
        plan = self._plan
        for number in range(plan.rounds):
            for devices in DEVICES:
                self._measure_pace()
                names = [name for name in self._subjects if self._takes_part(name, number, devices)]
                random.Random(f"{number} {devices}").shuffle(names)
                for name in names:
                    say(f"round {number + 1} of {plan.rounds}: {name}, {devices} devices")
                    alone = name == FAST
                    session = self._subjects[name].session(
                        self._place,
                        devices,
                        seed=number * DEVICES[-1] + devices,
                        calls=0 if alone else plan.calls,
                        preferences=0 if alone else plan.preferences,
                        faults=True,
                        crash=name == OURS,
                        restarts=0 if alone else plan.restarts if name == OURS else 1,
                    )
                    self._keep(name, devices, number, figures_of(measured(session)))

    def _takes_part(self, name: str, number: int, devices: int) -> bool:
        if name == LABEL:
            return False
        if name == REPLAY:  # its sleeps are the same with any number of devices
            return number < self._plan.replays and devices in (DEVICES[0], DEVICES[-1])[: self._plan.replays]
        return True

    def idle(self) -> None:
        """All at the same time, as they take next to nothing; then memory, and what many calls do to it."""
        plan = self._plan
        for number in range(plan.idle_rounds):
            for devices in IDLE_DEVICES:
                self._measure_pace()
                say(f"idle, round {number + 1} of {plan.idle_rounds}: {devices} devices")
                running = {
                    name: measured(
                        subject.session(
                            self._place,
                            devices,
                            seed=number,
                            idle=plan.idle_seconds,
                            memory=True,
                            many=plan.many if devices == IDLE_DEVICES[0] else 0,
                        )
                    )
                    for name, subject in self._subjects.items()
                    if name != FAST
                }
                for name, process in running.items():
                    self._keep(name, devices, number, _without_start(figures_of(process)))

    def cold(self, files: Sequence[str]) -> None:
        for number in range(self._plan.cold):
            for name in (OURS, FLOOR):
                say(f"cold start, round {number + 1} of {self._plan.cold}: {name}")
                session = self._subjects[name].session(self._place, DEVICES[0], cold=list(files))
                figures = figures_of(measured(session))
                self._keep(name, DEVICES[0], number, {"cold_start_ms": figures["start_ms"]})

    def _measure_pace(self) -> None:
        self.extra.setdefault(report.PACE, []).append(pace.load_ms(sys.executable))

    def once(self) -> None:
        """What needs no kubelet."""
        say("sweeps by the binding and by a plain C loop")
        self.extra |= sweep.compare(self._place, simulator(self._place, DEVICES[-1]), self._plan.sweeps)
        if self._plan.size:
            self.extra["bytes_to_ship"] = [float(size.shipped(self._place))]


def _without_start(figures: Figures) -> Figures:
    """Several started at a time: that is not what a start takes."""
    return {
        name: values for name, values in figures.items() if not name.startswith(("start", "first", "stop"))
    }


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def environment_files(plugin: str) -> list[str]:
    """What a start may read: the interpreter's library and that of the environment the plugin is in."""
    roots = {Path(os.__file__).parent, Path(shutil.which(plugin) or plugin).resolve().parents[1]}
    roots.add(Path(sys.prefix))
    return [
        str(file)
        for root in roots
        for file in root.rglob("*")
        if file.suffix in (".py", ".pyc", ".so") and file.is_file()
    ]


def machine() -> dict[str, object]:
    """What this run was on, without names."""
    return {
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": list(os.getloadavg()),
        "packages": {name: version(name) for name in ("grpcio", "protobuf", "kubernetes")},
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description="Measure the plugin beside references.")
    parser.add_argument("--quick", action="store_true", help="two minutes instead of a quarter of an hour")
    parser.add_argument("--plugin", required=True, metavar="CMD", help="the command of our plugin")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=CMD",
        help="another plugin; {directory} and {devices} in CMD are filled in",
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="these subjects; may be repeated")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), metavar="FILE")
    options = parser.parse_args(arguments)
    peers = [peer.partition("=") for peer in options.peer]
    if not all(name and command for name, _, command in peers):
        parser.error("--peer: NAME=CMD is accepted")
    options.peers = [(name, command) for name, _, command in peers]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    plan = QUICK if options.quick else FULL
    before = machine()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="xpu-bench-") as directory:
        place = Path(directory)
        authority, tls = certificate(place)
        with ApiServer(NODE, tls=tls) as server:
            kubeconfig = place / "kubeconfig"
            write_kubeconfig(kubeconfig, server.url, authority)
            chosen = subjects(options.plugin, options.peers, kubeconfig=kubeconfig, node=NODE)
            if options.only:
                chosen = {name: subject for name, subject in chosen.items() if name in options.only}
            for devices in DEVICES:
                make_machine(place, devices)
            bench = Bench(place, chosen, plan)
            try:
                bench.once()
                bench.idle()
                if plan.cold:
                    bench.cold(environment_files(options.plugin))
                bench.latencies()
            except KeyboardInterrupt:
                say("interrupted: what follows is of the sessions that are over")
    for line in report.table(bench.samples):
        print(line)
    for name, values in bench.extra.items():
        print(f"{name}: {report.Spread.of(values)}")
    goals = report.targets(bench.samples, bench.extra)
    print(*goals, sep="\n")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": before | {"load_after": list(os.getloadavg())},
        "plan": asdict(plan),
        "samples": bench.samples,
        "extra": bench.extra,
        "ratios": {
            name: {
                devices: {
                    figure: {
                        reference: asdict(found)
                        for reference in report.REFERENCES
                        if (found := report.ratio(bench.samples, name, reference, devices, figure))
                    }
                    for figure in own
                }
                for devices, own in of_subject.items()
            }
            for name, of_subject in bench.samples.items()
        },
        "targets": [asdict(goal) for goal in goals],
    }
    options.json.write_text(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
