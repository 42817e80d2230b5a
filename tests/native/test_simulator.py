# SPDX-License-Identifier: Apache-2.0
"""The simulated library behaves as the vendor's: answers, splits, habits and faults."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from struct import unpack_from

import pytest

from tests.support.waiting import wait_until
from xpu_plugin.simulation.machine import Machine, MachineError, cards
from xpu_plugin.xpuml import LATER_FUNCTIONS, OLD_FUNCTIONS

from .guest import NULL, DiedError, Guest, MakeGuest, Output
from .simulator_build import MakeBoth, MakeMachine


MIB = 1 << 20
SPLIT = "xpumlDeviceSetSriovVfNum"
LONG = "60000"  # milliseconds
CONTROL_FUNCTIONS = tuple(f"xpumlSimulator{name}" for name in ("Check", "Settle", "Open", "Describe"))
WITH_HANDLE = [
    name
    for name in OLD_FUNCTIONS
    if name.startswith("xpumlDevice") and "Count" not in name and "Index" not in name
]


def card(model: str = "R200", bus: int = 0x3B, **keys: str) -> dict[str, str]:
    dashed = {key.replace("_", "-"): value for key, value in keys.items()}
    return {"model": model, "pci": f"0000:{bus:02x}:00.0", **dashed}


def addresses(guest: Guest) -> list[str]:
    code, count = guest.count()
    assert code == 0
    return [guest.pci(index) for index in range(count)]


def nodes(machine: Machine) -> list[str]:
    assert machine.dev_root
    return sorted(path.name for path in machine.dev_root.iterdir() if path.name != "xpuctrl")


def dies(guest: Guest, function: str, *arguments: object) -> signal.Signals:
    with pytest.raises(DiedError) as died:
        guest.call(function, *arguments)  # type: ignore[arg-type]  # by the test
    return signal.Signals(-died.value.status)


# --- the ABI --------------------------------------------------------------------------------------


def exported(library: Path) -> set[str]:
    table = subprocess.run(
        ["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True
    )
    return {line.split()[-1] for line in table.stdout.splitlines()}


def test_exports_the_functions_of_libxpuml_and_no_others(simulator: Path) -> None:
    assert exported(simulator) == {*OLD_FUNCTIONS, *LATER_FUNCTIONS, *CONTROL_FUNCTIONS}


def test_error_strings(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    guest = make_guest(make_machine(), init=False)
    assert guest.text("xpumlErrorString", 9) == "Driver Not Loaded"
    for code in (21, 22, 25, -5, 999):
        assert guest.text("xpumlErrorString", code) == "Unknown Error"


# --- the driver -----------------------------------------------------------------------------------


def test_before_init_every_call_says_that_there_is_no_driver(
    make_machine: MakeMachine, make_guest: MakeGuest
) -> None:
    guest = make_guest(make_machine(), init=False)
    for function in WITH_HANDLE:
        assert guest.call(function, NULL, Output())[0] == 9, function
    assert guest.count()[0] == 9
    assert guest.fetch(0)[0] == 9
    assert guest.call("xpumlSystemGetDriverVersion", Output(80))[0] == 9
    assert guest.call("xpumlShutdown")[0] == 0


def test_no_control_node_no_driver(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine()
    assert machine.dev_root
    (machine.dev_root / "xpuctrl").unlink()
    assert make_guest(machine, init=False).init() == 9


def test_no_machine_file_no_driver_and_a_line_why(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine()
    machine.path.unlink()
    guest = make_guest(machine, init=False)
    assert guest.init() == 9
    assert "No such file" in guest.close()[1]


def test_driver_gone_and_back(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine()
    before = make_guest(machine)
    machine.set({"driver": "gone"})
    assert nodes(machine) == []
    assert before.count()[0] == 999
    late = make_guest(machine, init=False)
    assert late.init() == 9
    machine.set({"driver": "loaded"})
    assert late.init() == 0
    assert late.count() == (0, 2)
    assert before.count() == (0, 2)


def test_unloading_the_driver_undoes_splits(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine(card(vfs="3"), card(bus=0x3C))
    machine.set({"driver": "gone"})
    machine.set({"driver": "loaded"})
    assert nodes(machine) == ["xpu0", "xpu1"]
    assert make_guest(machine).count() == (0, 2)


def test_shutdown_does_nothing(make_both: MakeBoth) -> None:
    _, guest = make_both()
    assert guest.call("xpumlShutdown")[0] == 0
    assert guest.count() == (0, 2)


def test_versions(make_both: MakeBoth) -> None:
    machine, guest = make_both()
    code, text = guest.call("xpumlSystemGetDriverVersion", Output(80))
    assert code == 0
    assert text.partition(b"\0")[0].startswith(b"4.0.third_unknown.1 commit: ")
    assert len(text.partition(b"\0")[0]) == 68
    assert guest.call("xpumlSystemGetXPUMLVersion", Output(9))[1] == b"4.0.12.1\0"
    machine.set({"driver-version": "5.0 of  today", "library-version": "4.0.5.1"})
    assert guest.call("xpumlSystemGetDriverVersion", Output(80))[1].startswith(b"5.0 of  today\0")
    assert guest.call("xpumlSystemGetXPUMLVersion", Output(80))[1].startswith(b"4.0.5.1\0")


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "numbers", "max_vfs", "memory"),
    [
        ("K100", (1, 1, 1), 0, 8192),
        ("R200", (2, 100, 2), 3, 16384),
        ("R300", (2, 101, 3), 3, 32768),
        ("R200-8F", (2, 102, 4), 3, 32768),
        ("R200-8FS", (0, 0, 9999), 3, 32768),
        ("R100", (0, 0, 9999), 3, 16384),
        ("R420", (0, 0, 9999), 3, 16384),
        ("RG800", (0, 0, 9999), 3, 32768),
        ("RG800-PRO", (0, 0, 9999), 3, 32768),
        ("P800", (0, 0, 9999), 4, 98304),
    ],
)
def test_models_as_the_library_knows_them(
    make_both: MakeBoth, *, model: str, numbers: tuple[int, int, int], max_vfs: int, memory: int
) -> None:
    _, guest = make_both(card(model))
    attributes = guest.attributes(0)
    assert attributes[:3] == numbers
    assert attributes[9] == max_vfs
    assert attributes[10] == memory
    assert guest.number("xpumlDeviceGetArchitecture", guest.handle(0)) == (0, numbers[0])
    assert guest.number("xpumlDeviceGetBoardId", guest.handle(0)) == (0, numbers[1])
    assert guest.number("xpumlDeviceGetHostVxpuMode", guest.handle(0)) == (0, int(max_vfs > 0))
    code, _ = guest.number("xpumlDeviceGetClockInfo", guest.handle(0), 0)
    assert code == (999 if numbers[2] == 9999 else 0)


def test_a_k200_is_two_devices_at_one_address(make_both: MakeBoth) -> None:
    _, guest = make_both(card(bus=0x3A), card("K200", state="201,205"))
    assert addresses(guest) == ["0000:3a:00.0", "0000:3b:00.0", "0000:3b:00.0"]
    assert [guest.model(index) for index in range(3)] == [2, 0, 0]
    assert guest.state(1) == (0, 201)
    assert guest.state(2) == (0, 205)


@pytest.mark.parametrize(("power", "utilization", "used"), [(25, 30, 4096), (-1, 300, 20000)])
def test_readings(make_both: MakeBoth, *, power: int, utilization: int, used: int) -> None:
    """Numbers of the driver come through as they are, also those that cannot be."""
    machine, guest = make_both(
        card(utilization=str(utilization), temperature="55", power=str(power), clock="1040")
    )
    machine.add_process(4711, card=0, memory=used)
    handle = guest.handle(0)
    assert guest.number("xpumlDeviceGetTemperature", handle, 0) == (0, 55)
    assert guest.number("xpumlDeviceGetPowerUsage", handle) == (0, power)
    assert guest.number("xpumlDeviceGetClockInfo", handle, 0) == (0, 1040)
    code, rates = guest.call("xpumlDeviceGetUtilizationRates", handle, Output())
    assert (code, *unpack_from("<2I", rates)) == (0, utilization, used * 100 // 16384)
    assert guest.memory(0)[1::2][:2] == (16384 * MIB, used * MIB)


def test_pci_info_leaves_the_ids_alone(make_both: MakeBoth) -> None:
    _, guest = make_both({"model": "R200", "pci": "00ab:af:1e.5"})
    code, record = guest.call("xpumlDeviceGetPciInfo", guest.handle(0), Output())
    assert code == 0
    assert unpack_from("<6I", record) == (0xAB, 0xAF, 0x1E, 5, 0, 0)
    assert record[24:56].partition(b"\0")[0] == b"000000AB:AF:1E.5"


def test_processes(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine(card("K200"))
    for pid in range(100, 103):
        machine.add_process(pid, card=0, half=1, memory=pid)
    guest = make_guest(machine)

    def ask(index: int, room: int) -> tuple[int, int]:
        guest.start(
            "xpumlDeviceGetComputeRunningProcesses", guest.handle(index), Output(4, room), Output(99 * 128)
        )
        code, (count, records) = guest.finish()
        number = int(unpack_from("<I", count)[0])
        for n in range(number if code == 0 else 0):
            assert unpack_from("<IxxxxQ", records, n * 128) == (100 + n, (100 + n) * MIB)
        assert isinstance(code, int)
        return code, number

    assert ask(0, 99) == (0, 0)
    assert ask(1, 99) == (0, 3)
    assert ask(1, 2) == (0, 2)
    assert ask(1, 0) == (0, 0)
    assert ask(1, 100)[0] == 2


def test_a_process_may_have_its_pid_on_the_host(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine(card(vfs="1"))
    machine.add_line("process", "pid=7 host-pid=4711 card=0 vf=0")
    machine.add_line("process", "pid=8 card=0 vf=0")
    guest = make_guest(machine)
    guest.start("xpumlDeviceGetComputeRunningProcesses", guest.handle(1), Output(4, 99), Output(99 * 128, 0))
    code, (count, records) = guest.finish()
    assert (code, *unpack_from("<I", count)) == (0, 2)
    assert [unpack_from("<I20xI", records, n * 128) for n in range(3)] == [(7, 4711), (8, 0), (0, 0)]


def test_a_lost_card_keeps_its_node_and_answers_999(make_both: MakeBoth) -> None:
    machine, guest = make_both()
    handle = guest.handle(0)
    machine.set_card(0, {"lost": "yes"})
    assert nodes(machine) == ["xpu0", "xpu1"]
    assert guest.count() == (0, 2)
    for function in ("xpumlDeviceGetMemoryInfo", "xpumlDeviceGetPciInfo", "xpumlDeviceGetPowerUsage"):
        assert guest.call(function, handle, Output())[0] == 999
    assert guest.number("xpumlDeviceGetState", handle)[0] == 999
    assert guest.fetch(0)[0] == 999
    assert guest.state(1) == (0, 201)
    machine.set_card(0, {"lost": ""})
    assert guest.state(0) == (0, 201)


def test_index_is_the_rank_among_usable_nodes(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine(
        card(bus=0x10, nodes="12"), card(bus=0x11, nodes="2"), card(bus=0x12, nodes="100"), card(bus=0x13)
    )
    assert nodes(machine) == ["xpu0", "xpu100", "xpu12", "xpu2"]
    guest = make_guest(machine)
    assert addresses(guest) == ["0000:13:00.0", "0000:11:00.0", "0000:10:00.0", "0000:12:00.0"]
    machine.set_card(1, {"unreadable": "yes"})
    fresh = make_guest(machine)
    assert addresses(fresh) == ["0000:13:00.0", "0000:10:00.0", "0000:12:00.0"]
    assert machine.dev_root
    (machine.dev_root / "xpu0").unlink()
    assert addresses(make_guest(machine)) == ["0000:10:00.0", "0000:12:00.0"]


def test_the_file_is_followed_while_it_is_right(make_both: MakeBoth) -> None:
    machine, guest = make_both()
    machine.set_card(0, {"state": "207"})
    assert guest.state(0) == (0, 207)
    machine.path.write_text("card 0 model=R201\n")
    assert guest.state(0) == (0, 207)
    assert guest.state(1) == (0, 201)
    output, errors = guest.close()
    assert output == ""
    assert errors.count("\n") == 1
    assert "line 1: model of card: 'R201'; accepted: K100, " in errors


def test_the_file_is_that_at_the_path(make_both: MakeBoth) -> None:
    """However it came there: written over, moved there, linked there, after a while without one."""
    machine, guest = make_both()
    well = machine.path.read_text()
    machine.set_card(0, {"state": "207"})
    sick = machine.path.read_text()
    machine.path.write_text(well)
    assert guest.state(0) == (0, 201)
    machine.path.write_text(sick)
    assert guest.state(0) == (0, 207)
    former = machine.path.with_name("former")
    machine.path.rename(former)
    assert guest.state(0) == (0, 207)  # as it was, while there is none
    machine.path.write_text(well)
    assert guest.state(0) == (0, 201)
    former.replace(machine.path)
    assert guest.state(0) == (0, 207)
    machine.path.unlink()
    other = machine.path.with_name("other")
    other.write_text(well)
    machine.path.hardlink_to(other)
    assert guest.state(0) == (0, 201)
    assert guest.close() == ("", "")


# --- splitting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "sizes"),
    [
        (16384, (16384, 8192, 5456)),
        (14336, (14336, 7168, 4776)),
        (32768, (32768, 16384, 10920)),
        (28672, (28672, 14336, 9552)),
    ],
)
def test_memory_of_vfs(make_both: MakeBoth, memory: int, sizes: tuple[int, int, int]) -> None:
    _, guest = make_both(card(memory=str(memory)))
    for vfs, size in enumerate(sizes, 1):
        assert guest.split(0, vfs) == 0
        assert guest.count() == (0, 1 + vfs)
        assert guest.model(0) == 200
        for index in range(1, 1 + vfs):
            assert guest.attributes(index)[10] == size
            assert guest.memory(index)[1] == size * MIB
            assert guest.model(index) == 200 + vfs
        assert guest.memory(0)[1] == memory * MIB


@pytest.mark.parametrize(
    ("vfs", "engines", "l3"),
    [(1, (8, 6, 6, 9, 3, 6), 63), (2, (3, 3, 3, 4, 1, 3), 32), (3, (2, 2, 2, 3, 1, 2), 16)],
)
def test_engines_of_vfs(make_both: MakeBoth, vfs: int, engines: tuple[int, ...], l3: int) -> None:
    _, guest = make_both(card())
    assert guest.attributes(0)[3:9] == (8, 6, 8, 9, 3, 6)
    assert guest.split(0, vfs) == 0
    guest.count()
    vf = guest.attributes(1)
    assert (vf[3:9], vf[9], vf[11]) == (engines, 0, l3)
    assert guest.attributes(0)[5] == 2


@pytest.mark.parametrize(("vfs", "size"), [(2, 49152), (4, 24576)])
def test_vfs_of_a_p800_are_halves_or_quarters(make_both: MakeBoth, vfs: int, size: int) -> None:
    machine, guest = make_both(card("P800"), model="P800")
    assert machine.sysfs_root
    bus = machine.sysfs_root / "bus/pci/devices"
    assert (bus / "0000:3b:00.0/sriov_totalvfs").read_text() == "4\n"
    assert guest.split(0, vfs) == 0
    assert guest.count() == (0, 1 + vfs)
    assert sorted(addresses(guest)) == [f"0000:3b:00.{function}" for function in range(1 + vfs)]
    for index in range(1 + vfs):
        vf = guest.pci(index) != "0000:3b:00.0"
        assert guest.memory(index)[1] == (size if vf else 98304) * MIB
        assert guest.attributes(index)[:3] == (3, 0, 300)
        assert guest.number("xpumlDeviceGetHostVxpuMode", guest.handle(index)) == (0, 0 if vf else 2)
    last = bus / f"0000:3b:00.0/virtfn{vfs - 1}"
    assert last.resolve() == machine.sysfs_root / f"devices/pci0000:3b/0000:3b:00.{vfs}"
    for number in (1, 3):
        assert guest.split(addresses(guest).index("0000:3b:00.0"), number) == 999
        assert guest.count() == (0, 1)
    assert [path.name for path in bus.iterdir()] == ["0000:3b:00.0"]
    assert not (bus / "0000:3b:00.0/virtfn0").is_symlink()


def test_only_r200_is_known_in_parts(make_both: MakeBoth) -> None:
    _, guest = make_both(card("R300"))
    assert guest.split(0, 2) == 0
    guest.count()
    assert [guest.attributes(index)[:3] for index in range(3)] == [(0, 0, 9999)] * 3


def test_modes(make_both: MakeBoth) -> None:
    _, guest = make_both(card("K100"), card(bus=0x3C))
    handle = guest.handle(1)
    assert guest.number("xpumlDeviceGetHostVxpuMode", guest.handle(0)) == (0, 0)
    assert guest.number("xpumlDeviceGetHostVxpuMode", handle) == (0, 1)
    assert guest.split(1, 1) == 0
    assert guest.number("xpumlDeviceGetHostVxpuMode", handle) == (0, 2)  # same handle, new mode
    guest.count()
    assert guest.number("xpumlDeviceGetHostVxpuMode", guest.handle(2)) == (0, 0)


def test_two_split_cards_and_the_first_put_back_leave_a_hole(make_both: MakeBoth) -> None:
    machine, guest = make_both()
    assert guest.split(0, 3) == 0
    guest.count()
    assert guest.split(1, 2) == 0
    assert guest.count() == (0, 7)
    assert nodes(machine) == [f"xpu{n}" for n in range(7)]
    assert guest.split(0, 0) == 0
    assert nodes(machine) == ["xpu0", "xpu1", "xpu5", "xpu6"]
    assert addresses(guest) == ["0000:3b:00.0", "0000:3c:00.0", "0000:3c:01.0", "0000:3c:01.1"]
    assert guest.split(0, 3) == 0
    assert addresses(guest) == [
        "0000:3b:00.0", "0000:3c:00.0", "0000:3b:01.0", "0000:3b:01.1", "0000:3b:01.2",
        "0000:3c:01.0", "0000:3c:01.1",
    ]  # fmt: skip
    assert "vf-nodes=2,3,4" in machine.text()


def test_the_sysfs_tree_follows_a_split(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine(card(numa="1"))
    assert machine.sysfs_root
    guest = make_guest(machine)
    pf = machine.sysfs_root / "class/xpu/xpu0/device"
    assert (pf / "sriov_numvfs").read_text() == "0\n"
    assert guest.split(0, 2) == 0
    vf = machine.sysfs_root / "class/xpu/xpu2/device"
    assert (pf / "sriov_numvfs").read_text() == "2\n"
    assert (vf / "physfn").resolve() == pf.resolve()
    assert (pf / "virtfn1").resolve() == vf.resolve()
    assert (vf / "device").read_text() == "0x3685\n"
    assert (vf / "numa_node").read_text() == "1\n"
    assert guest.split(0, 0) == 0
    assert not vf.exists()
    assert not (pf / "virtfn0").is_symlink()
    assert [path.name for path in (machine.sysfs_root / "bus/pci/devices").iterdir()] == ["0000:3b:00.0"]


def test_cards_are_below_their_bridges(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    root, port, switch = "0000:3a", "0000:3a:01.0", "0000:3a:00.0"
    machine = make_machine(card(bridges=f"{port},{switch}"), card(bus=0x3C, bridges=port), card(bus=0x3D))
    assert machine.sysfs_root
    devices, bus = machine.sysfs_root / "devices", machine.sysfs_root / "bus/pci/devices"
    assert (bus / "0000:3b:00.0").resolve() == devices / f"pci{root}/{port}/{switch}/0000:3b:00.0"
    assert (bus / "0000:3c:00.0").resolve() == devices / f"pci{root}/{port}/0000:3c:00.0"
    assert (bus / "0000:3d:00.0").resolve() == devices / "pci0000:3d/0000:3d:00.0"
    assert make_guest(machine).split(0, 2) == 0
    vf = machine.sysfs_root / "class/xpu/xpu3/device"
    assert vf.resolve() == devices / f"pci{root}/{port}/{switch}/0000:3b:01.0"
    assert (vf / "physfn").resolve() == (bus / "0000:3b:00.0").resolve()

    machine.set_card(1, {"bridges": ""})  # it is plugged in elsewhere
    assert (bus / "0000:3c:00.0").resolve() == devices / "pci0000:3c/0000:3c:00.0"
    assert not (devices / f"pci{root}/{port}/0000:3c:00.0").exists()
    with pytest.raises(MachineError, match="accepted: 1 to 6 PCI addresses, the outermost first"):
        machine.set_card(1, {"bridges": "3a:01.0"})
    machine.remove()
    assert list(devices.iterdir()) == []


def test_a_bad_number_on_a_split_card_destroys_its_vfs(make_both: MakeBoth) -> None:
    _, guest = make_both(card(), card(bus=0x3C))
    assert guest.split(1, 4) == 999
    for number in (4, -1):
        assert guest.split(0, 2) == 0
        assert guest.count() == (0, 4)
        assert guest.split(0, 2) == 0
        assert guest.count() == (0, 4)
        assert guest.split(0, number) == 999
        assert guest.count() == (0, 2)


@pytest.mark.parametrize(
    "keys",
    [
        card("K100"),
        card("K200"),
        card("R100"),
        card("R420"),
        card("P800", total_vfs="0"),
        card(total_vfs="1"),
        card(memory="12288"),
        card(splits="no"),
        card(busy="yes"),
        card(lost="yes"),
    ],
    ids=lambda keys: " ".join(f"{key}={value}" for key, value in keys.items() if key != "pci"),
)
def test_refusals_are_999(make_both: MakeBoth, keys: dict[str, str]) -> None:
    machine, guest = make_both(keys | {"lost": ""})
    handle = guest.handle(0)
    machine.set_card(0, keys)
    assert guest.call("xpumlDeviceSetSriovVfNum", handle, 2)[0] == 999
    assert guest.call("xpumlDeviceSetSriovVfNum", handle, 0)[0] == (
        999 if keys["model"] in ("K100", "K200") or "lost" in keys else 0
    )


@pytest.mark.parametrize(("vf", "before", "wanted"), [(1, "2", 0), (None, "0", 2)], ids=["a VF", "the card"])
def test_a_process_keeps_a_card_as_it_is(
    make_both: MakeBoth, *, vf: int | None, before: str, wanted: int
) -> None:
    machine, guest = make_both(card(vfs=before))
    machine.add_process(1, card=0, vf=vf)
    assert guest.split(0, wanted) == 999
    assert guest.count() == (0, 1 + int(before))
    machine.clear_processes()
    assert guest.split(0, wanted) == 0


@pytest.mark.parametrize(("before", "wanted"), [("2", 3), ("2", 0), ("0", 2)])
def test_a_split_may_end_halfway(
    make_machine: MakeMachine, make_guest: MakeGuest, before: str, wanted: int
) -> None:
    machine = make_machine(card(vfs=before), card(bus=0x3C, vfs="1"))
    machine.add_line("fault", f"function={SPLIT} card=0 at=halfway action=crash")
    guest = make_guest(machine)
    assert guest.count() == (0, 3 + int(before))
    assert dies(guest, SPLIT, guest.handle(0), wanted) == signal.SIGSEGV
    assert nodes(machine)[:2] == ["xpu0", "xpu1"]
    assert addresses(make_guest(machine)) == ["0000:3b:00.0", "0000:3c:00.0", "0000:3c:01.0"]
    machine.clear_faults()
    assert make_guest(machine).split(0, wanted) == 0
    assert make_guest(machine).count() == (0, 3 + wanted)


def test_a_split_may_hang_or_fail_halfway(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine(card(vfs="2"))
    machine.add_line("fault", f"function={SPLIT} at=halfway action=code:999 times=1")
    machine.add_line("fault", f"function={SPLIT} at=halfway action=hang")
    guest = make_guest(machine)
    assert guest.split(0, 2) == 0, "nothing is changed, so there is no halfway"
    assert guest.split(0, 3) == 999
    assert guest.count() == (0, 1)
    machine.set_card(0, {"vfs": "2"})
    assert guest.count() == (0, 3)
    guest.start(SPLIT, guest.handle(0), 3)
    wait_until(lambda: nodes(machine) == ["xpu0"], "the VFs go")
    assert guest.process.poll() is None
    guest.process.kill()
    with pytest.raises(DiedError):
        guest.finish()


def test_a_fault_halfway_strikes_nowhere_else(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine(card(vfs="2"), card(bus=0x3C))
    machine.add_line("fault", f"function={SPLIT} card=1 at=halfway action=crash")
    machine.add_line("fault", f"function={SPLIT} card=0 at=call action=code:15")
    guest = make_guest(machine)
    assert guest.split(0, 0) == 15
    assert guest.count() == (0, 4)


def test_a_vf_of_another_driver_has_no_node(make_both: MakeBoth, make_guest: MakeGuest) -> None:
    machine, guest = make_both(card(vfs="3"))
    assert guest.count() == (0, 4)
    machine.set_card(0, {"vf-drivers": "vfio-pci,kunlun,none"})
    assert nodes(machine) == ["xpu0", "xpu2"]
    assert addresses(guest) == ["0000:3b:00.0", "0000:3b:01.1"]
    assert guest.attributes(1)[10] == 5456, "still a third"
    assert guest.split(0, 1) == 0
    assert addresses(make_guest(machine)) == ["0000:3b:00.0", "0000:3b:01.0"]
    assert "vf-drivers" not in machine.text()


def test_a_vf_cannot_be_split(make_both: MakeBoth) -> None:
    _, guest = make_both(card(vfs="1"))
    assert guest.split(1, 0) == 0
    assert guest.split(1, 1) == 999
    assert guest.count() == (0, 2)


def begun(guest: Guest) -> None:
    """Wait until the driver's side of a request holds the process that asked, which it traces."""
    status = Path(f"/proc/{guest.process.pid}/status")
    wait_until(lambda: "TracerPid:\t0\n" not in status.read_text(), "the driver's side")


@pytest.mark.parametrize("number", [0, 3])
def test_a_slow_split_is_carried_out_although_the_process_that_asked_is_killed(
    make_both: MakeBoth, make_guest: MakeGuest, number: int
) -> None:
    """And that process does not end before, as one that the driver holds."""
    before = 3 - number
    machine, guest = make_both(card(vfs=str(before)), vf_delay=LONG)
    handle = guest.handle(0)
    guest.start("xpumlDeviceSetSriovVfNum", handle, number)
    begun(guest)
    guest.process.kill()
    assert make_guest(machine).count() == (0, 1 + before), "to list the nodes does not keep it from that"
    assert guest.process.poll() is None
    machine.set({"vf-delay": "0"})
    with pytest.raises(DiedError):
        guest.finish()
    assert make_guest(machine).count() == (0, 1 + number)


def test_a_slow_split_is_refused_when_the_nodes_are_opened_meanwhile(
    make_both: MakeBoth, make_guest: MakeGuest
) -> None:
    machine, guest = make_both(card(), vf_delay=LONG)
    handle = guest.handle(0)
    guest.start("xpumlDeviceSetSriovVfNum", handle, 2)
    begun(guest)
    watching = make_guest(machine)
    machine.set({"vf-delay": "0"})
    assert guest.finish()[0] == 999
    machine.set({"vf-delay": LONG})
    guest.start("xpumlDeviceSetSriovVfNum", handle, 2)
    begun(guest)
    for _ in range(3):
        assert watching.number("xpumlDeviceGetState", watching.handle(0)) == (0, 201)
        time.sleep(0.1)
    machine.set({"vf-delay": "0"})
    assert guest.finish()[0] == 0


def test_a_split_keeps_comments_and_other_lines(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine(card(), card(bus=0x3C))
    text = machine.text().replace("minors=0", "minors=0   # the first") + "\n# the end\n"
    machine.path.write_text(text)
    assert make_guest(machine).split(0, 1) == 0
    assert machine.text() == text.replace("minors=0 ", "minors=0 vfs=1 vf-nodes=2 vf-minors=4")


# --- habits ---------------------------------------------------------------------------------------


def test_an_index_up_to_127_crashes(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine()
    assert make_guest(machine).fetch(128)[0] == 2
    for index in (2, 127):
        assert dies(make_guest(machine), "xpumlDeviceGetHandleByIndex", index, Output(8)) == signal.SIGSEGV
    machine.set({"quirks": "off"})
    guest = make_guest(machine)
    assert [guest.fetch(index)[0] for index in (2, 127, 128)] == [2, 2, 2]


@pytest.mark.parametrize("function", WITH_HANDLE)
def test_null_handles_crash(make_machine: MakeMachine, make_guest: MakeGuest, function: str) -> None:
    machine = make_machine()
    assert dies(make_guest(machine), function, NULL, Output()) == signal.SIGSEGV
    machine.set({"quirks": "off"})
    assert make_guest(machine).call(function, NULL, Output())[0] == 2


def test_null_outputs(make_both: MakeBoth) -> None:
    _, guest = make_both()
    handle = guest.handle(0)
    assert guest.call("xpumlDeviceGetCount", NULL)[0] == 999
    assert guest.call("xpumlDeviceGetState", handle, NULL)[0] == 0
    assert guest.call("xpumlDeviceGetPciInfo", handle, NULL)[0] == 9
    assert guest.call("xpumlDeviceGetAttributes", handle, NULL)[0] == 2
    assert guest.call("xpumlDeviceGetTemperature", handle, 0, NULL)[0] == 999


def test_a_handle_from_before_a_listing_is_gone(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    for quirks in ("on", "off"):
        machine = make_machine(card(), quirks=quirks)
        guest = make_guest(machine)
        handle = guest.handle(0)
        assert guest.split(0, 1) == 0
        assert guest.number("xpumlDeviceGetState", handle) == (0, 201)
        assert guest.count() == (0, 2)
        if quirks == "on":
            assert dies(guest, "xpumlDeviceGetState", handle, Output()) == signal.SIGSEGV
        else:
            assert guest.number("xpumlDeviceGetState", handle)[0] == 2
        machine.remove()


def test_attributes_are_cached_for_life_when_the_count_stays(
    make_both: MakeBoth, make_guest: MakeGuest
) -> None:
    machine, guest = make_both(card(), card(bus=0x3C, vfs="1"))
    assert [guest.model(index) for index in range(3)] == [2, 200, 201]
    machine.set_card(1, {"vfs": "0"})
    machine.set_card(0, {"vfs": "1"})
    assert guest.count() == (0, 3)
    assert [guest.model(index) for index in range(3)] == [2, 200, 201]
    assert addresses(guest) == ["0000:3b:00.0", "0000:3c:00.0", "0000:3b:01.0"]
    assert [make_guest(machine).model(index) for index in range(3)] == [200, 2, 201]


def test_a_failed_state_makes_the_handle_invalid(make_both: MakeBoth) -> None:
    machine, guest = make_both()
    handle = guest.handle(0)
    machine.add_fault("xpumlDeviceGetState", "code:999", card=0, times=1)
    assert guest.number("xpumlDeviceGetState", handle)[0] == 999
    assert guest.number("xpumlDeviceGetState", handle)[0] == 2
    assert guest.call("xpumlDeviceGetMemoryInfo", handle, Output())[0] == 2
    assert guest.number("xpumlDeviceGetTemperature", handle, 0)[0] == 0
    assert guest.number("xpumlDeviceGetHostVxpuMode", handle)[0] == 0
    guest.handle(0)
    assert guest.number("xpumlDeviceGetState", handle) == (0, 201)


def test_each_listing_leaks_a_descriptor(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine(card(unreadable="yes"), card(bus=0x3C))  # the count always differs
    guest = make_guest(machine)
    before = guest.descriptors()
    assert [guest.count() for _ in range(3)] == [(0, 1)] * 3
    assert guest.descriptors() == before + 3
    machine.set({"quirks": "off"})
    assert guest.count() == (0, 1)
    assert guest.descriptors() == before + 3


def test_without_descriptors_there_are_no_devices_and_no_error(make_both: MakeBoth) -> None:
    _, guest = make_both(card(unreadable="yes"), card(bus=0x3C))
    limit = guest.descriptors() + 4
    resource.prlimit(guest.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
    answers = [guest.count() for _ in range(limit)]
    assert answers[0] == (0, 1)
    assert answers[-1] == (0, 0)


def test_unusable_nodes_are_told_on_stdout(make_both: MakeBoth) -> None:
    _, guest = make_both(card(unreadable="yes"))
    assert guest.count() == (0, 0)
    output, _ = guest.close()
    assert "xpu0" in output


def test_visible_devices_are_ranks_and_the_variable_is_cut_up(
    make_machine: MakeMachine, make_guest: MakeGuest
) -> None:
    machine = make_machine(card(nodes="4"), card(bus=0x3C, nodes="7"), card(bus=0x3D, nodes="9"))
    guest = make_guest(machine, XPU_VISIBLE_DEVICES="2,0,x,1")
    assert guest.text("getenv", b"XPU_VISIBLE_DEVICES") == "2"
    assert guest.pci(0) == "0000:3d:00.0"
    assert guest.pci(1) == "0000:3b:00.0"
    assert guest.count() == (0, 1)  # three are not two: listed anew
    machine.set({"quirks": "off"})
    guest = make_guest(machine, XPU_VISIBLE_DEVICES="2,0,5,x,1")
    assert guest.text("getenv", b"XPU_VISIBLE_DEVICES") == "2,0,5,x,1"
    assert guest.count() == (0, 2)


def test_a_rank_that_is_none_leaves_a_gap_that_crashes(
    make_machine: MakeMachine, make_guest: MakeGuest
) -> None:
    guest = make_guest(make_machine(), XPU_VISIBLE_DEVICES="1,7,0")
    assert guest.pci(0) == "0000:3c:00.0"
    assert guest.pci(2) == "0000:3b:00.0"
    assert dies(guest, "xpumlDeviceGetHandleByIndex", 1, Output(8)) == signal.SIGSEGV


def test_utilization_without_memory_dies(make_both: MakeBoth) -> None:
    machine, guest = make_both(card(vfs="2", cold_split="yes"))
    assert guest.memory(0)[:4] == (0, 0, 0, 0)
    assert guest.memory(1)[1] == 8192 * MIB
    handle = guest.handle(0)
    machine.set({"quirks": "off"})
    assert guest.call("xpumlDeviceGetUtilizationRates", handle, Output())[0] == 2
    machine.set({"quirks": "on"})
    assert dies(guest, "xpumlDeviceGetUtilizationRates", handle, Output()) == signal.SIGFPE


def test_without_a_memory_table_there_is_what_was_on_the_stack(make_both: MakeBoth) -> None:
    """It says nothing of what utilization is divided by."""
    _, guest = make_both(card(nodes="5", vfs="2", cold_split="yes"))
    pf = 2  # its N is the highest
    page, total, *_ = guest.memory(pf)
    assert page == 5
    assert total > 1 << 40
    assert guest.memory(pf)[1] not in (0, total)
    assert dies(guest, "xpumlDeviceGetUtilizationRates", guest.handle(pf), Output()) == signal.SIGFPE


@pytest.mark.parametrize(
    ("model", "celsius", "told"),
    [
        ("R200", "48", 48),
        ("R200", "-12", -12),
        ("R100", "48", 1294),
        ("P800", "-12", 1547),
        ("R420", "-616", 4090),
    ],
)
def test_temperatures_that_are_none(make_both: MakeBoth, *, model: str, celsius: str, told: int) -> None:
    """Below zero they wrap, here read as signed; a board that is unknown has the sensor's word."""
    _, guest = make_both(card(model, temperature=celsius))
    assert guest.number("xpumlDeviceGetTemperature", guest.handle(0), 0) == (0, told)


def test_at_most_99_devices_or_thousands_without_quirks(
    make_machine: MakeMachine, make_guest: MakeGuest
) -> None:
    machine = make_machine(number=4096, sysfs=False)
    assert make_guest(machine).count() == (0, 99)
    machine.set({"quirks": "off"})
    machine.set_card(4000, {"state": "207"})
    guest = make_guest(machine)
    assert guest.count() == (0, 4096)
    answers = [guest.state(index) for index in range(4096)]
    assert [index for index, answer in enumerate(answers) if answer != (0, 201)] == [4000]


# --- faults ---------------------------------------------------------------------------------------


def test_a_code_for_one_device_some_times(make_both: MakeBoth) -> None:
    machine, guest = make_both()
    machine.add_fault("xpumlDeviceGetPowerUsage", "code:-5", card=1, times=2)
    one, other = guest.handle(1), guest.handle(0)
    assert guest.number("xpumlDeviceGetPowerUsage", other)[0] == 0
    assert guest.number("xpumlDeviceGetPowerUsage", one)[0] == -5
    machine.set_card(0, {"state": "207"})  # a new file with the same line counts on
    assert guest.number("xpumlDeviceGetPowerUsage", one)[0] == -5
    assert guest.number("xpumlDeviceGetPowerUsage", one)[0] == 0
    machine.clear_faults()
    machine.add_fault("xpumlDeviceGetPowerUsage", "code:999")
    assert guest.number("xpumlDeviceGetPowerUsage", one)[0] == 999
    assert guest.number("xpumlDeviceGetPowerUsage", other)[0] == 999


def test_faults_of_halves_and_vfs(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine(card("K200"), card(bus=0x3C, vfs="2"))
    machine.add_fault("xpumlDeviceGetHandleByIndex", "code:999", card=0, half=1)
    machine.add_fault("xpumlDeviceGetState", "code:15", card=1, vf=0)
    guest = make_guest(machine)
    assert [guest.state(index)[0] for index in range(5)] == [0, 999, 0, 15, 0]


def test_spoilt_strings(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine()
    machine.add_fault("xpumlSystemGetDriverVersion", "garbage-strings")
    machine.add_fault("xpumlSystemGetXPUMLVersion", "truncated-strings")
    machine.add_fault("xpumlDeviceGetPciInfo", "garbage-strings", card=0)
    guest = make_guest(machine)
    assert guest.call("xpumlSystemGetDriverVersion", Output(80)) == (0, b"\xa5" * 80)
    assert guest.call("xpumlSystemGetXPUMLVersion", Output(9)) == (0, b"4.0.\x002.1\0")
    _, record = guest.call("xpumlDeviceGetPciInfo", guest.handle(0), Output())
    assert record[24:] == b"\xa5" * 32 + bytes(72)
    assert guest.pci(1) == "0000:3c:00.0"


# --- later libraries ------------------------------------------------------------------------------


# By dlsym itself: ctypes expects an error text from it.
FOUND = """
import ctypes, sys
library, dlsym = ctypes.CDLL(sys.argv[1]), ctypes.CDLL(None).dlsym
dlsym.restype, dlsym.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
print([dlsym(library._handle, function.encode()) is not None for function in sys.argv[2:]])
"""


@pytest.mark.parametrize(
    ("later", "found"),
    [("none", [False] * 4), ("all", [True] * 4), ("id,name", [False, True, False, True])],
)
def test_the_machine_says_which_later_functions_the_library_has(
    make_machine: MakeMachine, simulator: Path, later: str, found: list[bool]
) -> None:
    machine = make_machine(later_functions=later)
    functions = [f"xpumlDeviceGet{name}" for name in ("Serial", "Id", "MinorNumber", "Name")]
    assert sorted(functions) == sorted(LATER_FUNCTIONS)
    answer = subprocess.run(
        [sys.executable, "-c", FOUND, simulator, *functions],
        env={**os.environ, **machine.environment()},
        check=True,
        capture_output=True,
        text=True,
    )
    assert answer.stdout.strip() == str(found)


def test_later_functions(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine(
        card(serial="02K0ABC000000001", nodes="3", vfs="3"), card("K200", bus=0x3C), later_functions="all"
    )
    guest = make_guest(machine)

    def texts(function: str) -> list[str]:
        answers = [guest.call(function, guest.handle(index), Output(96)) for index in range(6)]
        assert [code for code, _ in answers] == [0] * 6
        return [text.partition(b"\0")[0].decode() for _, text in answers]

    assert [guest.number("xpumlDeviceGetId", guest.handle(i))[1] for i in range(6)] == [0, 1, 2, 3, 4, 5]
    assert [guest.number("xpumlDeviceGetMinorNumber", guest.handle(i))[1] for i in range(6)] == [
        2, 3, 4, 0, 6, 8,
    ]  # fmt: skip
    vf = "R200-VF-5G"
    assert texts("xpumlDeviceGetName") == ["K200", "K200", vf, "R200-PF", vf, vf]
    assert texts("xpumlDeviceGetSerial")[2:] == ["02K0ABC000000001"] * 4
    code, record = guest.call("xpumlDeviceGetAttributes", guest.handle(3), Output())
    assert (code, record[56:72]) == (0, b"02K0ABC000000001")


def test_without_being_told_it_takes_the_machine_beside_itself(
    make_machine: MakeMachine, simulator: Path, tmp_path: Path
) -> None:
    machine = make_machine(number=3)
    place = tmp_path / "lib64"
    place.mkdir()
    library = Path(shutil.copy(simulator, place))
    lonely = Guest(library, {})
    assert lonely.init() == 9
    lonely.close()
    shutil.copy(machine.path, place / "machine")
    guest = Guest(library, {})
    assert guest.init() == 0
    assert guest.count() == (0, 3)
    guest.close()


# --- a P800 machine -------------------------------------------------------------------------------


def minors(machine: Machine) -> dict[str, int]:
    """By the sysfs tree: where real nodes cannot be made, a link shows the last bit only."""
    assert machine.sysfs_root
    places = (machine.sysfs_root / "class/xpu").iterdir()
    return {place.name: int((place / "dev").read_text().partition(":")[2]) for place in places}


def majors(machine: Machine) -> set[int]:
    assert machine.sysfs_root
    places = (machine.sysfs_root / "class/xpu").iterdir()
    return {int((place / "dev").read_text().partition(":")[0]) for place in places}


def control(machine: Machine) -> tuple[int, int] | str:
    """The device of the control node, or the target of the link in its place."""
    assert machine.dev_root
    path = machine.dev_root / "xpuctrl"
    device = path.lstat().st_rdev
    return str(path.readlink()) if path.is_symlink() else (os.major(device), os.minor(device))


def driver_of(major: int) -> bool:
    """Whether a driver of this kernel has the major."""
    characters = Path("/proc/devices").read_text().partition("Block")[0]
    return any(line.split()[:1] == [str(major)] for line in characters.splitlines())


def test_a_p800_machine_is_as_reported(make_machine: MakeMachine, make_guest: MakeGuest) -> None:
    machine = make_machine(*cards(8, "P800"), model="P800")
    assert minors(machine) == {f"xpu{n}": n for n in range(8)}
    major = 240 if driver_of(195) else 195
    assert majors(machine) == {major}
    assert control(machine) in ((major, 255), "/dev/null")
    guest = make_guest(machine)
    assert [guest.number("xpumlDeviceGetId", guest.handle(i))[1] for i in range(8)] == [
        0, 2, 1, 3, 4, 6, 5, 7,
    ]  # fmt: skip
    assert addresses(guest) == sorted(addresses(guest))
    assert (guest.pci(1), guest.pci(6)) == ("0000:16:00.0", "0000:b6:00.0")
    assert guest.number("xpumlDeviceGetMinorNumber", guest.handle(1)) == (0, 2)
    assert guest.attributes(0)[:3] == (3, 0, 300)
    assert guest.memory(0)[1] == 98304 * MIB
    assert guest.number("xpumlDeviceGetTemperature", guest.handle(0), 0) == (0, 40)
    for function, told in (("Name", b"P800 OAM"), ("Serial", b"02K0SIM000000000")):
        assert guest.call(f"xpumlDeviceGet{function}", guest.handle(0), Output(96))[1].startswith(
            told + b"\0"
        )
    assert guest.call("xpumlSystemGetDriverVersion", Output(80))[1].startswith(b"5.0.21.47\0")


def test_each_fact_of_a_p800_machine_can_be_switched_off(
    make_machine: MakeMachine, make_guest: MakeGuest
) -> None:
    machine = make_machine(
        *cards(3, "P800-PCIe"), model="P800-PCIe", major="241", minors="twice", order="by-node",
        vf_functions="next-slot", later_functions="none", driver_version="4.0 of today",
    )  # fmt: skip
    assert minors(machine) == {"xpu0": 0, "xpu1": 2, "xpu2": 4}
    assert majors(machine) == {241}
    assert control(machine) in ((241, 128), "/dev/random")
    guest = make_guest(machine)
    assert addresses(guest) == ["0000:03:00.0", "0000:29:00.0", "0000:16:00.0"]
    assert guest.split(1, 2) == 0
    assert addresses(make_guest(machine))[3:] == ["0000:29:01.0", "0000:29:01.1"]
    assert guest.attributes(0)[:3] == (3, 0, 300)
    machine.set_card(0, {"model-number": "9999", "total-vfs": "0"})
    guest = make_guest(machine)
    assert guest.attributes(0)[:3] == (0, 0, 9999)
    assert guest.split(0, 2) == 999


def test_the_control_node_keeps_its_minor_from_a_node(make_machine: MakeMachine) -> None:
    machine = make_machine(card(nodes="254"), card(bus=0x3C), minors="node")
    machine.set_card(2, {"model": "R200", "pci": "0000:3d:00.0", "nodes": "253", "vfs": "3"})
    assert minors(machine) == {"xpu0": 0, "xpu1": 1, "xpu2": 2, "xpu3": 3, "xpu253": 253, "xpu254": 254}
    with pytest.raises(MachineError, match="node 255 is taken twice"):
        machine.set_card(1, {"nodes": "255", "minors": ""})
