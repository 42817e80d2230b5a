# SPDX-License-Identifier: Apache-2.0
"""The API server: watches the node's label, writes labels, annotations and Events."""
