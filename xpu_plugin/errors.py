# SPDX-License-Identifier: Apache-2.0
"""The base of all errors that one module raises and another catches, and a sink for unforeseen ones."""

from typing import Protocol


class PluginError(Exception):
    """A foreseen error. Its text describes it in one line."""


class Failures(Protocol):
    """Takes the unforeseen errors of one part, which runs on."""

    def failed(self, error: Exception, /) -> None:
        """Count the error and report it."""


class _Unheeded:
    def failed(self, error: Exception, /) -> None:
        pass


UNHEEDED: Failures = _Unheeded()
"""For a part that is tried alone."""
