# SPDX-License-Identifier: Apache-2.0
"""The checks of `doctor`: evidence -> a verdict each, with its evidence and the next step. Pure."""
