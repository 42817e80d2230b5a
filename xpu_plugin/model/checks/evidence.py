# SPDX-License-Identifier: Apache-2.0
"""What the checks of `doctor` rest on, as seen in one pass. What could not be seen is None, or says why."""

from collections.abc import Mapping
from dataclasses import field

from xpu_plugin.frozen import frozen
from xpu_plugin.model.devices import Function
from xpu_plugin.model.holders import Holding
from xpu_plugin.model.obstacles import Obstacle
from xpu_plugin.model.rows import Row
from xpu_plugin.model.unlisted import Unlisted


@frozen
class NodeFile:
    """What is at the name of a device node. character: whether it is a character device

    mode: the permission bits; linked: whether /dev/char has a link to it
    usable: whether root may open it, by device cgroup, SELinux and AppArmor; true where we are not root
    """

    name: str
    character: bool = True
    major: int = 0
    minor: int = 0
    mode: int = 0o666
    linked: bool = True
    usable: bool = True


@frozen
class Host:
    """Files of the host.

    control: None where there is none; nodes: whatever is called xpuN
    majors: of character devices, as /proc/devices names them; None where that cannot be read
    functions: those of the vendor, by PCI address; linked_vfs: card -> how many `virtfnK` it has
    addresses: N of /dev/xpuN -> PCI address, by class/xpu
    cgroup_drivers: what has made the kubelet's groups, `systemd` or `cgroupfs`
    open_elsewhere: processes in sight, not our worker, that have an XPU's node open: `name (pid): path`
    """

    control: NodeFile | None = None
    nodes: tuple[NodeFile, ...] = ()
    majors: Mapping[int, str] | None = None
    functions: Mapping[str, Function] = field(default_factory=dict)
    linked_vfs: Mapping[str, int] = field(default_factory=dict)
    addresses: Mapping[int, str] = field(default_factory=dict)
    cgroup_drivers: frozenset[str] = frozenset()
    open_elsewhere: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """No XPU, and no driver of one."""
        return not (self.control or self.nodes or self.functions)


@frozen
class Library:
    """What it says, by the running plugin or by a worker of our own.

    trouble: why it says nothing; hung: a sentence for each device at which it hung or crashed
    unwatched: it is not asked, as a worker ended while the driver changes the VFs of a card
    rows: the devices; problems: why something is none; unlisted: device nodes that it does not list
    """

    trouble: str | None = None
    unwatched: bool = False
    path: str | None = None
    version: str | None = None
    driver_version: str | None = None
    driver_release: str | None = None
    rows: tuple[Row, ...] = ()
    problems: tuple[str, ...] = ()
    unlisted: tuple[Unlisted, ...] = ()
    hung: tuple[str, ...] = ()


@frozen
class Plugin:
    """The running plugin. replaced: whether the library's file is another one than its worker has loaded,
    None where that cannot be seen; replacement_trouble: why that file cannot be used

    unwritten: a sentence for each kind of writing on the node that failed last, None where none is done
    displaced: a sentence for each resource name that another plugin has registered
    down: parts that have failed, each with the reason
    """

    streams: int
    alone: bool
    worker: int | None
    displaced: tuple[str, ...] = ()
    replaced: bool | None = None
    replacement_trouble: str | None = None
    unwritten: tuple[str, ...] | None = None
    down: Mapping[str, str] = field(default_factory=dict)


@frozen
class Kubelet:
    """The kubelet's side. Troubles are sentences, None where all is well.

    socket: why there is no connection to the kubelet's socket

    age: seconds since its socket was made, by this clock
    strangers: sockets of others beside ours that sound like XPUs
    pods: `namespace/name` of those listed, None without such an API; holdings: by list and checkpoint
    """

    directory_trouble: str | None = None
    socket: Obstacle | None = None
    age: float | None = None
    strangers: tuple[str, ...] = ()
    pods: frozenset[str] | None = None
    list_trouble: str | None = None
    checkpoint_trouble: str | None = None
    holdings: tuple[Holding, ...] = ()


@frozen
class Cluster:
    """The API server's side.

    trouble: why the node could not be read; label: of the node, None where it has none
    denied: `verb resource` that our account may not; rights_unknown: why that is not known
    ahead: seconds that its clock is before ours
    """

    trouble: str | None = None
    label: str | None = None
    denied: tuple[str, ...] = ()
    rights_unknown: str | None = None
    ahead: float | None = None


@frozen
class Evidence:
    """All of it. simulated: whether nodes and library are

    wish: VFs that each card is to have, None for `keep`; ours: resource names under which a former id is ours
    plugin, cluster: or why there is none to ask; expected: whether a plugin should be there
    """

    simulated: bool = False
    desired: int | None = None
    own_pod: str | None = None
    ours: frozenset[str] = frozenset()
    host: Host = Host()
    library: Library = Library()
    plugin: Plugin | str = "none answers"
    expected: bool = False
    kubelet: Kubelet = Kubelet()
    cluster: Cluster | str = "no credentials for an API server"
