# SPDX-License-Identifier: Apache-2.0
"""Pure values and functions: no I/O, no clock."""
