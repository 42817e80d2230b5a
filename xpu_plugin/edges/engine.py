# SPDX-License-Identifier: Apache-2.0
"""Whether gRPC's engine for asyncio can be started: where it cannot, it must not be tried."""

import errno
import threading


def require_thread() -> None:
    """Raise BlockingIOError while no thread can be started.

    To be called before a channel or a server is made. The first of them starts a thread; where that fails,
    gRPC is left broken: it logs tracebacks and may crash (grpcio 1.85).
    """
    thread = threading.Thread(target=lambda: None, name="engine", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        raise BlockingIOError(errno.EAGAIN, "no thread can be started") from None
    thread.join()
