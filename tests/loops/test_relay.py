# SPDX-License-Identifier: Apache-2.0
"""Grants that another instance has to know before the kubelet has the answer."""

import asyncio

import pytest

from tests.support.waiting import SECONDS
from xpu_plugin.loops.relay import Passed, Relay


pytestmark = pytest.mark.usefixtures("leaves_no_task")

GRANT = Passed({"a": "/dev/xpu0"}, started=False)


async def test_without_a_hand_over_nothing_is_kept_and_no_grant_waits() -> None:
    relay = Relay()
    relay.put(GRANT)
    assert await relay.settled()
    relay.begin()
    assert await relay.settled()


async def test_a_grant_waits_until_it_is_with_the_other_instance() -> None:
    relay = Relay()
    relay.begin()
    relay.put(GRANT)
    settled = asyncio.create_task(relay.settled())
    assert await relay.get() == GRANT
    assert not settled.done()
    relay.passed()
    async with asyncio.timeout(SECONDS):
        assert await settled


@pytest.mark.parametrize("refuse", [False, True])
async def test_the_end_of_the_hand_over_decides_on_a_grant_that_waits(refuse: bool) -> None:
    relay = Relay()
    relay.begin()
    relay.put(GRANT)
    settled = asyncio.create_task(relay.settled())
    await asyncio.sleep(0)
    relay.end(refuse=refuse)
    async with asyncio.timeout(SECONDS):
        assert await settled is not refuse
    assert await relay.settled() is not refuse
    relay.begin()
    assert await relay.settled()
