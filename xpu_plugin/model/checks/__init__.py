# SPDX-License-Identifier: Apache-2.0
"""What `doctor` looks at: evidence -> a verdict each, with what it rests on and what to do. Pure."""
