# SPDX-License-Identifier: Apache-2.0
"""What an administrator touches: manifests, overlays, chart, templates, and the commands of both READMEs."""
