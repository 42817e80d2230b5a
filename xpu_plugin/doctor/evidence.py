# SPDX-License-Identifier: Apache-2.0
"""The evidence for the checks of `doctor`, collected in one pass. A missing part is None, or says why."""

from collections.abc import Mapping
from dataclasses import field

from xpu_plugin.frozen import frozen
from xpu_plugin.model.device_table import Row
from xpu_plugin.model.devices import Function
from xpu_plugin.model.obstacles import Obstacle
from xpu_plugin.model.ownership import Holding
from xpu_plugin.model.unlisted import Unlisted


@frozen
class NodeFile:
    """A file with the name of a device node."""

    name: str
    character: bool = True  # it is a character device
    major: int = 0
    minor: int = 0
    mode: int = 0o666  # the permission bits
    linked: bool = True  # /dev/char has a link to it
    usable: bool = True  # device cgroup, SELinux and AppArmor let root open it; True if we are not root


@frozen
class HostEvidence:
    """Files of the host."""

    control: NodeFile | None = None  # None if there is none
    nodes: tuple[NodeFile, ...] = ()  # all files called xpuN
    majors: Mapping[int, str] | None = None  # of character devices, by /proc/devices; None if unreadable
    functions: Mapping[str, Function] = field(default_factory=dict)  # of the vendor, by PCI address
    linked_vfs: Mapping[str, int] = field(default_factory=dict)  # card -> number of its `virtfnK` links
    addresses: Mapping[int, str] = field(default_factory=dict)  # N of /dev/xpuN -> PCI address, by class/xpu
    cgroup_drivers: frozenset[str] = frozenset()  # makers of the kubelet's groups: `systemd`, `cgroupfs`
    kernel_log_trouble: str | None = None  # why the kernel's log cannot be read
    # Visible processes other than our worker that have an XPU's node open: `name (pid): path`.
    open_elsewhere: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Return whether there is neither an XPU nor its driver."""
        return not (self.control or self.nodes or self.functions)


@frozen
class LibraryEvidence:
    """The library's answers, by the running plugin or by a worker of our own."""

    trouble: str | None = None  # why it does not answer
    unwatched: bool = False  # it is not called, as a worker ended while the driver changes a card's VFs
    path: str | None = None
    version: str | None = None
    driver_version: str | None = None
    driver_release: str | None = None
    rows: tuple[Row, ...] = ()
    problems: tuple[str, ...] = ()  # a sentence for each index or node without a device
    unlisted: tuple[Unlisted, ...] = ()
    hung: tuple[str, ...] = ()  # a sentence for each device at which it hung or crashed


@frozen
class PluginEvidence:
    """The running plugin."""

    streams: int
    alone: bool
    worker: int | None
    displaced: tuple[str, ...] = ()  # a sentence for each resource name that another plugin has registered
    replaced: bool | None = None  # the library's file is not the one that the worker loaded; None if unknown
    replacement_trouble: str | None = None  # why the present file cannot be used
    # Host files that containers get -> why the host has it not, None if it has it.
    files: Mapping[str, str | None] = field(default_factory=dict)
    # A sentence for each kind of write to the node that failed last; None if the plugin writes nothing.
    unwritten: tuple[str, ...] | None = None
    down: Mapping[str, str] = field(default_factory=dict)  # failed parts, each with the reason
    kernel_log: str | None = None  # --kernel-log; None if unknown
    kernel_log_trouble: str | None = None  # why it cannot be read
    sick: Mapping[str, str] = field(default_factory=dict)  # device id -> why it is sick by that log


@frozen
class KubeletEvidence:
    """The kubelet's side. Troubles are sentences, None if all is well."""

    directory_trouble: str | None = None
    socket: Obstacle | None = None  # why there is no connection to the kubelet's socket
    age: float | None = None  # seconds since its socket was made, by this node's clock
    strangers: tuple[str, ...] = ()  # sockets of other plugins with names that suggest XPUs
    pods: frozenset[str] | None = None  # `namespace/name` of listed pods; None without the API
    list_trouble: str | None = None
    checkpoint_trouble: str | None = None
    reports_ends: bool = False  # the pods API answers
    ends_trouble: str | None = None  # why it does not; None without it
    holdings: tuple[Holding, ...] = ()  # by list and checkpoint


@frozen
class ClusterEvidence:
    """The API server's side."""

    trouble: str | None = None  # why the node could not be read
    label: str | None = None  # of the node; None if it has none
    denied: tuple[str, ...] = ()  # `verb resource` without a right of our account
    rights_unknown: str | None = None  # why the rights are unknown
    ahead: float | None = None  # seconds by which its clock is ahead of ours


@frozen
class Evidence:
    """The evidence as a whole."""

    simulated: bool = False  # nodes and library are the simulator's
    desired: int | None = None  # desired VF count, None for `keep`
    own_pod: str | None = None
    ours: frozenset[str] = frozenset()  # resource names under which a former id is ours
    host: HostEvidence = HostEvidence()
    library: LibraryEvidence = LibraryEvidence()
    plugin: PluginEvidence | str = "none answers"  # a text: why there is none
    expected: bool = False  # a plugin should be running
    kubelet: KubeletEvidence = KubeletEvidence()
    cluster: ClusterEvidence | str = "no credentials for an API server"  # a text: why it cannot be asked
