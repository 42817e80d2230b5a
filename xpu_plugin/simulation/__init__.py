# SPDX-License-Identifier: Apache-2.0
"""Replacements for the hardware and for Kubernetes."""
