# SPDX-License-Identifier: Apache-2.0
"""A slice of `make fuzz` without its tool: each target with good input, and with that garbled."""

import random

import pytest

from tests.fuzz import targets
from tests.fuzz.targets import TARGETS, WORDS, seeds


RUNS = 300


def mutated(good: bytes, words: tuple[str, ...], chance: random.Random) -> bytes:
    raw = bytearray(good)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(raw) + 1)
        match chance.randrange(4):
            case 0:
                raw[at:at] = chance.choice(words).encode()
            case 1:
                del raw[at : at + chance.randrange(8)]
            case 2:
                raw[at : at + 1] = chance.randbytes(1)
            case 3:
                raw[at:at] = raw[: chance.randrange(64)]
    return bytes(raw)


@pytest.mark.parametrize("name", TARGETS)
def test_what_must_hold_holds_for_garbled_input(name: str) -> None:
    chance = random.Random(name)
    good = list(seeds(name))
    for raw in (b"", *good):
        TARGETS[name](raw)
    for _ in range(RUNS):
        raw = mutated(chance.choice(good), WORDS[name], chance)
        try:
            TARGETS[name](raw)
        except BaseException as error:
            raise AssertionError(f"{name}: {raw!r}") from error


def test_each_target_has_its_number_of_runs() -> None:
    assert targets.RUNS.keys() == TARGETS.keys() == WORDS.keys()
