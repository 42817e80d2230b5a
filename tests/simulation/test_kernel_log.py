# SPDX-License-Identifier: Apache-2.0
"""The simulated lines of the kernel's log are those that users report."""

import pytest

from xpu_plugin.simulation.kernel_log import Trouble, kernel_log_lines


REPORTED = """\
KLRM: (PCI:0000:16:00): [INFO] vstream[0] sess[1] tainted
KLRM: (PCI:0000:16:00): [XPUW] kl3_wait_for_noc_idle() timeout, val= 00000007 mask= 00000008 reg0228= 007ff000
KLRM: (PCI:0000:16:00): [INFO] mark sess error(errno= XPUERR_KEXCEPTION), sess= 1, pid= 4242, comm= python ...
KLRM: (PCI:0000:16:00): [XPUW] cluster[0]: ..reason[29] task timeout
KLRM: Xid (PCI:0000:16:00): 0, pid=4242, name=python, KL_XID_KERNEL_EXCEPTION, ch=0"""


def test_a_card_that_hangs_as_reported() -> None:
    assert "\n".join(kernel_log_lines("0000:16:00.0", Trouble.HANG)) == REPORTED


@pytest.mark.parametrize("kind", Trouble)
def test_each_line_names_the_card_and_only_a_sick_one_is_not_idle(kind: Trouble) -> None:
    lines = kernel_log_lines("0000:84:00.0", kind, pid=7, name="train")
    assert lines
    assert all("(PCI:0000:84:00): " in line and line.startswith("KLRM: ") for line in lines)
    assert any("noc_idle" in line for line in lines) == (kind in (Trouble.HANG, Trouble.IDLE))
    assert any("pid=7, name=train" in line for line in lines) == (
        kind in (Trouble.HANG, Trouble.PROGRAM, Trouble.TIMEOUT)
    )
