# SPDX-License-Identifier: Apache-2.0
"""Tests of what does I/O: worker, driver, service, kubelet."""
