# SPDX-License-Identifier: Apache-2.0
"""Replacement of a small file, whole or not at all; as a program, by a process of its own.

A thread that waits for a disk cannot be killed, and neither can its process: the plugin would not end before
the disk answers. So a child does this work, and the plugin need not wait for it. This module imports little,
as it is started for each write.
"""

# Without pathlib, which would be a third of the child's start.
# ruff: noqa: PTH103, PTH105, PTH108, PTH118, PTH123, PTH208

import contextlib
import errno
import os
import sys
from collections.abc import Callable


GIVE_UP_SECONDS = 30.0  # for the child; then it is killed, with effect once the disk answers

Replace = Callable[..., None]
"""`replace`, or what does the same elsewhere."""


def replace(path: str, text: bytes, *, tidy: bool = False, aside: bool = False, parent: int = 0) -> None:
    """Write a file so that it is there after a power failure. Raises OSError.

    tidy: remove the drafts of killed processes
    aside: keep the present file as `NAME.damaged`
    parent: the process that asks; after its end another one may have written, and the file is not replaced
    """
    directory, name = os.path.split(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    prefix = f".{name}-"
    if tidy:
        for entry in os.listdir(directory):
            if entry.startswith(prefix):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(directory, entry))
    if aside:
        with contextlib.suppress(FileNotFoundError):  # it was removed by hand
            os.replace(path, f"{path}.damaged")
    draft = os.path.join(directory, f"{prefix}{os.urandom(6).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if parent and os.getppid() != parent:
            raise ProcessLookupError(errno.ESRCH, "the plugin has ended")  # noqa: TRY301 - the draft goes, too
        os.replace(draft, path)
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(held)
        finally:
            os.close(held)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def replace_apart(path: str, text: bytes, *, tidy: bool = False, aside: bool = False) -> None:
    """Call `replace` in a child process, or here if none can be started. Raises OSError."""
    import subprocess  # noqa: PLC0415 - the child does not need them

    from xpu_plugin.edges.haste import unhurried  # noqa: PLC0415

    parts = (str(os.getpid()).encode(), f"{tidy:d}{aside:d}".encode(), os.fsencode(path), text)
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
    except OSError:  # out of processes, descriptors or memory
        replace(path, text, tidy=tidy, aside=aside)
        return
    unhurried(child.pid)
    with child:
        try:
            said, _ = child.communicate(b"\0".join(parts), timeout=GIVE_UP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    if said:
        raise OSError(int(said), os.strerror(int(said)))
    if child.returncode:
        raise OSError(errno.EIO, f"the process that writes it ended with status {child.returncode}")


def main() -> int:
    parent, flags, path, text = sys.stdin.buffer.read().split(b"\0", 3)
    os.umask(0o077)
    try:
        replace(
            os.fsdecode(path),
            text,
            tidy=flags[:1] == b"1",
            aside=flags[1:] == b"1",
            parent=int(parent),
        )
    except OSError as error:
        print(error.errno or errno.EIO)  # noqa: T201 - it is the answer
    return 0


if __name__ == "__main__":
    sys.exit(main())
