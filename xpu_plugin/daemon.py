# SPDX-License-Identifier: Apache-2.0
"""The process of the plugin: signals, umask, event loop, exit status."""

import asyncio
import gc
import logging
import os
import signal
import sys
from typing import NoReturn

from xpu_plugin.config import Config
from xpu_plugin.edges.kubelet.pod_resources import reader
from xpu_plugin.edges.state.disk import state_thread
from xpu_plugin.edges.worker.process import WorkerProcess
from xpu_plugin.log import Message
from xpu_plugin.loops.scanner import InitError
from xpu_plugin.loops.supervision import described
from xpu_plugin.model.timings import USUAL, Timings
from xpu_plugin.plugin import AddressError, build
from xpu_plugin.plugin import run as run_parts


logger = logging.getLogger(__name__)

END_SECONDS = 0.7  # for all parts to end; a part that hangs is left behind

# The time for which a computing thread may block the others at each of their last steps. The usual 5 ms
# add up to half a second.
SWITCH_SECONDS = 1e-5


async def serve(config: Config, worker: WorkerProcess | None = None, timings: Timings = USUAL) -> int:
    """Run the plugin until SIGTERM or SIGINT; return the exit status. worker: one that was started already"""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    disk = state_thread()

    def end(*_: object) -> None:
        # The loop's own handlers end with the loop; after that a second signal would kill the process.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        sys.setswitchinterval(SWITCH_SECONDS)
        loop.call_soon_threadsafe(stop.set)
        disk.give_up()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    os.umask(0o077)  # before any socket or file is made
    reader()  # starts its thread, before a lack of threads

    plugin = build(config, timings=timings, spare=worker)
    loop.add_signal_handler(signal.SIGHUP, plugin.begin_anew)
    parts = asyncio.ensure_future(run_parts(plugin))
    ends = [asyncio.ensure_future(event.wait()) for event in (stop, plugin.serving.ended)]
    await asyncio.wait({parts, *ends}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        logger.info("stopping")
    for end_of in (*ends, parts):
        end_of.cancel()
    await asyncio.wait({parts}, timeout=END_SECONDS)
    await plugin.close()
    # asyncio logs the traceback of an error that is never retrieved.
    raised = parts.exception() if parts.done() and not parts.cancelled() else None
    error = plugin.serving.error or raised
    status = 0 if error is None else _failed(error, plugin.serving.part)
    if not parts.done():
        _abandon(parts, status)
    return status


def _failed(error: BaseException, part: str) -> int:
    """Log in one line why the plugin ends; return the exit status."""
    if isinstance(error, InitError | AddressError):
        logger.error(Message("the plugin ends with status 1", error=error))
    else:
        logger.error(
            Message(
                "the plugin ends with status 1, as an unforeseen error ended a part that serves",
                part=part,
                error=described(error),
            )
        )
        logger.debug("its traceback", exc_info=error)
    return 1


def _abandon(parts: asyncio.Future[None], status: int) -> NoReturn:
    """End the process without the parts that do not end."""
    names = sorted(task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()} - {parts})
    logger.warning(Message("parts that do not end are left behind", parts=names))
    logging.shutdown()
    os._exit(status)


def run(config: Config, worker: WorkerProcess | None = None, *, timings: Timings = USUAL) -> int:
    """Run the daemon on an event loop of its own."""
    logger.info(Message("starting", **config.shown()))
    gc.freeze()  # no collection looks at modules and classes any more
    gc.enable()
    try:
        return asyncio.run(serve(config, worker, timings))
    except Exception as error:  # noqa: BLE001 - logged in one line
        return _failed(error, "start")
