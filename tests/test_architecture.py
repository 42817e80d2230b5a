# SPDX-License-Identifier: Apache-2.0
"""What import-linter cannot see or say about who may know what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xpu_plugin"


def imported(source: Path) -> set[str]:
    """Every dotted name that a module imports, from inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_only_the_worker_imports_the_binding() -> None:
    importers = [
        source.relative_to(PACKAGE).as_posix()
        for source in PACKAGE.rglob("*.py")
        if "xpu_plugin._xpuml" in imported(source)
    ]
    assert importers == ["edges/worker.py"]


@pytest.mark.parametrize(
    "absent",
    [
        "xpu_plugin._xpuml",
        "xpu_plugin.edges.nodeapi",
        "xpu_plugin.observability",
        "kubernetes",
        "prometheus_client",
        "http.server",
    ],
)
def test_the_server_does_not_load(absent: str) -> None:
    """The binding ever; before there is a use for them the clients of the API server and of Prometheus, an
    HTTP server, and what no pod waits for."""
    code = f"import sys, xpu_plugin.daemon; sys.exit({absent!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "absent", ["xpu_plugin.edges.nodeapi", "kubernetes", "prometheus_client", "http.server"]
)
def test_what_shows_and_tells_does_not_load(absent: str) -> None:
    """What not everybody has asked for."""
    code = f"import sys, xpu_plugin.observability; sys.exit({absent!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("absent", ["asyncio", "grpc", "google.protobuf"])
def test_the_first_worker_is_started_before_much_is_loaded(absent: str) -> None:
    """The rest of the server is loaded while the worker loads its own."""
    code = f"import sys, xpu_plugin.cli; sys.exit({absent!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "absent", ["asyncio", "grpc", "google.protobuf", "kubernetes", "argparse", "logging"]
)
def test_the_worker_stays_small(absent: str) -> None:
    code = f"import sys, xpu_plugin.edges.worker; sys.exit({absent!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_module_says_its_job_first() -> None:
    """Its docstring opens with one line that stands alone or ends a sentence, a clause or a list."""
    for source in PACKAGE.rglob("*.py"):
        if source.is_relative_to(PACKAGE / "proto"):
            continue
        assert ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))), source
