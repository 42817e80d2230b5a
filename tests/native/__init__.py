# SPDX-License-Identifier: Apache-2.0
"""Tests of everything that is C."""
