# SPDX-License-Identifier: Apache-2.0
"""Checks of a node: evidence is collected, then each check turns it into findings."""
