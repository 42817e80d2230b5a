# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin clear ID`: lift the quarantine of a device, and end its driver error."""

import os
import sys
from pathlib import Path

from xpu_plugin.config import CLEAR_OPTIONS, PROGRAM, Parser, read_config
from xpu_plugin.edges.control_socket import ControlError, ask
from xpu_plugin.log import printable


def main(arguments: list[str]) -> int:
    """Return the exit status: 0 cleared, 1 nothing to clear, or no running plugin, 2 bad usage."""
    parser = Parser(
        prog=f"{PROGRAM} clear",
        description="Lift the quarantine of a device and end its driver error, and forget the changes and "
        "incidents that led to them. The running plugin does it. Then the device has the health that its "
        "answers give.",
    )
    parser.add_argument("id", metavar="ID", help="the device's id, as in `xpu-device-plugin list`")
    config, namespace, _ = read_config(arguments, os.environ, options=CLEAR_OPTIONS, parser=parser)
    assert config.status_socket  # noqa: S101 - here it has a default
    try:
        cleared = _clear(config.status_socket, namespace.id)
    except ControlError as error:
        print(f"{PROGRAM}: cannot ask the running plugin: {error}", file=sys.stderr)
        return 1
    if not cleared:
        print(f"{PROGRAM}: {namespace.id!r} is not in quarantine, and has no driver error", file=sys.stderr)
        return 1
    print(f"{printable(namespace.id)}: cleared")
    return 0


def _clear(socket: Path, id: str) -> bool:
    """Return whether there was something to clear. Raises ControlError."""
    answer = ask(socket, "clear", id=id)
    if not isinstance(answer, bool):
        raise ControlError(f"{socket}: the program that answers is not a running plugin")
    return answer
