# SPDX-License-Identifier: Apache-2.0
"""The whole plugin, for long and through faults: nothing is lost, and nothing becomes more."""
