# SPDX-License-Identifier: Apache-2.0
"""Wiring and signals: builds the parts, gives each what it needs, runs them until told to stop."""

import asyncio
import contextlib
import logging
import os
import signal

from xpu_plugin.config import LIBRARIES, SIMULATOR, Config
from xpu_plugin.edges.driver import Driver, Target
from xpu_plugin.edges.grants import GrantRecord
from xpu_plugin.edges.host import device_number
from xpu_plugin.edges.kubelet import Endpoint, InstanceLock, socket_name
from xpu_plugin.edges.service import DevicePluginService
from xpu_plugin.loops.backoff import delays
from xpu_plugin.loops.endpoints import Endpoints
from xpu_plugin.loops.holders import Holders
from xpu_plugin.loops.picture import NEVER, Picture
from xpu_plugin.loops.sweep import InitError, Sweep
from xpu_plugin.model.inventory import Policy
from xpu_plugin.simulation import library


logger = logging.getLogger(__name__)


def target(config: Config) -> Target:
    """What a worker is to open by this configuration."""
    if config.xpuml_library == SIMULATOR:
        libraries: tuple[str, ...] = (str(library.shipped()),)
    else:
        libraries = (config.xpuml_library,) if config.xpuml_library else LIBRARIES
    return Target(
        libraries=libraries,
        dev_root=config.dev_root,
        sysfs_root=config.sysfs_root,
        simulated=config.simulated,
        environment=library.environment(config.simulator_file, config.dev_root, config.sysfs_root)
        if config.simulator_file
        else {},
    )


def policy(config: Config) -> Policy:
    """What is to be offered by this configuration."""
    return Policy(
        resource=config.resource_name,
        per_profile=config.resource_per_profile,
        allow=config.allow,
        deny=config.deny,
    )


async def serve(config: Config) -> int:
    """Be the plugin until SIGTERM or SIGINT; returns the exit status."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    os.umask(0o077)  # before any socket or file is made

    driver = Driver(target(config), call_timeout=config.call_timeout)
    picture = Picture(policy(config))
    sweep = Sweep(
        driver,
        picture,
        interval=config.health_interval,
        fail_on_init_error=config.fail_on_init_error,
    )
    loop.add_signal_handler(signal.SIGHUP, sweep.rescan)
    parts = asyncio.ensure_future(_run(config, picture, sweep))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({parts, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        logger.info("stopping")
    stopping.cancel()
    parts.cancel()
    status = 0
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await parts
    except* InitError as errors:
        logger.error("%s", errors.exceptions[0])  # noqa: TRY400 - the sentence is for the administrator
        status = 1
    finally:
        await driver.close()
    return status


async def _run(config: Config, picture: Picture, sweep: Sweep) -> None:
    holders = Holders(
        picture,
        device_plugin_dir=config.device_plugin_dir,
        pod_resources_socket=config.pod_resources_socket,
    )
    lock = InstanceLock(config.device_plugin_dir)
    record = GrantRecord(config.state_dir)

    async def endpoint(resource: str) -> None:
        service = DevicePluginService(
            resource,
            current=lambda: picture.current,
            beyond=picture.beyond,
            node=lambda name: device_number(config.dev_root / name, simulated=config.simulated),
            record=record,
            on_grant=holders.granted,
        )
        await Endpoint(
            service,
            directory=config.device_plugin_dir,
            socket=socket_name(resource, config.resource_name),
            lock=lock,
            delays=delays,
        ).run()

    always = frozenset() if config.resource_per_profile else frozenset({config.resource_name})
    endpoints = Endpoints(picture, endpoint, always=always)
    async with asyncio.TaskGroup() as group:
        group.create_task(sweep.run(), name="sweep")
        await picture.beyond(NEVER)
        for name in picture.policy.unmatched(picture.facts.devices.values()):
            logger.warning("--allow or --deny names %s, which no device of this node is", name)
        await holders.first_look()  # before the first list goes out
        group.create_task(holders.run(), name="holders")
        group.create_task(endpoints.run(), name="endpoints")


def run(config: Config) -> int:
    """Run the daemon on an event loop of its own."""
    logger.info("starting %s", config.text())
    return asyncio.run(serve(config))
