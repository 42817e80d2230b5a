# SPDX-License-Identifier: Apache-2.0
"""A child process that has the library loaded and calls its functions one by one, as told.

The library keeps its state for the life of a process and may crash: so each test gives it a process.
Run as a script this file is that child.
"""

import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import unpack_from


RECORD = 128
ADDRESS = 8
TEXTS = ("xpumlErrorString", "getenv")
Answer = tuple[int, int]


class DiedError(Exception):
    """The child is gone; `status` is what subprocess says: minus the signal."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Handle:
    address: int | None


@dataclass(frozen=True)
class Output:
    """A buffer to be filled in; `start` is what is in its first four bytes before."""

    size: int = RECORD
    start: int = 0


NULL = Handle(None)


class Guest:
    """The parent's end."""

    def __init__(self, library: Path, environment: Mapping[str, str]) -> None:
        here, there = socket.socketpair()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("XPU_")}
        self.process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(library), str(there.fileno())],
            env={**inherited, **environment},
            pass_fds=[there.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        there.close()
        self.stream = here.makefile("rw", encoding="utf-8")
        here.close()

    def close(self) -> tuple[str, str]:
        """End the child, unless it has ended; what it printed on stdout and stderr."""
        self.stream.close()
        return self.process.communicate()

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def start(self, function: str, *arguments: int | Handle | Output | bytes) -> None:
        """Begin a call; `finish` waits for its answer."""
        words: list[object] = []
        for argument in arguments:
            match argument:
                case Handle(address):
                    words.append(["handle", address])
                case Output(size, start):
                    words.append(["output", size, start])
                case bytes():
                    words.append(["text", argument.decode()])
                case _:
                    words.append(["int", argument])
        print(json.dumps([function, words]), file=self.stream, flush=True)

    def finish(self) -> tuple[int | str | None, list[bytes]]:
        line = self.stream.readline()
        if not line:
            raise DiedError(self.process.wait())
        result, outputs = json.loads(line)
        return result, [bytes.fromhex(output) for output in outputs]

    def call(self, function: str, *arguments: int | Handle | Output | bytes) -> tuple[int, bytes]:
        """The return code and the (only) buffer."""
        self.start(function, *arguments)
        result, outputs = self.finish()
        assert isinstance(result, int)
        return result, outputs[0] if outputs else b""

    def text(self, function: str, argument: int | bytes) -> str | None:
        self.start(function, argument)
        result, _ = self.finish()
        assert result is None or isinstance(result, str)
        return result

    def init(self) -> int:
        return self.call("xpumlInit")[0]

    def count(self) -> Answer:
        return self.number("xpumlDeviceGetCount")

    def number(self, function: str, *arguments: int | Handle) -> Answer:
        """The return code and the number that the last argument points to."""
        code, output = self.call(function, *arguments, Output(ADDRESS))
        return code, int(unpack_from("<i", output)[0])

    def fetch(self, index: int) -> tuple[int, Handle]:
        """The return code and the handle of an index."""
        code, output = self.call("xpumlDeviceGetHandleByIndex", index, Output(ADDRESS))
        return code, Handle(unpack_from("<Q", output)[0])

    def handle(self, index: int) -> Handle:
        code, handle = self.fetch(index)
        assert code == 0
        return handle

    def state(self, index: int) -> Answer:
        code, handle = self.fetch(index)
        return self.number("xpumlDeviceGetState", handle) if code == 0 else (code, 0)

    def pci(self, index: int) -> str:
        """busId, without the four zeros of its domain and in lower case: as sysfs has it."""
        code, record = self.call("xpumlDeviceGetPciInfo", self.handle(index), Output())
        assert code == 0
        return record[24:56].partition(b"\0")[0].decode().lower()[4:]

    def attributes(self, index: int) -> tuple[int, ...]:
        """arch, board, model; six engine counts; max VFs; memory and L3 in MiB."""
        code, record = self.call("xpumlDeviceGetAttributes", self.handle(index), Output())
        assert code == 0
        return unpack_from("<3i7I2Q", record)

    def model(self, index: int) -> int:
        return self.attributes(index)[2]

    def memory(self, index: int) -> tuple[int, ...]:
        """Page size, total, free, used; the same of L3; bytes."""
        code, record = self.call("xpumlDeviceGetMemoryInfo", self.handle(index), Output())
        assert code == 0
        return unpack_from("<8Q", record)

    def split(self, index: int, vfs: int) -> int:
        return self.call("xpumlDeviceSetSriovVfNum", self.handle(index), vfs)[0]


MakeGuest = Callable[..., Guest]


def serve(path: str, descriptor: int) -> None:
    """The child: a line in is a call, a line out its answer."""
    library = ctypes.CDLL(path)
    connection = socket.socket(fileno=descriptor)
    with connection, connection.makefile("rw", encoding="utf-8") as stream:
        while line := stream.readline():
            function, words = json.loads(line)
            outputs = []
            arguments: list[object] = []
            for kind, value, *rest in words:
                if kind == "output":
                    outputs.append(ctypes.create_string_buffer(rest[0].to_bytes(4, "little"), max(value, 4)))
                    arguments.append(outputs[-1])
                    if function.endswith(("Version", "Serial", "Name")):
                        arguments.append(ctypes.c_uint(value))
                elif kind == "handle":
                    arguments.append(ctypes.c_void_p(value))
                elif kind == "text":
                    arguments.append(value.encode())
                else:
                    arguments.append(ctypes.c_int(value))
            called = getattr(library, function)
            if function in TEXTS:
                called.restype = ctypes.c_char_p
            result = called(*arguments)
            text = result.decode() if isinstance(result, bytes) else result
            print(json.dumps([text, [output.raw.hex() for output in outputs]]), file=stream, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
