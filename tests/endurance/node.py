# SPDX-License-Identifier: Apache-2.0
"""A real node for the long proofs, as the end-to-end suite has it (tests/e2e/README.md)."""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster import Cluster
from tests.e2e.hooks import Hooks
from tests.e2e.machine import Machine, present, real_nodes, remove_nodes


@dataclass(frozen=True, slots=True)
class Node:
    hooks: Hooks
    cluster: Cluster
    machine: Machine
    place: Path
    """A directory for the run."""


@contextmanager
def a_node() -> Iterator[Node]:
    """Four healthy cards on a node without pods of ours, before and afterwards. Exits without a node."""
    hooks = Hooks.read(os.environ)
    if reason := hooks.missing():
        raise SystemExit(f"no node: {reason}")
    if nodes := real_nodes():
        raise SystemExit(f"this node has XPUs of its own, which are not to be touched: {', '.join(nodes)}")
    cluster = Cluster(kubectl=hooks.kubectl, node=hooks.node, namespace=hooks.namespace, image=hooks.image)
    print(cluster.versions())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="xpu-") as place:
        cluster.delete_pods()
        remove_nodes()
        with present(Machine(hooks.plugin, Path(place))) as machine:
            try:
                yield Node(hooks, cluster, machine, Path(place))
            finally:
                cluster.delete_pods()


def verdict(wrong: list[str]) -> int:
    """Print what is wrong and the line that ends a run; returns its exit status."""
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"{0 if wrong else 1} passed, {1 if wrong else 0} failed")
    return 1 if wrong else 0
