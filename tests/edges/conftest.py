# SPDX-License-Identifier: Apache-2.0
"""An endpoint, and the time that matters to it."""

from pathlib import Path

import pytest

from tests.support.endpoint import Looks, Plugin


@pytest.fixture
def plugin(place: Path) -> Plugin:
    return Plugin(place / "plugins")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)
