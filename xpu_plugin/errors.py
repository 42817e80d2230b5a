# SPDX-License-Identifier: Apache-2.0
"""The base of all errors that one module raises and another one catches."""


class PluginError(Exception):
    """A foreseen error. Its text describes it in one line."""
