# SPDX-License-Identifier: Apache-2.0
"""Fixtures of tests in several rooms."""

import asyncio
import gc
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.clock import Clock
from tests.support.daemon import Node, a_node
from tests.support.machines import R200, Board
from tests.support.processes import children, descriptors
from tests.support.waiting import until, wait_until
from xpu_plugin.simulation.kubelet import Kubelet


def pytest_sessionfinish() -> None:
    """Save what was measured while the process still runs well.

    A process of pytest-xdist is killed when its end takes too long, and what it measured would be lost.
    """
    coverage = sys.modules.get("coverage")  # where it measures, it is loaded
    if coverage is not None and (measured := coverage.Coverage.current()) is not None:
        measured.save()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that is not too deep for sockets, as pytest's own may be."""
    # A process that writes a record may outlive its plugin for a moment.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="xpu-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture
def leaves_no_process() -> Iterator[None]:
    """Every process that the test starts has ended, and has been waited for, when it is over."""
    before = children()
    yield
    wait_until(lambda: children() <= before, "all children ended")


@pytest.fixture
def leaves_no_descriptor() -> Iterator[None]:
    gc.collect()
    before = descriptors()
    yield
    gc.collect()
    assert len(descriptors()) <= len(before), f"before {before}, after {descriptors()}"


@pytest.fixture
async def leaves_no_task() -> AsyncIterator[None]:
    """No coroutine of the plugin runs on when the test is over."""
    yield

    def ours() -> list[str]:
        code = [getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()]
        return [block.co_qualname for block in code if block and "/xpu_plugin/" in block.co_filename]

    await until(lambda: not ours(), "no task left", seconds=5)


@pytest.fixture
def board() -> Board:
    """The model of the cards of nodes that a test makes; by `on_both` a test has several."""
    return R200


@pytest.fixture
async def node(place: Path, leaves_no_process: None) -> AsyncIterator[Node]:
    """For plugins; all of them end well, and nothing of them is left."""
    async with a_node(place, Node) as node:
        yield node


@pytest.fixture
async def kubelet(node: Node) -> AsyncIterator[Kubelet]:
    async with node.kubelet() as kubelet:
        yield kubelet


@pytest.fixture
def clock() -> Clock:
    return Clock()
