# SPDX-License-Identifier: Apache-2.0
"""The plugin's service account, the rights that deployment/ gives it, and a kubeconfig with its token."""

import json
import os
from pathlib import Path

from .cluster import LABEL, Cluster
from .waiting import wait_until


NAME = "xpu-device-plugin"
NAMESPACE = "kube-system"
USER = f"system:serviceaccount:{NAMESPACE}:{NAME}"
STRANGER = f"system:serviceaccount:{NAMESPACE}:{LABEL}-stranger"
"""A service account without any rights; it need not exist."""

DEPLOYMENT = Path(__file__).parents[2] / "deployment"
RIGHTS = tuple(
    f"--filename={DEPLOYMENT / f'xpu-operator_rbac.authorization.k8s.io_v1_{kind}.yaml'}"
    for kind in ("clusterrole", "clusterrolebinding")
)

FURTHER = {name: f"--filename={DEPLOYMENT / f'{name}.yaml'}" for name in ("node-condition", "pod-events")}
"""The rights of options that have a role of their own."""

RIGHTS_SECONDS = 10
"""For the API server to act by new rights: it follows them at a little distance."""
TOKEN_SECONDS = 3600


class Access:
    """What the plugin may do in the cluster, from `create` to `remove`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def foreign(self) -> bool:
        """Whether there is such a service account that the suite has not made."""
        account = self._cluster.kubectl(
            "get", "serviceaccount", NAME, f"--namespace={NAMESPACE}", "--ignore-not-found", "--output=json"
        )
        return bool(account) and LABEL not in json.loads(account)["metadata"].get("labels", {})

    def create(self) -> None:
        """Make the service account, and give it its rights."""
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {LABEL: ""}},
        }
        self._cluster.kubectl("create", f"--namespace={NAMESPACE}", "--filename=-", stdin=json.dumps(account))
        self.give()

    def give(self) -> None:
        """Apply the rights, and wait until they count."""
        self._cluster.kubectl("apply", *RIGHTS)
        self._wait(allowed=True)

    def give_further(self) -> None:
        """Apply those of the options with a role of their own too, and wait until they count."""
        self._cluster.kubectl("apply", *FURTHER.values())
        for right in (
            ("patch", "nodes", "--subresource=status"),
            ("create", "events", "--namespace=kube-system"),
        ):
            wait_until(
                f"{USER} may {' '.join(right)}",
                lambda right=right: self.may(*right),  # type: ignore[misc]  # of this turn of the loop
                bool,
                seconds=RIGHTS_SECONDS,
            )

    def take(self) -> None:
        """Delete the rights, and wait until they do not count any more."""
        self._cluster.kubectl("delete", "--ignore-not-found", *RIGHTS, *FURTHER.values())
        self._wait(allowed=False)

    def remove(self) -> None:
        """Leave nothing of it."""
        self.take()
        account = ("serviceaccount", NAME, f"--namespace={NAMESPACE}")
        self._cluster.kubectl("delete", *account, "--ignore-not-found")

    def may(self, *right: str) -> bool:
        """What the API server says of one right: a verb, a resource, and options of `kubectl auth can-i`."""
        question = ("auth", "can-i", *right, f"--as={USER}")
        answer = self._cluster.kubectl(*question, accept=(0, 1)).strip()
        assert answer in {"yes", "no"}, f"{' '.join(question)}: {answer!r}"
        return answer == "yes"

    def rights(self, user: str = USER) -> list[str]:
        """All that it may do, a line each, as `kubectl auth can-i --list` has it."""
        lines = self._cluster.kubectl("auth", "can-i", "--list", f"--as={user}").splitlines()[1:]
        return sorted(" ".join(line.split()) for line in lines)

    def write_kubeconfig(self, path: Path) -> None:
        """Write down the way to the API server with a fresh token, in a file for its owner alone."""
        admin = json.loads(
            self._cluster.kubectl("config", "view", "--raw", "--minify", "--flatten", "--output=json")
        )
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_SECONDS},
        }
        answer = self._cluster.kubectl(
            "create",
            f"--raw=/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{NAME}/token",
            "--filename=-",
            stdin=json.dumps(request),
        )
        context = {"cluster": "cluster", "user": NAME}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": admin["clusters"][0]["cluster"]}],
            "users": [{"name": NAME, "user": {"token": json.loads(answer)["status"]["token"]}}],
            "contexts": [{"name": "context", "context": context}],
            "current-context": "context",
        }
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(document, file)

    def _wait(self, *, allowed: bool) -> None:
        wait_until(
            f"{USER} may{'' if allowed else ' not'} list nodes",
            lambda: self.may("list", "nodes"),
            lambda may: may == allowed,
            seconds=RIGHTS_SECONDS,
        )
