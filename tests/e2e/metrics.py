# SPDX-License-Identifier: Apache-2.0
"""The plugin's page of metrics, and samples on it."""

import urllib.request

from .waiting import wait_until


PAGE_SECONDS = 30


def page(port: int) -> str:
    """The metrics; empty while there are none yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PAGE_SECONDS) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:  # 503 is one
        return ""


def has(text: str, name: str, value: float, **labels: str) -> bool:
    """Whether a page has such a sample."""
    wanted = [f'{label}="{own}"' for label, own in labels.items()]
    return any(
        line.startswith((f"{name}{{", f"{name} "))
        and float(line.rpartition(" ")[2]) == value
        and all(label in line for label in wanted)
        for line in text.splitlines()
    )


def wait_for(port: int, name: str, value: float, **labels: str) -> str:
    return wait_until(
        f"{name}{labels} is {value}",
        lambda: page(port),
        lambda text: has(text, name, value, **labels),
        seconds=PAGE_SECONDS,
    )
