# SPDX-License-Identifier: Apache-2.0
"""Compare what is wanted with what is, and act on the difference."""
