# SPDX-License-Identifier: Apache-2.0
"""reference-replay: a replay of the original plugin's documented timing, not the original.

`python -m tests.benchmarks.replay DIRECTORY MACHINE`. What is documented of it, and done here: a second of
sleep before it serves and another one before it registers, at every start and after every restart of the
kubelet; a look at all devices every five seconds; and after each look the whole list, sent once for each
device. Where the machine's file says `state=` with another number than 201, a device is sick. What is not the
original's is all the rest: its language, its memory, its CPU.
"""

import re
import sys
import time
from pathlib import Path

from tests.benchmarks.constant import NAME, Endpoint, answers, register
from tests.benchmarks.http2 import ClosedError
from xpu_plugin.proto import deviceplugin_pb2 as api


SLEEP_SECONDS = 1.0
POLL_SECONDS = 5.0
_CARD = re.compile(r"^card (\d+) (.*)$", re.MULTILINE)
_SICK = re.compile(r"\bstate=(?!201\b)")


def listing(machine: Path) -> tuple[int, bytes]:
    """How many devices there are, and the list of them."""
    devices = [
        api.Device(ID=number, health="Unhealthy" if _SICK.search(keys) else "Healthy")
        for number, keys in _CARD.findall(machine.read_text())
    ]
    return len(devices), api.ListAndWatchResponse(devices=devices).SerializeToString()


def live(directory: Path, machine: Path) -> None:
    """From one start or restart to the next."""
    number, text = listing(machine)
    time.sleep(SLEEP_SECONDS)
    endpoint = Endpoint(directory, {**answers(number), b"ListAndWatch": text})
    time.sleep(SLEEP_SECONDS)
    register(directory, NAME)
    look_at = time.monotonic() + POLL_SECONDS
    while endpoint.bound():
        endpoint.serve(0.1)
        if time.monotonic() >= look_at:
            look_at = time.monotonic() + POLL_SECONDS
            number, text = listing(machine)
            for connection, stream in endpoint.watchers * number:
                connection.answer(stream, text, last=False)


def main() -> None:
    while True:
        try:
            live(Path(sys.argv[1]), Path(sys.argv[2]))
        except (OSError, ClosedError):
            time.sleep(0.1)


if __name__ == "__main__":
    main()
