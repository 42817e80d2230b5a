# SPDX-License-Identifier: Apache-2.0
"""Checks of the kernel's side: device nodes, PCI functions, control groups, processes with open nodes."""

from collections.abc import Iterable

from xpu_plugin.doctor.evidence import Evidence, NodeFile
from xpu_plugin.doctor.finding import Finding, error, ok, skipped, warning
from xpu_plugin.model.device_table import Row
from xpu_plugin.model.devices import DeviceKind


NO_XPU = "this node has no XPU on its PCI bus, and no driver of one"
_ALL_USERS = 0o666
_LOAD = "load the kunlun driver and look at the kernel's log; in a container, mount the /dev of the host"
_UDEV = "have udev give the nodes mode 0666 (the vendor's /etc/udev/rules.d/99-kunlun.rules)"
_PRIVILEGED = "run the pod privileged; on a host with SELinux or AppArmor see its audit log"


def control_node(evidence: Evidence) -> Finding:
    host, node = evidence.host, evidence.host.control
    if node is None:
        if host.empty:
            return skipped(NO_XPU)
        return error(
            f"there is no xpuctrl, and {_count(len(host.functions), 'XPU function')} on the bus", _LOAD
        )
    if not node.character:
        return error("xpuctrl is not a character device", _LOAD)
    driver = (host.majors or {}).get(node.major)
    if driver is None and host.majors is not None and not evidence.simulated:
        return error(f"xpuctrl is {_number(node)}, and no driver has major {node.major}", _LOAD)
    if not node.usable and not evidence.simulated:
        return error("xpuctrl may not be opened by this process", _PRIVILEGED)
    if node.mode & _ALL_USERS != _ALL_USERS:
        return warning(
            f"xpuctrl has mode {node.mode:04o}: only root can use an XPU, also in containers", _UDEV
        )
    return ok(f"xpuctrl is {_number(node)}, mode {node.mode:04o}" + (f", driver {driver}" if driver else ""))


def device_nodes(evidence: Evidence) -> Finding:
    host, nodes = evidence.host, evidence.host.nodes
    if host.empty:
        return skipped(NO_XPU)
    if not nodes:
        return error(f"{_count(len(host.functions), 'XPU function')} on the bus and no xpuN in /dev", _LOAD)
    if bad := [node.name for node in nodes if not node.character]:
        return error(f"not character devices: {', '.join(bad)}", "remove them and load the driver again")
    if host.control and (bad := [_named(node) for node in nodes if node.major != host.control.major]):
        return error(
            f"other majors than xpuctrl's {host.control.major}: {', '.join(bad)}",
            "these are nodes of a driver that is gone: remove them and load the driver again",
        )
    if bad := [node.name for node in nodes if node.mode & _ALL_USERS != _ALL_USERS]:
        return warning(f"not open to all users, so that only root can use them: {', '.join(bad)}", _UDEV)
    return ok(", ".join(_named(node) for node in nodes))


def char_links(evidence: Evidence) -> Finding:
    if evidence.simulated:
        return skipped("simulated nodes have none")
    nodes = _all_nodes(evidence)
    if not nodes:
        return skipped(NO_XPU)
    if bad := [_number(node) for node in nodes if not node.linked]:
        return warning(
            f"/dev/char has no link for {', '.join(bad)}",
            "udevadm trigger, or ln -s ../xpuN /dev/char/MAJOR:MINOR: without, runc 1.1.3 and newer with "
            "systemd cgroups takes devices from running containers",
        )
    return ok(f"/dev/char has {_count(len(nodes), 'link')}")


def container_files(evidence: Evidence) -> Finding:
    """Check that the host has each file of --mount-xre and --mount-file."""
    if isinstance(evidence.plugin, str) or not (files := evidence.plugin.files):
        return skipped("no running plugin gives files to containers")
    if lacking := [f"{path}: {why}" for path, why in files.items() if why is not None]:
        return warning(
            f"containers start without {'; '.join(lacking)}",
            "install XRE on the host, mount its directory below /host, or correct --mount-file",
        )
    return ok(f"the host has {', '.join(files)}")


def cgroup_driver(evidence: Evidence) -> Finding:
    drivers = evidence.host.cgroup_drivers
    if not drivers:
        return skipped("no control groups of a kubelet are in sight")
    if len(drivers) > 1:
        return warning(
            "there are groups made by systemd and by cgroupfs",
            "configure kubelet and container runtime for the same cgroup driver; old groups stay until the "
            "node is booted",
        )
    (driver,) = drivers
    unlinked = [node.name for node in _all_nodes(evidence) if not node.linked]
    if driver == "systemd" and unlinked and not evidence.simulated:
        return error(
            f"the cgroup driver is systemd and /dev/char lacks links for {', '.join(unlinked)}: containers "
            "lose their devices at the next systemctl daemon-reload",
            "make the links: see char-links",
        )
    return ok(f"the cgroup driver is {driver}")


def functions(evidence: Evidence) -> Finding:
    """Compare PFs and VFs by the kernel's numbers, its links and the library's devices."""
    host, rows = evidence.host, evidence.library.rows
    if not host.functions:
        return skipped("sysfs shows no function of the vendor")
    wrong, odd = [], []
    for address, function in host.functions.items():
        if function.num_vfs is None:
            continue
        linked, known = host.linked_vfs.get(address, 0), _vfs(rows, address)
        if linked != function.num_vfs:
            wrong.append(f"{address}: sriov_numvfs is {function.num_vfs}, and {linked} are linked")
        elif evidence.library.trouble is None and known != linked:
            odd.append(f"{address}: {linked} VFs by sysfs, {known} by the library")
    orphans = sorted(
        address
        for address, function in host.functions.items()
        if function.physfn is not None and function.physfn not in host.functions
    )
    wrong += [f"{address}: its card {host.functions[address].physfn} is not there" for address in orphans]
    if wrong:
        return error("; ".join(wrong), "reload the driver; see that /sys is the host's")
    if odd:
        return warning(
            "; ".join(odd),
            "a VF that was bound to vfio-pci is in a virtual machine; else look at the kernel's log",
        )
    split = [address for address, function in host.functions.items() if function.num_vfs]
    return ok(f"{_count(len(host.functions), 'function')}, {_count(len(split), 'card')} split; all agree")


def driver_unload(evidence: Evidence) -> Finding:
    others = evidence.host.open_elsewhere
    plugin = evidence.plugin
    if others:
        return warning(
            f"XPU nodes are open in {', '.join(others)}",
            "end them before cards are split or the driver is unloaded",
        )
    if not isinstance(plugin, str) and plugin.worker is not None:
        return ok(
            f"of the processes in sight only the plugin's worker {plugin.worker} uses the driver; unloading "
            "it needs the plugin's pod stopped"
        )
    return ok("no process in sight has an XPU's node open")


def kernel_log(evidence: Evidence) -> Finding:
    plugin, trouble = evidence.plugin, evidence.host.kernel_log_trouble
    if evidence.host.empty:
        return skipped(NO_XPU)
    mode = None
    if not isinstance(plugin, str) and plugin.kernel_log is not None:
        mode, trouble = plugin.kernel_log, plugin.kernel_log_trouble
    if mode == "off":
        return skipped("--kernel-log is off")
    if evidence.simulated and mode is None:
        return skipped("the simulated machine may have none")
    if trouble is not None:
        return warning(
            f"{trouble}: a card that hangs and answers all queries is not noticed",
            "do as it says, or set --kernel-log off",
        )
    sick = {} if isinstance(plugin, str) else plugin.sick
    if sick:
        return warning(
            "; ".join(f"{id}: {why}" for id, why in sorted(sick.items())),
            "run a test job on the card; replace it or reset it, or: xpu-device-plugin clear ID",
        )
    return ok(
        "it can be read" if mode is None else f"it is followed, --kernel-log {mode}; no card is sick by it"
    )


def _vfs(rows: Iterable[Row], card: str) -> int:
    return sum(row.card == card and row.kind == DeviceKind.VF for row in rows)


def _all_nodes(evidence: Evidence) -> list[NodeFile]:
    control = evidence.host.control
    found = [*evidence.host.nodes, *((control,) if control else ())]
    return [node for node in found if node.character]


def _number(node: NodeFile) -> str:
    return f"{node.major}:{node.minor}"


def _named(node: NodeFile) -> str:
    return f"{node.name} {_number(node)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
