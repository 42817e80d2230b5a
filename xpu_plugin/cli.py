# SPDX-License-Identifier: Apache-2.0
"""The command line: the daemon itself, or a sub-command named by the first argument."""

import gc
import importlib
import logging
import os
import signal
import sys

from xpu_plugin.config import PROGRAM, Config, UsageError, read_config
from xpu_plugin.edges.process import WorkerProcess


GRPC_ENVIRONMENT = {
    "GRPC_VERBOSITY": "ERROR",  # or it tells of each connection that ends
    # Its server polls in the thread that serves, not in another: two hand-overs less for each call.
    "GRPC_EXPERIMENTS": "-event_engine_listener",
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
    except BrokenPipeError:
        # Whoever read our output has had enough; keep the interpreter from saying so at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


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

    # Nothing else is there yet that would have to be taken down; and as a container's first process we would
    # not even notice a signal without a handler.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it asks for a scan; the first is to come yet
    for name, value in GRPC_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    gc.disable()  # what is imported stays for ever; `daemon.run` goes on from there
    worker = _worker(config)
    from xpu_plugin import daemon, log  # noqa: PLC0415 - usage errors need no gRPC, and the worker has begun

    log.configure(level=config.log_level, form=config.log_format)
    for warning in warnings:
        logging.getLogger(__name__).warning("%s", warning)
    return daemon.run(config, worker)


def _worker(config: Config) -> WorkerProcess | None:
    """A worker for the first scan, None if there is no room for one: that is for the driver to say."""
    try:
        return WorkerProcess(config.worker_environment)
    except OSError:
        return None
