# SPDX-License-Identifier: Apache-2.0
"""What stands in for a machine without hardware or without Kubernetes."""
