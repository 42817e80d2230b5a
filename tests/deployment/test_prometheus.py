# SPDX-License-Identifier: Apache-2.0
"""Alert rules and dashboard: they ask for what exists, and each alert fires and resolves."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployment.manifests import ROOT
from xpu_plugin.model.health import KEPT_BACK
from xpu_plugin.model.metric_families import FAMILIES, OF_THE_PROCESS


DIRECTORY = ROOT / "deployment/prometheus"
RULES, TESTS = DIRECTORY / "rules.yml", DIRECTORY / "rules-test.yml"
DASHBOARD = DIRECTORY / "dashboard.json"
OF_PROMETHEUS = {"instance", "job", "le", "node"}
"""Labels that Prometheus adds; `node` by the relabelings of the monitors."""

with_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus"
)


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(TESTS.read_text())["tests"]
    return found


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def panel_queries() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def series() -> dict[str, set[str]]:
    """Names that a scrape may have -> their labels."""
    names: dict[str, set[str]] = {}
    for family in (*FAMILIES, *OF_THE_PROCESS):
        endings = ("_bucket", "_count", "_sum") if family.type == "histogram" else ("",)
        names.update({family.name + ending: set(family.labels) for ending in endings})
    return names


def asked_for(query: str) -> Iterator[tuple[str, set[str]]]:
    """Each series that a query names, with the labels that it selects by."""
    for match in re.finditer(r"\b((?:xpu|process)_\w+)(?:\{([^}]*)\})?", query):
        yield match[1], set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', match[2] or ""))


QUERIES = {
    "alerts": [rule["expr"] for rule in rules()],
    "their tests": [own["series"] for test in cases() for own in test["input_series"]],
    "dashboard": list(panel_queries()),
}


@pytest.mark.parametrize("where", QUERIES)
def test_only_metrics_and_labels_that_exist_are_asked_for(where: str) -> None:
    known = series()
    asked = [pair for query in QUERIES[where] for pair in asked_for(query)]
    assert asked
    assert {name for name, _ in asked} - known.keys() == set()
    for name, labels in asked:
        assert labels - known[name] - OF_PROMETHEUS == set(), name


def test_labels_that_are_shown_are_those_of_the_metrics() -> None:
    """A legend or an annotation with a label that does not exist shows nothing."""
    for rule in rules():
        labels = set().union(*(series()[name] for name, _ in asked_for(rule["expr"]))) | {"instance", "node"}
        shown = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        assert shown <= labels, rule["alert"]
        assert "node" in shown, f"{rule['alert']} names no node"
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            labels = set().union(*(series()[name] for name, _ in asked_for(target["expr"])))
            labels |= {"instance", "node"}
            assert set(re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))) <= labels, panel["title"]


def test_series_of_the_alerts_tests_are_whole() -> None:
    """A test with a label too few could pass where the real series does not match."""
    for query in QUERIES["their tests"]:
        ((name, labels),) = asked_for(query)
        assert labels == series()[name] | {"instance", "node"}, query


def test_each_alert_says_what_is_wrong_and_is_seen_quiet_firing_and_resolved() -> None:
    alerts = {rule["alert"] for rule in rules()}
    assert len(alerts) == len(rules())
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
    seen: dict[str, list[bool]] = {}
    for test in cases():
        for own in test["alert_rule_test"]:
            seen.setdefault(own["alertname"], []).append(bool(own["exp_alerts"]))
    assert seen.keys() == alerts
    for alert, fires in seen.items():
        assert not fires[0], f"{alert} is quiet at first"
        assert any(fires), f"{alert} fires"


@with_promtool
def test_promtool_accepts_the_rules_and_their_tests_pass() -> None:
    for command in (["check", "rules", RULES.name], ["test", "rules", TESTS.name]):
        done = subprocess.run(
            ["promtool", *command], cwd=DIRECTORY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@with_promtool
def test_a_rule_that_is_wrong_fails_its_test(tmp_path: Path) -> None:
    """The tests can fail: with a threshold that is never reached, none of the alerts fires."""
    for file in (RULES, TESTS):
        shutil.copy(file, tmp_path)
    rule = tmp_path / RULES.name
    rule.write_text(rule.read_text().replace("library_up == 0", "library_up == 2"))
    done = subprocess.run(
        ["promtool", "test", "rules", TESTS.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "XPULibraryDown" in done.stdout + done.stderr


def test_the_dashboard_has_its_data_source_in_a_variable_and_panels_side_by_side() -> None:
    document = dashboard()
    variables = {variable["name"] for variable in document["templating"]["list"]}
    assert variables == {"datasource", "node"}
    assert set(re.findall(r"\$\{?(?!__)(\w+)", DASHBOARD.read_text())) == variables
    places: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert places.isdisjoint(cells), panel["title"]
        assert all(x < 24 for x, _ in cells)
        places |= cells
    identities = [panel["id"] for panel in document["panels"]]
    assert len(set(identities)) == len(identities)


def test_a_card_that_is_kept_back_is_no_illness_and_has_an_alert_of_its_own() -> None:
    kept = "|".join(map(str, KEPT_BACK))
    asking = {rule["alert"]: rule["expr"] for rule in rules() if "vf-undecided" in rule["expr"]}
    assert asking.keys() == {"XPUUnhealthy", "XPUUnhealthyInUse", "XPUWithheld"}
    assert [alert for alert, query in asking.items() if f'"{kept}' not in query] == []
