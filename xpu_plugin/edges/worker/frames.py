# SPDX-License-Identifier: Apache-2.0
"""Frames of JSON on the stream socket between server and worker.

A frame is an unsigned 32-bit length, big endian, and so many bytes of JSON: {"id": n, "call": name,
arguments...} one way, {"id": n, "result": ...} or {"id": n, "error": {"kind": ..., "text": ...}} the other.
One answer to each request; the number tells an answer from a frame that the library wrote.
"""

import struct


HEADER = struct.Struct("!I")
LONGEST_REQUEST = 1 << 20  # bytes
LONGEST_ANSWER = 64 << 20  # bytes; thousands of devices need about one mebibyte
