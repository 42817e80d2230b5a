# SPDX-License-Identifier: Apache-2.0
"""What `doctor` sees of the host and of the kubelet's directory: it looks at files, and changes none."""

import errno
import os
import re
import socket
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from xpu_plugin.doctor.evidence import HostEvidence, NodeFile
from xpu_plugin.edges import host, kernel_log
from xpu_plugin.edges.mounts import deleted
from xpu_plugin.model.devices import CONTROL_NODE
from xpu_plugin.model.obstacles import Obstacle


PROC = Path("/proc")
CONNECT_SECONDS = 2.0
_STRANGER = re.compile(r"xpu|kunlun|baidu", re.IGNORECASE)


def read_host(
    dev_root: Path,
    sysfs_root: Path,
    *,
    simulated: bool,
    ours: Collection[int] = (),
    proc_root: Path = PROC,
) -> HostEvidence:
    """Everything that the host's files say. ours: processes that may have XPU nodes open"""
    functions = {address: host.read_function(sysfs_root, address) for address in _addresses(sysfs_root)}
    return HostEvidence(
        control=_node(dev_root, CONTROL_NODE, simulated=simulated),
        nodes=tuple(
            node
            for name in _names(dev_root, r"xpu[0-9]+")
            if (node := _node(dev_root, name, simulated=simulated)) is not None
        ),
        majors=_majors(proc_root),
        functions=functions,
        linked_vfs={
            address: len(_names(sysfs_root / "bus/pci/devices" / address, r"virtfn[0-9]+"))
            for address in functions
        },
        addresses=host.read_host(dev_root, sysfs_root, simulated=simulated).addresses,
        cgroup_drivers=frozenset(_cgroup_drivers(sysfs_root / "fs/cgroup")),
        open_elsewhere=tuple(_open_nodes(dev_root, proc_root, ours)),
        kernel_log_trouble=kernel_log.trouble(dev_root / "kmsg"),
    )


def directory_trouble(directory: Path) -> str | None:
    """Why the kubelet's directory is of no use; None when it is."""
    try:
        with os.scandir(directory):
            pass
    except OSError as error:
        obstacle = Obstacle(path=os.fspath(directory), code=error.errno or errno.EIO)
        return f"{directory} is not there, or no directory" if obstacle.absent else str(obstacle)
    if (mount := deleted(directory)) is not None:
        return f"{mount} was deleted on the host since this pod has started; delete the plugin's pod"
    if not os.access(directory, os.W_OK):
        return f"{directory} is not writable"
    return None


def obstacle(path: Path) -> Obstacle | None:
    """Why there is no connection to a socket; None when a process listens."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(os.fspath(path))
        except OSError as error:
            return Obstacle(path=os.fspath(path), code=error.errno or errno.ETIMEDOUT)
    return None


def socket_age(path: Path) -> float | None:
    """Seconds since the socket was made, by the wall clock; None when it is not there."""
    try:
        return time.time() - path.stat().st_ctime
    except OSError:
        return None


def strangers(directory: Path, ours: str) -> tuple[str, ...]:
    """Sockets in the kubelet's directory that sound like XPUs, and do not begin with `ours`."""
    try:
        names = sorted(path.name for path in directory.iterdir() if path.is_socket())
    except OSError:
        return ()
    return tuple(name for name in names if _STRANGER.search(name) and not name.startswith(ours))


def listings(dev_root: Path, directory: Path) -> Mapping[str, list[str]]:
    """Listings of what is of interest in /dev and in the kubelet's directory, as `ls -l` has them."""
    return {
        str(dev_root): list(_listing(dev_root, r"xpu.*")),
        str(directory): list(_listing(directory, r".*")),
    }


# --- within -------------------------------------------------------------------------------------------


def _names(directory: Path, pattern: str) -> list[str]:
    """Names in a directory, numbers by their value."""
    try:
        names = [name for name in os.listdir(directory) if re.fullmatch(pattern, name)]  # noqa: PTH208
    except OSError:
        return []
    return sorted(names, key=lambda name: (len(name), name))


def _node(dev_root: Path, name: str, *, simulated: bool) -> NodeFile | None:
    try:
        status = (dev_root / name).stat(follow_symlinks=simulated)
    except OSError:
        return None
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    try:
        linked = (dev_root / "char" / f"{major}:{minor}").stat().st_rdev == status.st_rdev
    except OSError:
        linked = False
    return NodeFile(
        name=name,
        character=stat.S_ISCHR(status.st_mode),
        major=major,
        minor=minor,
        mode=stat.S_IMODE(status.st_mode),
        linked=linked,
        usable=os.geteuid() != 0 or os.access(dev_root / name, os.R_OK | os.W_OK),
    )


def _majors(proc_root: Path) -> Mapping[int, str] | None:
    try:
        text = (proc_root / "devices").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    lines = text.partition("Block devices")[0].splitlines()
    return {int(match[1]): match[2] for line in lines if (match := re.fullmatch(r"\s*(\d+) (\S+)", line))}


def _addresses(sysfs_root: Path) -> list[str]:
    """The vendor's functions, in order, and the cards of its VFs."""
    return sorted(host.vendor_functions(sysfs_root))


def _cgroup_drivers(root: Path) -> Iterator[str]:
    for top in (root, *(root / name for name in ("systemd", "devices", "memory"))):
        if (top / "kubepods.slice").is_dir():
            yield "systemd"
        if (top / "kubepods").is_dir():
            yield "cgroupfs"


def _open_nodes(dev_root: Path, proc_root: Path, ours: Collection[int]) -> Iterator[str]:
    node = re.compile(re.escape(os.fspath(dev_root)) + r"/(xpu[0-9]+|xpuctrl)")
    for pid in _names(proc_root, r"[0-9]+"):
        if int(pid) in ours:
            continue
        opened = {path for path in _links(proc_root / pid / "fd") if node.fullmatch(path)}
        if opened:
            yield f"{_command(proc_root / pid)} ({pid}): {', '.join(sorted(opened))}"


def _links(directory: Path) -> Iterator[str]:
    for name in _names(directory, r"[0-9]+"):
        try:
            yield str((directory / name).readlink())
        except OSError:
            continue  # it was closed, or its process has ended


def _command(process: Path) -> str:
    try:
        return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "a process"


def _listing(directory: Path, pattern: str) -> Iterator[str]:
    for name in _names(directory, pattern):
        try:
            status = (directory / name).lstat()
        except OSError:
            continue
        size = (
            f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            if stat.S_ISCHR(status.st_mode)
            else str(status.st_size)
        )
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status.st_mtime))
        yield f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid} {size} {when} {name}"
