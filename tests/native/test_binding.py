# SPDX-License-Identifier: Apache-2.0
"""The binding over the simulator, and over a library that tolerates nothing (strict.c).

A process can open one library only, and some of them crash: each test asks a process of its own.
"""

import json
import mmap
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.machines import MISSING
from tests.support.processes import has_ended
from tests.support.waiting import wait_until
from xpu_plugin.simulation.machine import Machine
from xpu_plugin.xpuml import FUNCTIONS, LATER_FUNCTIONS, OLD_FUNCTIONS, Call

from .simulator_build import MakeMachine


GIB = 1 << 30
STATE = "xpumlDeviceGetState"
SPLIT = "xpumlDeviceSetSriovVfNum"
FILLED = 0x41414141
"""What strict.c leaves in a number."""
STRICT_ADDRESS = "41414141:41414141:41414141.41414141"

# Opens the library named by the first argument, evaluates the others, writes outcomes as JSON lines.
CHILD = """
import ctypes, json, os, sys
from xpu_plugin import xpuml
from xpu_plugin._xpuml import Library

path, progress, outcomes, *expressions = sys.argv[1:]
with open(outcomes, "w", buffering=1) as stream:
    for expression in expressions:
        try:
            outcome = {"value": eval(expression)}
        except Exception as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            outcome = {"kinds": kinds, "text": str(error), **vars(error)}
            outcome["text"] = outcome.pop("text") if "code" in outcome else str(error)
        print(json.dumps(outcome, default=str), file=stream)
"""
OPEN = "(library := Library(path, int(progress)))"
COUNT = "library.count()"
BATCHES = ("scan", "sweep", "readings", "processes")


@dataclass(frozen=True)
class Raised:
    """What an expression raised. text: of an XpumlError the library's, of others the whole message."""

    kinds: tuple[str, ...]
    text: str
    code: int | None = None
    function: str | None = None

    @property
    def kind(self) -> str:
        return self.kinds[0]


class DiedError(Exception):
    """The process did not answer to the end; `status` is minus the signal."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Process:
    """A process that evaluates expressions over the binding."""

    def __init__(
        self, directory: Path, library: Path | str, *expressions: str, environment: Mapping[str, str]
    ) -> None:
        self.outcomes = directory / "outcomes"
        self.outcomes.unlink(missing_ok=True)
        descriptor = os.memfd_create("progress")
        os.ftruncate(descriptor, 8)
        self._word = mmap.mmap(descriptor, 8)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, library, str(descriptor), self.outcomes, *expressions],
                env={**os.environ, **environment},
                pass_fds=[descriptor],
                stdout=subprocess.DEVNULL,
            )
        finally:
            os.close(descriptor)

    def in_flight(self) -> Call | None:
        return Call.from_word(int.from_bytes(self._word[:8], sys.byteorder))

    def finish(self) -> list[Any]:
        status = self.process.wait(timeout=30)
        if status:
            raise DiedError(status)
        outcomes = map(json.loads, self.outcomes.read_text().splitlines())
        return [
            outcome["value"]
            if "value" in outcome
            else Raised(
                tuple(outcome["kinds"]), outcome["text"], outcome.get("code"), outcome.get("function")
            )
            for outcome in outcomes
        ]


class Binding:
    """Asks one library for one machine; what was not asked for explicitly is opening and counting."""

    def __init__(self, directory: Path, library: Path, environment: Mapping[str, str]) -> None:
        self.directory = directory
        self.library = library
        self.environment = environment

    def start(self, *expressions: str) -> Process:
        return Process(self.directory, self.library, *expressions, environment=self.environment)

    def all(self, *expressions: str) -> list[Any]:
        """The outcome of each expression, before which the library is opened."""
        opened, *outcomes = self.start(OPEN, *expressions).finish()
        assert not isinstance(opened, Raised), opened
        return outcomes

    def __call__(self, expression: str) -> Any:
        """The outcome of one, before which the devices are counted, too."""
        count, outcome = self.all(COUNT, expression)
        assert not isinstance(count, Raised), count
        return outcome


def compile_c(source: Path | str, library: Path, *flags: str) -> Path:
    text = Path(source).read_text() if isinstance(source, Path) else source
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run(
        [*compiler, "-shared", "-fPIC", "-O1", *flags, "-x", "c", "-", "-o", library],
        input=text.encode(),
        check=True,
    )
    return library


@pytest.fixture(scope="session")
def strict_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("strict")
    return compile_c(Path(__file__).with_name("strict.c"), directory / "strict.so", "-Wall")


@pytest.fixture(scope="session")
def later_strict_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("later-strict")
    return compile_c(Path(__file__).with_name("strict.c"), directory / "strict.so", "-Wall", "-DLATER")


@pytest.fixture
def strict(strict_library: Path, tmp_path: Path) -> Binding:
    return Binding(tmp_path, strict_library, {})


@pytest.fixture
def machine(make_machine: MakeMachine) -> Machine:
    """Four R200."""
    return make_machine(number=4)


@pytest.fixture
def binding(machine: Machine, simulator: Path, tmp_path: Path) -> Binding:
    return Binding(tmp_path, simulator, machine.environment())


MakeBinding = Callable[..., Binding]


@pytest.fixture
def make_binding(make_machine: MakeMachine, simulator: Path, tmp_path: Path) -> MakeBinding:
    """Over a machine of cards given by their keys."""

    def make(*given: dict[str, str], **settings: str) -> Binding:
        return Binding(tmp_path, simulator, make_machine(*given, **settings).environment())

    return make


TRACE = (
    "(lambda strict: (setattr(strict.strict_trace, 'restype', ctypes.c_char_p), "
    "strict.strict_trace().decode().splitlines())[1])(ctypes.CDLL(path))"
)


# --- opening --------------------------------------------------------------------------------------


def test_importing_the_binding_needs_no_library(tmp_path: Path) -> None:
    process = Process(
        tmp_path, "", "Library.__name__", "'libxpuml' in open('/proc/self/maps').read()", environment={}
    )
    assert process.finish() == ["Library", False]


@pytest.mark.parametrize("content", [None, "", "no library"])
def test_a_path_of_no_library_is_named_and_said_what_is_wrong_with(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "libxpuml.so.1"
    if content is not None:
        path.write_text(content)
    [raised] = Process(tmp_path, path, OPEN, environment={}).finish()
    assert raised.kind == "LibraryNotFoundError"
    assert str(path) in raised.text


def test_a_library_that_lacks_functions_is_told_with_each_of_them(
    tmp_path: Path, simulator: Path, machine: Machine
) -> None:
    lacking = {"xpumlInit", "xpumlDeviceGetState", "xpumlDeviceGetPciInfo"}
    library = compile_c(
        "\n".join(f"int {name}(void) {{ return 0; }}" for name in OLD_FUNCTIONS if name not in lacking),
        tmp_path / "lacking.so",
    )
    raised, opened = Process(
        tmp_path,
        library,
        OPEN,
        f"Library({str(simulator)!r}).library_version()",
        environment=machine.environment(),
    ).finish()
    assert raised.kind == "LibraryUnusableError"
    assert str(library) in raised.text
    assert {name for name in FUNCTIONS if name in raised.text.split(": it lacks ")[1].split(", ")} == lacking
    assert opened.startswith("4.0.12.1"), "another one can be opened after that"


def test_what_a_library_does_not_have_is_unknown_and_no_failure(
    tmp_path: Path, simulator: Path, make_machine: MakeMachine
) -> None:
    """Later releases may lack functions that the offer of whole devices does not need."""
    machine = make_machine(number=1, missing_functions=MISSING)
    count, [scan], [readings], [processes], refused = Process(
        tmp_path,
        simulator,
        OPEN,
        "library.count()",
        "library.scan()",
        "library.readings()",
        "library.processes()",
        "library.set_sriov_vf_num(0, 1, '0000:3b:00.0')",
        environment=machine.environment(),
    ).finish()[1:]
    assert count == 1
    assert scan == {"index": 0, "failures": [], "pci": "0000:3b:00.0", "state": 201}
    assert readings == {"index": 0, "failures": []}
    assert processes == {"index": 0, "failures": [], "pci": "0000:3b:00.0"}
    assert (refused.code, refused.function) == (13, "xpumlDeviceSetSriovVfNum")


def test_a_library_whose_name_is_not_utf_8_is_opened(
    simulator: Path, machine: Machine, tmp_path: Path
) -> None:
    odd, none = tmp_path / "\udcff.so", tmp_path / "\udcfe.so"
    odd.write_bytes(simulator.read_bytes())
    raised, opened = Process(
        tmp_path,
        odd,
        f"Library({str(none)!r})",
        "Library(path).library_version()",
        environment=machine.environment(),
    ).finish()
    assert raised.kind == "LibraryNotFoundError"
    assert opened.startswith("4.0.12.1")


def test_a_process_opens_one_library_only(binding: Binding) -> None:
    first, second = binding.all("library.path", "Library(path)")
    assert first == str(binding.library)
    assert second.kind == "RuntimeError"


def test_init_without_a_driver_is_9_with_the_librarys_words(machine: Machine, binding: Binding) -> None:
    machine.set({"driver": "gone"})
    raised, again = binding.start(OPEN, OPEN).finish()
    assert raised.kinds[:2] == ("DriverNotLoadedError", "XpumlError")
    assert (raised.code, raised.function, raised.text) == (9, "xpumlInit", "Driver Not Loaded")
    assert again.kind == "RuntimeError"


def test_a_file_that_is_no_progress_word_is_an_error(binding: Binding) -> None:
    [raised] = binding.start("Library(path, 9999)").finish()
    assert raised.kind == "OSError"


# --- counting and indexes -------------------------------------------------------------------------


def test_devices_are_counted_once_in_a_process(strict: Binding) -> None:
    """A second count may free the handles; strict.c dies of it."""
    first, second, trace = strict.all(COUNT, COUNT, TRACE)
    assert first == 3
    assert second.kind == "RuntimeError"
    assert trace == ["xpumlInit", "xpumlDeviceGetCount"]


def test_no_device_is_asked_before_they_are_counted(strict: Binding) -> None:
    calls = [*(f"{batch}()" for batch in BATCHES), "set_sriov_vf_num(0, 1, '')"]
    *outcomes, trace = strict.all(*[f"library.{call}" for call in calls], TRACE)
    assert [raised.kind for raised in outcomes] == ["RuntimeError"] * 5
    assert trace == ["xpumlInit"]


def test_a_failed_count_opens_no_door(machine: Machine, binding: Binding) -> None:
    machine.add_fault("xpumlDeviceGetCount", "code:999")
    failed, refused = binding.all(COUNT, "library.sweep()")
    assert (failed.code, failed.function) == (999, "xpumlDeviceGetCount")
    assert refused.kind == "RuntimeError"


def test_a_count_beyond_reason_is_an_error(strict_library: Path, tmp_path: Path) -> None:
    endless = Binding(tmp_path, strict_library, {"STRICT": "endless"})
    failed, refused = endless.all(COUNT, "library.scan()")
    assert failed.function == "xpumlDeviceGetCount"
    assert refused.kind == "RuntimeError"


def test_a_wrong_index_number_or_address_never_reaches_the_library(strict: Binding) -> None:
    """On a card that is split the driver takes the VFs away before it looks at the number."""
    huge = ["-1", "2**32", "2**32 + 1", "2**64"]
    wrong = {
        "IndexError": [f"{index}, 2, ''" for index in (*huge, "3", "127", "128", "2**31", "10**40")],
        "ValueError": [f"0, {number}, {STRICT_ADDRESS!r}" for number in (*huge, "64")],
        "TypeError": [
            *(f"{index}, 2, ''" for index in ("'1'", "None")),
            *(f"0, {number}, ''" for number in ("'1'", "None", "1.0")),
            *(f"0, 1, {address}" for address in ("b'0000:3b:00.0'", "None")),
        ],
    }
    calls = [f"library.set_sriov_vf_num({given})" for each in wrong.values() for given in each]
    _, *outcomes, trace = strict.all(COUNT, *calls, TRACE)
    assert [raised.kind for raised in outcomes] == [kind for kind, each in wrong.items() for _ in each]
    assert trace == ["xpumlInit", "xpumlDeviceGetCount"]


def test_whatever_is_to_be_skipped_only_indexes_are_asked(strict: Binding) -> None:
    nonsense = "[-1, 3, 99, 127, 10**40, -10**40, 1.5, 'x', None, (), 0]"
    calls = [f"library.{batch}({nonsense})" for batch in BATCHES]
    _, *answers, trace = strict.all(COUNT, *calls, TRACE)
    assert [len(answer) for answer in answers] == [3] * 4
    asked = {int(line.split()[1]) for line in trace if " " in line}
    assert asked == {1, 2}


def test_a_device_that_is_skipped_is_not_touched(machine: Machine, binding: Binding) -> None:
    machine.add_fault("xpumlDeviceGetHandleByIndex", "crash", card=1)
    calls = [f"library.{batch}([1])" for batch in BATCHES]
    for answers in binding.all(COUNT, *calls)[1:]:
        assert len(answers) == 4
        assert answers[1] in (None, {"index": 1, "failures": []})
    with pytest.raises(DiedError) as died:
        binding("library.sweep()")
    assert died.value.status == -signal.SIGSEGV


def test_without_devices_every_answer_is_empty(
    make_machine: MakeMachine, simulator: Path, tmp_path: Path
) -> None:
    machine = make_machine(number=1)
    machine.remove_card(0)
    calls = [f"library.{call}()" for call in ("count", "scan", "sweep", "readings", "processes")]
    assert Binding(tmp_path, simulator, machine.environment()).all(*calls) == [0, [], [], [], []]


# --- contents -------------------------------------------------------------------------------------


def test_a_scan(make_binding: MakeBinding) -> None:
    binding = make_binding(
        {"model": "R200", "pci": "00af:3b:1f.7", "state": "207"},
        {"model": "K200", "pci": "0000:5e:00.0"},
        {"model": "R300", "pci": "0000:86:00.0", "vfs": "2"},
    )
    scan = binding("library.scan()")
    assert scan[0] == {
        "index": 0,
        "failures": [],
        "pci": "00af:3b:1f.7",
        "arch": 2,
        "board": 100,
        "model": 2,
        "max_vfs": 3,
        "serial": "",
        "memory_bytes": 16 * GIB,
        "mode": 1,
        "state": 207,
    }
    assert [(record["pci"], record["model"], record["mode"]) for record in scan[1:]] == [
        ("0000:5e:00.0", 0, 0),
        ("0000:5e:00.0", 0, 0),
        ("0000:86:00.0", 9999, 2),
        ("0000:86:01.0", 9999, 0),
        ("0000:86:01.1", 9999, 0),
    ]
    assert [record["index"] for record in scan] == [0, 1, 2, 3, 4, 5]


def test_a_sweep(machine: Machine, binding: Binding) -> None:
    machine.set_card(1, {"state": "205"})
    machine.set_card(2, {"lost": "yes"})
    assert binding("library.sweep([3])") == [[0, 201], [0, 205], [999, 0], None]


def test_readings(machine: Machine, binding: Binding) -> None:
    machine.set_card(0, {"utilization": "77", "temperature": "61", "power": "99", "clock": "1300"})
    machine.add_process(4711, card=0, memory=1024)
    first, *_ = binding("library.readings()")
    assert first == {
        "index": 0,
        "failures": [],
        "memory_total_bytes": 16 * GIB,
        "memory_used_bytes": GIB,
        "utilization_percent": 77,
        "temperature_celsius": 61,
        "power": 99,
        "clock_mhz": 1300,
    }


def test_processes(machine: Machine, binding: Binding) -> None:
    machine.add_process(4711, card=1, memory=512)
    machine.add_process(4712, card=1)
    machine.add_line("process", "pid=7 host-pid=4713 card=3")
    records = binding("library.processes()")
    assert [record["processes"] for record in records] == [
        [],
        [
            {"pid": 4711, "root_ns_pid": None, "memory_bytes": GIB // 2},
            {"pid": 4712, "root_ns_pid": None, "memory_bytes": 0},
        ],
        [],
        [{"pid": 7, "root_ns_pid": 4713, "memory_bytes": 0}],
    ]
    assert [record["pci"] for record in records] == [f"0000:{bus}:00.0" for bus in ("3b", "3c", "3d", "3e")]


def test_processes_tell_the_address_as_it_is_now(machine: Machine, binding: Binding) -> None:
    """An index says little: its node may have become another device's."""
    changed = machine.path.with_name("changed")
    changed.write_text(machine.text().replace("3c:00.0", "5c:00.0"))
    change = f"os.replace({str(changed)!r}, {str(machine.path)!r})"
    before, _, after = binding.all(COUNT, "library.processes()", change, "library.processes()")[1:]
    assert [before[1]["pci"], after[1]["pci"]] == ["0000:3c:00.0", "0000:5c:00.0"]


@pytest.mark.parametrize(
    ("function", "missing"),
    [("xpumlDeviceGetPciInfo", "pci"), ("xpumlDeviceGetComputeRunningProcesses", "processes")],
)
def test_address_and_processes_fail_each_by_itself(
    machine: Machine, binding: Binding, function: str, missing: str
) -> None:
    machine.add_fault(function, "code:999", card=1)
    record = binding("library.processes()")[1]
    assert {"pci", "processes"} - record.keys() == {missing}
    assert failures(record) == [(function, 999, "Unknown Error")]


def test_99_processes_are_asked_for_and_told(machine: Machine, binding: Binding) -> None:
    """The library refuses to be asked for more."""
    machine.path.write_text(machine.text() + "".join(f"process pid={pid} card=0\n" for pid in range(1, 121)))
    machine.settle()
    first, *_ = binding("library.processes()")
    assert first["failures"] == []
    assert [process["pid"] for process in first["processes"]] == [*range(1, 100)]


def test_a_card_is_split(machine: Machine, binding: Binding) -> None:
    assert binding("library.set_sriov_vf_num(2, 3, '0000:3d:00.0')") is None
    assert [card for card in range(4) if "vfs=3" in machine.text().splitlines()[2 + card]] == [2]
    machine.add_process(4711, card=2, vf=1)
    raised = binding("library.set_sriov_vf_num(2, 1, '0000:3d:00.0')")
    assert (raised.code, raised.function, raised.text) == (999, SPLIT, "Unknown Error")
    assert "vfs=3" in machine.text()


@pytest.mark.parametrize(
    ("index", "number", "pci", "kind", "text"),
    [
        (0, 2, "0000:3d:00.0", "WrongDeviceError", "device index 0 is 0000:3b:00.0, not 0000:3d:00.0"),
        (4, 2, "0000:3d:00.0", "WrongDeviceError", "device index 4 is 0000:3d:01.0, not 0000:3d:00.0"),
        (2, 4, "0000:3d:00.0", "ValueError", "0000:3d:00.0 can have 3 VFs at most, not 4"),
        (4, 1, "0000:3d:01.0", "ValueError", "0000:3d:01.0 can have 0 VFs at most, not 1"),
    ],
)
def test_another_device_or_too_many_vfs_are_refused_and_the_vfs_stay(
    machine: Machine, binding: Binding, *, index: int, number: int, pci: str, kind: str, text: str
) -> None:
    machine.set_card(2, {"vfs": "2"})
    before = machine.text()
    raised = binding(f"library.set_sriov_vf_num({index}, {number}, {pci!r})")
    assert (raised.kind, raised.text) == (kind, text)
    assert machine.text() == before


@pytest.mark.parametrize(
    "function", ["xpumlDeviceGetHandleByIndex", "xpumlDeviceGetPciInfo", "xpumlDeviceGetAttributes"]
)
def test_a_card_that_does_not_say_what_it_is_is_not_split(
    machine: Machine, binding: Binding, function: str
) -> None:
    machine.add_fault(function, "code:999", card=2)
    before = machine.text()
    raised = binding("library.set_sriov_vf_num(2, 1, '0000:3d:00.0')")
    assert (raised.code, raised.function) == (999, function)
    assert machine.text() == before


def test_address_and_maximum_are_asked_right_before_the_change(strict: Binding) -> None:
    _, none, wrong, trace = strict.all(
        COUNT,
        f"library.set_sriov_vf_num(1, 2, {STRICT_ADDRESS!r})",
        "library.set_sriov_vf_num(2, 2, '0000:3b:00.0')",
        TRACE,
    )
    assert none is None
    assert wrong.kind == "WrongDeviceError"
    asked = ["xpumlDeviceGetHandleByIndex", "xpumlDeviceGetPciInfo", "xpumlDeviceGetAttributes", SPLIT]
    assert trace[2:] == [
        *(f"{function} 1" for function in asked),
        "number 2",
        *(f"{function} 2" for function in asked[:2]),
    ]


# --- failures -------------------------------------------------------------------------------------


def failures(record: Any) -> list[tuple[str, int, str]]:
    return [(failure["function"], failure["code"], failure["text"]) for failure in record["failures"]]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-5, "Unknown Error"),
        (12345, "Unknown Error"),
        (15, "XPU is lost"),
    ],
)
def test_any_return_code_is_carried_with_function_and_text(
    machine: Machine, binding: Binding, code: int, text: str
) -> None:
    for function in ("xpumlDeviceGetUtilizationRates", STATE, "xpumlDeviceSetSriovVfNum"):
        machine.add_fault(function, f"code:{code}", card=0)
    machine.add_fault("xpumlSystemGetDriverVersion", f"code:{code}")
    scan, sweep, readings, split, version = binding.all(
        COUNT,
        "library.scan()",
        "library.sweep()",
        "library.readings()",
        "library.set_sriov_vf_num(0, 1, '0000:3b:00.0')",
        "library.driver_version()",
    )[1:]
    assert failures(scan[0]) == [(STATE, code, text)]
    assert "state" not in scan[0]
    assert sweep[0] == [code, 0]
    assert failures(readings[0]) == [("xpumlDeviceGetUtilizationRates", code, text)]
    assert readings[0]["temperature_celsius"] == 40
    for raised, function in (
        (split, "xpumlDeviceSetSriovVfNum"),
        (version, "xpumlSystemGetDriverVersion"),
    ):
        assert raised.kind == "XpumlError"
        assert (raised.code, raised.function, raised.text) == (code, function, text)
    assert [failures(record) for record in scan[1:]] == [[]] * 3


def test_codes_that_callers_tell_apart_have_kinds_of_their_own(machine: Machine, binding: Binding) -> None:
    machine.add_fault("xpumlSystemGetDriverVersion", "code:2")
    machine.add_fault("xpumlSystemGetXPUMLVersion", "code:9")
    driver, library = binding.all("library.driver_version()", "library.library_version()")
    assert driver.kinds[0] == "InvalidArgumentError"
    assert "ValueError" in driver.kinds
    assert library.kinds[0] == "DriverNotLoadedError"


def test_a_library_without_words_is_no_crash(strict_library: Path, tmp_path: Path) -> None:
    mute = Binding(tmp_path, strict_library, {"STRICT": "no-text"})
    assert failures(mute("library.scan()")[2]) == [(STATE, 999, "")]
    assert mute("library.error_string(9)") == ""


def test_success_without_a_handle_is_a_failure(strict_library: Path, tmp_path: Path) -> None:
    null = Binding(tmp_path, strict_library, {"STRICT": "null"})
    _, scan, sweep, readings, processes, trace = null.all(
        COUNT, "library.scan()", "library.sweep()", "library.readings()", "library.processes()", TRACE
    )
    for records in (scan, readings, processes):
        assert [failures(record)[0][:2] for record in records] == [("xpumlDeviceGetHandleByIndex", 999)] * 3
    assert sweep == [[999, 0]] * 3
    assert {line.split()[0] for line in trace[2:]} == {"xpumlDeviceGetHandleByIndex"}


def test_a_sweep_keeps_a_handle_until_its_device_fails(strict: Binding) -> None:
    """Index 2 fails always, which makes its handle invalid."""
    *_, trace = strict.all(COUNT, "library.sweep()", "library.sweep([1])", "library.sweep()", TRACE)
    handle, state = "xpumlDeviceGetHandleByIndex", STATE
    first, last = [f"{handle} 2", f"{state} 2"], [f"{state} {index}" for index in (0, 1)]
    assert trace[2:] == [
        *(f"{call} {index}" for index in range(3) for call in (handle, state)),
        f"{state} 0",
        *first,
        *last,
        *first,
    ]


# --- what the library is spared -------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{}, {"nodes": "5"}], ids=["no memory", "what was on the stack"])
def test_utilization_is_not_asked_of_a_pf_without_a_memory_of_its_own(
    make_binding: MakeBinding, keys: dict[str, str]
) -> None:
    """The library divides by it. A card that was split when the driver came up has such a PF; its memory may
    be what was on the stack, which says nothing of the next question's."""
    split = {"model": "R200", "pci": "0000:3b:00.0", "vfs": "2", "cold-split": "yes", **keys}
    readings = make_binding(split, {"model": "R200", "pci": "0000:3c:00.0"})("library.readings()")
    assert [record["failures"] for record in readings] == [[]] * 4
    [unasked] = [record for record in readings if "utilization_percent" not in record]
    assert unasked["memory_total_bytes"] > 1 << 40 if keys else unasked["memory_total_bytes"] == 0


def test_utilization_is_not_asked_where_the_memory_is_unknown(
    strict: Binding, machine: Machine, binding: Binding
) -> None:
    machine.add_fault("xpumlDeviceGetMemoryInfo", "code:999", card=0)
    first, second, *_ = binding("library.readings()")
    assert "utilization_percent" not in first
    assert second["utilization_percent"] == 0
    _, readings, trace = strict.all(COUNT, "library.readings()", TRACE)
    asked = [line for line in trace if line.startswith("xpumlDeviceGetUtilizationRates")]
    assert asked == ["xpumlDeviceGetUtilizationRates 0", "xpumlDeviceGetUtilizationRates 2"]
    assert [record["memory_total_bytes"] == 0 for record in readings] == [False, True, False]


def test_every_output_is_zeroed_before_each_call(strict: Binding, later_strict_library: Path) -> None:
    """The library leaves in a record what it does not fill in. strict.c refuses what is not zero, and leaves
    nothing zero, neither in the records nor on the stack."""
    for library in (strict.library, later_strict_library):
        outcomes = Binding(strict.directory, library, {}).all(
            COUNT,
            *["library.scan()", "library.readings()", "library.processes()", "library.sweep()"] * 3,
            *["library.driver_version()", "library.library_version()"] * 2,
        )
        scans = outcomes[1:13:4]
        for scan in scans:
            assert [failures(record) for record in scan] == [[], [], [(STATE, 999, "Strict Error")]]
        for batch in (*outcomes[2:13:4], *outcomes[3:13:4]):
            assert [failures(record) for record in batch] == [[], [], []]
        assert outcomes[13:] == ["A" * 80] * 4


def test_more_processes_than_room_are_not_read(strict: Binding) -> None:
    for record in strict("library.processes()"):
        assert len(record["processes"]) == 99
        assert {process["pid"] for process in record["processes"]} == {FILLED}


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["garbage-strings", "truncated-strings"])
def test_a_version_without_end_or_cut_short_is_still_text(
    machine: Machine, binding: Binding, action: str
) -> None:
    for function in ("xpumlSystemGetDriverVersion", "xpumlSystemGetXPUMLVersion"):
        machine.add_fault(function, action)
    for version in binding.all("library.driver_version()", "library.library_version()"):
        assert isinstance(version, str)
        if action == "garbage-strings":
            assert version == "\N{REPLACEMENT CHARACTER}" * 80
        else:
            assert version.startswith("4.0.")
            assert len(version) < 68


def test_texts_of_later_functions_end_somewhere(
    make_machine: MakeMachine, simulator: Path, tmp_path: Path
) -> None:
    machine = make_machine(number=2, later_functions="all")
    for function in ("xpumlDeviceGetSerial", "xpumlDeviceGetName"):
        machine.add_fault(function, "garbage-strings", card=0)
        machine.add_fault(function, "truncated-strings", card=1)
    garbage, truncated = Binding(tmp_path, simulator, machine.environment())("library.scan()")
    assert garbage["failures"] == truncated["failures"] == []
    assert set(garbage["serial"]) <= {"\N{REPLACEMENT CHARACTER}", "?"}
    assert set(garbage["name"]) <= {"\N{REPLACEMENT CHARACTER}", "?"}
    assert truncated["serial"].startswith("02")
    assert truncated["name"] == "R2"


# --- later functions ------------------------------------------------------------------------------


def test_optional_functions_are_used_where_they_exist(make_binding: MakeBinding) -> None:
    binding = make_binding(
        {"model": "R200", "pci": "0000:3b:00.0", "serial": "02K0XYZ", "nodes": "7", "minors": "20"},
        {"model": "R200", "pci": "0000:3c:00.0"},
        later_functions="all",
    )
    scan = binding("library.scan()")
    told = {record["pci"]: [record[key] for key in ("serial", "number", "minor", "name")] for record in scan}
    assert told["0000:3b:00.0"] == ["02K0XYZ", 7, 20, "R200"]
    assert told["0000:3c:00.0"][1] == 0


def test_each_optional_function_is_looked_up_by_itself(later_strict_library: Path, tmp_path: Path) -> None:
    """strict.c has three of the four."""
    first, *_ = Binding(tmp_path, later_strict_library, {})("library.scan()")
    assert first["number"] == 10
    assert first["serial"] == "A" * 30
    assert first["name"] == "A" * 96
    assert "minor" not in first
    assert len(LATER_FUNCTIONS) == 4


# --- the progress word ----------------------------------------------------------------------------


CHANGE = "set_sriov_vf_num(2, 1, '0000:3d:00.0')"


@contextmanager
def running(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()
        assert has_ended(process.process.pid)


@pytest.mark.parametrize(
    ("function", "call", "index"),
    [
        (STATE, "sweep()", 2),
        ("xpumlDeviceGetHandleByIndex", "sweep()", 3),
        ("xpumlDeviceGetPciInfo", "scan()", 0),
        ("xpumlDeviceGetClockInfo", "readings()", 1),
        ("xpumlDeviceGetComputeRunningProcesses", "processes()", 2),
        ("xpumlDeviceGetPciInfo", "processes()", 1),
        ("xpumlDeviceGetHandleByIndex", CHANGE, 2),
        ("xpumlDeviceGetPciInfo", CHANGE, 2),
        ("xpumlDeviceGetAttributes", CHANGE, 2),
        (SPLIT, CHANGE, 2),
        ("xpumlInit", "scan()", None),
        ("xpumlDeviceGetCount", "scan()", None),
        ("xpumlErrorString", "scan()", None),
    ],
)
def test_while_a_call_hangs_the_word_says_which_and_of_which_device(
    machine: Machine, binding: Binding, function: str, call: str, index: int | None
) -> None:
    machine.add_fault(function, "hang", card=index)
    machine.add_fault(STATE, "code:999", card=1)  # has its text asked for
    with running(binding.start(OPEN, COUNT, f"library.{call}")) as process:
        wait_until(lambda: process.in_flight() == Call(function, index), f"{function} of {index}")
        assert process.process.poll() is None


def test_after_a_crash_the_word_still_says_where_it_was(machine: Machine, binding: Binding) -> None:
    machine.add_fault("xpumlDeviceGetAttributes", "crash", card=3)
    process = binding.start(OPEN, COUNT, "library.scan()")
    with pytest.raises(DiedError):
        process.finish()
    assert process.in_flight() == Call("xpumlDeviceGetAttributes", 3)


def test_between_calls_the_word_says_nothing(machine: Machine, binding: Binding) -> None:
    """Also after calls that failed."""
    machine.add_fault(STATE, "code:999", card=3)
    calls = [f"library.{call}()" for call in ("count", *BATCHES, "driver_version", "library_version")]
    word = "int.from_bytes(os.pread(int(progress), 8, 0), sys.byteorder)"
    words = binding.all(*[part for call in calls for part in (call, word)])[1::2]
    assert words == [0] * len(calls)
