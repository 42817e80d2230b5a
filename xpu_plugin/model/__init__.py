# SPDX-License-Identifier: Apache-2.0
"""Pure: values in, values out; no I/O, no clock."""
