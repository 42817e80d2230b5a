# SPDX-License-Identifier: Apache-2.0
"""Requests for a scan, with their number."""

from xpu_plugin.loops.due import Due


class CountedDue(Due):
    """Counts how often a scan was wanted."""

    times = 0

    def want(self, *, forget: bool = False) -> None:
        self.times += 1
        super().want(forget=forget)
