# SPDX-License-Identifier: Apache-2.0
"""Timings of tests reach the daemon whole."""

from dataclasses import replace

import pytest

from tests.support.impatient import impatient, read
from xpu_plugin.model import rivals, vf_reconcile
from xpu_plugin.model.timings import USUAL, Timings


OTHERS = replace(
    USUAL,
    holders=0.1,
    scan=(0.1, 0.2),
    rivalry=rivals.RivalPace(look=0.1, returns=(0.1, 0.2)),
    vfs=vf_reconcile.VfPace(check=0.1, drift=(0.1, 0.2)),
)


@pytest.mark.parametrize("timings", [USUAL, OTHERS], ids=["usual", "others"])
def test_a_program_is_given_all_timings(timings: Timings) -> None:
    assert read(impatient(timings)[-1]) == timings
