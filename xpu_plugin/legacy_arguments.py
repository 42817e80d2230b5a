# SPDX-License-Identifier: Apache-2.0
"""The arguments of the previous plugin's manifests, in the words of today."""

import re
from collections.abc import Collection, Sequence

from xpu_plugin.model import vf_plan


_KEEP = "99"
# Options -> ours, or None for an option without a successor.
SUCCESSORS = {
    "use-detail-resName": "resource-per-profile",
    "pass-device-specs": None,
    "rename-dev": None,
    "use-fake-dev": None,
}


def number(text: str) -> str:
    """Return a number of VFs: 99 was the previous plugin's word for `keep`."""
    return vf_plan.KEEP if text == _KEEP else text


def modernise(arguments: Sequence[str], known: Collection[str]) -> tuple[list[str], list[str]]:
    """Return arguments with present options, and a warning for each that was replaced.

    known: the names of present options, which may have a single dash
    """
    modern, warnings = [], []
    for argument in arguments:
        match = re.fullmatch(r"(--?)([A-Za-z][-A-Za-z]+)(=.*)?", argument, re.DOTALL)
        if match is None:
            modern.append(argument)
            continue
        dashes, name, value = match[1], match[2], match[3] or ""
        if name in SUCCESSORS:
            successor = SUCCESSORS[name]
            if successor is None:
                warnings.append(f"{dashes}{name} has no effect any more and is ignored")
            else:
                warnings.append(f"{dashes}{name} is understood as --{successor}; write --{successor}")
                modern.append(f"--{successor}{value}")
        elif dashes == "-" and name in known:
            warnings.append(f"-{name} is understood as --{name}; write --{name}")
            modern.append(f"--{name}{value}")
        else:
            modern.append(argument)
    return modern, warnings
