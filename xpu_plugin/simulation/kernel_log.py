# SPDX-License-Identifier: Apache-2.0
"""The lines that the driver of P800 cards prints to the kernel's log, as users report them.

Text only: nothing is written anywhere. Of the lines of a faulty program and of a long computation only the
reason was reported; they have the form of the others.
"""

from enum import StrEnum


class Trouble(StrEnum):
    """A cause of lines about a card."""

    HANG = "hang"
    """Every kernel on the card hangs, although all queries answer well."""
    PROGRAM = "program"
    """A faulty program on a good card."""
    TIMEOUT = "timeout"
    """A computation that lasts longer than the driver's task timeout, on a good card."""
    IDLE = "idle"
    """A sick card without any process."""
    RESET = "reset"
    """The driver recovers a card by itself."""


_TAINTED = "{card}: [INFO] vstream[0] sess[1] tainted"
_NOT_IDLE = "{card}: [XPUW] kl3_wait_for_noc_idle() timeout, val= 00000007 mask= 00000008 reg0228= 007ff000"
_SESSION = "{card}: [INFO] mark sess error(errno= XPUERR_KEXCEPTION), sess= 1, pid= {pid}, comm= {name} ..."
_TIMEOUT = "{card}: [XPUW] cluster[0]: ..reason[29] task timeout"
_BEYOND = "{card}: [XPUW] cluster[0]: ..reason[4] load/store exceeds memory"
_XID = "Xid {card}: 0, pid={pid}, name={name}, KL_XID_KERNEL_EXCEPTION, ch=0"
_RESET = "{card}: [INFO] m3 mode1 reset"

_LINES = {
    Trouble.HANG: (_TAINTED, _NOT_IDLE, _SESSION, _TIMEOUT, _XID),
    Trouble.PROGRAM: (_SESSION, _BEYOND, _XID),
    Trouble.TIMEOUT: (_SESSION, _TIMEOUT, _XID),
    Trouble.IDLE: (_NOT_IDLE,),
    Trouble.RESET: (_RESET,),
}


def kernel_log_lines(card: str, kind: Trouble, *, pid: int = 4242, name: str = "python") -> tuple[str, ...]:
    """Return the lines about a card.

    card: its PCI address, of which the driver omits the function
    pid, name: the process that the lines blame, by its pid on the host
    """
    place = f"(PCI:{card.rpartition('.')[0]})"
    return tuple(f"KLRM: {line.format(card=place, pid=pid, name=name)}" for line in _LINES[kind])
