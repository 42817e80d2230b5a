# SPDX-License-Identifier: Apache-2.0
"""Checks of the kubelet's side: its directory and sockets, the holders, other plugins."""

from xpu_plugin.doctor.evidence import Evidence
from xpu_plugin.doctor.finding import Finding, error, ok, skipped, warning
from xpu_plugin.model.devices import DeviceKind
from xpu_plugin.model.inventory import is_old


_SEE_MOUNTS = "see that --device-plugin-dir and the pod's mount are the kubelet's directory"


def directory(evidence: Evidence) -> Finding:
    trouble = evidence.kubelet.directory_trouble
    return error(trouble, _SEE_MOUNTS) if trouble else ok("it is there and writable")


def socket(evidence: Evidence) -> Finding:
    kubelet = evidence.kubelet
    if kubelet.socket is not None:
        return error(kubelet.socket.reason, kubelet.socket.remedy or f"start the kubelet; {_SEE_MOUNTS}")
    return ok("the kubelet listens" + (f", for {kubelet.age:.0f} s" if kubelet.age is not None else ""))


def registration(evidence: Evidence) -> Finding:
    plugin = evidence.plugin
    if isinstance(plugin, str):
        if evidence.expected:
            return warning(f"no running plugin: {plugin}", "see that it runs, and its log")
        return skipped(
            f"no running plugin: {plugin}", "give --status-socket, and run this in the plugin's pod"
        )
    if evidence.library.trouble is not None and not evidence.library.rows:
        return skipped("the running plugin has no devices to register yet: see the check library")
    if not plugin.streams:
        return error(
            "the kubelet has no stream open to the running plugin",
            "see `cannot register` in the plugin's log, and the kubelet's log",
        )
    return ok(
        f"the kubelet has {plugin.streams} stream{'s' * (plugin.streams != 1)} open to the running plugin"
    )


def parts(evidence: Evidence) -> Finding:
    """Check that every part of the running plugin runs."""
    plugin = evidence.plugin
    if isinstance(plugin, str):
        return skipped(f"no running plugin: {plugin}")
    if plugin.down:
        failed = "; ".join(f"{part}: {why}" for part, why in sorted(plugin.down.items()))
        return error(
            f"parts of the running plugin have failed: {failed}",
            "they are tried again; if this lasts, report it with the output of `xpu-device-plugin bundle`",
        )
    return ok("every part of the running plugin runs")


def pod_resources(evidence: Evidence) -> Finding:
    """Check whether the kubelet's list of holders counts as complete."""
    kubelet, own = evidence.kubelet, evidence.own_pod
    if kubelet.list_trouble:
        return error(kubelet.list_trouble, "see the kubelet's log; no card is proven idle meanwhile")
    if kubelet.checkpoint_trouble:
        return error(kubelet.checkpoint_trouble, _SEE_MOUNTS)
    if kubelet.pods is None:
        return warning(
            "this kubelet has no pod resources API, so that no card is proven idle",
            "mount /var/lib/kubelet/pod-resources as a directory; Kubernetes 1.15 or newer has it; else "
            "consent by --vf-without-pod-resources",
        )
    if own is not None and own not in kubelet.pods:
        return warning(
            f"the kubelet lists {len(kubelet.pods)} pods, and not this plugin's own {own}",
            "see that the kubelet reaches the API server, and that POD_NAME and POD_NAMESPACE are right",
        )
    return ok(f"the kubelet lists {len(kubelet.pods)} pods" + (f", {own} among them" if own else ""))


def pods_api(evidence: Evidence) -> Finding:
    """Check whether the kubelet reports the ends of containers."""
    kubelet = evidence.kubelet
    if kubelet.ends_trouble:
        return warning(
            kubelet.ends_trouble,
            "see that the kubelet runs and reaches the API server; the other proofs count meanwhile",
        )
    if not kubelet.reports_ends:
        return ok(
            "this kubelet has no pods API, which came with Kubernetes 1.37: the other sources are asked"
        )
    return ok("the kubelet reports the ends of containers")


def second_plugin(evidence: Evidence) -> Finding:
    plugin, strangers = evidence.plugin, evidence.kubelet.strangers
    if not isinstance(plugin, str) and not plugin.alone:
        return error(
            "the running plugin waits, as another one works in the kubelet's directory",
            "remove the other DaemonSet, or let the roll-out end",
        )
    if not isinstance(plugin, str) and plugin.displaced:
        return error(
            "; ".join(plugin.displaced),
            "remove the other plugin (its DaemonSet), and delete the pods that it has given devices",
        )
    if strangers:
        return warning(
            f"beside ours there is {', '.join(strangers)}",
            "see that no other plugin offers XPUs under the same name",
        )
    if isinstance(plugin, str):
        return skipped(f"no running plugin: {plugin}")
    return ok("the running plugin is the only one that works here")


def former_ids(evidence: Evidence) -> Finding:
    held = sorted(
        f"{holding.container} (device {id})"
        for holding in evidence.kubelet.holdings
        for id in holding.ids
        if is_old(id) and holding.resource in evidence.ours
    )
    if held:
        return warning(
            f"held under ids of the former plugin: {', '.join(held)}",
            "delete these pods when convenient; their devices are offered under those ids until then",
        )
    return ok("no container holds a device under an id of the former plugin")


def exposure(evidence: Evidence) -> Finding:
    """Check for containers that could split idle cards: each container with an XPU has /dev/xpuctrl."""
    containers = sorted({holding.container for holding in evidence.kubelet.holdings if holding.ids})
    held = {id for holding in evidence.kubelet.holdings for id in holding.ids}
    idle = sorted(
        row.card
        for row in evidence.library.rows
        if row.kind == DeviceKind.WHOLE
        and row.max_vfs
        and held.isdisjoint((row.id, row.offered_as, row.path.removeprefix("/dev/xpu")))
    )
    if containers and idle:
        return warning(
            f"{', '.join(containers)} could split {', '.join(idle)}, which are idle",
            "give XPUs to pods that you trust only; their splits are reported as VFDrift, and put back "
            "unless the desired VF count is keep",
        )
    return ok("no container that has /dev/xpuctrl, or no idle card that can be split")
