# SPDX-License-Identifier: Apache-2.0
"""The API server's side: the node's label is watched, labels and Events are written."""
