# SPDX-License-Identifier: Apache-2.0
"""What a killed process has written by half is left out of the coverage data, and nothing else is."""

import sqlite3
from contextlib import closing
from pathlib import Path

from coverage import Coverage, CoverageData

from tests.support import torn


BINDING = "/somewhere/_xpuml/_xpuml.pyx"


def written(path: Path, *, tracer: bool) -> Path:
    data = CoverageData(str(path))
    data.add_arcs({BINDING: [(1, 2)], "/somewhere/xpu_plugin/cli.py": [(1, 2)]})
    if tracer:
        data.add_file_tracers({BINDING: "Cython.Coverage.Plugin"})
    data.close()
    return path


def combine(directory: Path) -> None:
    Coverage(data_file=str(directory / "data"), config_file=False).combine([str(directory)])


def test_the_torn_file_is_left_out_and_the_whole_ones_count(tmp_path: Path) -> None:
    whole = written(tmp_path / "data.1", tracer=True)
    half = written(tmp_path / "data.2", tracer=False)
    assert torn.discard(tmp_path) == [half]
    assert whole.exists()
    combine(tmp_path)
    assert (tmp_path / "data").exists()


def test_a_file_that_was_only_begun_is_left_out(tmp_path: Path) -> None:
    """The tables are there, and nothing in them yet."""
    whole = written(tmp_path / "data.1", tracer=True)
    begun = written(tmp_path / "data.2", tracer=True)
    with closing(sqlite3.connect(begun)) as tables, tables:
        tables.execute("delete from coverage_schema")
    (tmp_path / "data.3").touch()  # which does no harm
    assert torn.discard(tmp_path) == [begun]
    assert whole.exists()
    combine(tmp_path)


def test_a_process_that_never_ran_the_binding_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "data.1"
    data = CoverageData(str(path))
    data.add_arcs({"/somewhere/xpu_plugin/cli.py": [(1, 2)]})
    data.close()
    assert torn.discard(tmp_path) == []
    assert path.exists()
