# SPDX-License-Identifier: Apache-2.0
"""The page of metrics as a scrape has it, and a real Prometheus that scrapes it."""

import asyncio
import contextlib
import http.client
import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.support.daemon import Daemon, Node, free_port
from tests.support.impatient import impatient
from tests.support.waiting import SECONDS
from xpu_plugin.model.timings import Timings


RULES = Path(__file__).parents[2] / "deployment/prometheus/rules.yml"
OK = 200


# The real daemon, but for the ten seconds that metrics wait for the first list to be sent.
IMPATIENT = impatient(Timings(listed=0.1, metrics=0.1))

SELDOM = {
    "xpu_device_driver_error",
    "xpu_probe_runs_total",
    "xpu_driver_incidents_total",
    "xpu_device_unhealthy",
    "xpu_device_holder",
    "xpu_plugin_audit_age_seconds",
    "xpu_plugin_kernel_log_up",
    "xpu_plugin_kernel_log_overruns_total",
    "xpu_plugin_api_watching",
    "xpu_plugin_api_errors_total",
    "xpu_plugin_unlisted_nodes",
    "xpu_device_impossible_readings_total",
}
"""Families without a series when all is well, no device is held and there is no kernel's log."""


class Page:
    """What one scrape said."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families: dict[str, Metric] = {}
        for family in text_string_to_metric_families(text):
            # The parser knows a counter by its name without the ending.
            name = f"{family.name}_total" if family.type == "counter" else family.name
            assert name not in self.families, f"{name} twice"
            self.families[name] = family

    def all(self, name: str, **labels: str) -> dict[tuple[str, ...], float]:
        """Values by the labels that were not asked for, in the order of their names."""
        found: dict[tuple[str, ...], float] = {}
        for family in self.families.values():
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    key = tuple(value for own, value in sorted(sample.labels.items()) if own not in labels)
                    assert key not in found, f"{name}{sample.labels} twice"
                    found[key] = sample.value
        return found

    def by_id(self, name: str, **labels: str) -> dict[str, float]:
        return {
            sample.labels["id"]: sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        }

    def one(self, name: str, **labels: str) -> float:
        (value,) = self.all(name, **labels).values()
        return value


def fetch(port: int) -> tuple[int, str | None, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read().decode()
    finally:
        connection.close()


class Scraped:
    """A daemon with its page."""

    def __init__(self, node: Node, *arguments: str) -> None:
        self.port = free_port()
        address = f"--metrics-address=:{self.port}"
        self.daemon: Daemon = node.start(address, *arguments, program=IMPATIENT)

    async def page(self) -> Page:
        """Of what is there once there is anything: the kubelet has its list a moment before."""
        async with asyncio.timeout(SECONDS):
            while True:
                with contextlib.suppress(ConnectionRefusedError):  # before it listens
                    status, _, text = await asyncio.to_thread(fetch, self.port)
                    if status == OK:
                        return Page(text)
                    assert text == "nothing to show yet\n"
                await asyncio.sleep(0.05)

    async def until(self, predicate: Callable[[Page], object], what: str) -> Page:
        """Scrape until something is so."""
        async with asyncio.timeout(SECONDS):
            while True:
                page = await self.page()
                if predicate(page):
                    return page
                await asyncio.sleep(0.05)


class Prometheus:
    """One that scrapes a port each second; its alerts do not wait before they fire."""

    def __init__(self, place: Path, scraped: int) -> None:
        self.port = free_port()
        rules = place / "rules.yml"
        rules.write_text(re.sub(r"\n\s+for: \w+", "", RULES.read_text()))
        configuration = place / "prometheus.yml"
        configuration.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "500ms"},
                    "rule_files": [str(rules)],
                    "scrape_configs": [
                        {
                            "job_name": "xpu",
                            "honor_labels": True,
                            "static_configs": [{"targets": [f"127.0.0.1:{scraped}"]}],
                        }
                    ],
                }
            )
        )
        self._log = place / "prometheus.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={configuration}",
                    f"--storage.tsdb.path={place / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}", timeout=SECONDS) as answer:
            return json.load(answer)["data"]

    def query(self, text: str) -> list[tuple[dict[str, str], float]]:
        result = self._get(f"query?{urllib.parse.urlencode({'query': text})}")["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def names(self) -> set[str]:
        return set(self._get("label/__name__/values"))

    def alerts(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self._get("alerts")["alerts"]}

    async def until(self, predicate: Callable[[], object], what: str) -> None:
        """Ask until something is so. In a thread, as the kubelet that is scraped for lives on this loop."""
        last: object = None
        try:
            async with asyncio.timeout(3 * SECONDS):
                while True:
                    try:
                        last = await asyncio.to_thread(predicate)
                    except OSError as error:  # while it starts
                        last = error
                    else:
                        if last:
                            return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{what}: {last!r}\n{self._log.read_text()[-2000:]}") from None
