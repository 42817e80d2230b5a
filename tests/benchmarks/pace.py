# SPDX-License-Identifier: Apache-2.0
"""How fast this machine is: by what it takes to load gRPC, the largest dependency."""

import subprocess


THERE_MS = 80.0
"""The same on the machine that the targets in milliseconds were set on."""

_LOAD = """
import time
begin = time.process_time()
import grpc.aio
print(time.process_time() - begin)
"""


def load_ms(python: str) -> float:
    """Milliseconds of CPU in which a fresh interpreter loads gRPC, from the page cache."""
    printed = subprocess.run([python, "-c", _LOAD], capture_output=True, text=True, check=True).stdout
    return float(printed) * 1e3
