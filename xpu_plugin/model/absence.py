# SPDX-License-Identifier: Apache-2.0
"""The reason why a known device is missing in a scan, and the remedy."""

from os import strerror

from xpu_plugin.model.devices import Device, Scan
from xpu_plugin.model.health import LOST, NODE_MISSING, Health


_XPU_DRIVERS = ("kunlun", "xpu_driver")  # since release 4.0, and before


def absent(device: Device, scan: Scan) -> Health:
    """Return `lost` if sysfs does not show the PCI function either; else `node-missing`, with the reason."""
    function = scan.host.functions.get(device.address)
    if function is None:
        return LOST
    if function.driver is None:
        return _missing(f"its PCI function is bound to no driver: bind it to {_XPU_DRIVERS[0]} again")
    if function.driver not in _XPU_DRIVERS:
        return _missing(
            f"its PCI function is bound to {function.driver}, as for a virtual machine: bind it to "
            f"{_XPU_DRIVERS[0]} again, or send the plugin SIGHUP to forget it"
        )
    errno = scan.refused.get(device.node.number)
    if errno is not None and scan.host.addresses.get(device.node.number) == device.address:
        return _missing(f"its node {device.path} cannot be opened ({strerror(errno)})")
    return NODE_MISSING


def _missing(text: str) -> Health:
    return Health(NODE_MISSING.reason, text)
