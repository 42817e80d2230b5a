# SPDX-License-Identifier: Apache-2.0
"""The text of `xpu-smi topo -m`, by a child with a deadline and a bound for its output.

xpu-smi opens every device node for a moment, as a scan does.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from functools import cache
from pathlib import Path

from xpu_plugin.edges.haste import unhurried
from xpu_plugin.edges.installation import located
from xpu_plugin.edges.state.disk import DiskThread
from xpu_plugin.errors import PluginError
from xpu_plugin.frozen import frozen
from xpu_plugin.model.additions import XPU_VARIABLE


DEADLINE_SECONDS = 20.0  # for all devices of a node; the library's own calls take milliseconds
LONGEST_OUTPUT = 1 << 18  # bytes; a matrix of 16 cards has 2 KiB
_REAP_SECONDS = 1.0  # for a killed child to end; one that hangs in the driver is left behind


class XpuSmiError(PluginError):
    """No output that can be used. The text tells why."""


@frozen
class XpuSmi:
    """The program. host_root: directory below which links are followed as on the host"""

    path: Path
    host_root: Path | None = None

    async def matrix(self, *, seconds: float = DEADLINE_SECONDS) -> str:
        """Return the output of `topo -m`. Raises XpuSmiError."""
        try:
            return await _thread().call(self._run, seconds)
        except OSError as error:
            raise XpuSmiError(f"{self.path}: {error.strerror}") from None

    def _run(self, seconds: float) -> str:
        program = located(str(self.path), str(self.host_root) if self.host_root else None)
        return _run(Path(program), seconds)


@cache
def _thread() -> DiskThread:
    return DiskThread("xpu-smi")


def _environment(program: Path) -> dict[str, str]:
    """Return ours, with the libraries of the installation that the program is of."""
    environment = {name: value for name, value in os.environ.items() if name != XPU_VARIABLE}
    places = [f"{program.parent.parent}/{name}" for name in ("lib64", "lib")]
    before = os.environ.get("LD_LIBRARY_PATH")
    return environment | {"LD_LIBRARY_PATH": ":".join([*places, *([before] if before else [])])}


def _run(program: Path, seconds: float) -> str:
    until = time.monotonic() + seconds
    child = subprocess.Popen(
        [program, "topo", "-m"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=_environment(program),
        start_new_session=True,
    )
    assert child.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
    try:
        unhurried(child.pid)
        output = _read(child.stdout.fileno(), until)
        if len(output) > LONGEST_OUTPUT:
            raise XpuSmiError(f"{program} topo -m: more than {LONGEST_OUTPUT} bytes of output")
        status = child.wait(max(until - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        raise XpuSmiError(f"{program} topo -m: does not end within {seconds:g} s") from None
    finally:
        child.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_REAP_SECONDS)
    if status:
        raise XpuSmiError(f"{program} topo -m: exit status {status}")
    return output.decode(errors="replace")


def _read(descriptor: int, until: float) -> bytes:
    """Return the output to its end or to the deadline, or a byte more than accepted."""
    output = b""
    os.set_blocking(descriptor, False)
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while len(output) <= LONGEST_OUTPUT:
            if not selector.select(max(until - time.monotonic(), 0.0)):
                break
            part = os.read(descriptor, LONGEST_OUTPUT + 1 - len(output))
            if not part:
                break
            output += part
    return output
