# SPDX-License-Identifier: Apache-2.0
"""Sub-commands are given all that they know."""

import os

import pytest


SETTINGS = ("XPU_", "KUBERNETES_", "KUBECONFIG", "NODE_", "POD_")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No option, cluster, node or proxy comes from the environment of the tests."""
    for name in [name for name in os.environ if name.startswith(SETTINGS) or name in PROXIES]:
        monkeypatch.delenv(name)
