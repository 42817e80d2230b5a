# SPDX-License-Identifier: Apache-2.0
"""deployment/helm/: by default it renders the manifest, and each value does what it says."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .manifests import (
    CLUSTER_ROLE,
    CLUSTER_ROLE_BINDING,
    DEPLOYMENT,
    FURTHER_RULES,
    MANIFEST,
    ROOT,
    Object,
    Plugin,
    check_plugin,
    objects_in,
    objects_of,
    of_kind,
    the,
    title,
)


CHART = DEPLOYMENT / "helm/xpu-device-plugin"
NAME = "xpu-device-plugin"
HELM_S_OWN = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "helm.sh/chart",
}
"""Labels that charts put on their objects, by custom."""


class Helm:
    def __init__(self, program: str, home: Path) -> None:
        self._program = program
        self._home = home

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            f"HELM_{name}_HOME": str(self._home) for name in ("CACHE", "CONFIG", "DATA")
        }
        return subprocess.run(
            [self._program, *arguments], capture_output=True, text=True, check=False, env=environment
        )

    def template(
        self,
        values: Object | None = None,
        release: str = NAME,
        namespace: str = "kube-system",
        chart: Path = CHART,
    ) -> subprocess.CompletedProcess[str]:
        file = self._home / "values.yaml"
        file.write_text(yaml.safe_dump(values or {}))
        return self.run("template", release, str(chart), f"--namespace={namespace}", f"--values={file}")

    def render(
        self, values: Object | None = None, release: str = NAME, namespace: str = "kube-system"
    ) -> list[Object]:
        done = self.template(values, release, namespace)
        assert done.returncode == 0, done.stderr
        objects = objects_in(done.stdout)
        check_plugin(objects)
        return objects

    def plugin(self, values: Object) -> Plugin:
        return Plugin(the(self.render(values), "DaemonSet"))


@pytest.fixture
def helm(tmp_path: Path) -> Helm:
    built = ROOT / "build/bin/helm"
    program = str(built) if built.exists() else shutil.which("helm")
    if program is None:
        pytest.skip("no helm in PATH; with Go, `make helm` builds one into build/bin")
    return Helm(program, tmp_path)


def plain(objects: list[Object]) -> list[Object]:
    """Without what Helm wants to know of its objects."""
    for each in objects:
        labels = each["metadata"]["labels"]
        assert labels.keys() >= HELM_S_OWN
        each["metadata"]["labels"] = {name: labels[name] for name in labels.keys() - HELM_S_OWN}
    return sorted(objects, key=title)


RBAC = {"rbac": {"create": True}}


def test_lint_has_nothing_to_say(helm: Helm) -> None:
    done = helm.run("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_default_is_the_manifest(helm: Helm) -> None:
    assert plain(helm.render()) == sorted(objects_of(MANIFEST), key=title)


def test_rbac_adds_the_two_files(helm: Helm) -> None:
    """And a node without the label keeps its cards as they are."""
    rendered = plain(helm.render({"rbac": {"create": True}}))
    expected = sorted(objects_of(MANIFEST, CLUSTER_ROLE, CLUSTER_ROLE_BINDING), key=title)
    arguments = Plugin(the(expected, "DaemonSet")).container["args"]
    arguments[arguments.index("--sriov-num-vfs=0")] = "--sriov-num-vfs=keep"
    assert rendered == expected


def test_options_with_a_role_of_their_own_add_their_files(helm: Helm) -> None:
    rendered = plain(helm.render({**RBAC, "nodeCondition": True, "podEvents": True}))
    files = [DEPLOYMENT / f"{option}.yaml" for option in FURTHER_RULES]
    names = {title(each) for each in objects_of(*files)}
    assert [each for each in rendered if title(each) in names] == sorted(objects_of(*files), key=title)


def test_the_plugin_tolerates_the_startup_taint(helm: Helm) -> None:
    plugin = helm.plugin({**RBAC, "startupTaint": "a.b/c"})
    assert {"key": "a.b/c", "operator": "Exists"} in plugin.spec["tolerations"]
    assert {"key": "baidu.com/xpu", "operator": "Exists"} in plugin.spec["tolerations"]


@pytest.mark.parametrize("values", [{"startupTaint": "a.b/c"}, {"nodeCondition": True}, {"podEvents": True}])
def test_what_needs_rights_is_refused_without(helm: Helm, values: Object) -> None:
    done = helm.template(values)
    assert done.returncode != 0
    assert "need rbac.create=true" in done.stderr


def test_releases_do_not_meet(helm: Helm) -> None:
    values = {
        "rbac": {"create": True},
        "openshift": True,
        "metrics": {"serviceMonitor": {"enabled": True}},
    }
    releases = [(NAME, "kube-system"), (NAME, "default"), (NAME, "xpu"), ("one", "xpu"), ("other", "default")]
    rendered = [helm.render(values, *release) for release in releases]
    titles = [{title(each) for each in objects} for objects in rendered]
    assert len(set.union(*titles)) == sum(map(len, titles))
    assert ("ClusterRole", "", f"{NAME}-xpu") in titles[2]
    selectors = [the(objects, "DaemonSet")["spec"]["selector"]["matchLabels"] for objects in rendered[3:]]
    assert selectors == [{"name": f"{name}-{NAME}-ds"} for name in ("one", "other")]


def test_on_openshift_the_account_is_bound_to_the_constraint_of_privileged_pods(helm: Helm) -> None:
    objects = helm.render({"openshift": True}, namespace="xpu")
    binding, account = the(objects, "RoleBinding"), the(objects, "ServiceAccount")["metadata"]
    assert binding["metadata"]["namespace"] == "xpu"
    assert binding["roleRef"]["name"] == "system:openshift:scc:privileged"
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"sriovNumVfs": 3}, "sriov_num_vfs", 3),
        ({"sriovNumVfs": ""}, "sriov_num_vfs", 0),
        ({"rbac": {"create": True}}, "sriov_num_vfs", None),
        ({"rbac": {"create": True}, "sriovNumVfs": 0}, "sriov_num_vfs", 0),
        ({"sriovNumVfs": "keep"}, "sriov_num_vfs", None),
        ({"resourceName": "example.com/card"}, "resource_name", "example.com/card"),
        ({"resourcePerProfile": True}, "resource_per_profile", True),
        ({"metrics": {"port": 9999}}, "metrics_address", ("", 9999)),
        ({**RBAC, "startupTaint": "a.b/c"}, "startup_taint", "a.b/c"),
        ({**RBAC, "nodeCondition": True}, "node_condition", True),
        ({**RBAC, "podEvents": True}, "pod_events", True),
        ({"containerEnv": "cuda"}, "container_env", "cuda"),
        ({"containerEnv": False}, "container_env", "off"),
        ({"mountXre": True}, "mount_xre", True),
        ({"mountFiles": ["/a/b", "/c/d.so.1"]}, "mount_file", ("/a/b", "/c/d.so.1")),
        ({"containerLibraryPath": "/a/lib:/b/lib"}, "container_library_path", "/a/lib:/b/lib"),
        ({"kernelLog": "act"}, "kernel_log", "act"),
        ({"probe": "/probe/probe -s 'a b'"}, "probe", ("/probe/probe", "-s", "a b")),
        ({"options": {"health-interval": 0.5}}, "health_interval", 0.5),
        ({"options": {"pod-list-delay": 600}}, "pod_list_delay", 600),
        ({"options": {"vf-without-pod-resources": True}}, "vf_without_pod_resources", True),
        ({"options": {"fail-on-init-error": False}}, "fail_on_init_error", False),
        ({"options": {"deny": ["0000:3b:00.0", "K200"]}}, "deny", ("0000:3b:00.0", "K200")),
        ({"extraEnv": [{"name": "XPU_PLUGIN_LOG_LEVEL", "value": "debug"}]}, "log_level", "debug"),
    ],
    ids=str,
)
def test_a_value_reaches_the_plugin(helm: Helm, values: Object, field: str, expected: object) -> None:
    assert getattr(helm.plugin(values).config, field) == expected


@pytest.mark.parametrize(
    ("values", "path", "expected"),
    [
        ({"priorityClassName": ""}, "priorityClassName", None),
        ({"nodeSelector": {"pool": "xpu"}}, "nodeSelector", {"pool": "xpu"}),
        ({"affinity": None}, "affinity", None),
        ({"tolerations": [{"operator": "Exists"}]}, "tolerations", [{"operator": "Exists"}]),
        ({"imagePullSecrets": [{"name": "mine"}]}, "imagePullSecrets", [{"name": "mine"}]),
    ],
    ids=str,
)
def test_a_value_reaches_the_pod(helm: Helm, values: Object, path: str, expected: Any) -> None:
    done = helm.template(values)
    assert done.returncode == 0, done.stderr
    assert Plugin(the(objects_in(done.stdout), "DaemonSet")).spec.get(path) == expected


def test_image_resources_and_metadata(helm: Helm) -> None:
    plugin = helm.plugin(
        {
            "image": {"repository": "example.com/mine", "tag": "v2", "pullPolicy": "Always"},
            "resources": {"limits": {"memory": "1Gi", "cpu": 1}},
            "maxUnavailable": "10%",
            "podLabels": {"mine": "yes"},
            "podAnnotations": {"mine.example.com/x": "1"},
        }
    )
    assert plugin.container["image"] == "example.com/mine:v2"
    assert plugin.container["imagePullPolicy"] == "Always"
    assert plugin.container["resources"] == {
        "requests": {"cpu": "20m", "memory": "80Mi"},
        "limits": {"memory": "1Gi", "cpu": 1},
    }
    assert plugin.daemon_set["spec"]["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": "10%"}
    metadata = plugin.daemon_set["spec"]["template"]["metadata"]
    assert metadata["labels"]["mine"] == "yes"
    assert metadata["annotations"] == {"mine.example.com/x": "1"}


def test_a_surge_starts_the_new_plugin_first(helm: Helm) -> None:
    plugin = helm.plugin({"surge": True, "maxUnavailable": "10%"})
    assert plugin.daemon_set["spec"]["updateStrategy"]["rollingUpdate"] == {
        "maxSurge": "10%",
        "maxUnavailable": 0,
    }


def test_a_kubelet_elsewhere(helm: Helm) -> None:
    done = helm.template({"kubeletDir": "/data/kubelet"})
    mounts = Plugin(the(objects_in(done.stdout), "DaemonSet")).mounts()
    assert mounts["/var/lib/kubelet/device-plugins"] == "/data/kubelet/device-plugins"
    assert mounts["/var/lib/kubelet/pod-resources"] == "/data/kubelet/pod-resources (read-only)"
    assert mounts["/var/lib/kubelet/pods-api"] == "/data/kubelet/pods-api (read-only)"


@pytest.mark.parametrize(
    ("directory", "inside", "outside"),
    [
        ("/usr/local/xpu", "/host/usr/local", "/usr/local"),
        ("/usr/local/xpu-5.0", "/host/usr/local", "/usr/local"),
        ("/opt/kunlun/xre", "/host/opt/kunlun", "/opt/kunlun"),
        ("/xre", "/host", "/"),
    ],
)
def test_an_xre_elsewhere_is_where_the_plugin_looks(
    helm: Helm, directory: str, inside: str, outside: str
) -> None:
    done = helm.template({"xreDir": directory})
    plugin = Plugin(the(objects_in(done.stdout), "DaemonSet"))
    assert plugin.mounts()[inside] == f"{outside} (read-only)"
    assert plugin.config.libraries[0] == f"/host{directory}/lib64/libxpuml.so.1"
    assert plugin.config.libraries[0].startswith(f"{inside}/")


def test_the_plugin_sees_the_directories_of_files_for_containers_each_once(helm: Helm) -> None:
    usual = helm.plugin({}).mounts()
    files = ["/usr/local/bin/xpu-smi", "/usr/lib/a.so", "/usr/lib/b.so", "/usr/localized/c"]
    mounts = helm.plugin({"mountFiles": files}).mounts()
    assert {name: mounts[name] for name in mounts.keys() - usual.keys()} == {
        "/host/usr/lib": "/usr/lib (read-only)",
        "/host/usr/localized": "/usr/localized (read-only)",
    }


def test_the_plugin_has_further_volumes(helm: Helm) -> None:
    volume = {"name": "probe", "configMap": {"name": "xpu-probe", "defaultMode": 0o555}}
    mount = {"name": "probe", "mountPath": "/probe", "readOnly": True}
    done = helm.template({"extraVolumes": [volume], "extraVolumeMounts": [mount]})
    plugin = Plugin(the(objects_in(done.stdout), "DaemonSet"))
    assert volume in plugin.spec["volumes"]
    assert mount in plugin.container["volumeMounts"]


@pytest.mark.parametrize("kind", ["serviceMonitor", "podMonitor"])
def test_a_monitor(helm: Helm, kind: str) -> None:
    values = {"metrics": {kind: {"enabled": True, "interval": "5s", "labels": {"release": "mine"}}}}
    objects = helm.render(values)
    monitor = the(objects, kind[0].upper() + kind[1:])
    assert monitor["metadata"]["labels"]["release"] == "mine"
    (endpoint,) = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
    # Without it, pod and namespace of a device's holder would be called exported_pod and exported_namespace.
    relabelings = endpoint.pop("relabelings")
    assert endpoint == {"port": "metrics", "path": "/metrics", "interval": "5s", "honorLabels": True}
    assert relabelings == [{"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}]
    assert len(of_kind(objects, "Service")) == (kind == "serviceMonitor")


@pytest.mark.parametrize(
    "values",
    [
        {"sriovNumVfs": 64},
        {"sriovNumVfs": "two"},
        {"sriovNumVFs": 1},
        {"resourceName": "xpu"},
        {"options": {"sriov-num-vfs": 1}},
        {"options": {"xre-dir": "/opt/xre"}},
        {"startupTaint": "key:NoSchedule"},
        {"nodeCondition": "yes"},
        {"containerEnv": True},
        {"containerEnv": "on"},
        {"mountFiles": ["/a"]},
        {"mountFiles": ["/a/../b"]},
        {"mountFiles": ["/a/b,c"]},
        {"mountFiles": "/a/b"},
        {"containerLibraryPath": "lib"},
        {"options": {"mount-xre": True}},
        {"openshift": "yes"},
        {"options": {"--deny": "K200"}},
        {"image": {"pullPolicy": "Sometimes"}},
        {"metrics": {"port": 0}},
        {"metrics": {"serviceMonitor": {"enabled": "yes"}}},
        {"maxUnavailable": 0},
        {"surge": 1},
        {"kubeletDir": "var/lib/kubelet"},
        {"nodeSelector": {"pool": 1}},
    ],
    ids=str,
)
def test_the_schema_refuses(helm: Helm, values: Object) -> None:
    done = helm.template(values)
    assert done.returncode != 0
    assert "don't meet the specifications of the schema" in done.stderr


ELSEWHERE = ("pod-security", "ResourceQuota", "add-scc-to-user")
"""What another namespace than kube-system may need."""


@pytest.mark.parametrize(
    ("namespace", "values", "said", "elsewhere"),
    [
        ("kube-system", {}, "rbac.create=true", ()),
        ("kube-system", {"rbac": {"create": True}, "sriovNumVfs": 0}, "sriovNumVfs=keep is the safest", ()),
        ("kube-system", {"rbac": {"create": True}}, "on a node without it, sriovNumVfs=keep", ()),
        (
            "kube-system",
            {"rbac": {"create": True}, "sriovNumVfs": "keep"},
            "-L baidu.com/sriov-num-vfs.state",
            (),
        ),
        ("kube-system", {"resourceName": "example.com/card"}, "show example.com/card", ()),
        ("xpu", {}, "namespace xpu pod-security.kubernetes.io/enforce=privileged", ELSEWHERE),
        ("xpu", {}, f"add-scc-to-user privileged -z {NAME} -n xpu", ELSEWHERE),
        ("xpu", {"priorityClassName": ""}, "pod-security", ("pod-security", "add-scc-to-user")),
        ("xpu", {"openshift": True}, "pod-security", ("pod-security", "ResourceQuota")),
    ],
    ids=str,
)
def test_the_notes_say(
    helm: Helm, tmp_path: Path, *, namespace: str, values: Object, said: str, elsewhere: tuple[str, ...]
) -> None:
    notes = notes_of(helm, tmp_path, values, namespace)
    name = the(objects_of(MANIFEST), "DaemonSet")["metadata"]["name"]
    assert f"daemonset {name} -n {namespace}" in notes
    assert said in notes
    assert "drain each node" in notes
    assert [word for word in ELSEWHERE if word in notes] == list(elsewhere)


def notes_of(helm: Helm, tmp_path: Path, values: Object, namespace: str) -> str:
    """Rendered as a part of an object: only for an installation, into a cluster, Helm renders them itself."""
    chart = tmp_path / NAME
    shutil.copytree(CHART, chart)
    (chart / "templates/NOTES.txt").rename(chart / "NOTES.txt")
    (chart / "templates/notes.yaml").write_text(
        'kind: Notes\nnotes: |\n{{ tpl (.Files.Get "NOTES.txt") . | indent 2 }}\n'
    )
    done = helm.template(values, namespace=namespace, chart=chart)
    (rendered,) = of_kind(objects_in(done.stdout), "Notes")
    notes: str = rendered["notes"]
    return notes
