# SPDX-License-Identifier: Apache-2.0
"""Checks for room before gRPC starts: without a thread, gRPC ends the process by a signal."""

import contextlib
import errno
import mmap
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

from xpu_plugin.edges import memory


DESCRIPTORS = 6  # that gRPC opens at its start; it needs all of them
# Of grpcio 1.85: for timers, for asyncio, a pool by the number of CPUs, and one that watches the pool. Where
# the second one fails, a half-made channel is taken down, a SIGSEGV; where the last one fails, it aborts.
GRPC_THREADS = 3 + max(4, min(os.sysconf("SC_NPROCESSORS_CONF"), 16))
GRPC_LAST = b"lifeguard\n"
OWN_THREADS = 8  # log, state, kubelet reader, HTTP, a request, two of the node, and the worker's process
HEAP_BYTES = 64 << 20  # of address space that glibc reserves for a thread's heap
STACK_BYTES = 2 << 20  # that it reserves for a thread's stack where RLIMIT_STACK says none
CODE_BYTES = 128 << 20  # of address space for the libraries that are still to be loaded
DATA_BYTES = 32 << 20  # that are written: modules, and answers
LIMITS = {
    "RLIMIT_AS": resource.RLIMIT_AS,
    "RLIMIT_DATA": resource.RLIMIT_DATA,
    "RLIMIT_NPROC": resource.RLIMIT_NPROC,
    "RLIMIT_STACK": resource.RLIMIT_STACK,
}


class NoRoomError(Exception):
    """The limits of the process leave less than the plugin needs."""


def require_limits() -> None:
    """Raise NoRoomError if the limits do not allow all threads of the plugin, each with its stack and heap.

    Call this at the start. Such limits stay: the plugin would end by a signal, or serve in part.
    """
    needed, started = GRPC_THREADS + OWN_THREADS, 0
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mmap.mmap(-1, CODE_BYTES, flags=mmap.MAP_PRIVATE, prot=0))
            stack.enter_context(mmap.mmap(-1, DATA_BYTES, flags=mmap.MAP_PRIVATE))
            for _ in range(needed):
                stack.enter_context(_thread())
                started += 1
    except (OSError, RuntimeError, MemoryError):
        raise NoRoomError(
            f"cannot start: the plugin needs room for {needed} threads and finds room for {started}. "
            f"Raise the limit that is too low: {_limits(needed)}"
        ) from None


def _limits(threads: int) -> str:
    """Return the limits that may be too low, with the need if it is known."""
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stack = STACK_BYTES if stack == resource.RLIM_INFINITY else stack
    data = DATA_BYTES + threads * stack
    space = {"RLIMIT_AS": data + 2 * CODE_BYTES + threads * HEAP_BYTES, "RLIMIT_DATA": data + DATA_BYTES}
    words = [_word(name, resource.getrlimit(number)[0], space.get(name)) for name, number in LIMITS.items()]
    processes = memory.most_processes()
    return " ".join((*words, f"pids.max={'max' if processes is None else processes}"))


def _word(name: str, limit: int, needed: int | None) -> str:
    value = "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
    return f"{name}={value}" + (f" ({needed} needed)" if needed else "")


def require_room() -> None:
    """Raise OSError while there are too few threads or descriptors for a start of gRPC.

    Call this before a channel or a server is made: the first of them starts gRPC, and the last one ends it.
    """
    with contextlib.ExitStack() as stack:
        for _ in range(DESCRIPTORS):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        try:
            for _ in range(1 if _runs() else GRPC_THREADS):
                stack.enter_context(_thread())
        except RuntimeError:
            raise BlockingIOError(errno.EAGAIN, "no thread can be started") from None


def _runs(tasks: Path = Path("/proc/self/task")) -> bool:
    """Return whether gRPC's threads run, by the name of the one that it starts last."""
    for task in tasks.glob("*/comm"):
        with contextlib.suppress(OSError):  # it has ended
            if task.read_bytes() == GRPC_LAST:
                return True
    return False


@contextlib.contextmanager
def _thread() -> Iterator[None]:
    """Start a thread that waits. Raises RuntimeError if none can be started."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="room", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
