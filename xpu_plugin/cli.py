# SPDX-License-Identifier: Apache-2.0
"""The command line: the daemon, or the sub-command that the first argument names."""

import errno
import gc
import importlib
import io
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpu_plugin import log
from xpu_plugin.config import PROGRAM, Config, UsageError, read_config
from xpu_plugin.edges import kernel_log_rules, topology_file
from xpu_plugin.edges.kubelet.engine import NoRoomError, require_limits
from xpu_plugin.edges.option_file import OptionFileError, check_program
from xpu_plugin.edges.worker.process import WorkerProcess
from xpu_plugin.errors import PluginError


if TYPE_CHECKING:
    from xpu_plugin.model.timings import Timings


GRPC_ENVIRONMENT = {
    "GRPC_VERBOSITY": "ERROR",  # else it logs each connection that ends
    # The serving thread polls, not another one: two thread switches less for each call.
    "GRPC_EXPERIMENTS": "-event_engine_listener",
    # Fork handlers stop gRPC's threads and start them again. The interpreter starts a worker by vfork(),
    # without handlers, and by fork() if that fails for lack of processes. Then the threads cannot be started
    # again, and gRPC hangs for ever.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}
COMMANDS = ("list", "plan", "top", "topo", "doctor", "bundle", "clear", "cleanup", "simulate", "demo")


def main(arguments: list[str] | None = None, *, timings: "Timings | None" = None) -> int:
    """Run the program and return the exit status: 2 is bad usage, in every sub-command.

    timings: of the daemon, for tests
    """
    if arguments is None:
        arguments = sys.argv[1:]
    try:
        try:
            return _run(arguments, timings)
        finally:
            sys.stdout.flush()
    except UsageError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # as shells have it
    except OutputError as error:
        if error.errno != errno.EPIPE:  # else the reader has closed our output
            print(f"{PROGRAM}: cannot write standard output: {error}", file=sys.stderr)  # noqa: T201
        _drop_output()
        return 1
    except BrokenPipeError:  # noticed while a command waits to print again
        _drop_output()
        return 1


def take_streams() -> None:
    """Replace standard output and error.

    Characters that they cannot encode become backslash escapes. Failed writes to standard output raise
    OutputError.
    """
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(sys.stdout.fileno(), "wb", closefd=False)),
        encoding=sys.stdout.encoding,
        errors="backslashreplace",
        line_buffering=sys.stdout.isatty(),
    )
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


class OutputError(PluginError):
    """Standard output cannot be written. Not an OSError: argparse ignores those."""

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
    """Keep the interpreter from writing the rest of the output at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str], timings: "Timings | None") -> int:
    if arguments and arguments[0] in COMMANDS:
        command = importlib.import_module(f"xpu_plugin.commands.{arguments[0]}")
        status: int = command.main(arguments[1:])
        return status
    return _daemon(arguments, timings)


def _daemon(arguments: list[str], timings: "Timings | None") -> int:
    config, _, warnings = read_config(arguments, os.environ)
    try:
        topology_file.read(config.topology_file)  # bad input is refused before anything begins
        if config.kernel_log_rules is not None:
            kernel_log_rules.read_rules(config.kernel_log_rules)
        if config.probe:
            check_program("--probe", Path(config.probe[0]))
    except OptionFileError as error:
        raise UsageError(str(error)) from None
    worker: WorkerProcess | None = None

    def end(*_: object) -> None:
        if worker is not None:  # it would end by itself, a moment later
            worker.kill()
        os._exit(0)

    # There is no other part yet that would have to be stopped.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    for name, value in GRPC_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        require_limits()
    except NoRoomError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)  # noqa: T201 - the log needs a thread
        return 1
    gc.disable()  # imported modules stay for ever; `daemon.run` enables it again
    log.detach()  # also for the worker
    worker = _worker(config)
    from xpu_plugin import daemon  # noqa: PLC0415 - usage errors need no gRPC, and the worker has begun

    log.configure(level=config.log_level, form=config.log_format, handler=log.QueuedHandler())
    for warning in warnings:
        logging.getLogger(__name__).warning(log.Message("an option of the former plugin", detail=warning))
    return daemon.run(config, worker, timings=timings) if timings else daemon.run(config, worker)


def _worker(config: Config) -> WorkerProcess | None:
    """Start a worker for the first scan; None if that fails: its client reports the reason later."""
    try:
        return WorkerProcess(config.worker_environment)
    except OSError:
        return None
