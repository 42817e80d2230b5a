# SPDX-License-Identifier: Apache-2.0
"""The kubelet's side: our endpoints, and what the kubelet shows of itself."""
