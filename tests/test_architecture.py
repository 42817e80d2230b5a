# SPDX-License-Identifier: Apache-2.0
"""What import-linter cannot see or say about who may know what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xpu_plugin"
TESTS = ROOT / "tests"


def imported(source: Path) -> set[str]:
    """Every dotted name that a module imports, from inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            near = source.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join((*near, *filter(None, [node.module])))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def test_only_the_worker_imports_the_binding() -> None:
    importers = [
        source.relative_to(PACKAGE).as_posix()
        for source in PACKAGE.rglob("*.py")
        if "xpu_plugin._xpuml" in imported(source)
    ]
    assert importers == ["edges/worker/server.py"]


CLIENTS = ("xpu_plugin.edges.apiserver.node_watcher", "kubernetes", "prometheus_client", "http.server")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        # The binding never; before there is a use for them the clients of the API server and of Prometheus,
        # an HTTP server, and what no pod waits for.
        ("xpu_plugin.daemon", ("xpu_plugin._xpuml", "xpu_plugin.observability", *CLIENTS)),
        # OpenSSL, by way of `secrets` for example: a tenth of the start.
        ("xpu_plugin.daemon", ("_hashlib",)),
        # Modules of features that are off.
        ("xpu_plugin.observability", CLIENTS),
        # The rest of the server is loaded while the first worker loads its own.
        ("xpu_plugin.cli", ("asyncio", "grpc", "google.protobuf")),
        # A worker stays small.
        (
            "xpu_plugin.edges.worker.server",
            ("asyncio", "grpc", "google.protobuf", "kubernetes", "argparse", "logging"),
        ),
    ],
)
def test_a_module_does_not_load(module: str, absent: tuple[str, ...]) -> None:
    # Coverage loads modules of its own at the start.
    code = (
        f"import sys; own = set(sys.modules); import {module}; "
        f"print(*({set(absent)!r} & sys.modules.keys() - own))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_nothing_imports_a_test_module_or_a_conftest() -> None:
    """Helpers are in tests/support, or in a module beside the tests that use them."""
    own = (*TESTS.rglob("test_*.py"), *TESTS.rglob("conftest.py"))
    forbidden = {".".join(source.relative_to(ROOT).with_suffix("").parts) for source in own}
    assert {"tests.conftest", "tests.test_daemon"} < forbidden
    for source in TESTS.rglob("*.py"):
        assert not imported(source) & forbidden, source


def test_each_module_says_its_job_first() -> None:
    """Its docstring opens with one line that stands alone or ends a sentence, a clause or a list."""
    for source in PACKAGE.rglob("*.py"):
        if source.is_relative_to(PACKAGE / "proto"):
            continue
        assert ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))), source
