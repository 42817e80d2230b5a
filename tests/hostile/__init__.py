# SPDX-License-Identifier: Apache-2.0
"""Who speaks to the plugin's sockets without being a kubelet, and means no good."""
