# SPDX-License-Identifier: Apache-2.0
"""Whether gRPC's engine can be started: where it cannot, it must not be tried."""

import contextlib
import errno
import os
import threading


DESCRIPTORS = 6  # that gRPC opens at its start, of which it does without none


def require_room() -> None:
    """Raise OSError while there are too few threads or descriptors for gRPC to start.

    To be called before a channel or a server is made: the first of them starts gRPC. Where it lacks a thread
    it is left broken, logs tracebacks and may crash; where it lacks descriptors it ends the process
    (grpcio 1.85).
    """
    with contextlib.ExitStack() as stack:
        for _ in range(DESCRIPTORS):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    thread = threading.Thread(target=lambda: None, name="room", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        raise BlockingIOError(errno.EAGAIN, "no thread can be started") from None
    thread.join()
