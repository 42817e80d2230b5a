# SPDX-License-Identifier: Apache-2.0
"""Records in --state-dir, each a file that is replaced whole."""
