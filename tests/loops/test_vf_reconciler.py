# SPDX-License-Identifier: Apache-2.0
"""When apply decides anew. What it decides and does is in tests/model and tests/test_virtual_functions.py."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.devices import device, found
from tests.support.grants import grants_of, kubelet_at, nowhere
from tests.support.locks import Lock
from tests.support.machines import RESOURCE
from tests.support.waiting import SECONDS, until
from xpu_plugin.edges.state.quarantine import QuarantineRecord
from xpu_plugin.edges.state.vf_request import VfRecord
from xpu_plugin.edges.worker.client import WorkerClient
from xpu_plugin.loops.exchange import Exchange
from xpu_plugin.loops.grants import Grants
from xpu_plugin.loops.health_history import HealthHistory
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.monitor import Cadence, Monitor
from xpu_plugin.loops.picture import Picture
from xpu_plugin.loops.vf_reconciler import Orders, VfReconciler
from xpu_plugin.model.health import Rules
from xpu_plugin.model.inventory import Policy, after_scan
from xpu_plugin.model.vf_plan import UNKNOWN, DesiredVfs, VfOutcome, by_argument
from xpu_plugin.model.vf_reconcile import Limits
from xpu_plugin.observable import Outbox, Value


CARD = "0000:3b:00.0"

pytestmark = pytest.mark.usefixtures("leaves_no_task")


class Counted(Value[VfOutcome]):
    """Counts also the decisions that change nothing."""

    decisions = 0

    def set(self, value: VfOutcome) -> None:
        self.decisions += 1
        super().set(value)


@asynccontextmanager
async def applying(desired: DesiredVfs, place: Path) -> AsyncIterator[tuple[Grants, Callable[[], int]]]:
    """A reconciler that runs over one whole card without a user; the memory of grants that it looks at, and
    how often it has decided."""
    picture = Picture(Policy(resource=RESOURCE))
    picture.submit(lambda facts: after_scan(facts, found(device(CARD))))
    outcome = Counted(VfOutcome())
    client = WorkerClient(nowhere(place), call_timeout=SECONDS)
    grants = grants_of(picture, place / "state")
    monitor = Monitor(
        client,
        client,
        picture,
        HealthHistory(Rules(), QuarantineRecord(place / "state")),
        grants,
        cadence=Cadence(interval=SECONDS, rescan_interval=SECONDS, grace=SECONDS),
    )
    reconciler = VfReconciler(
        Orders(changer=client, record=VfRecord(place / "state"), lock=Lock()),
        picture,
        monitor,
        grants,
        IdleProof(client, kubelet_at(place), grants),
        exchange=Exchange(desired=Value(desired), outcome=outcome, events=Outbox()),
        limits=Limits(pending=600.0),
    )
    reconciler.begin()
    task = asyncio.ensure_future(reconciler.run())
    try:
        await until(lambda: outcome.decisions, "a first decision")
        for _ in range(20):
            await asyncio.sleep(0)  # and those that follow from it at once
        yield grants, lambda: outcome.decisions
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_grant_while_nothing_is_planned_does_not_have_every_card_looked_at(place: Path) -> None:
    """Or each Allocate would take the longer the more devices there are."""
    async with applying(by_argument(0), place) as (grants, decided):
        before = decided()
        grants.granted({CARD: "/dev/xpu0"})
        for _ in range(20):
            await asyncio.sleep(0)
        assert decided() == before


async def test_a_grant_while_a_card_is_kept_back_is_taken_into_account_at_once(place: Path) -> None:
    async with applying(UNKNOWN, place) as (grants, decided):
        before = decided()
        grants.granted({CARD: "/dev/xpu0"})
        await until(lambda: decided() > before, "another decision")
