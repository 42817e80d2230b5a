# SPDX-License-Identifier: Apache-2.0
"""Samples -> ratios, a table, and the targets."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.pace import THERE_MS
from tests.benchmarks.subjects import FAST, FLOOR, GO, LABEL, OURS, REPLAY


Samples = dict[str, dict[int, dict[str, list[list[float]]]]]
"""Subject -> devices -> figure -> the samples of each round."""

REFERENCES = (REPLAY, FLOOR, GO)
PACE = "load_grpc_ms"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_number(self.median)} ({_number(self.least)} to {_number(self.most)})"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(samples: Samples, subject: str, devices: int, figure: str) -> Spread | None:
    """Of all samples; None when there are none."""
    rounds = samples.get(subject, {}).get(devices, {}).get(figure, [])
    values = [value for own in rounds for value in own]
    return Spread.of(values) if values else None


def ratio(
    samples: Samples, subject: str, over: str, devices: int, figure: str, *, over_devices: int | None = None
) -> Spread | None:
    """Of the ratios of each round's medians; rounds that one of the two does not have do not count."""
    mine = samples.get(subject, {}).get(devices, {}).get(figure, [])
    theirs = samples.get(over, {}).get(devices if over_devices is None else over_devices, {}).get(figure, [])
    ratios = [
        statistics.median(one) / statistics.median(other)
        for one, other in zip(mine, theirs, strict=False)
        if one and other and statistics.median(other)
    ]
    return Spread.of(ratios) if ratios else None


def table(samples: Samples) -> Iterator[str]:
    """A line for each figure, number of devices and subject."""
    rows = [("figure", "devices", "subject", "median (least to most)", *(f"x {name}" for name in REFERENCES))]
    subjects = list(samples)
    keys = sorted(
        {(figure, devices) for own in samples.values() for devices, found in own.items() for figure in found}
    )
    for figure, devices in keys:
        for subject in subjects:
            own = spread(samples, subject, devices, figure)
            if own is None:
                continue
            ratios = [
                str(found)
                if subject != reference and (found := ratio(samples, subject, reference, devices, figure))
                else "-"
                for reference in REFERENCES
            ]
            rows.append((figure, str(devices), subject, str(own), *ratios))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


@dataclass(frozen=True, slots=True)
class Target:
    """What is aimed at, and what was found; None where this run has not measured it.

    pace: for what is CPU time and nothing else, how much longer this machine takes than the target's
    """

    what: str
    most: float
    found: float | None
    pace: float | None = None

    def __str__(self) -> str:
        if self.found is None:
            return f"{'-':9}  {self.what}: not measured"
        verdict = "reached" if self.found <= self.most else "missed"
        there = f", {_number(self.found / self.pace)} at the target's pace" if self.pace else ""
        return f"{verdict:9}  {self.what}: {_number(self.found)}{there}, at most {_number(self.most)}"


def targets(samples: Samples, extra: Mapping[str, list[float]]) -> list[Target]:
    """All of them; those in milliseconds and MiB hold for one machine, the ratios for any."""

    def median(subject: str, devices: int, figure: str) -> float | None:
        own = spread(samples, subject, devices, figure)
        return own.median if own else None

    def of_all(figure: str, pick: str) -> float | None:
        found = [own for devices in samples.get(OURS, {}) if (own := spread(samples, OURS, devices, figure))]
        return max((getattr(own, pick) for own in found), default=None)

    def most(subject: str, devices: Sequence[int], figure: str) -> float | None:
        found = [own.median for number in devices if (own := spread(samples, subject, number, figure))]
        return max(found, default=None)

    def pooled(subject: str, devices: Sequence[int], figure: str) -> float | None:
        """Of something that is at a random moment and hardly depends on the number of devices."""
        own = samples.get(subject, {})
        rounds = [own[number].get(figure, []) for number in devices if number in own]
        values = [value for each in rounds for one in each for value in one]
        return statistics.median(values) if values else None

    def scaled(value: float | None, by: float) -> float | None:
        return None if value is None else value / by

    small = [devices for devices in sorted(samples.get(OURS, {})) if devices <= 512]
    go = ratio(samples, OURS, GO, 8, "allocate_1_p50_us")
    flat = ratio(samples, OURS, OURS, 4096, "allocate_1_p50_us", over_devices=8)
    sweep = [
        mine / plain
        for mine, plain in zip(extra.get("sweep_binding_us", []), extra.get("sweep_c_us", []), strict=False)
    ]
    idle, alone = "idle_cpu_ms_per_minute", "alone_kib"
    paces = extra.get(PACE)
    pace = statistics.median(paces) / THERE_MS if paces else None
    return [
        Target("start -> registered, ms, 64 devices", 150, median(OURS, 64, "start_ms"), pace),
        Target("kubelet back -> registered, ms, median", 20, of_all("back_ms", "median")),
        Target("kubelet back -> registered, ms, worst", 100, of_all("back_ms", "most")),
        Target(
            "fault -> list, ms, default interval, up to 512 devices", 550, pooled(OURS, small, "fault_ms")
        ),
        Target("fault -> list, ms, interval 100 ms, up to 512 devices", 60, pooled(FAST, small, "fault_ms")),
        Target("worker killed -> list, ms, up to 512 devices", 500, pooled(OURS, small, "crash_ms")),
        Target("idle CPU, ms/min, 64 devices, probes and label watch", 150, median(LABEL, 64, idle), pace),
        Target(
            "idle CPU, ms/min, 4096 devices, probes and label watch", 250, median(LABEL, 4096, idle), pace
        ),
        Target("messages without a change", 0, most(LABEL, [64, 4096], "idle_messages")),
        Target("memory, MiB, 64 devices", 50, scaled(median(OURS, 64, alone), 1024)),
        Target("memory, MiB, 64 devices, label watch", 64, scaled(median(LABEL, 64, alone), 1024)),
        Target("growth after 5,000 allocations, %", 1, median(OURS, 64, "growth_percent")),
        Target("Allocate p50, x a Go plugin's", 3.5, go.median if go else None),
        Target("Allocate p50, 4096 devices, x 8 devices", 1.3, flat.median if flat else None),
        Target("GetPreferredAllocation 8 of 64, us", 1000, median(OURS, 64, "prefer_p50_us"), pace),
        Target("GetPreferredAllocation 8 of 512, us", 5000, median(OURS, 512, "prefer_p50_us"), pace),
        Target("sweep of 4096 devices, x plain C loop", 1.5, statistics.median(sweep) if sweep else None),
    ]
