# SPDX-License-Identifier: Apache-2.0
"""The memory of grants, and the proof that a card is idle: asked of a simulated machine through a real worker
and of a kubelet's real sockets and files."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.clock import Clock
from tests.support.kubelets import own_pod
from tests.support.locks import Lock
from tests.support.machines import RESOURCE, make_machine, target_of
from tests.support.tasks import running
from tests.support.waiting import SECONDS, until
from xpu_plugin.edges.kubelet import view as view_module
from xpu_plugin.edges.kubelet.directory import identity_of
from xpu_plugin.edges.kubelet.pod_resources import checkpoint_of
from xpu_plugin.edges.kubelet.view import KubeletView
from xpu_plugin.edges.state.grants import GrantRecord, Shown
from xpu_plugin.edges.worker.client import WorkerClient
from xpu_plugin.loops import grants as grants_module
from xpu_plugin.loops.grants import SHOW_SECONDS, Grants
from xpu_plugin.loops.idle_proof import IdleProof
from xpu_plugin.loops.picture import Picture
from xpu_plugin.model.devices import Usage, identify
from xpu_plugin.model.inventory import Policy, after_scan
from xpu_plugin.model.ownership import Checkpoint, Holding, Listing, Terms, Word
from xpu_plugin.model.vf_plan import Proof, cards
from xpu_plugin.proto import podresources_v1_pb2
from xpu_plugin.simulation.kubelet import CHECKPOINT, Kubelet
from xpu_plugin.simulation.machine import Machine


A, B = "0000:3b:00.0", "0000:3c:00.0"
FIRST, SECOND = "0000:3c:01.0-of2", "0000:3c:01.1-of2"
SETTLE = 0.05

pytestmark = pytest.mark.usefixtures("leaves_no_process", "leaves_no_task")


class HookedKubelet(Kubelet):
    """A kubelet that has something happen each time it is asked who holds what."""

    questions = 0
    happens: Callable[[], object] | None = None

    def pod_resources(self) -> podresources_v1_pb2.ListPodResourcesResponse:
        self.questions += 1
        answer = super().pod_resources()
        if self.happens:
            self.happens()
        return answer


@pytest.fixture
async def kubelet(place: Path) -> AsyncIterator[HookedKubelet]:
    async with HookedKubelet(place / "plugins", pod_resources_dir=place / "pods") as kubelet:
        own_pod(kubelet)
        yield kubelet


@pytest.fixture
def machine(place: Path) -> Machine:
    """A whole card at /dev/xpu0 and one with two VFs."""
    machine = make_machine(place, number=2)
    machine.set_card(1, {"vfs": "2"})
    return machine


@pytest.fixture
async def client(machine: Machine, leaves_no_process: None) -> AsyncIterator[WorkerClient]:
    client = WorkerClient(target_of(machine), call_timeout=SECONDS)
    yield client
    await client.close()


@pytest.fixture
async def picture(client: WorkerClient) -> Picture:
    return await scanned(client)


async def scanned(client: WorkerClient) -> Picture:
    """The picture after a first scan."""
    scan = await client.scan()
    assert scan
    found = identify(scan)
    picture = Picture(Policy(resource=RESOURCE))
    picture.submit(lambda facts: after_scan(facts, found))
    return picture


@pytest.fixture
def record(place: Path) -> GrantRecord:
    return GrantRecord(place / "state")


@dataclass
class Tried:
    """The memory of grants and the proof of idleness of one plugin."""

    grants: Grants
    proof: IdleProof

    def granted(self, *ids: str) -> None:
        self.grants.granted(dict.fromkeys(ids, "/dev/xpu0"))


Make = Callable[..., Tried]


@pytest.fixture
def make(kubelet: Kubelet, client: WorkerClient, picture: Picture, clock: Clock, record: GrantRecord) -> Make:
    """Both, inside of the pod `kube-system/plugin` if nothing else is said."""

    def make(
        *,
        own_pod: str | None = "kube-system/plugin",
        consent: bool = False,
        socket: Path | None = None,
        client: WorkerClient = client,
        picture: Picture = picture,
        record: GrantRecord = record,
        wall_clock: Callable[[], float] = time.time,
    ) -> Tried:
        assert kubelet.pod_resources_socket
        view = KubeletView(
            device_plugin_dir=kubelet.directory,
            pod_resources_socket=socket or kubelet.pod_resources_socket,
            pods_api_socket=kubelet.pods_api_socket,
            clock=clock,
            wall_clock=wall_clock,
        )
        terms = Terms(own_pod=own_pod, settle=SETTLE, without_pod_resources=consent)
        grants = Grants(picture, view, record, terms, clock=clock)
        return Tried(grants, IdleProof(client, view, grants, clock=clock))

    return make


@pytest.fixture
def tried(make: Make) -> Tried:
    return make()


async def look(tried: Tried, picture: Picture) -> dict[str, Proof]:
    """At both cards."""
    return await tried.proof.look(cards(picture.facts, picture.policy).values())


# --- a look ---------------------------------------------------------------------------------------


async def test_cards_that_nobody_uses_are_idle_at_the_time_of_the_look(
    tried: Tried, picture: Picture, clock: Clock, kubelet: HookedKubelet
) -> None:
    kubelet.happens = lambda: setattr(clock, "now", 1007.0)
    assert await look(tried, picture) == dict.fromkeys((A, B), Proof(at=1000.0, done=1007.0))


async def test_a_process_holds_the_card_it_computes_on(
    tried: Tried, picture: Picture, machine: Machine
) -> None:
    machine.add_process(7, card=1, vf=1)
    proofs = await look(tried, picture)
    path = picture.facts.devices[SECOND].path
    assert proofs[B].holders == (f"a process at {path}",)
    assert proofs[A].idle


async def test_a_card_that_was_split_since_the_scan_is_not_proven_idle(
    tried: Tried, picture: Picture, machine: Machine
) -> None:
    machine.set_card(1, {"vfs": "0"})
    assert not (await look(tried, picture))[B].idle


# --- doubt ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["hang", "crash"])
async def test_a_worker_that_ends_when_it_is_asked_for_processes_leaves_doubt_and_no_exception(
    make: Make, machine: Machine, action: str
) -> None:
    client = WorkerClient(target_of(machine), call_timeout=1.0)
    picture = await scanned(client)
    machine.add_fault("xpumlDeviceGetComputeRunningProcesses", action, card=0)
    proofs = await look(make(client=client, picture=picture), picture)
    assert proofs[A].holders == ()
    assert proofs[A].doubt
    await client.close()


async def test_without_a_worker_there_is_doubt_and_a_holder_is_named_all_the_same(
    make: Make, machine: Machine, picture: Picture, kubelet: Kubelet
) -> None:
    client = WorkerClient(target_of(machine), call_timeout=SECONDS)
    kubelet.hold([FIRST], resource=RESOURCE, pod="train")
    proofs = await look(make(client=client), picture)
    assert proofs[A].doubt
    assert proofs[B].holders == ("default/train/main",)


async def test_without_pod_resources_and_with_consent_the_checkpoint_tells(
    make: Make, picture: Picture, kubelet: Kubelet, place: Path
) -> None:
    tried = make(socket=place / "no-such-socket", consent=True)
    kubelet.hold([FIRST], resource=RESOURCE, pod="train")
    proofs = await look(tried, picture)
    assert proofs[A].idle
    assert proofs[B].holders
    (kubelet.directory / CHECKPOINT).write_text("{")
    assert (await look(tried, picture))[A].doubt == "the kubelet's checkpoint cannot be read"


@pytest.mark.parametrize(
    ("later", "happens", "doubt"),
    [
        (61.0, lambda _: None, ""),
        (0.0, lambda _: None, "the kubelet has been running for less than 60 s"),
        (61.0, lambda socket: socket.unlink(), "the kubelet is not there, or was restarted just now"),
        (61.0, lambda socket: socket.chmod(0o600), "the kubelet is not there, or was restarted just now"),
    ],
    ids=["old", "young", "gone", "another one"],
)
async def test_outside_of_a_pod_a_kubelet_is_believed_that_is_old_and_the_same_after_its_answer(
    make: Make,
    picture: Picture,
    kubelet: HookedKubelet,
    *,
    later: float,
    happens: Callable[[Path], object],
    doubt: str,
) -> None:
    kubelet.happens = lambda: happens(kubelet.socket)
    proofs = await look(make(own_pod=None, wall_clock=lambda: time.time() + later), picture)
    assert proofs[A].doubt == doubt
    assert proofs[A].idle is (not doubt)


# --- answers that a proof may count ---------------------------------------------------------------


async def test_the_second_proof_never_shares_an_answer_with_the_first(
    tried: Tried, picture: Picture, kubelet: HookedKubelet, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although all of them are fresh enough for other readers: time stands still."""
    reads: list[Path] = []

    async def read(directory: Path) -> Checkpoint:
        reads.append(directory)
        return await checkpoint_of(directory)

    monkeypatch.setattr(view_module, "checkpoint_of", read)
    usages = tried.proof._worker.usage
    asked: list[str] = []

    async def usage(indexes: list[int], card: str) -> Usage:
        asked.append(card)
        return await usages(indexes, card)

    monkeypatch.setattr(tried.proof._worker, "usage", usage)
    for number in (1, 2):
        assert (await look(tried, picture))[B].idle
        assert (kubelet.questions, len(reads), asked.count(B)) == (number, number, number)
    await tried.proof._view.answers()
    assert (kubelet.questions, len(reads)) == (2, 2), "other readers share them"


# --- a memory that is watched ---------------------------------------------------------------------


async def test_whoever_watches_is_woken_by_each_begin_and_end_of_a_grant(
    tried: Tried, kubelet: HookedKubelet, clock: Clock
) -> None:
    wake = asyncio.Event()
    with tried.grants.waking(wake):
        changes: tuple[Callable[[], None], ...] = (
            lambda: tried.granted(A),
            lambda: tried.grants.hear(word(kubelet, began=clock.now, train=A)),
            lambda: tried.grants.hear(word(kubelet, began=clock.now, train="")),
        )
        for change in changes:
            wake.clear()
            version = tried.grants.version
            clock.now += 1.0
            change()
            assert wake.is_set()
            assert tried.grants.version == version + 1
            wake.clear()
            assert await tried.grants.beyond(version) == tried.grants.ledger
        tried.grants.hear(word(kubelet, began=clock.now, train=""))
        assert not wake.is_set(), "nothing has changed"


async def test_a_grant_is_in_the_ledger_before_anything_else_may_run(tried: Tried) -> None:
    """So that it comes before a decision of the VF loop or after it."""
    tried.granted(A)
    assert tried.grants.taken() == {A}
    starting = asyncio.create_task(tried.grants.started({FIRST: "/dev/xpu3"}))
    await asyncio.sleep(0)
    assert not starting.done(), "it waits for the disk"
    assert tried.grants.taken() == {A, B}
    assert tried.grants.paths[FIRST] == "/dev/xpu3"
    await starting


# --- what was given away --------------------------------------------------------------------------


async def test_what_is_granted_is_taken_until_a_look_finds_that_it_has_ended(
    tried: Tried, picture: Picture, kubelet: Kubelet, clock: Clock
) -> None:
    assert tried.grants.taken() == frozenset()
    tried.granted(FIRST)
    assert tried.grants.taken() == {B}
    grant = kubelet.hold([FIRST], resource=RESOURCE, pod="train")
    clock.now += 1.0
    assert (await look(tried, picture))[B].holders == ("default/train/main",)
    assert tried.grants.taken() == {B}
    kubelet.free(grant)
    assert (await look(tried, picture))[B].idle
    assert tried.grants.taken() == frozenset()


async def test_a_grant_during_a_look_stays_and_is_a_holder(
    tried: Tried, picture: Picture, kubelet: HookedKubelet, clock: Clock
) -> None:
    def granted() -> None:
        clock.now += 1.0
        tried.granted(A)

    kubelet.happens = granted
    assert A in (await look(tried, picture))[A].text
    assert tried.grants.taken() == {A}


async def test_a_device_granted_anew_during_a_look_does_not_end_with_its_earlier_grant(
    tried: Tried, picture: Picture, kubelet: HookedKubelet, clock: Clock
) -> None:
    tried.granted(A)
    grant = kubelet.hold([A], resource=RESOURCE)
    clock.now += 1.0
    await look(tried, picture)
    kubelet.free(grant)
    kubelet.happens = lambda: tried.granted(A)
    assert not (await look(tried, picture))[A].idle
    assert tried.grants.taken() == {A}


async def test_what_nobody_knows_takes_no_card(tried: Tried) -> None:
    tried.granted("0000:99:00.0", "99")
    assert tried.grants.taken() == frozenset()


async def test_what_a_former_process_granted_is_a_holder_but_not_taken_just_now(
    make: Make, picture: Picture, clock: Clock, record: GrantRecord
) -> None:
    record.granted({FIRST: "/dev/xpu3"})
    tried = make()
    assert tried.grants.taken() == frozenset()
    assert FIRST in (await look(tried, picture))[B].text
    clock.now += 1.0
    assert (await look(tried, picture))[B].idle


async def test_what_a_former_process_saw_listed_ends_with_the_list_at_once(
    make: Make, picture: Picture, record: GrantRecord, kubelet: Kubelet, clock: Clock
) -> None:
    """Although the checkpoint names it still."""
    record.granted({FIRST: "/dev/xpu3", A: "/dev/xpu0"})
    await record.saw(lambda: {FIRST: Shown("default/job/main", "")})
    for id in (FIRST, A):
        kubelet.hold([id], resource="none", init_container=True)
    tried = make()
    clock.now += 1.0
    proofs = await look(tried, picture)
    assert proofs[B].idle
    assert A in proofs[A].text


async def test_a_record_without_holders_keeps_a_device_until_no_process_uses_it(
    make: Make, picture: Picture, clock: Clock, place: Path
) -> None:
    """The plugin is updated, and the kubelet loses its checkpoint: the pod is listed without the device."""
    file = place / "state/grants.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"grants": {A: "/dev/xpu0"}, "listed": [A]}))
    tried = make(record=GrantRecord(file.parent))
    clock.now += 0.1
    tried.grants.hear(
        Word(
            began=clock(),
            life="another",
            listing=Listing(pods=frozenset(), holdings=()),
            whole=True,
            checkpoint=(),
        )
    )
    assert tried.grants.forgotten == {A}
    clock.now += 1.0
    assert (await look(tried, picture))[A].idle
    assert tried.grants.forgotten == set()


async def test_cards_of_containers_that_were_there_at_the_start_are_known_by_what_they_hold(
    make: Make,
) -> None:
    holdings = [
        Holding(container="a/b/c", resource=RESOURCE, ids=("0",)),
        Holding(container="a/b/d", resource="example.com/gpu", ids=("1",)),
        Holding(container="a/b/e", resource="example.com/gpu", ids=(SECOND,)),
    ]
    first, second = make().grants, make().grants
    first.adopt(holdings[:2])
    assert first.cards_at_start == {A}
    assert first.ledger == {}
    second.adopt(holdings)
    assert second.cards_at_start == {A, B}
    assert second.ledger.keys() == {SECOND}
    assert second.taken() == frozenset(), "this process has granted nothing"
    assert second.before == {"0", "1", SECOND}
    assert second.adopted.is_set()


# --- the loop -------------------------------------------------------------------------------------


@pytest.fixture
async def loop(tried: Tried, leaves_no_task: None) -> AsyncIterator[asyncio.Task[None]]:
    async with running(tried.grants.run(Lock())) as (task,):
        yield task


async def test_the_loop_asks_only_until_all_has_been_listed(
    tried: Tried, kubelet: HookedKubelet, clock: Clock, loop: asyncio.Task[None]
) -> None:
    await asyncio.sleep(3 * SETTLE)  # the absence of a request gives no notice
    assert kubelet.questions == 0
    tried.granted(A)
    kubelet.hold([A], resource=RESOURCE)
    clock.now += 1.0
    await until(lambda: kubelet.questions, "a question")
    asked = kubelet.questions
    await asyncio.sleep(5 * SETTLE)
    assert kubelet.questions <= asked + 1
    assert not loop.done()


async def test_a_finished_init_container_is_no_holder_and_stays_on_record_for_as_long_as_its_pod(
    *,
    make: Make,
    kubelet: HookedKubelet,
    picture: Picture,
    clock: Clock,
    record: GrantRecord,
    place: Path,
) -> None:
    kubelet.pods_api_dir = place / "pods-api"
    await kubelet.restart()
    tried = make()
    async with running(tried.grants.run(Lock())):
        first = kubelet.hold([A], resource=RESOURCE, init_container=True)
        other = kubelet.hold([FIRST], resource=RESOURCE, init_container=True)
        tried.granted(A, FIRST)
        clock.now += 10.0
        assert not any(proof.idle for proof in (await look(tried, picture)).values())
        kubelet.end(first)
        kubelet.free(other)
        kubelet.write_checkpoint()
        assert (await look(tried, picture))[A].idle
        assert A not in tried.grants.ledger
        clock.now += 10.0
        await look(tried, picture)
        await until(lambda: FIRST not in record.paths, "the other's end on record")
        assert A in record.paths
        kubelet.free(first)
        kubelet.write_checkpoint()
        await look(tried, picture)
        await until(lambda: A not in record.paths, "the end of the pod on record")


async def test_the_loop_gives_up_on_what_is_never_listed(
    tried: Tried, kubelet: HookedKubelet, clock: Clock, loop: asyncio.Task[None]
) -> None:
    tried.granted(A)
    clock.now += 1.0
    await until(lambda: kubelet.questions >= 3, "more questions")
    clock.now += SHOW_SECONDS
    await asyncio.sleep(3 * SETTLE)
    asked = kubelet.questions
    await asyncio.sleep(5 * SETTLE)
    assert kubelet.questions == asked
    tried.granted(A)
    clock.now += 1.0
    await until(lambda: kubelet.questions > asked, "questions for another grant")
    assert not loop.done()


async def test_the_loop_survives_a_kubelet_that_does_not_answer(
    tried: Tried, kubelet: HookedKubelet, clock: Clock, record: GrantRecord, loop: asyncio.Task[None]
) -> None:
    socket = kubelet.pod_resources_socket
    assert socket
    aside = socket.with_name("aside.sock")
    socket.rename(aside)
    socket.touch()
    tried.granted(A)
    kubelet.hold([A], resource=RESOURCE)
    clock.now += 1.0
    await asyncio.sleep(3 * SETTLE)
    assert not loop.done()
    aside.rename(socket)
    await until(lambda: A in record.listed, "that it is listed")


# --- a record that could not be read ------------------------------------------------------------------


@pytest.fixture
def unreadable(place: Path) -> Path:
    """The record's file, which cannot be opened for now, also not by root."""
    file = place / "state/grants.json"
    file.parent.mkdir()
    file.symlink_to(file.name)
    return file


def readable(file: Path, grants: dict[str, str]) -> None:
    draft = file.with_name("draft")
    draft.write_text(json.dumps({"grants": grants, "listed": [], "holders": {}}))
    draft.replace(file)


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the record was tried again; pauses are short."""
    times: list[float] = []
    reread = GrantRecord.reread

    async def counted(record: GrantRecord) -> bool:
        times.append(time.monotonic())
        return await reread(record)

    monkeypatch.setattr(GrantRecord, "reread", counted)
    monkeypatch.setattr(grants_module, "READ_SECONDS", (0.02, 0.08))
    return times


async def test_a_record_that_cannot_be_read_at_the_start_is_known_as_soon_as_it_can_be(
    unreadable: Path, attempts: list[float], make: Make, record: GrantRecord, picture: Picture
) -> None:
    """Although no card is looked at, and no container starts."""
    tried = make()
    tried.grants.adopt([Holding(container="uid/main", resource=RESOURCE, ids=(A,))])
    async with running(tried.grants.run(Lock())):
        await until(lambda: len(attempts) >= 4, "attempts")
        assert attempts[3] - attempts[0] >= 3 * 0.75 * 0.03, "no busy loop"
        assert tried.grants.unread
        assert tried.grants.ledger.keys() == {A}
        gone = "0000:3c:01.0-of3"
        readable(unreadable, {FIRST: "/dev/xpu3", gone: "/dev/xpu4"})
        await until(lambda: FIRST in tried.grants.ledger, "the record")
        assert record.paths == {FIRST: "/dev/xpu3", gone: "/dev/xpu4"}
        assert tried.grants.ledger.keys() == {A, FIRST, gone}, "and what was known without it"
        assert gone in picture.facts.claimed
        done = len(attempts)
        await asyncio.sleep(0.2)
        assert len(attempts) == done


async def test_a_record_that_a_containers_start_has_read_counts_in_the_next_look(
    unreadable: Path, make: Make, record: GrantRecord, picture: Picture
) -> None:
    tried = make()
    assert (await look(tried, picture))[B].doubt == "the record of grants cannot be read"
    readable(unreadable, {FIRST: "/dev/xpu3"})
    await tried.grants.started({A: "/dev/xpu0"})
    assert not record.unread
    assert FIRST in (await look(tried, picture))[B].text


async def test_what_the_kubelet_has_said_meanwhile_is_newer_than_the_record(
    unreadable: Path, make: Make, kubelet: HookedKubelet, picture: Picture, clock: Clock
) -> None:
    tried = make()
    tried.granted(A)
    own = tried.grants.ledger[A]
    tried.grants.hear(word(kubelet, began=clock.now, train=FIRST))
    listed = tried.grants.ledger[FIRST]
    readable(unreadable, {A: "/dev/xpu9", FIRST: "/dev/xpu3", SECOND: "/dev/xpu4"})
    await look(tried, picture)
    assert (tried.grants.ledger[A], tried.grants.ledger[FIRST]) == (own, listed)
    assert tried.grants.ledger[SECOND].inherited


async def test_a_takeover_with_a_record_that_cannot_be_read_any_more_catches_up_later(
    attempts: list[float], make: Make, record: GrantRecord, place: Path
) -> None:
    tried = make()
    async with running(tried.grants.run(Lock())):
        file = place / "state/grants.json"
        file.parent.mkdir()
        file.symlink_to(file.name)
        await tried.grants.reread()
        assert tried.grants.unread
        await until(lambda: len(attempts) >= 3, "attempts")
        readable(file, {FIRST: "/dev/xpu3"})
        await until(lambda: tried.grants.ledger.keys() == {FIRST}, "the record")


# --- what the kubelet says ----------------------------------------------------------------------------


def word(kubelet: Kubelet, *, began: float, life: object = None, **holders: str) -> Word:
    """A whole list. holders: pod -> the device that it is listed with, empty for none"""
    holdings = tuple(
        Holding(container=f"default/{pod}/main", resource=RESOURCE, ids=(id,))
        for pod, id in holders.items()
        if id
    )
    pods = frozenset({"kube-system/plugin", *(f"default/{pod}" for pod in holders)})
    return Word(
        began=began,
        life=life or identity_of(kubelet.socket),
        listing=Listing(pods=pods, holdings=holdings),
        whole=True,
        checkpoint=(),
    )


@pytest.mark.usefixtures("loop")
async def test_what_the_kubelet_says_is_written_down_with_the_holder(
    tried: Tried, kubelet: HookedKubelet, clock: Clock, record: GrantRecord, place: Path
) -> None:
    await tried.grants.started({A: "/dev/xpu0", FIRST: "/dev/xpu0"})
    clock.now += 1.0
    tried.grants.hear(word(kubelet, began=clock.now, train=A, other=FIRST))
    life = str(identity_of(kubelet.socket))
    wanted = {A: Shown("default/train/main", life), FIRST: Shown("default/other/main", life)}
    await until(lambda: GrantRecord(place / "state").holders == wanted, "both holders on record")

    tried.grants.hear(word(kubelet, began=clock.now + 1.0, train=A))
    await until(lambda: GrantRecord(place / "state").holders == {A: wanted[A]}, "the end of one")
    assert GrantRecord(place / "state").paths.keys() == {A}


async def test_a_plugin_that_waits_for_another_one_writes_nothing(
    tried: Tried, kubelet: HookedKubelet, clock: Clock, record: GrantRecord, place: Path
) -> None:
    record.granted({A: "/dev/xpu0"})
    await record.started({A: "/dev/xpu0"})
    tried.grants.inherit()
    waits, free = asyncio.Event(), asyncio.Event()

    async def alone() -> None:
        waits.set()
        await free.wait()

    async with running(tried.grants.run(Lock(alone))):
        clock.now += 1.0
        tried.grants.hear(word(kubelet, began=clock.now, train=A))
        async with asyncio.timeout(SECONDS):
            await waits.wait()
        assert GrantRecord(place / "state").holders == {}
        free.set()
        await until(lambda: GrantRecord(place / "state").holders.keys() == {A}, "the record")


async def test_the_next_process_knows_what_the_same_kubelet_does_not_list_any_more_for_ended(
    make: Make, kubelet: HookedKubelet, clock: Clock, record: GrantRecord
) -> None:
    life = str(identity_of(kubelet.socket))
    record.granted({A: "/dev/xpu0", FIRST: "/dev/xpu1"})
    await record.saw(
        lambda: {A: Shown("default/web-0/main", life), FIRST: Shown("default/x/main", "another")}
    )
    tried = make()
    clock.now += 1.0
    tried.grants.hear(word(kubelet, began=clock.now, **{"web-0": SECOND, "x": ""}))
    assert tried.grants.ledger.keys() == {FIRST, SECOND}, "web-0 is another pod of the same name"
    assert tried.grants.forgotten == {FIRST}
    assert tried.grants.taken() == frozenset()


async def test_what_another_plugin_granted_is_known_as_held_until_it_is_not_listed(
    tried: Tried, kubelet: HookedKubelet, clock: Clock
) -> None:
    tried.grants.hear(word(kubelet, began=clock.now, former="0"))
    clock.now += 1.0
    tried.grants.hear(word(kubelet, began=clock.now, life="another kubelet", former=""))
    assert tried.grants.forgotten == {"0"}
    clock.now += 1.0
    tried.grants.hear(word(kubelet, began=clock.now, life="another kubelet"))
    assert (tried.grants.forgotten, dict(tried.grants.ledger)) == (frozenset(), {})
