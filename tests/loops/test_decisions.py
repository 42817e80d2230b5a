# SPDX-License-Identifier: Apache-2.0
"""The last decisions: bounded, in order, with their time."""

import json

from xpu_plugin.loops.decisions import KEPT, Decisions


def test_the_last_ones_are_kept_and_no_more() -> None:
    now = 0.0
    decisions = Decisions(clock=lambda: now)
    for number in range(KEPT + 3):
        now = float(number)
        decisions.note("grant", ids=[str(number)])
    kept = decisions.all
    assert len(kept) == KEPT
    assert kept[0] == {"at": "1970-01-01T00:00:03.000+00:00", "what": "grant", "ids": ["3"]}
    assert kept[-1]["ids"] == [str(KEPT + 2)]
    json.dumps(kept)
