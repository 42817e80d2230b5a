# SPDX-License-Identifier: Apache-2.0
"""Checks of the API server's side: the node's label, our rights, the clocks."""

from xpu_plugin.doctor.evidence import Evidence
from xpu_plugin.doctor.finding import Finding, error, ok, skipped, warning
from xpu_plugin.model import vf_plan


MOST_APART_SECONDS = 30.0  # clocks; more makes logs hard to compare
RIGHTS = (("list", "nodes"), ("watch", "nodes"), ("patch", "nodes"), ("create", "events"))
"""The rights that label mode needs."""
_RBAC = (
    "apply deployment/xpu-operator_rbac.authorization.k8s.io_v1_clusterrole.yaml and "
    "deployment/xpu-operator_rbac.authorization.k8s.io_v1_clusterrolebinding.yaml"
)


def label(evidence: Evidence) -> Finding:
    cluster = evidence.cluster
    if isinstance(cluster, str):
        return skipped(f"{cluster}: the argument --sriov-num-vfs counts")
    if "list nodes" in cluster.denied:
        return skipped("our account may not read the node: the label last seen counts, else --sriov-num-vfs")
    if cluster.trouble is not None:
        return warning(
            cluster.trouble, "see that the API server can be reached, and that the name is this node's"
        )
    if cluster.label is None:
        return ok(f"the node has no label {vf_plan.LABEL}: the argument counts")
    try:
        vf_plan.parse(cluster.label)
    except ValueError as bad:
        return error(
            f"{vf_plan.LABEL}: {bad}; the last valid desired VF count stays",
            f"kubectl label node NODE {vf_plan.LABEL}=N --overwrite",
        )
    return ok(f"{vf_plan.LABEL}={cluster.label}")


def rbac(evidence: Evidence) -> Finding:
    cluster = evidence.cluster
    if isinstance(cluster, str):
        return skipped(cluster)
    if cluster.rights_unknown is not None:
        return skipped(cluster.rights_unknown)
    if len(cluster.denied) == len(RIGHTS):
        return skipped("our account has none of the rights that label mode needs", f"for label mode, {_RBAC}")
    if cluster.denied:
        return warning(f"our account may not {', '.join(cluster.denied)}", f"for label mode, {_RBAC}")
    return ok("our account may do all that label mode needs")


def writes(evidence: Evidence) -> Finding:
    plugin = evidence.plugin
    if isinstance(plugin, str):
        return skipped(plugin)
    if plugin.unwritten is None:
        return skipped("the running plugin writes nothing on the node: it has no way to the API server")
    if plugin.unwritten:
        return warning(
            "; ".join(plugin.unwritten),
            'see "The API server" in docs/reference/messages.md; it is tried again',
        )
    return ok("all that the running plugin writes on the node is written")


def clock(evidence: Evidence) -> Finding:
    cluster, age = evidence.cluster, evidence.kubelet.age
    ahead = None if isinstance(cluster, str) else cluster.ahead
    if ahead is not None and abs(ahead) > MOST_APART_SECONDS:
        return warning(
            f"the API server's clock is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}",
            "have chrony or systemd-timesyncd set the clocks",
        )
    if age is not None and age < 0:
        return warning(
            f"the kubelet's socket was made {-age:.0f} s in the future: the clock was set back",
            "restart the kubelet: outside of a pod, its list counts only after a minute",
        )
    if ahead is None and age is None:
        return skipped("there is no other clock to compare with")
    return ok(
        "no clock disagrees" if ahead is None else f"the API server's clock is {ahead:+.0f} s from ours"
    )
