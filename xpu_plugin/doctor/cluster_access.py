# SPDX-License-Identifier: Apache-2.0
"""What the API server lets us do, and what it says of our node: asked once, for `doctor`."""

import time
from dataclasses import replace
from pathlib import Path

from xpu_plugin.doctor.checks.cluster import RIGHTS
from xpu_plugin.doctor.evidence import ClusterEvidence
from xpu_plugin.edges.apiserver.client import NODES, ApiServerClient, Failed, member
from xpu_plugin.edges.apiserver.node_watcher import NODE_LIST
from xpu_plugin.model import vf_plan


_JSON = "application/json"
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def look(kubeconfig: Path | None, node: str) -> ClusterEvidence:
    """What the API server says of the node and of our rights, asked once; takes seconds where it is away."""
    server = ApiServerClient(kubeconfig)
    cluster = _with_rights(server, ClusterEvidence())
    if "list nodes" in cluster.denied:
        return cluster
    query = {"fieldSelector": f"metadata.name={node}"}
    try:
        with server.open("GET", NODES, what="list nodes", accept=NODE_LIST, query=query) as answer:
            items = answer.whole().get("items") or []
    except Failed as failure:
        return replace(cluster, trouble=str(failure))
    if not items:
        return replace(cluster, trouble=f"the API server knows no node {node}")
    return replace(cluster, label=member(member(items[0], "metadata"), "labels").get(vf_plan.LABEL))


def _with_rights(server: ApiServerClient, cluster: ClusterEvidence) -> ClusterEvidence:
    """What we may not do, and what the server's clock says meanwhile."""
    for verb, resource in RIGHTS:
        body: dict[str, object] = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            # Events about a node are in this namespace; nodes are in none.
            "spec": {"resourceAttributes": {"verb": verb, "resource": resource, "namespace": "default"}},
        }
        asked = time.time()
        try:
            with server.open("POST", _REVIEWS, what="review our rights", accept=_JSON, body=body) as answer:
                if (date := answer.date()) is not None:
                    cluster = replace(cluster, ahead=date - asked)
                allowed = member(answer.whole(), "status").get("allowed") is True
        except Failed as failure:
            return replace(cluster, rights_unknown=str(failure))
        if not allowed:
            cluster = replace(cluster, denied=(*cluster.denied, f"{verb} {resource}"))
    return cluster
