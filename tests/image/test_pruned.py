# SPDX-License-Identifier: Apache-2.0
"""What is left after pruning is enough: the plugin works with it, and the edges' own tests pass."""

import re
import shutil
from pathlib import Path

import pytest

from tests.image.commands import DOCKER, run
from xpu_plugin.cli import COMMANDS


MOST_BYTES = 90_000_000
pytestmark = pytest.mark.timeout(900)

SUITES = (
    "tests/edges/apiserver/test_node_watcher.py",
    "tests/edges/kubelet/test_endpoint.py",
    "tests/edges/kubelet/test_service.py",
)
"""Everything that the dependencies are for: the API server's client, and gRPC."""

OF_THE_BASE = {
    "ld-linux-aarch64", "ld-linux-x86-64", "libc", "libdl", "libgcc_s", "libm", "libpthread", "libresolv",
    "librt", "libstdc++", "libutil",
}  # fmt: skip


def bytes_of(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*"))


def test_the_edges_pass_their_tests(with_test_tools: Path, copied_tests: Path) -> None:
    whence = run(with_test_tools, "-c", "import xpu_plugin, kubernetes; print(xpu_plugin, kubernetes)",
                 cwd=copied_tests)  # fmt: skip
    assert whence.count(str(with_test_tools.parents[1])) == 2, whence
    said = run(with_test_tools, "-m", "pytest", "-p", "no:cacheprovider", *SUITES, cwd=copied_tests)
    match = re.search(r"(\d+) passed", said)
    assert match, said
    assert int(match[1]) > 80, said


def test_the_demo_does_what_it_says(environment: Path, tmp_path: Path) -> None:
    run(environment / "bin/python", "-P", "-m", "xpu_plugin", "demo", "--once", cwd=tmp_path)


def test_the_rules_for_the_kernels_log_are_there(environment: Path, tmp_path: Path) -> None:
    code = "from xpu_plugin.edges.kernel_log_rules import read_rules; print(read_rules(None))"
    assert "noc-idle-timeout" in run(environment / "bin/python", "-P", "-c", code, cwd=tmp_path)


def test_each_sub_command_starts(environment: Path, tmp_path: Path) -> None:
    for command in ("", *COMMANDS):
        run(environment / "bin/python", "-P", "-m", "xpu_plugin", *command.split(), "--help", cwd=tmp_path)


def test_the_page_of_metrics_can_be_made(environment: Path, tmp_path: Path) -> None:
    """Prometheus's client and what it imports is left; the demo does not need it."""
    code = (
        "from xpu_plugin.loops.metrics import text; from xpu_plugin.model.metric_families import FAMILIES; "
        'print(text({family.name: {} for family in FAMILIES}, "here"))'
    )
    assert "process_resident_memory_bytes " in run(environment / "bin/python", "-P", "-c", code, cwd=tmp_path)


def test_what_is_not_used_is_gone(environment: Path) -> None:
    for module in (
        "aiohttp",
        "kubernetes.aio",
        "kubernetes.client.api",
        "pip",
        "ensurepip",
        "test",
        "tkinter",
    ):
        run(environment / "bin/python", "-c",
            f"import importlib.util as u; assert u.find_spec({module!r}) is None, {module!r}")  # fmt: skip
    left = [
        path.relative_to(environment).as_posix()
        for path in environment.rglob("*")
        if re.search(r"\.(pyx|pxd|pyi|h|c|a)$|(^|/)(tests?|include)$", path.as_posix())
    ]
    assert left == []
    assert sorted(path.name for path in (environment / "bin").iterdir()) == [
        "python", "python3", "xpu-device-plugin",
    ]  # fmt: skip


def test_everything_is_compiled_and_compiled_for_good(environment: Path) -> None:
    """Nothing can be written to a read-only root file system, and a worker is started anew now and then."""
    sources = [path for path in environment.rglob("*.py") if path.stat().st_size]
    compiled = {
        path: list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc")) for path in sources
    }
    assert [path for path, files in compiled.items() if len(files) != 1] == []
    unchecked_hash = 0b01
    assert {files[0].read_bytes()[4] for files in compiled.values()} == {unchecked_hash}


def test_it_needs_nothing_but_the_c_and_c_plus_plus_libraries(environment: Path) -> None:
    """Each object finds what it needs beside it, or in any base."""
    files = [path for path in environment.rglob("*") if path.is_file() and not path.is_symlink()]
    objects = [path for path in files if path.read_bytes()[:4] == b"\x7fELF"]
    assert len(objects) > 20
    for path in objects:
        said = run("ldd", path)
        assert "not found" not in said, said
        elsewhere = [place for place in re.findall(r"=> (/\S+)", said) if str(environment) not in place]
        names = {re.sub(r"\.so.*", "", Path(place).name) for place in elsewhere}
        assert names <= OF_THE_BASE, said


def test_it_is_small(environment: Path) -> None:
    assert bytes_of(environment) < MOST_BYTES


def test_a_list_that_is_out_of_date_is_noticed(environment: Path, tmp_path: Path) -> None:
    """Pruned once more, nothing is found of what is to go."""
    (site,) = environment.glob("lib/python3*/site-packages")
    again = shutil.copytree(site, tmp_path / "site-packages")
    with pytest.raises(AssertionError, match="not installed, to be taken off the list"):
        run(environment / "bin/python", DOCKER / "prune.py", again)
