# SPDX-License-Identifier: Apache-2.0
"""The command line: the daemon itself, or a sub-command named by the first argument."""

import errno
import gc
import importlib
import io
import logging
import os
import signal
import sys
from typing import Any

from xpu_plugin import log
from xpu_plugin.config import PROGRAM, Config, UsageError, read_config
from xpu_plugin.edges.engine import NoRoomError, require_limits
from xpu_plugin.edges.process import WorkerProcess
from xpu_plugin.errors import PluginError


GRPC_ENVIRONMENT = {
    "GRPC_VERBOSITY": "ERROR",  # or it tells of each connection that ends
    # Its server polls in the thread that serves, not in another: two hand-overs less for each call.
    "GRPC_EXPERIMENTS": "-event_engine_listener",
    # Its fork handlers end its threads and start them again. The interpreter starts a worker by vfork(),
    # without them, and by fork() where that fails for lack of processes. The threads then cannot be started
    # again, and gRPC hangs for ever.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}
COMMANDS = ("list", "plan", "top", "doctor", "bundle", "clear", "cleanup", "simulate", "demo")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 2 is usage, in every sub-command."""
    if arguments is None:
        arguments = sys.argv[1:]
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except UsageError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # as shells have it
    except OutputError as error:
        if error.errno != errno.EPIPE:  # else the reader of our output has had enough
            print(f"{PROGRAM}: cannot write standard output: {error}", file=sys.stderr)  # noqa: T201
        _drop_output()
        return 1
    except BrokenPipeError:  # seen while a command waits to print again
        _drop_output()
        return 1


def take_streams() -> None:
    """Show what standard output and error cannot encode with backslashes, and raise OutputError for what
    cannot be written to the former."""
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(sys.stdout.fileno(), "wb", closefd=False)),
        encoding=sys.stdout.encoding,
        errors="backslashreplace",
        line_buffering=sys.stdout.isatty(),
    )
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


class OutputError(PluginError):
    """Standard output cannot be written. No OSError: argparse passes over those."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.errno = error.errno


class _Output(io.FileIO):
    def write(self, data: Any, /) -> int:  # `Any`: Python 3.11 has no name for buffers
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(error) from None


def _drop_output() -> None:
    """Keep the interpreter from writing at its exit what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        command = importlib.import_module(f"xpu_plugin.commands.{arguments[0]}")
        status: int = command.main(arguments[1:])
        return status
    return _daemon(arguments)


def _daemon(arguments: list[str]) -> int:
    config, _, warnings = read_config(arguments, os.environ)
    worker: WorkerProcess | None = None

    def end(*_: object) -> None:
        if worker is not None:  # it would end by itself, a moment later
            worker.kill()
        os._exit(0)

    # Nothing else is there yet that would have to be taken down.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    for name, value in GRPC_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        require_limits()
    except NoRoomError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)  # noqa: T201 - the log needs a thread
        return 1
    gc.disable()  # what is imported stays for ever; `daemon.run` goes on from there
    log.detach()  # the worker's as well
    worker = _worker(config)
    from xpu_plugin import daemon  # noqa: PLC0415 - usage errors need no gRPC, and the worker has begun

    log.configure(level=config.log_level, form=config.log_format, handler=log.QueuedHandler())
    for warning in warnings:
        logging.getLogger(__name__).warning("%s", warning)
    return daemon.run(config, worker)


def _worker(config: Config) -> WorkerProcess | None:
    """A worker for the first scan, None if there is no room for one: that is for the driver to say."""
    try:
        return WorkerProcess(config.worker_environment)
    except OSError:
        return None
