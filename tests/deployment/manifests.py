# SPDX-License-Identifier: Apache-2.0
"""Reads manifests, and asserts what an API server and a kubelet would find out only later, or never."""

import importlib
import itertools
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from xpu_plugin.config import Config, read_config


ROOT = Path(__file__).parents[2]
DEPLOYMENT = ROOT / "deployment"
MANIFEST = DEPLOYMENT / "xpu-device-plugin.yml"
CLUSTER_ROLE = DEPLOYMENT / "xpu-operator_rbac.authorization.k8s.io_v1_clusterrole.yaml"
CLUSTER_ROLE_BINDING = DEPLOYMENT / "xpu-operator_rbac.authorization.k8s.io_v1_clusterrolebinding.yaml"

Object = dict[str, Any]

SCHEMAS = {
    ("apps/v1", "DaemonSet"): "v1_daemon_set",
    ("apps/v1", "Deployment"): "v1_deployment",
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): "v1_cluster_role",
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): "v1_cluster_role_binding",
    ("rbac.authorization.k8s.io/v1", "Role"): "v1_role",
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): "v1_role_binding",
    ("v1", "Pod"): "v1_pod",
    ("v1", "Service"): "v1_service",
    ("v1", "ServiceAccount"): "v1_service_account",
}
"""Where the client of Kubernetes has the API's schema, generated from its OpenAPI document."""

FOREIGN = {("monitoring.coreos.com/v1", "ServiceMonitor"), ("monitoring.coreos.com/v1", "PodMonitor")}
"""Kinds that a Prometheus Operator brings along; the client has no schema of them."""

RULES = {
    "": [("nodes", ["get", "list", "watch", "patch"])],
    "default": [("events", ["create", "patch"])],
}
"""Namespace of a role, empty for the whole cluster -> its resources and verbs."""
FURTHER_RULES = {"node-condition": ("nodes/status", ["patch"]), "pod-events": ("events", ["create"])}
"""Of the options that have a role of their own."""
FOREIGN_ROLES = ("system:openshift:scc:privileged",)
FIELDS = {
    "NODE_NAME": "spec.nodeName",
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "POD_UID": "metadata.uid",
}
MOUNTS = {
    "/var/lib/kubelet/device-plugins": "/var/lib/kubelet/device-plugins",
    "/var/lib/kubelet/pod-resources": "/var/lib/kubelet/pod-resources (read-only)",
    "/var/lib/kubelet/pods-api": "/var/lib/kubelet/pods-api (read-only)",
    "/host/usr/local": "/usr/local (read-only)",
    "/dev": "/dev",
    "/sys": "/sys (read-only)",
    "/var/lib/xpu-device-plugin": "/var/lib/xpu-device-plugin",
    "/run/xpu-device-plugin": "emptyDir",
}
"""Where in the plugin's container what of the host is."""
NODE = [{"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}]
"""What a monitor relabels, so that alerts can name the node."""


def objects_in(text: str) -> list[Object]:
    return [document for document in yaml.load_all(text, Loader=_Loader) if document]


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, which YAML allows."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(map(repr, keys))), f"a key given twice{node.start_mark}"
        return super().construct_mapping(node, deep)


def objects_of(*files: Path) -> list[Object]:
    return list(itertools.chain.from_iterable(objects_in(file.read_text(encoding="utf-8")) for file in files))


def of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def the(objects: Iterable[Object], kind: str) -> Object:
    (only,) = of_kind(objects, kind)
    return only


def title(each: Object) -> tuple[str, str, str]:
    """What makes it another object: kind, namespace and name."""
    return each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]


def check(objects: list[Object]) -> None:
    """All that goes to a cluster together."""
    for each in objects:
        check_schema(each)
    titles = [title(each) for each in objects]
    assert len(titles) == len(set(titles)), titles
    assert not re.search(r"secret", yaml.safe_dump(of_kind(objects, "DaemonSet")), re.IGNORECASE)
    for each in objects:
        if template := pod_template(each):
            check_pod(template["spec"])
        if each["kind"] in ("DaemonSet", "Deployment"):
            selector = each["spec"]["selector"]["matchLabels"]
            assert selector, each
            assert selector.items() <= each["spec"]["template"]["metadata"]["labels"].items()


def check_schema(each: Object) -> None:
    """No field that the API does not have, none that it needs missing, each of its type."""
    kind = (each["apiVersion"], each["kind"])
    if kind in FOREIGN:
        return
    module = importlib.import_module(f"kubernetes.client.models.{SCHEMAS[kind]}")
    told = quantities_as_text(each)
    model = getattr(module, f"V1{each['kind']}").model_validate(told)
    # The client also takes its own spelling of names, `pod_template` for podTemplate; the API does not.
    assert model.model_dump(mode="json", by_alias=True, exclude_unset=True) == told


def quantities_as_text(value: Any) -> Any:
    """The API also takes a quantity that is a number; its schema calls all of them texts."""
    if isinstance(value, list):
        return [quantities_as_text(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: {resource: str(number) for resource, number in below.items()}
        if name in ("limits", "requests")
        else quantities_as_text(below)
        for name, below in value.items()
    }


def pod_template(each: Object) -> Object | None:
    """A pod, or what a controller makes its pods of."""
    if each["kind"] == "Pod":
        return each
    template: Object | None = each.get("spec", {}).get("template")
    return template


def check_pod(spec: Object) -> None:
    """What a kubelet would stumble over."""
    volumes = [volume["name"] for volume in spec.get("volumes", [])]
    assert len(volumes) == len(set(volumes)), volumes
    mounted = set()
    names = [container["name"] for container in spec["containers"]]
    assert len(names) == len(set(names)), names
    for container in spec["containers"]:
        mounts = container.get("volumeMounts", [])
        paths = [mount["mountPath"] for mount in mounts]
        assert len(paths) == len(set(paths)), paths
        mounted |= {mount["name"] for mount in mounts}
        variables = [variable["name"] for variable in container.get("env", [])]
        assert len(variables) == len(set(variables)), variables
        for probe in ("livenessProbe", "readinessProbe"):
            if probe in container:
                port_number(container, container[probe]["httpGet"]["port"])
        # What is not in whole devices, or asked for otherwise than it is limited, is refused.
        resources = container.get("resources", {})
        for name, number in resources.get("limits", {}).items():
            assert "/" not in name or (isinstance(number, int) and number > 0), (name, number)
        assert not any("/" in name for name in resources.get("requests", {}))
    assert mounted == set(volumes)


def port_number(container: Object, port: str | int) -> int:
    """The number of a port that the container names."""
    (number,) = [
        each["containerPort"] for each in container["ports"] if port in (each["name"], each["containerPort"])
    ]
    return int(number)


@dataclass(frozen=True, slots=True)
class Plugin:
    """The plugin as its DaemonSet runs it."""

    daemon_set: Object

    @property
    def spec(self) -> Object:
        spec: Object = self.daemon_set["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        (only,) = self.spec["containers"]
        assert isinstance(only, dict)
        return only

    @property
    def config(self) -> Config:
        """As the plugin understands its arguments and environment, without a warning."""
        environment = {
            variable["name"]: variable.get("value", "a-name") for variable in self.container["env"]
        }
        config, _, warnings = read_config(self.container["args"], environment)
        assert warnings == []
        return config

    def mounts(self) -> dict[str, str]:
        """Path in the container -> path on the host and how, or the kind of volume."""
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        found = {}
        for mount in self.container["volumeMounts"]:
            volume = volumes[mount["name"]]
            if "hostPath" not in volume:
                (found[mount["mountPath"]],) = volume.keys() - {"name"}
            else:
                how = " (read-only)" if mount.get("readOnly") else ""
                found[mount["mountPath"]] = volume["hostPath"]["path"] + how
        return found


def check_plugin(objects: list[Object]) -> None:
    """The plugin's objects: what they say of each other, and what is promised of the pod."""
    check(objects)
    daemon_set = the(objects, "DaemonSet")
    plugin = Plugin(daemon_set)
    _check_pod_of_plugin(plugin)
    _check_access(objects, plugin)
    _check_monitoring(objects, plugin)


def _check_pod_of_plugin(plugin: Plugin) -> None:
    spec, container = plugin.spec, plugin.container
    assert not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"))
    assert "securityContext" not in spec
    assert container["securityContext"] == {"privileged": True, "readOnlyRootFilesystem": True}
    assert spec["terminationGracePeriodSeconds"] <= 30
    assert plugin.daemon_set["spec"]["updateStrategy"]["type"] == "RollingUpdate"
    fields = {
        variable["name"]: variable["valueFrom"]["fieldRef"]["fieldPath"]
        for variable in container["env"]
        if "valueFrom" in variable
    }
    assert fields == FIELDS

    config, mounts = plugin.config, plugin.mounts()
    files = {f"/host{Path(path).parent}" for path in config.mount_file if not path.startswith("/usr/local/")}
    assert mounts.keys() == MOUNTS.keys() | files
    assert str(config.device_plugin_dir) in mounts
    assert str(config.pod_resources_socket.parent) in mounts
    assert str(config.pods_api_socket.parent) in mounts
    assert str(config.state_dir) in mounts
    writable = {path for path, source in mounts.items() if not source.endswith("(read-only)")}
    assert writable == {
        "/dev",
        "/run/xpu-device-plugin",
        "/var/lib/kubelet/device-plugins",
        "/var/lib/xpu-device-plugin",
    }
    assert {"name": "TMPDIR", "value": "/run/xpu-device-plugin"} in container["env"]
    (xre,) = (volume for volume in spec["volumes"] if volume["name"] == "xre")
    assert xre["hostPath"].keys() == {"path"}, "nothing is made below a /usr that may be read-only"

    assert config.metrics_address is not None
    host, port = config.metrics_address
    assert host == "", "the kubelet asks by the pod's address"
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"]["path"] == path
        assert port_number(container, container[probe]["httpGet"]["port"]) == port
        assert container[probe]["timeoutSeconds"] > 2, "the plugin itself answers after two seconds at most"


def _check_access(objects: list[Object], plugin: Plugin) -> None:
    account = the(objects, "ServiceAccount")
    assert plugin.spec["serviceAccountName"] == account["metadata"]["name"]
    namespace = account["metadata"]["namespace"]
    assert plugin.daemon_set["metadata"]["namespace"] == namespace
    subject = {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": namespace}
    given: dict[str, list[tuple[str, list[str]]]] = {}
    for kind in ("ClusterRole", "Role"):
        roles = {title(each)[1:]: each for each in of_kind(objects, kind)}
        own = [
            each
            for each in of_kind(objects, f"{kind}Binding")
            if each["roleRef"]["name"] not in FOREIGN_ROLES
        ]
        assert [title(binding)[1:] for binding in own] == list(roles)
        for binding, role in zip(own, roles.values(), strict=True):
            name = role["metadata"]["name"]
            assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
            assert binding["subjects"] == [subject]
            for rule in role["rules"]:
                assert rule.keys() == {"apiGroups", "resources", "verbs"}
                assert rule["apiGroups"] == [""]
                (resource,) = rule["resources"]
                given.setdefault(role["metadata"].get("namespace", ""), []).append((resource, rule["verbs"]))
    further = [rule for name, rule in FURTHER_RULES.items() if getattr(plugin.config, name.replace("-", "_"))]
    if given:
        assert given == RULES | {"": [*RULES[""], *further]}
    else:
        assert not further


def _check_monitoring(objects: list[Object], plugin: Plugin) -> None:
    template = plugin.daemon_set["spec"]["template"]["metadata"]["labels"]
    for service in of_kind(objects, "Service"):
        assert service["metadata"]["namespace"] == plugin.daemon_set["metadata"]["namespace"]
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["selector"].items() <= template.items()
        (port,) = service["spec"]["ports"]
        assert port_number(plugin.container, port["targetPort"]) == port["port"]
    for monitor in of_kind(objects, "ServiceMonitor"):
        service = the(objects, "Service")
        assert monitor["metadata"]["namespace"] == service["metadata"]["namespace"]
        selector = monitor["spec"]["selector"]["matchLabels"]
        assert selector
        assert selector.items() <= service["metadata"]["labels"].items()
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["relabelings"] == NODE
        assert [endpoint["port"]] == [port["name"] for port in service["spec"]["ports"]]
    for monitor in of_kind(objects, "PodMonitor"):
        assert monitor["metadata"]["namespace"] == plugin.daemon_set["metadata"]["namespace"]
        selector = monitor["spec"]["selector"]["matchLabels"]
        assert selector
        assert selector.items() <= template.items()
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["relabelings"] == NODE
        assert endpoint["port"] in [port["name"] for port in plugin.container["ports"]]


def field_paths(value: object, path: str = "") -> Iterator[str]:
    """Every field of an object, without the numbers of list items."""
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield f"{path}.{name}"
            yield from field_paths(below, f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from field_paths(item, path)


@cache
def kubectls() -> list[list[str]]:
    """The kubectl of the tests of a real cluster, and that in PATH: often two versions."""
    hook = shlex.split(os.environ.get("XPU_E2E_KUBECTL", ""))
    found = shutil.which("kubectl")
    return [command for command in (hook, [found] if found else []) if command]
