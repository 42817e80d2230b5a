# SPDX-License-Identifier: Apache-2.0
"""Where the program meets the outside: I/O, no decisions."""
