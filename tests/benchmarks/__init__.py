# SPDX-License-Identifier: Apache-2.0
"""Measures what the plugin costs, beside references, by a kubelet that costs little itself: `make bench`."""
