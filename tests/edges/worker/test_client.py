# SPDX-License-Identifier: Apache-2.0
"""The worker client over real worker processes: with any fault of the library, callers get an answer or one
error."""

import asyncio
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from errno import ENXIO
from pathlib import Path
from typing import Any

import pytest

from tests.support.machines import compile_library, make_machine, target_of
from tests.support.processes import descriptor, descriptors, has_ended
from tests.support.waiting import PROMPT_SECONDS, SECONDS, until, wait_until
from xpu_plugin.edges.memory import taken
from xpu_plugin.edges.worker.client import (
    BusyError,
    LibraryError,
    Target,
    TooManyStuckError,
    WorkerClient,
    WorkerDiedError,
    WorkerError,
    WorkerGrownError,
    WorkerHungError,
)
from xpu_plugin.edges.worker.process import WorkerProcess
from xpu_plugin.model.devices import Process, Scan, Usage
from xpu_plugin.simulation.library import shipped
from xpu_plugin.simulation.machine import Machine
from xpu_plugin.xpuml import Call, DriverNotLoadedError, StateAnswer, WrongDeviceError, XpumlError


STATE = "xpumlDeviceGetState"
SPLIT = "xpumlDeviceSetSriovVfNum"
PROCESSES = "xpumlDeviceGetComputeRunningProcesses"
CARD = "0000:3b:00.0"
RUNNING = StateAnswer(0, 201)
MIB = 1 << 20
BOUND = 64 * MIB
"""What a rogue may have, beside the worker's own of less than 16 MiB."""
TIMEOUT = 0.4
"""What the library is given in tests where it hangs."""

pytestmark = pytest.mark.usefixtures("leaves_no_process", "leaves_no_descriptor", "leaves_no_task")

MakeClient = Callable[..., WorkerClient]


@pytest.fixture
def machine(place: Path) -> Machine:
    return make_machine(place)


@pytest.fixture
async def make_client(
    leaves_no_process: None, leaves_no_descriptor: None, leaves_no_task: None
) -> AsyncIterator[MakeClient]:
    clients: list[WorkerClient] = []

    def make(target: Target, call_timeout: float = SECONDS, **more: Any) -> WorkerClient:
        clients.append(WorkerClient(target, call_timeout=call_timeout, **more))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
def client(make_client: MakeClient, machine: Machine) -> WorkerClient:
    return make_client(target_of(machine))


@pytest.fixture
def hasty(make_client: MakeClient, machine: Machine) -> WorkerClient:
    """A client that does not wait long."""
    return make_client(target_of(machine), TIMEOUT)


@pytest.fixture(scope="session")
def rogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(Path(__file__).with_name("rogue.c"), tmp_path_factory.mktemp("rogue"))


async def scanned(client: WorkerClient) -> Scan:
    scan = await client.scan()
    assert scan is not None
    return scan


def pid_of(client: WorkerClient) -> int:
    assert client.pid is not None
    return client.pid


async def fails(
    request: Awaitable[object], error: type[WorkerError], call: Call | None, match: str | None = None
) -> str:
    """The request ends with that error, which carries that call; its text."""
    with pytest.raises(error, match=match) as raised:
        await request
    assert raised.value.call == call
    return str(raised.value)


# --- answers --------------------------------------------------------------------------------------


async def test_a_scan_tells_everything_about_library_devices_and_host(client: WorkerClient) -> None:
    scan = await scanned(client)
    assert [reading.pci for reading in scan.readings] == [
        f"0000:{bus}:00.0" for bus in ("3b", "3c", "3d", "3e")
    ]
    assert {(reading.model, reading.state, reading.memory_bytes) for reading in scan.readings} == {
        (2, 201, 16 << 30)
    }
    assert scan.usable == (0, 1, 2, 3)
    assert [node.number for node in scan.host.nodes] == [0, 1, 2, 3]
    assert scan.host.control is not None
    assert scan.host.addresses[2] == "0000:3d:00.0"
    assert scan.library == str(shipped())
    assert scan.library_version.startswith("4.0.12.1 ")
    assert scan.driver_version.startswith("4.0.")


async def test_a_sweep_asks_the_worker_of_the_scan_for_all_states(
    client: WorkerClient, machine: Machine
) -> None:
    await scanned(client)
    worker = client.pid
    assert await client.sweep() == [RUNNING] * 4
    machine.set_card(1, {"state": "207"})
    machine.add_fault(STATE, "code:-5", card=2)
    assert await client.sweep({3}) == [RUNNING, StateAnswer(0, 207), StateAnswer(-5, 0), None]
    assert client.pid == worker


async def test_each_scan_has_a_fresh_worker_and_the_former_one_ends(client: WorkerClient) -> None:
    await scanned(client)
    former = pid_of(client)
    await scanned(client)
    assert client.pid != former
    await until(lambda: has_ended(former))


async def test_a_sweep_before_any_scan_is_refused(client: WorkerClient) -> None:
    asks: list[Callable[[], Awaitable[object]]] = [
        client.sweep,
        client.host,
        client.replaced,
        lambda: client.usage([0], CARD),
        lambda: client.set_sriov_vf_num(0, 1, CARD, seconds=SECONDS),
    ]
    for ask in asks:
        with pytest.raises(WorkerDiedError, match="no worker that has scanned"):
            await ask()
    assert client.pid is None


async def test_a_scan_of_one_device_touches_no_other(client: WorkerClient, machine: Machine) -> None:
    for card in (0, 1, 3):
        machine.add_fault("xpumlDeviceGetHandleByIndex", "crash", card=card)
    scan = await client.scan(only=2)
    assert scan is not None
    assert [reading.state for reading in scan.readings] == [None, None, 201, None]
    scan = await client.scan(only=4)
    assert scan is not None
    assert [reading.state for reading in scan.readings] == [None] * 4, "an index that is none"


async def test_a_node_is_opened_by_a_worker_that_opens_nothing_else(
    client: WorkerClient, machine: Machine
) -> None:
    machine.add_fault("xpumlInit", "crash")
    machine.set_card(2, {"unreadable": "EBUSY"})
    assert [await client.opens(number) for number in range(5)] == [True, True, False, True, False]
    assert client.pid is None


async def test_a_scan_tells_why_a_node_was_left_out(client: WorkerClient, machine: Machine) -> None:
    machine.set_card(2, {"unreadable": "ENXIO"})
    scan = await scanned(client)
    assert (scan.usable, scan.refused) == ((0, 1, 3), {2: ENXIO})
    machine.set_card(2, {"unreadable": ""})
    assert (await scanned(client)).refused == {}


async def test_a_round_of_slow_calls_may_take_longer_than_each_of_them(
    hasty: WorkerClient, machine: Machine
) -> None:
    """The deadline is one for progress: each call has it to itself."""
    machine.set({"request-delay": "30"})
    began = time.monotonic()
    scan = await scanned(hasty)
    assert time.monotonic() - began > 2 * TIMEOUT
    assert [reading.state for reading in scan.readings] == [201] * 4
    machine.set({"request-delay": "150"})
    began = time.monotonic()
    assert await hasty.sweep() == [RUNNING] * 4
    assert time.monotonic() - began > TIMEOUT
    machine.add_fault(STATE, "hang", card=2)
    await fails(hasty.sweep(), WorkerHungError, Call(STATE, 2))


async def test_a_worker_that_ends_while_nobody_asks_it_is_told_of_once(client: WorkerClient) -> None:
    await scanned(client)
    await client.sweep()
    worker = pid_of(client)
    os.kill(worker, signal.SIGKILL)
    await until(lambda: client.ended.current)
    assert client.pid == worker
    await fails(client.sweep(), WorkerDiedError, None, match="killed by signal 9")
    await scanned(client)
    client.dismiss()
    await asyncio.sleep(0)
    assert client.ended.current == 1, "and not of one that we have ended ourselves"


@pytest.mark.parametrize("by_name", [False, True])
async def test_a_library_whose_file_is_another_one_by_now(
    make_client: MakeClient, machine: Machine, place: Path, by_name: bool
) -> None:
    """Also where only the loader knows which file it is."""
    own, other = place / "libxpuml.so.1", place / "other"
    for copy in (own, other):
        shutil.copy(shipped(), copy)
    library, environment = (own.name, {"LD_LIBRARY_PATH": str(place)}) if by_name else (str(own), {})
    client = make_client(target_of(machine, library, environment=environment))
    await scanned(client)
    assert await client.replaced() is None
    other.replace(own)
    mark = await client.replaced()
    assert mark
    assert str(own) in mark
    assert await client.replaced() == mark, "the same file, the same mark"
    await scanned(client)
    assert await client.replaced() is None
    own.unlink()
    assert await client.replaced() == ""


@pytest.fixture
def container(machine: Machine, place: Path) -> Target:
    """As in a pod: the host's directories elsewhere, and an XRE behind an absolute link."""
    for release in ("xpu-4.0", "xpu-5.0"):
        directory = place / "host/usr/local" / release / "lib64"
        directory.mkdir(parents=True)
        shutil.copy(shipped(), directory / "libxpuml.so.1")
    link = place / "host/usr/local/xpu"
    link.symlink_to("/usr/local/xpu-4.0")
    names = ("lib64/libxpuml.so.1", "lib/libxpuml.so.1")
    return replace(target_of(machine, *(f"{link}/{name}" for name in names)), host_root=place / "host")


async def test_a_link_of_the_host_is_followed_within_the_container(
    make_client: MakeClient, container: Target, place: Path
) -> None:
    client = make_client(container)
    assert (await scanned(client)).library == container.libraries[0]
    await client.sweep()
    link = place / "host/usr/local/xpu"
    link.unlink()
    assert await client.replaced() == ""
    link.symlink_to("/usr/local/xpu-5.0")
    mark = await client.replaced()
    assert mark
    assert "xpu-5.0/lib64" in mark
    (place / "host/usr/local/xpu-5.0/lib64").rename(place / "host/usr/local/xpu-5.0/lib")
    mark = await client.replaced()
    assert mark
    assert "xpu-5.0/lib/" in mark, "what a fresh worker would find"
    assert (await scanned(client)).library == container.libraries[1]


async def test_a_library_that_is_installed_late_is_found(
    make_client: MakeClient, container: Target, place: Path
) -> None:
    link = place / "host/usr/local/xpu"
    link.unlink()
    client = make_client(container)
    with pytest.raises(LibraryError) as raised:
        await client.scan()
    assert str(raised.value) == f"{', '.join(container.libraries)}: no such file"
    link.symlink_to("xpu-5.0")
    assert (await scanned(client)).readings


async def test_a_trial_tells_what_a_fresh_worker_would_open_and_leaves_the_present_one_alone(
    make_client: MakeClient, container: Target, place: Path
) -> None:
    client = make_client(container)
    await scanned(client)
    worker, restarts = pid_of(client), client.restarts
    assert (await client.trial())["library"] == container.libraries[0]
    library = place / "host/usr/local/xpu-4.0/lib64/libxpuml.so.1"
    whole = library.read_bytes()
    library.unlink()
    for size in (0, 1000, len(whole) // 2):  # the last one kills who maps it
        library.write_bytes(whole[:size])
        with pytest.raises((LibraryError, WorkerDiedError)):
            await client.trial()
    assert (client.pid, client.restarts) == (worker, restarts)
    assert await client.sweep()


async def test_the_host_can_be_compared_with_that_of_the_scan(client: WorkerClient, machine: Machine) -> None:
    scan = await scanned(client)
    assert await client.host() is scan.host
    machine.set_card(0, {"vfs": "2"})
    now = await client.host()
    assert now != scan.host
    assert [node.number for node in now.nodes] == [0, 1, 2, 3, 4, 5]
    assert now.functions["0000:3b:00.0"].num_vfs == 2
    assert now.functions["0000:3b:01.1"].physfn == "0000:3b:00.0"
    assert await client.host() is now


async def test_a_scan_during_which_nodes_change_proves_nothing(
    client: WorkerClient, machine: Machine
) -> None:
    machine.add_fault("xpumlDeviceGetHandleByIndex", "delay:500", card=0, times=1)
    scan = asyncio.create_task(client.scan())
    await until(lambda: in_flight(client) == Call("xpumlDeviceGetHandleByIndex", 0))
    machine.set_card(4, {"model": "R200", "pci": "0000:5e:00.0"})
    assert await scan is None
    machine.clear_faults()
    assert len((await scanned(client)).readings) == 5


async def test_a_sweep_without_news_is_the_very_same_list(client: WorkerClient, machine: Machine) -> None:
    await scanned(client)
    first = await client.sweep()
    assert await client.sweep() is first
    machine.set_card(0, {"state": "207"})
    sick = await client.sweep()
    assert sick != first
    assert await client.sweep() is sick
    left_out = await client.sweep({0})
    assert left_out[0] is None
    assert left_out[1:] == first[1:]
    machine.set_card(0, {"state": ""})
    assert await client.sweep() == first
    await scanned(client)
    anew = await client.sweep()
    assert anew == first
    assert anew is not first, "a fresh worker answers anew"


def in_flight(client: WorkerClient) -> Call | None:
    """What the present worker does, as its progress word says."""
    return client._process.in_flight() if client._process else None


async def test_requests_at_the_same_time_get_their_own_answers(client: WorkerClient) -> None:
    scan = await scanned(client)
    answers = await asyncio.gather(client.sweep(), client.host(), client.sweep({0}), client.host())
    assert answers[0] == [RUNNING] * 4
    assert answers[2] == [None, *[RUNNING] * 3]
    assert answers[1] == answers[3] == scan.host


async def test_a_long_lived_worker_leaks_no_descriptor(client: WorkerClient) -> None:
    """The real library leaks one whenever it lists the devices anew."""
    await scanned(client)
    before = descriptors(pid_of(client))
    for _ in range(50):
        await client.sweep()
        await client.host()
    assert descriptors(pid_of(client)) == before


# --- who uses a card --------------------------------------------------------------------------------


async def test_usage_tells_processes_by_address_and_drivers(client: WorkerClient, machine: Machine) -> None:
    machine.set_card(0, {"vfs": "2"})
    machine.add_process(7, card=0, vf=0)
    machine.add_line("process", "pid=7 host-pid=4711 card=0 vf=1")
    machine.add_line("process", "pid=8 host-pid=4712 card=0 vf=1")
    machine.add_process(9, card=1)
    await scanned(client)
    worker = client.pid
    assert await client.usage({5, 0, 4}, CARD) == Usage(
        processes={
            CARD: (),
            "0000:3b:01.0": (Process(pid=7, host_pid=None),),
            "0000:3b:01.1": (Process(pid=7, host_pid=4711), Process(pid=8, host_pid=4712)),
        },
        drivers={CARD: "kunlun", "0000:3b:01.0": "kunlun", "0000:3b:01.1": "kunlun"},
    )
    other = await client.usage([1, 1], "0000:3c:00.0")
    assert other.processes == {"0000:3c:00.0": (Process(pid=9, host_pid=None),)}
    assert client.pid == worker


async def test_vfs_of_another_driver_or_of_none_show_in_usage_though_the_library_has_them_not(
    client: WorkerClient, machine: Machine
) -> None:
    machine.set_card(0, {"vfs": "3", "vf-drivers": "vfio-pci,kunlun,none"})
    scan = await scanned(client)
    assert [reading.pci for reading in scan.readings].count("0000:3b:01.1") == 1
    assert len(scan.readings) == 5
    usage = await client.usage([0, 4], CARD)
    assert usage.drivers == {
        CARD: "kunlun",
        "0000:3b:01.0": "vfio-pci",
        "0000:3b:01.1": "kunlun",
        "0000:3b:01.2": None,
    }
    assert usage.processes == {CARD: (), "0000:3b:01.1": ()}


async def test_processes_that_the_library_cannot_tell_are_unknown_and_not_none(
    client: WorkerClient, machine: Machine
) -> None:
    machine.set_card(0, {"vfs": "1"})
    machine.add_fault(PROCESSES, "code:999", card=0, vf=0)
    await scanned(client)
    assert (await client.usage([0, 4], CARD)).processes == {CARD: (), "0000:3b:01.0": None}


@pytest.mark.parametrize("function", ["xpumlDeviceGetPciInfo", "xpumlDeviceGetHandleByIndex"])
async def test_a_device_without_address_is_left_out_of_usage(
    client: WorkerClient, machine: Machine, function: str
) -> None:
    await scanned(client)
    machine.add_fault(function, "code:999", card=1)
    assert (await client.usage([0, 1], CARD)).processes == {CARD: ()}


@pytest.mark.parametrize("unknown", [0, 1])
async def test_usage_of_a_k200_is_that_of_both_halves(
    make_client: MakeClient, place: Path, unknown: int
) -> None:
    machine = make_machine(place / "k200", {"model": "K200", "pci": CARD})
    machine.add_process(7, card=0, half=0)
    machine.add_process(8, card=0, half=1)
    client = make_client(target_of(machine))
    await scanned(client)
    told = (await client.usage([0, 1], CARD)).processes
    assert told == {CARD: (Process(pid=7, host_pid=None), Process(pid=8, host_pid=None))}
    machine.add_fault(PROCESSES, "code:999", card=0, half=unknown)
    assert (await client.usage([0, 1], CARD)).processes == {CARD: None}


async def test_usage_of_a_card_that_is_not_in_sysfs_has_no_drivers(client: WorkerClient) -> None:
    await scanned(client)
    assert (await client.usage([0], "0000:7f:00.0")).drivers == {}


async def test_usage_where_sysfs_cannot_be_read_is_an_error(client: WorkerClient, machine: Machine) -> None:
    await scanned(client)
    assert machine.sysfs_root
    (machine.sysfs_root / "bus/pci/devices" / CARD / "driver").unlink()
    (machine.sysfs_root / "bus/pci/devices" / CARD / "driver").mkdir()
    with pytest.raises(LibraryError, match="driver"):
        await client.usage([0], CARD)


# --- VFs ----------------------------------------------------------------------------------------------


async def test_a_card_is_split_by_the_worker_of_the_scan(client: WorkerClient, machine: Machine) -> None:
    await scanned(client)
    worker = client.pid
    await client.set_sriov_vf_num(0, 2, CARD, seconds=SECONDS)
    assert (await client.host()).functions[CARD].num_vfs == 2
    await client.set_sriov_vf_num(0, 0, CARD, seconds=SECONDS)
    await client.set_sriov_vf_num(0, 3, CARD, seconds=SECONDS)
    assert client.pid == worker
    scan = await scanned(client)
    assert scan.host.functions[CARD].num_vfs == 3
    assert [reading.model for reading in scan.readings] == [200, 2, 2, 2, 203, 203, 203]


async def split_card(client: WorkerClient, machine: Machine) -> None:
    """Scan with card 0 in two."""
    machine.set_card(0, {"vfs": "2"})
    assert len((await scanned(client)).readings) == 6


async def whole_and_two_vfs(client: WorkerClient) -> bool:
    """Whether the next scan finds card 0 in two and all others whole."""
    scan = await scanned(client)
    numbers = {address: function.num_vfs for address, function in scan.host.functions.items()}
    return len(scan.readings) == 6 and sum(filter(None, numbers.values())) == numbers[CARD] == 2


@pytest.mark.parametrize(
    ("index", "number", "error", "text"),
    [
        (1, 0, WrongDeviceError, "device index 1 is 0000:3c:00.0, not 0000:3b:00.0"),
        (1, 3, WrongDeviceError, "device index 1 is 0000:3c:00.0, not 0000:3b:00.0"),
        (4, 3, WrongDeviceError, "device index 4 is 0000:3b:01.0, not 0000:3b:00.0"),
        (6, 3, WrongDeviceError, "device index 6 is not one of 6"),
        (-1, 3, WrongDeviceError, "device index -1 is not one of 6"),
        (0, 4, ValueError, "0000:3b:00.0 can have 3 VFs at most, not 4"),
        (0, 63, ValueError, "0000:3b:00.0 can have 3 VFs at most, not 63"),
        (0, 64, ValueError, "64 VFs: accepted are 0 to 63"),
        (0, -1, ValueError, "-1 VFs: accepted are 0 to 63"),
    ],
)
async def test_a_split_that_is_not_meant_so_is_refused_and_no_vf_changes(
    client: WorkerClient, machine: Machine, *, index: int, number: int, error: type[Exception], text: str
) -> None:
    await split_card(client, machine)
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        await client.set_sriov_vf_num(index, number, CARD, seconds=SECONDS)
    assert await whole_and_two_vfs(client)


@pytest.mark.parametrize("vf", [0, 1])
async def test_a_card_in_use_is_the_librarys_refusal_and_its_vfs_stay(
    client: WorkerClient, machine: Machine, vf: int
) -> None:
    machine.add_process(7, card=0, vf=vf)
    await split_card(client, machine)
    for number in (0, 3):
        with pytest.raises(XpumlError) as refused:
            await client.set_sriov_vf_num(0, number, CARD, seconds=SECONDS)
        assert (refused.value.function, refused.value.code) == (SPLIT, 999)
        assert await whole_and_two_vfs(client)


async def test_a_split_has_a_deadline_of_its_own_that_may_be_longer(
    hasty: WorkerClient, machine: Machine
) -> None:
    await split_card(hasty, machine)
    machine.set({"vf-delay": str(int(3 * TIMEOUT * 1000))})
    await hasty.set_sriov_vf_num(0, 3, CARD, seconds=SECONDS)
    assert (await hasty.host()).functions[CARD].num_vfs == 3


@pytest.mark.parametrize("action", ["crash", "hang"])
async def test_a_split_that_ends_halfway_leaves_the_card_whole_and_the_next_scan_tells(
    client: WorkerClient, machine: Machine, action: str
) -> None:
    await split_card(client, machine)
    machine.add_line("fault", f"function={SPLIT} card=0 at=halfway action={action}")
    split = asyncio.create_task(client.set_sriov_vf_num(0, 3, CARD, seconds=SECONDS))
    if action == "hang":
        assert machine.dev_root
        nodes = machine.dev_root
        await until(lambda: len(list(nodes.glob("xpu[0-9]"))) == 4, "the VFs go")
        assert not split.done()
        os.kill(pid_of(client), signal.SIGKILL)
    await fails(split, WorkerDiedError, Call(SPLIT, 0))
    scan = await scanned(client)
    assert scan.host.functions[CARD].num_vfs == 0
    assert [reading.model for reading in scan.readings] == [2] * 4
    machine.clear_faults()
    await client.set_sriov_vf_num(0, 3, CARD, seconds=SECONDS)
    assert len((await scanned(client)).readings) == 7


# --- the library hangs or dies --------------------------------------------------------------------


async def test_a_hang_ends_at_the_deadline_and_names_function_and_device(
    hasty: WorkerClient, machine: Machine
) -> None:
    await scanned(hasty)
    worker = pid_of(hasty)
    machine.add_fault(STATE, "hang", card=1)
    begin = time.monotonic()
    with pytest.raises(WorkerHungError, match=f"0.4 s in {STATE} of device index 1") as hung:
        await hasty.sweep()
    assert TIMEOUT <= time.monotonic() - begin < TIMEOUT + PROMPT_SECONDS
    assert hung.value.call == Call(STATE, 1)
    await until(lambda: has_ended(worker))

    with pytest.raises(WorkerDiedError, match="no worker that has scanned"):
        await hasty.sweep()
    machine.clear_faults()
    assert len((await scanned(hasty)).readings) == 4
    assert await hasty.sweep() == [RUNNING] * 4


@pytest.mark.parametrize(
    ("patience", "function", "ask", "call"),
    [
        (TIMEOUT, "xpumlInit", lambda client: client.scan(), Call("xpumlInit", None)),
        (SECONDS, STATE, lambda client: client.scan(seconds=0.3), Call(STATE, 0)),
        (TIMEOUT, PROCESSES, lambda client: client.usage([0], CARD), Call(PROCESSES, 0)),
        (SECONDS, SPLIT, lambda client: client.set_sriov_vf_num(0, 3, CARD, seconds=0.3), Call(SPLIT, 0)),
    ],
    ids=["no device", "a scan", "usage", "a split"],
)
async def test_each_request_has_a_deadline_and_some_have_their_own(
    make_client: MakeClient,
    machine: Machine,
    *,
    patience: float,
    function: str,
    ask: Callable[[WorkerClient], Awaitable[object]],
    call: Call,
) -> None:
    client = make_client(target_of(machine), patience)
    await split_card(client, machine)
    machine.add_fault(function, "hang")
    await fails(ask(client), WorkerHungError, call, match=rf"no answer within 0\.[34] s in {function}")
    machine.clear_faults()
    assert await whole_and_two_vfs(client)


async def test_a_device_that_hangs_can_be_left_out(hasty: WorkerClient, machine: Machine) -> None:
    machine.add_fault("xpumlDeviceGetMemoryInfo", "hang", card=2)
    await fails(hasty.scan(), WorkerHungError, Call("xpumlDeviceGetMemoryInfo", 2))
    scan = await hasty.scan({2})
    assert scan is not None
    assert [reading.pci is None for reading in scan.readings] == [False, False, True, False]
    assert await hasty.sweep({2}) == [RUNNING, RUNNING, None, RUNNING]


@pytest.mark.parametrize(
    ("action", "killer"), [("crash", signal.SIGSEGV), ("fpe", signal.SIGFPE), ("abort", signal.SIGABRT)]
)
async def test_a_crash_names_signal_function_and_device(
    client: WorkerClient, machine: Machine, action: str, killer: signal.Signals
) -> None:
    await scanned(client)
    machine.add_fault(STATE, action, card=3)
    await fails(client.sweep(), WorkerDiedError, Call(STATE, 3), match=f"killed by signal {killer:d}")
    machine.clear_faults()
    assert len((await scanned(client)).readings) == 4


async def test_a_worker_killed_during_a_call_is_noticed_at_once(
    client: WorkerClient, machine: Machine
) -> None:
    await scanned(client)
    machine.add_fault(STATE, "hang", card=0)
    sweep = asyncio.create_task(client.sweep())
    await until(lambda: in_flight(client) == Call(STATE, 0))
    os.kill(pid_of(client), signal.SIGKILL)
    with pytest.raises(WorkerDiedError) as died:
        async with asyncio.timeout(SECONDS / 2):
            await sweep
    assert died.value.call == Call(STATE, 0)


async def test_an_interpreter_that_cannot_start_is_an_error_like_any_other(
    make_client: MakeClient, machine: Machine
) -> None:
    client = make_client(target_of(machine, environment={"PYTHONHOME": "/nonexistent"}))
    with pytest.raises(WorkerDiedError, match="exit status 1"):
        await client.scan()


# --- the library misbehaves -----------------------------------------------------------------------


@pytest.fixture
def make_rogue(make_client: MakeClient, place: Path, rogue: Path) -> MakeClient:
    machine = make_machine(place, number=1)

    def make(deed: str, most_bytes: int | None = None) -> WorkerClient:
        target = target_of(machine, rogue, environment={"ROGUE": deed})
        return make_client(replace(target, most_bytes=most_bytes))

    return make


@pytest.mark.parametrize(("deed", "words"), [("exit", "exit status 3"), ("close", "its socket closed")])
async def test_a_library_that_ends_the_process_or_closes_the_socket(
    make_rogue: MakeClient, deed: str, words: str
) -> None:
    await fails(make_rogue(deed).scan(), WorkerDiedError, Call(STATE, 0), match=words)


NONSENSE = {
    "not text": "frame:\xff\xfe",
    "not JSON": "frame:}",
    "nothing": "frame:",
    "no object": "frame:7",
    "neither result nor error": 'frame:{"id": 3}',
    "an error of no known kind": 'frame:{"id": 3, "error": {"kind": "weather"}}',
    "an error that is none": 'frame:{"id": 3, "error": 5}',
    "another call's result": 'frame:{"id": 3, "result": [[0, 201]]}',
    "a result without its parts": 'frame:{"id": 3, "result": {"stable": true}}',
    "an answer without a number": 'frame:{"result": {"stable": false}}',
    "an answer to another request": 'frame:{"id": 2, "result": {"stable": false}}',
    "an endless length": "length",
    "a thing too deep": "deep",
}


@pytest.mark.parametrize("deed", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_on_the_wire_is_one_clear_error_and_a_fresh_worker(
    make_rogue: MakeClient, deed: str
) -> None:
    client = make_rogue(deed)
    with pytest.raises(WorkerDiedError, match="answered malformed data"):
        await client.scan()
    assert client.pid is None


async def test_what_the_library_prints_stays_off_the_protocol_and_off_our_output(
    make_rogue: MakeClient, capfd: pytest.CaptureFixture[str]
) -> None:
    client = make_rogue("print")
    await scanned(client)
    assert await client.sweep() == [RUNNING]
    assert descriptor(pid_of(client), 1) == "/dev/null"
    # The library takes a control node of descriptor 0 for one that is not open.
    assert descriptor(pid_of(client), 0) == "/dev/null"
    assert capfd.readouterr().out == ""


async def test_the_worker_does_not_hide_devices(
    make_client: MakeClient, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XPU_VISIBLE_DEVICES", "1")
    client = make_client(target_of(machine, environment={"XPU_VISIBLE_DEVICES": "0"}))
    assert len((await scanned(client)).readings) == 4


# --- no library, no driver ------------------------------------------------------------------------


async def test_without_a_library_each_path_and_its_trouble_is_named(
    make_client: MakeClient, machine: Machine, place: Path
) -> None:
    text = place / "text.so"
    text.write_text("no library")
    client = make_client(target_of(machine, "/nonexistent/libxpuml.so.1", text, "libno-such-xpuml.so.1"))
    with pytest.raises(LibraryError) as failed:
        await client.scan()
    for part in ("/nonexistent/libxpuml.so.1: no such file", str(text), "libno-such-xpuml.so.1"):
        assert part in str(failed.value)


async def test_the_first_usable_library_is_taken(
    make_client: MakeClient, machine: Machine, place: Path, rogue: Path
) -> None:
    unusable = place / "unusable.so"
    unusable.write_text("no library")
    client = make_client(target_of(machine, "/nonexistent.so", unusable, shipped(), rogue))
    assert (await scanned(client)).library == str(shipped())


async def test_without_a_driver_the_library_says_9_until_there_is_one(
    client: WorkerClient, machine: Machine
) -> None:
    machine.set({"driver": "gone"})
    for _ in range(2):
        with pytest.raises(DriverNotLoadedError) as failed:
            await client.scan()
        assert (failed.value.function, failed.value.code) == ("xpumlInit", 9)
        assert failed.value.text == "Driver Not Loaded"
    machine.set({"driver": ""})
    assert len((await scanned(client)).readings) == 4


@pytest.mark.parametrize("code", [12345, -5, 2])
async def test_a_count_that_fails_is_the_librarys_error(
    client: WorkerClient, machine: Machine, code: int
) -> None:
    """Also with code 2: its exception is a ValueError, too, and no sign of nonsense."""
    machine.add_fault("xpumlDeviceGetCount", f"code:{code}", times=1)
    with pytest.raises(XpumlError) as failed:
        await client.scan()
    assert (failed.value.function, failed.value.code) == ("xpumlDeviceGetCount", code)


async def test_a_version_that_cannot_be_told_is_no_reason_not_to_work(
    client: WorkerClient, machine: Machine
) -> None:
    machine.add_fault("xpumlSystemGetDriverVersion", "code:999")
    machine.add_fault("xpumlSystemGetXPUMLVersion", "garbage-strings")
    scan = await scanned(client)
    assert scan.driver_version == "unknown (xpumlSystemGetDriverVersion: Unknown Error (999))"
    assert scan.library_version


# --- cancelled requests ---------------------------------------------------------------------------


async def test_a_request_given_up_half_way_does_not_answer_the_next_one(
    client: WorkerClient, machine: Machine
) -> None:
    await scanned(client)
    machine.add_fault(STATE, "delay:300", card=0, times=1)
    sweep = asyncio.create_task(client.sweep())
    await until(lambda: in_flight(client) == Call(STATE, 0))
    sweep.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sweep
    with pytest.raises(WorkerDiedError, match="no worker that has scanned"):
        await client.host()
    assert len((await scanned(client)).readings) == 4
    assert await client.sweep({1}) == [RUNNING, None, RUNNING, RUNNING]


async def test_a_request_given_up_while_it_waits_for_another_harms_none(
    client: WorkerClient, machine: Machine
) -> None:
    await scanned(client)
    worker = client.pid
    machine.add_fault(STATE, "delay:300", card=0, times=1)
    sweep = asyncio.create_task(client.sweep())
    await until(lambda: in_flight(client) == Call(STATE, 0))
    waiting = asyncio.create_task(client.host())
    await asyncio.sleep(0)
    waiting.cancel()
    assert await sweep == [RUNNING] * 4
    assert client.pid == worker


async def test_a_start_given_up_half_way_leaves_no_worker(client: WorkerClient) -> None:
    scan = asyncio.create_task(client.scan())
    await until(lambda: client.pid is not None)
    worker = pid_of(client)
    scan.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scan
    assert client.pid is None
    await until(lambda: has_ended(worker))


# --- the end --------------------------------------------------------------------------------------


async def test_workers_that_were_replaced_are_counted_by_cause(hasty: WorkerClient, machine: Machine) -> None:
    for _ in range(3):
        await scanned(hasty)
    for action, error in (("hang", WorkerHungError), ("crash", WorkerDiedError)):
        machine.add_fault(STATE, action, times=1)
        with pytest.raises(error):
            await hasty.sweep()
        machine.clear_faults()
        await scanned(hasty)
    machine.set({"driver": "gone"})
    with pytest.raises(DriverNotLoadedError):
        await hasty.scan()
    machine.set({"driver": "loaded"})
    await scanned(hasty)
    await hasty.close()
    causes = {cause: number for cause, number in hasty.restarts.items() if number}
    assert causes == {"rescan": 3, "hung": 1, "died": 1, "failed": 1}


async def test_states_alone_are_asked_when_nothing_else_may_be(
    client: WorkerClient, machine: Machine
) -> None:
    await scanned(client)
    worker = client.pid
    async with client.states_only():
        assert await client.sweep({1}) == [RUNNING, None, RUNNING, RUNNING]
        for question in (
            client.scan(),
            client.host(),
            client.replaced(),
            client.gauges(),
            client.processes(),
            client.usage([0], CARD),
            client.set_sriov_vf_num(0, 1, CARD, seconds=SECONDS),
        ):
            await fails(question, BusyError, None)
        assert client.pid == worker
    assert (await client.host()).functions[CARD].num_vfs == 0


async def test_the_request_under_way_is_answered_before_states_alone_are_asked(
    client: WorkerClient, machine: Machine
) -> None:
    machine.add_fault("xpumlInit", "delay:200")
    scan = asyncio.create_task(client.scan())
    await until(lambda: client.pid, "a worker")
    async with client.states_only():
        assert scan.done()


# --- memory ---------------------------------------------------------------------------------------


async def test_a_worker_that_leaks_is_ended_when_it_has_more_than_its_share(
    make_rogue: MakeClient,
) -> None:
    client = make_rogue("leak", BOUND)
    await scanned(client)
    worker = pid_of(client)

    async def sweeps() -> None:
        for _ in range(10):
            await client.sweep()

    with pytest.raises(WorkerGrownError, match=r"the worker had [678][0-9] MiB of memory"):
        await sweeps()
    await until(lambda: has_ended(worker))
    assert client.restarts["grown"] == 1
    assert (await scanned(client)).readings, "a fresh one works"


async def test_a_worker_that_grows_within_one_call_is_ended_before_it_answers(
    make_rogue: MakeClient,
) -> None:
    """By the progress word it is known at which device."""
    client = make_rogue("balloon", BOUND)
    text = await fails(client.scan(), WorkerGrownError, Call(STATE, 0), match=STATE)
    grown = re.search(r"had (\d+) MiB", text)
    assert grown
    assert 64 < int(grown[1]) < 256


async def test_a_worker_without_a_share_may_have_what_it_likes(
    make_rogue: MakeClient,
) -> None:
    client = make_rogue("leak")
    await scanned(client)
    for _ in range(6):
        await client.sweep()
    assert taken(pid_of(client)) > 100 * MIB  # type: ignore[operator]
    assert client.restarts["grown"] == 0


async def test_close_leaves_no_process_not_even_a_hanging_one(client: WorkerClient, machine: Machine) -> None:
    await scanned(client)
    worker = pid_of(client)
    machine.add_fault(STATE, "hang", card=0)
    sweep = asyncio.create_task(client.sweep())
    await until(lambda: in_flight(client) == Call(STATE, 0))
    sweep.cancel()
    begin = time.monotonic()
    await client.close()
    assert time.monotonic() - begin < PROMPT_SECONDS
    assert has_ended(worker)
    assert (await asyncio.gather(sweep, return_exceptions=True))[0] is not None


async def test_workers_that_cannot_be_killed_are_not_waited_for_and_so_many_at_most(
    make_client: MakeClient, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with processes in D state, which a signal does not end."""
    unkillable: list[int] = []
    hasty = make_client(target_of(machine), TIMEOUT, most_stuck=3)

    def kill(process: WorkerProcess) -> None:
        unkillable.append(process.pid)
        if process.socket:
            process.socket.close()

    machine.add_fault(STATE, "hang", card=0)
    with monkeypatch.context() as patch:
        patch.setattr(WorkerProcess, "kill", kill)
        for _ in range(3):
            with pytest.raises(WorkerHungError):
                await hasty.scan()
        for _ in range(2):
            with pytest.raises(TooManyStuckError) as refused:
                await hasty.scan()
            for pid in unkillable:
                assert str(pid) in str(refused.value)
        assert len(unkillable) == 3

        machine.clear_faults()
        os.kill(unkillable[0], signal.SIGKILL)
        await until(lambda: has_ended(unkillable[0]))
        assert len((await scanned(hasty)).readings) == 4
        assert isinstance(refused.value, WorkerError)
    for pid in unkillable[1:]:
        os.kill(pid, signal.SIGKILL)


PARENT = """
import asyncio, sys
from pathlib import Path
from xpu_plugin.edges.worker.client import WorkerClient, Target

async def main(library, machine, dev, sysfs):
    client = WorkerClient(Target(
        libraries=(library,), dev_root=Path(dev), sysfs_root=Path(sysfs), simulated=True,
        environment={"XPU_SIMULATOR_FILE": machine, "XPU_SIMULATOR_DEV_ROOT": dev},
    ), call_timeout=600)
    scan = asyncio.create_task(client.scan())
    while client._process is None or client._process.in_flight() is None \\
            or client._process.in_flight().index != 2:
        await asyncio.sleep(0.01)
    print(client.pid, flush=True)
    await scan

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_worker_dies_with_its_parent_even_in_a_call_that_hangs(machine: Machine) -> None:
    machine.add_fault(STATE, "hang", card=2)
    arguments = [str(shipped()), str(machine.path), str(machine.dev_root), str(machine.sysfs_root)]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        assert not has_ended(worker)
        parent.kill()
        wait_until(lambda: has_ended(worker))


async def test_a_worker_that_cannot_be_started_is_an_error_like_any_other(client: WorkerClient) -> None:
    """Out of descriptors: said as such, nothing is left open, and the next request works."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(WorkerDiedError, match="no worker can be started: Too many open files"):
            await client.scan()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.dup(0) == free
    os.close(free)
    await scanned(client)
