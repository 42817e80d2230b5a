# SPDX-License-Identifier: Apache-2.0
"""The registry of all checks; each comes after those on which it depends."""

from xpu_plugin.doctor.checks import cluster, host, kubelet, library
from xpu_plugin.doctor.evidence import Evidence
from xpu_plugin.doctor.finding import Check, Finding


CHECKS = tuple(
    Check(name=name, about=about, judge=judge)
    for name, about, judge in (
        ("control-node", "/dev/xpuctrl: there, of a driver, its mode", host.control_node),
        ("device-nodes", "/dev/xpuN: character devices of the same major, their modes", host.device_nodes),
        ("char-links", "/dev/char/MAJOR:MINOR for each of them", host.char_links),
        ("library", "libxpuml: found, complete, recent enough", library.library),
        ("driver-match", "the library's release against the driver's", library.driver_match),
        ("worker-library", "the running worker's library against the file", library.worker_library),
        ("devices-answer", "every device answers, and runs", library.devices_answer),
        ("listed-nodes", "every /dev/xpuN is a device of the library", library.listed_nodes),
        ("ranking", "which /dev/xpuN a device is, by the library and by sysfs", library.ranking),
        ("functions", "PFs and VFs, by sysfs and by the library", host.functions),
        ("vf-capability", "the desired VF count against the cards' maximum", library.vf_capability),
        ("driver-unload", "processes that have XPU nodes open", host.driver_unload),
        ("kernel-log", "the kernel's log can be read, and shows no sick card", host.kernel_log),
        ("cgroup-driver", "systemd or cgroupfs, and its requirements", host.cgroup_driver),
        ("container-files", "files of the host that containers get", host.container_files),
        ("kubelet-directory", "the kubelet's directory of device plugins", kubelet.directory),
        ("kubelet-socket", "the kubelet listens", kubelet.socket),
        ("registration", "the kubelet has a stream open to the running plugin", kubelet.registration),
        ("plugin-parts", "every part of the running plugin runs", kubelet.parts),
        ("second-plugin", "other plugins that offer XPUs", kubelet.second_plugin),
        ("pod-resources", "whether the kubelet's list of holders counts as complete", kubelet.pod_resources),
        ("pods-api", "whether the kubelet reports the ends of containers", kubelet.pods_api),
        ("former-ids", "containers with ids of the former plugin", kubelet.former_ids),
        ("xpuctrl-exposure", "containers that could split idle cards", kubelet.exposure),
        ("node-label", "the label's syntax", cluster.label),
        ("rbac", "the account's rights", cluster.rbac),
        ("node-writes", "failed writes of the running plugin to the node", cluster.writes),
        ("clock", "against the API server and the kubelet's socket", cluster.clock),
    )
)


def diagnose(evidence: Evidence) -> tuple[tuple[Check, Finding], ...]:
    """Return every check's finding."""
    return tuple((check, check.judge(evidence)) for check in CHECKS)
