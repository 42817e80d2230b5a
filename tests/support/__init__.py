# SPDX-License-Identifier: Apache-2.0
"""What tests and programs stand on: machines, daemons, kubelets, API servers, clocks, and waiting."""
