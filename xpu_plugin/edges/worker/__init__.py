# SPDX-License-Identifier: Apache-2.0
"""The worker process and its client: the only side that may load the vendor library."""
