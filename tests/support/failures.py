# SPDX-License-Identifier: Apache-2.0
"""Unforeseen errors as a test sees them."""


class Failed:
    """Keeps all errors, in their order."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def failed(self, error: Exception, /) -> None:
        self.errors.append(error)
