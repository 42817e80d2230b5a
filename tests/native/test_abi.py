# SPDX-License-Identifier: Apache-2.0
"""The records of xpuml.pxd are laid out as those of libxpuml 4.0.12.1.

The numbers below were taken from the vendor library's debug information (x86-64) and its later headers.
What is compared with them is what Cython and the C compiler make of the declarations: a small module that
cimports them is built and asked.
"""

import importlib.util
import shlex
import shutil
import subprocess
import sys
import sysconfig
from os import environ
from pathlib import Path
from types import ModuleType

import pytest


NATIVE = Path(__file__).parents[2] / "_xpuml"
RECORD = 128

# Field: offset, size, whether it has a sign (None for arrays and texts).
Field = tuple[int, int, bool | None]
U32, I32, U64 = (4, False), (4, True), (8, False)


def fields(**places: tuple[int, tuple[int, bool | None]]) -> dict[str, Field]:
    return {name: (offset, *kind) for name, (offset, kind) in places.items()}


def array(item: int, number: int) -> tuple[int, None]:
    return item * number, None


RECORDS: dict[str, dict[str, Field]] = {
    "xpumlPciInfo_t": fields(
        domain=(0, U32),
        bus=(4, U32),
        device=(8, U32),
        function=(12, U32),
        pciDeviceId=(16, U32),
        pciSubSystemId=(20, U32),
        busId=(24, array(1, 32)),
        reserved=(56, array(8, 9)),
    ),
    "xpumlUtilization_t": fields(xpu=(0, U32), memory=(4, U32), reserved=(8, array(8, 15))),
    "xpumlMemory_t": fields(
        pageSizeGlobalMemory=(0, U64),
        totalGlobalMemory=(8, U64),
        freeGlobalMemory=(16, U64),
        usedGlobalMemory=(24, U64),
        pageSizeL3Memory=(32, U64),
        totalL3Memory=(40, U64),
        freeL3Memory=(48, U64),
        usedL3Memory=(56, U64),
        reserved=(64, array(8, 8)),
    ),
    # root_ns_pid is of later headers; before it was the first of the reserved words.
    "xpumlProcessInfo_t": fields(
        pid=(0, U32),
        usedGlobalMemory=(8, U64),
        usedL3Memory=(16, U64),
        root_ns_pid=(24, U32),
        reserved32=(28, U32),
        reserved=(32, array(8, 12)),
    ),
    # sn is of later headers; before it was the first two of the reserved words.
    "xpumlDeviceAttributes_t": fields(
        archId=(0, I32),
        boardId=(4, I32),
        modelId=(8, I32),
        clusterCount=(12, U32),
        sdnnCount=(16, U32),
        dmaEngineCount=(20, U32),
        decoderCount=(24, U32),
        encoderCount=(28, U32),
        imgProcCount=(32, U32),
        maxVFCount=(36, U32),
        globalMemorySizeMB=(40, U64),
        l3MemorySizeMB=(48, U64),
        sn=(56, array(1, 16)),
        reserved=(72, array(8, 7)),
    ),
}


def probe_text() -> str:
    """A Cython module that tells size, offsets and signs of every record."""
    lines = ["from xpuml cimport *", "", "def layout():"]
    lines += [f"    cdef {record} {record[:-2]}" for record in RECORDS]
    lines.append("    found = {}")
    for record, places in RECORDS.items():
        value = record[:-2]
        lines.append(f"    found['{record}'] = {{'': (0, sizeof({record}), None)}}")
        for field, (_, _, signed) in places.items():
            sign = "None"
            if signed is not None:
                lines.append(f"    {value}.{field} = <unsigned int>0 - 1")
                sign = f"{value}.{field} < 0"
            offset = f"<size_t>&{value}.{field} - <size_t>&{value}"
            lines.append(f"    found['{record}']['{field}'] = ({offset}, sizeof({value}.{field}), {sign})")
    lines.append("    return found")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    directory = tmp_path_factory.mktemp("abi")
    shutil.copy(NATIVE / "xpuml.pxd", directory)
    (directory / "probe.pyx").write_text(probe_text())
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", "probe.pyx", "-o", "probe.c"], cwd=directory, check=True
    )
    compiler = shlex.split(environ.get("CC", "cc"))
    include = sysconfig.get_path("include")
    subprocess.run(
        [*compiler, "-shared", "-fPIC", "-O0", "-w", f"-I{include}", "probe.c", "-o", "probe.so"],
        cwd=directory,
        check=True,
    )
    spec = importlib.util.spec_from_file_location("probe", directory / "probe.so")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def layout(probe: ModuleType) -> dict[str, dict[str, Field]]:
    found: dict[str, dict[str, Field]] = probe.layout()
    return found


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_has_the_vendors_size_offsets_and_types(
    layout: dict[str, dict[str, Field]], record: str
) -> None:
    assert layout[record] == {"": (0, RECORD, None), **RECORDS[record]}


def test_every_record_and_field_declared_is_compared() -> None:
    declared: dict[str, list[str]] = {}
    record = ""
    for line in (NATIVE / "xpuml.pxd").read_text().splitlines():
        words = line.partition("#")[0].split()
        if words[:2] == ["ctypedef", "struct"]:
            record = words[2].rstrip(":")
            declared[record] = []
        elif line.startswith("    ") and words and record:
            declared[record].append(words[1].partition("[")[0])
        elif words:
            record = ""
    assert declared == {record: list(places) for record, places in RECORDS.items()}


def test_the_simulators_records_are_the_same(tmp_path: Path) -> None:
    """So that what is proven over the simulator holds for the vendor's library."""
    later = {("xpumlProcessInfo_t", name) for name in ("root_ns_pid", "reserved32", "reserved")}
    checks = [
        f"_Static_assert(offsetof({record}, {field}) == {offset} && "
        f'sizeof((({record} *)0)->{field}) == {size}, "{record}.{field}");'
        for record, places in RECORDS.items()
        for field, (offset, size, _) in places.items()
        if (record, field) not in later
    ]
    checks += [f'_Static_assert(sizeof({record}) == {RECORD}, "{record}");' for record in RECORDS]
    source = tmp_path / "checks.c"
    source.write_text("\n".join(['#include "xpuml.h"', *checks, ""]))
    compiler = shlex.split(environ.get("CC", "cc"))
    subprocess.run(
        [*compiler, "-std=gnu11", "-fsyntax-only", f"-I{NATIVE / 'simulator'}", str(source)], check=True
    )
