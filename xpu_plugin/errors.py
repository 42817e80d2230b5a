# SPDX-License-Identifier: Apache-2.0
"""The base of all errors of ours that one module raises and another one catches."""


class PluginError(Exception):
    """An error that is foreseen. Its text says in one line what happened."""
