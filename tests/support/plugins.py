# SPDX-License-Identifier: Apache-2.0
"""All parts of a plugin over a simulated machine and kubelet, as the plugin itself builds them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from xpu_plugin.config import SIMULATOR, Config
from xpu_plugin.plugin import Plugin, build


@asynccontextmanager
async def built(place: Path) -> AsyncIterator[Plugin]:
    """The parts, none of them started. Machine, kubelet and records are in `place`."""
    plugin = build(
        Config(
            xpuml_library=SIMULATOR,
            simulator_file=place / "machine",
            dev_root=place / "dev",
            sysfs_root=place / "sys",
            device_plugin_dir=place / "plugins",
            pod_resources_socket=place / "pods/kubelet.sock",
            pods_api_socket=place / "pods-api/pods-api.sock",
            state_dir=place / "state",
            pod_name="plugin",
            call_timeout=0.4,
        )
    )
    try:
        yield plugin
    finally:
        await plugin.close()
        plugin.tenures.lock.release()
