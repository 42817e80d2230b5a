# SPDX-License-Identifier: Apache-2.0
"""The running plugin as a source of answers, so that the library is not asked a second time."""

import sys
from pathlib import Path
from typing import Any

from xpu_plugin.commands.shapes import SHAPES, misfit, shown
from xpu_plugin.config import PROGRAM
from xpu_plugin.edges.control_socket import ControlError, ask
from xpu_plugin.log import Once


class Running:
    """The plugin behind a status socket, if there is one. Each trouble with it is printed once."""

    def __init__(self, socket: Path | None) -> None:
        self._socket = socket
        self._complaint = Once()

    def expected(self) -> bool:
        """Return whether a plugin may be there: False only if the socket surely does not exist."""
        if self._socket is None:
            return False
        try:
            self._socket.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            pass
        return True

    def ask(self, name: str, **arguments: object) -> Any:
        """Return its answer, of the shape in `shapes` and with printable texts; None without one."""
        if self._socket is None or not self.expected():
            return None
        try:
            answer = _checked(ask(self._socket, name, **arguments), name, **arguments)
        except ControlError as error:
            if self._complaint.changed(str(error)):
                print(
                    f"{PROGRAM}: no running plugin answers: {error}; asking by a process of our own",
                    file=sys.stderr,
                )
            return None
        self._complaint.healed()
        return answer


def _checked(answer: Any, name: str, *, wide: object = False, **_: object) -> Any:
    """Return the answer with printable texts. Raises ControlError for another shape."""
    if name == "plan" and isinstance(answer, dict) and "trouble" in answer:
        name = "plan trouble"
    if wrong := misfit(answer, SHAPES["list wide" if wide else name]):
        raise ControlError(f"another release of the plugin, or another program: {wrong}")
    return shown(answer)
