# SPDX-License-Identifier: Apache-2.0
"""The plugin on a real node: a real kubelet, real containers, device nodes that no driver serves."""
