# SPDX-License-Identifier: Apache-2.0
"""gRPC is started only where there is room for it."""

import os
import threading

import pytest

from tests.standins import descriptors
from xpu_plugin.edges.engine import DESCRIPTORS, require_room


def test_with_room_nothing_is_left_behind() -> None:
    before = descriptors(), threading.active_count()
    require_room()
    assert (descriptors(), threading.active_count()) == before


def test_a_lack_of_threads_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.raises(OSError, match="no thread can be started"):
        require_room()


def test_a_lack_of_descriptors_is_an_error_and_none_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    before, opened, left = descriptors(), os.open, DESCRIPTORS - 1

    def few(path: str, flags: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(24, "Too many open files")
        return opened(path, flags)

    with monkeypatch.context() as lack:
        lack.setattr(os, "open", few)
        with pytest.raises(OSError, match="Too many open files"):
            require_room()
    assert descriptors() == before
