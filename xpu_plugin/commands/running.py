# SPDX-License-Identifier: Apache-2.0
"""The running plugin, for sub-commands that would else ask the library a second time."""

import sys
from pathlib import Path
from typing import Any

from xpu_plugin.config import PROGRAM
from xpu_plugin.edges.status import StatusError, ask


class Running:
    """The plugin behind a status socket, if there is one; that it does not answer is said in one line."""

    def __init__(self, socket: Path | None) -> None:
        self._socket = socket
        self._complaint: str | None = None

    def ask(self, name: str, **arguments: object) -> Any:
        """Its answer, made of what JSON knows; None where there is none."""
        if self._socket is None or not self._socket.exists():
            return None
        try:
            answer = ask(self._socket, name, **arguments)
        except StatusError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                print(
                    f"{PROGRAM}: no running plugin answers: {error}; asking by a process of our own",
                    file=sys.stderr,
                )
            return None
        self._complaint = None
        return answer
