# SPDX-License-Identifier: Apache-2.0
"""Pods come and go on a node of two link groups of four cards: which of them get linked cards.

`python -m tests.benchmarks.links --seed 1` prints, by size, the share of pods that got cards of one group.
It does so for the plugin's preference, and for a kubelet's own choice of the first ids. Both have the same
requests, each with a time that its pod lasts. A request that finds too few free cards is dropped.
"""

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from tests.support.devices import CONTROL, device
from xpu_plugin.model.allocation import prefer
from xpu_plugin.model.health import HEALTHY
from xpu_plugin.model.inventory import Entry, Inventory
from xpu_plugin.model.topology import Links, LinkSource


RESOURCE = "baidu.com/xpu"
IDS = tuple(f"0000:{bus}:00.0" for bus in ("03", "16", "26", "36", "84", "96", "a6", "b6"))
GROUPS = (frozenset(IDS[:4]), frozenset(IDS[4:]))
SIZES = (1, 1, 1, 2, 2, 4)  # each as probable as the others
LASTS = 4.0  # times the pause between two requests, on average

Choice = Callable[[Sequence[str], int], Sequence[str]]


def by_plugin(free: Sequence[str], size: int) -> Sequence[str]:
    return prefer(INVENTORY, RESOURCE, free, [], size)


def by_kubelet(free: Sequence[str], size: int) -> Sequence[str]:
    return sorted(free)[:size]


INVENTORY = Inventory(
    generation=1,
    control=CONTROL,
    entries={
        id: Entry(id=id, resource=RESOURCE, device=device(id, number=n, numa=n // 4), health=HEALTHY)
        for n, id in enumerate(IDS)
    },
    links=Links(source=LinkSource.XPU_SMI, groups=GROUPS),
)


def requests(seed: int, count: int) -> Iterator[tuple[int, float]]:
    """Sizes, each with the time that the pod lasts."""
    random_numbers = random.Random(seed)
    for _ in range(count):
        yield random_numbers.choice(SIZES), random_numbers.expovariate(1 / LASTS)


def churn(choose: Choice, seed: int, count: int) -> tuple[Counter[int], Counter[int]]:
    """By size, the pods that got their cards, and those of them that got cards of one group."""
    ends: dict[str, float] = {}
    started, linked = Counter[int](), Counter[int]()
    for now, (size, lasts) in enumerate(requests(seed, count)):
        ends = {id: end for id, end in ends.items() if end > now}
        free = [id for id in IDS if id not in ends]
        if len(free) < size:
            continue
        chosen = set(choose(free, size))
        started[size] += 1
        linked[size] += any(chosen <= group for group in GROUPS)
        ends |= dict.fromkeys(chosen, now + lasts)
    return started, linked


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.links", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=100_000)
    options = parser.parse_args()
    for name, choose in (("plugin", by_plugin), ("first ids", by_kubelet)):
        started, linked = churn(choose, options.seed, options.requests)
        for size in sorted(set(SIZES) - {1}):
            share = 100 * linked[size] / started[size]
            print(f"{name}: {size} cards: {linked[size]} of {started[size]} in one group, {share:.1f} %")


if __name__ == "__main__":
    main()
