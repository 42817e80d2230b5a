# SPDX-License-Identifier: Apache-2.0
"""deployment/*.y*ml and script/: valid, consistent, and what they promise."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from xpu_plugin.config import CLEAR_OPTIONS, OPTIONS, Config, UsageError, read_config
from xpu_plugin.model import vf_plan

from .manifests import (
    CLUSTER_ROLE,
    CLUSTER_ROLE_BINDING,
    DEPLOYMENT,
    FURTHER_RULES,
    MANIFEST,
    MOUNTS,
    ROOT,
    Object,
    Plugin,
    check,
    check_plugin,
    field_paths,
    objects_in,
    objects_of,
    of_kind,
    pod_template,
    the,
)


SCRIPTS = sorted((ROOT / "script").iterdir())
CHART = DEPLOYMENT / "helm"
YAML = sorted(
    path
    for directory in (DEPLOYMENT, ROOT / "script")
    for path in directory.rglob("*.y*ml")
    if "templates" not in path.relative_to(directory).parts
)
ALL = (MANIFEST, CLUSTER_ROLE, CLUSTER_ROLE_BINDING)
RUNNING = read_config([], {}, options=CLEAR_OPTIONS)[0].status_socket
"""Where `xpu-device-plugin clear` looks for the plugin, unless told otherwise."""

_POD = "spec.template.spec"
_TERMS = f"{_POD}.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
_CONTAINER = f"{_POD}.containers"
_PROBE = "httpGet httpGet.path httpGet.port initialDelaySeconds periodSeconds timeoutSeconds failureThreshold"
FIELDS_OF_1_10 = {
    "": "apiVersion kind metadata spec",
    "metadata": "labels name namespace",
    "spec": "selector selector.matchLabels template updateStrategy updateStrategy.type "
    "updateStrategy.rollingUpdate updateStrategy.rollingUpdate.maxUnavailable",
    "spec.template": "metadata metadata.labels spec",
    _POD: "affinity affinity.nodeAffinity containers priorityClassName serviceAccountName "
    "terminationGracePeriodSeconds tolerations volumes",
    f"{_POD}.affinity.nodeAffinity": "requiredDuringSchedulingIgnoredDuringExecution",
    _TERMS: "nodeSelectorTerms nodeSelectorTerms.matchExpressions",
    f"{_TERMS}.nodeSelectorTerms.matchExpressions": "key operator values",
    f"{_POD}.tolerations": "effect key operator",
    f"{_POD}.volumes": "name emptyDir hostPath hostPath.path hostPath.type",
    _CONTAINER: "args env image imagePullPolicy livenessProbe name ports readinessProbe resources "
    "resources.limits resources.requests securityContext securityContext.privileged "
    "securityContext.readOnlyRootFilesystem volumeMounts",
    f"{_CONTAINER}.env": "name value valueFrom valueFrom.fieldRef valueFrom.fieldRef.fieldPath",
    f"{_CONTAINER}.ports": "containerPort name protocol",
    f"{_CONTAINER}.livenessProbe": _PROBE,
    f"{_CONTAINER}.readinessProbe": _PROBE,
    f"{_CONTAINER}.volumeMounts": "mountPath name readOnly",
}
"""What the DaemonSet may be made of: looked up in the OpenAPI document of Kubernetes 1.10."""


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_yaml_file_parses(path: Path) -> None:
    assert objects_in(path.read_text(encoding="utf-8"))


# --- the plugin --------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [ALL, (MANIFEST,)], ids=["with RBAC", "without"])
def test_the_manifests_are_consistent(files: tuple[Path, ...]) -> None:
    check_plugin(objects_of(*files))


def test_names_are_those_that_the_documents_have() -> None:
    daemon_set = the(objects_of(MANIFEST), "DaemonSet")
    assert daemon_set["metadata"]["name"] == "xpu-device-plugin-daemonset"
    assert daemon_set["metadata"]["namespace"] == "kube-system"
    assert {each["metadata"]["name"] for each in objects_of(CLUSTER_ROLE)} == {"xpu-device-plugin"}


@pytest.mark.parametrize("option", FURTHER_RULES)
def test_an_option_with_a_role_of_its_own_has_a_file(option: str) -> None:
    """Beside the files of label mode, and not without the option."""
    objects = copy.deepcopy(objects_of(*ALL, DEPLOYMENT / f"{option}.yaml"))
    with pytest.raises(AssertionError):
        check_plugin(objects)
    container_of(objects)["args"].append(f"--{option}")
    check_plugin(objects)


def test_arguments_are_the_defaults_and_where_the_plugin_can_be_asked() -> None:
    plugin = Plugin(the(objects_of(MANIFEST), "DaemonSet"))
    assert plugin.config == Config(
        node_name="a-name",
        pod_name="a-name",
        pod_namespace="a-name",
        pod_uid="a-name",
        metrics_address=("", 9476),
        status_socket=RUNNING,
    )
    assert "--sriov-num-vfs=0" in plugin.container["args"]
    assert RUNNING is not None
    assert plugin.mounts()[str(RUNNING.parent)] == "emptyDir"


def test_the_pod_sees_of_the_host_what_it_needs() -> None:
    assert Plugin(the(objects_of(MANIFEST), "DaemonSet")).mounts() == MOUNTS


def test_the_pod_is_critical_modest_and_replaced_one_by_one() -> None:
    daemon_set = the(objects_of(MANIFEST), "DaemonSet")
    assert daemon_set["spec"]["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 1},
    }
    plugin = Plugin(daemon_set)
    assert plugin.spec["priorityClassName"] == "system-node-critical"
    assert plugin.container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert plugin.container["resources"]["limits"].keys() == {"memory"}, "no throttling"


def test_it_tolerates_what_keeps_others_from_its_nodes() -> None:
    tolerations = Plugin(the(objects_of(MANIFEST), "DaemonSet")).spec["tolerations"]
    assert {toleration["key"] for toleration in tolerations} == {
        "baidu.com/xpu",
        "CriticalAddonsOnly",
        "node-role.kubernetes.io/control-plane",
        "node-role.kubernetes.io/master",
    }
    assert all(toleration["operator"] == "Exists" for toleration in tolerations)


@pytest.mark.parametrize(
    ("labels", "suits"),
    [
        ({"beta.kubernetes.io/os": "linux"}, True),
        ({"kubernetes.io/os": "linux"}, True),
        ({"kubernetes.io/os": "linux", "beta.kubernetes.io/os": "linux"}, True),
        ({"kubernetes.io/os": "windows", "beta.kubernetes.io/os": "windows"}, False),
        ({}, False),
    ],
    ids=["before 1.14", "without the beta label", "both", "windows", "no label"],
)
def test_it_runs_on_linux_whatever_its_label(labels: dict[str, str], suits: bool) -> None:
    spec = Plugin(the(objects_of(MANIFEST), "DaemonSet")).spec
    assert "nodeSelector" not in spec
    (terms,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"].values()
    assert {expression["operator"] for term in terms for expression in term["matchExpressions"]} == {"In"}
    assert suits == any(
        all(labels.get(expression["key"]) in expression["values"] for expression in term["matchExpressions"])
        for term in terms
    )


def test_no_field_is_newer_than_kubernetes_1_10() -> None:
    used = {path.removeprefix(".") for path in field_paths(the(objects_of(MANIFEST), "DaemonSet"))}
    names = r"(metadata\.labels|matchLabels|resources\.(limits|requests))\..+"
    known = {
        f"{parent}.{field}".removeprefix(".")
        for parent, fields in FIELDS_OF_1_10.items()
        for field in fields.split()
    }
    assert {path for path in used if not re.search(names, path)} - known == set()


def test_the_image_of_the_chart_is_that_of_the_manifest() -> None:
    (chart,) = objects_of(CHART / "xpu-device-plugin/Chart.yaml")
    (values,) = objects_of(CHART / "xpu-device-plugin/values.yaml")
    image = Plugin(the(objects_of(MANIFEST), "DaemonSet")).container["image"]
    assert f"{values['image']['repository']}:{chart['appVersion']}" == image


# --- the checks themselves ---------------------------------------------------------------------------


def container_of(objects: list[Object]) -> Object:
    return Plugin(the(objects, "DaemonSet")).container


SLIPS: dict[str, Callable[[list[Object]], object]] = {
    "a field in the wrong place": lambda it: container_of(it).update(terminationGracePeriodSeconds=1),
    "a field misspelt": lambda it: container_of(it).update(volumesMounts=[]),
    "a field spelt otherwise": lambda it: container_of(it).update(
        volume_mounts=container_of(it).pop("volumeMounts")
    ),
    "a number for a label": lambda it: the(it, "DaemonSet")["metadata"]["labels"].update(number=1),
    "an object twice": lambda it: it.append(the(it, "ServiceAccount")),
    "a selector that selects nothing": lambda it: the(it, "DaemonSet")["spec"]["selector"][
        "matchLabels"
    ].update(name="another"),
    "a mount without a volume": lambda it: Plugin(the(it, "DaemonSet")).spec["volumes"].pop(),
    "a volume without a mount": lambda it: container_of(it)["volumeMounts"].pop(),
    "a volume that is not read-only": lambda it: container_of(it)["volumeMounts"][5].pop("readOnly"),
    "a directory made on the host": lambda it: (
        Plugin(the(it, "DaemonSet")).spec["volumes"][3]["hostPath"].update(type="DirectoryOrCreate")
    ),
    "another service account": lambda it: the(it, "ServiceAccount")["metadata"].update(name="another"),
    "Events of the whole cluster": lambda it: the(it, "ClusterRole")["rules"].append(
        the(it, "Role")["rules"][0]
    ),
    "Events elsewhere": lambda it: the(it, "Role")["metadata"].update(namespace="kube-system"),
    "another namespace": lambda it: the(it, "ClusterRoleBinding")["subjects"][0].update(namespace="default"),
    "another role": lambda it: the(it, "ClusterRoleBinding")["roleRef"].update(name="admin"),
    "a right too many": lambda it: the(it, "ClusterRole")["rules"][0]["verbs"].append("update"),
    "a variable without its field": lambda it: container_of(it)["env"].pop(0),
    "an option that is none": lambda it: container_of(it)["args"].append("--sriov-vfs=0"),
    "a bad value": lambda it: container_of(it)["args"].append("--sriov-num-vfs=64"),
    "an argument of the former plugin": lambda it: container_of(it)["args"].append("-sriov-num-vfs=0"),
    "another port": lambda it: container_of(it)["args"].append("--metrics-address=:9477"),
    "an address that the kubelet does not reach": lambda it: container_of(it)["args"].append(
        "--metrics-address=127.0.0.1:9476"
    ),
    "a port without a name": lambda it: container_of(it)["ports"][0].update(name="http"),
    "the host's processes": lambda it: Plugin(the(it, "DaemonSet")).spec.update(hostPID=True),
    "a writable root": lambda it: container_of(it)["securityContext"].pop("readOnlyRootFilesystem"),
    "a secret": lambda it: container_of(it).update(envFrom=[{"secretRef": {"name": "secret"}}]),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_the_checks_find(slip: str) -> None:
    objects = copy.deepcopy(objects_of(*ALL))
    check_plugin(objects)
    SLIPS[slip](objects)
    with pytest.raises((AssertionError, ValueError, UsageError)):
        check_plugin(objects)


# --- script/ -----------------------------------------------------------------------------------------

DEVICES = {
    "deployment.yml": [1],
    "pod-1-device.yml": [1],
    "pod-3-containers.yml": [1, 1, 1],
    "pod-vf-profile.yml": [1],
    "pod-vf.yml": [1],
    "pod.yml": [2],
}
"""How many devices each container gets."""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_template_asks_for_what_it_says(path: Path) -> None:
    (each,) = objects_of(path)
    check([each])
    assert "namespace" not in each["metadata"]
    template = pod_template(each)
    assert template
    limits = [container["resources"]["limits"] for container in template["spec"]["containers"]]
    assert [number for limit in limits for number in limit.values()] == DEVICES[path.name]
    (default,) = (option.default for option in OPTIONS if option.name == "resource-name")
    name = "baidu.com/R200-VF-8G" if path.name == "pod-vf-profile.yml" else default
    assert {name for limit in limits for name in limit} == {name}
    assert f"./script/{path.name}" in path.read_text(encoding="utf-8"), "how to use it"


def test_every_template_is_there() -> None:
    assert [path.name for path in SCRIPTS] == sorted(DEVICES)


def test_templates_can_be_there_at_the_same_time() -> None:
    check(objects_of(*SCRIPTS))
    (deployment,) = of_kind(objects_of(*SCRIPTS), "Deployment")
    assert deployment["spec"]["replicas"] == 3


def test_the_template_for_vfs_goes_where_they_are() -> None:
    (pod,) = objects_of(ROOT / "script/pod-vf.yml")
    selector = pod["spec"]["nodeSelector"]
    assert selector == {vf_plan.LABEL: "2", vf_plan.STATE_LABEL: str(vf_plan.VfState.SUCCESS)}
    assert vf_plan.parse(selector[vf_plan.LABEL]) == 2
