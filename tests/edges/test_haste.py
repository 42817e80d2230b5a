# SPDX-License-Identifier: Apache-2.0
"""Real-time priority: of all threads while there is a reason, and of no child."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from xpu_plugin.edges.haste import Haste, unhurried


def may_hurry() -> bool:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return False
    os.sched_setscheduler(0, *before)
    return True


@pytest.fixture
def another() -> Iterator[int]:
    """Another thread of this process."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait, daemon=True)
    thread.start()
    assert thread.native_id
    yield thread.native_id
    end.set()
    thread.join()


@pytest.mark.skipif(not may_hurry(), reason="takes CAP_SYS_NICE")
def test_threads_have_it_while_there_is_a_reason_and_children_do_not(another: int) -> None:
    haste = Haste()
    try:
        for present in (["a"], ["a", "b"], ["b"]):
            for reason in ("a", "b"):
                haste.set(reason, present=reason in present)
            assert [os.sched_getscheduler(task) for task in (0, another)] == [os.SCHED_RR] * 2
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        unhurried(child.pid)
        assert os.sched_getscheduler(child.pid) == os.SCHED_OTHER
        child.communicate(b"\n")
        later = threading.Event()
        inheriting = threading.Thread(target=later.wait, daemon=True)
        inheriting.start()
    finally:
        haste.set("a", present=False)
        haste.set("b", present=False)
    assert inheriting.native_id
    threads = (0, another, inheriting.native_id)
    assert [os.sched_getscheduler(task) for task in threads] == [os.SCHED_OTHER] * 3
    later.set()


def test_without_the_right_to_it_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refused)
    haste = Haste()
    haste.set("a", present=True)
    haste.set("a", present=False)
