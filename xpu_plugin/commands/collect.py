# SPDX-License-Identifier: Apache-2.0
"""Collect the evidence for the checks of `doctor`: one pass, no change."""

import asyncio
import os
import platform
from typing import Any

from xpu_plugin.commands.output import scanned
from xpu_plugin.commands.source import RunningPlugin
from xpu_plugin.config import HOST_ROOT, Config
from xpu_plugin.doctor import host_survey
from xpu_plugin.doctor.cluster_access import look
from xpu_plugin.doctor.evidence import (
    ClusterEvidence,
    Evidence,
    KubeletEvidence,
    LibraryEvidence,
    PluginEvidence,
)
from xpu_plugin.edges.apiserver.client import has_credentials
from xpu_plugin.edges.host_files import missing
from xpu_plugin.edges.kubelet.directory import KUBELET_SOCKET, SOCKET_PREFIX
from xpu_plugin.edges.worker.client import LibraryError, WorkerClient, WorkerError
from xpu_plugin.model import vf_plan
from xpu_plugin.model.device_table import Row, rows
from xpu_plugin.model.devices import Scan, identify
from xpu_plugin.model.inventory import FORMER_RESOURCE, Facts, after_scan
from xpu_plugin.model.unlisted import Unlisted, unlisted
from xpu_plugin.plugin import kubelet_of, policy, target
from xpu_plugin.xpuml import XpumlError


MOST_FAILING = 8  # devices at which the library hangs or crashes, until it is given up


async def collect(config: Config) -> Evidence:
    """Collect all evidence. Each source has a deadline of its own."""
    running = RunningPlugin(config.status_socket)
    state = await running.ask("state")
    answer = await running.ask("list") if state else None
    worker = WorkerClient(target(config), call_timeout=config.call_timeout)
    try:
        library = _told(state, answer) if state and answer else await _own(worker, config)
        ours = {os.getpid(), worker.pid, *((state["worker"], state["pid"]) if state else ())} - {None}
        host = await asyncio.to_thread(
            host_survey.read_host, config.dev_root, config.sysfs_root, simulated=config.simulated, ours=ours
        )
    finally:
        await worker.close()
    cluster = await _cluster(config)
    return Evidence(
        simulated=config.simulated,
        desired=_desired(config, state, cluster),
        own_pod=config.own_pod,
        ours=frozenset({FORMER_RESOURCE, config.resource_name, *(row.resource for row in library.rows)}),
        host=host,
        library=library,
        plugin=await _plugin(state, config),
        expected=running.expected(),
        kubelet=await _kubelet(config),
        cluster=cluster,
    )


def _told(state: dict[str, Any], answer: dict[str, Any]) -> LibraryEvidence:
    """Take the library's state from the running plugin's answers."""
    return LibraryEvidence(
        trouble=state["trouble"],
        unwatched=state.get("unwatched") is True,
        path=state["library"],
        version=state["library_version"],
        driver_version=state["driver_version"],
        driver_release=state["driver_release"],
        rows=tuple(
            Row(**{name: record[name] for name in Row.__dataclass_fields__}) for record in answer["devices"]
        ),
        problems=tuple(answer["problems"]),
        unlisted=tuple(
            Unlisted(**{name: node[name] for name in Unlisted.__dataclass_fields__})
            for node in answer.get("unlisted", ())
        ),
    )


async def _own(worker: WorkerClient, config: Config) -> LibraryEvidence:
    """Ask a worker of our own. It is started again without each device at which it hung or crashed."""
    hung: dict[int, str] = {}
    while True:
        try:
            scan = await (worker.scan(hung) if hung else scanned(worker))
        except WorkerError as error:
            index = error.call.index if error.call else None
            if index is None or index in hung or len(hung) == MOST_FAILING:
                return LibraryEvidence(trouble=str(error), hung=tuple(hung.values()))
            hung[index] = str(error)
        except (LibraryError, XpumlError) as error:
            return LibraryEvidence(trouble=str(error), hung=tuple(hung.values()))
        else:
            return (
                _library(scan, config, hung) if scan else LibraryEvidence(trouble="device nodes come and go")
            )


def _library(scan: Scan, config: Config, hung: dict[int, str]) -> LibraryEvidence:
    found = identify(scan)
    return LibraryEvidence(
        path=scan.library,
        version=scan.library_version,
        driver_version=scan.driver_version,
        driver_release=scan.driver_release,
        rows=tuple(row for row in rows(after_scan(Facts(), found), policy(config)) if row.index not in hung),
        problems=found.problems,
        unlisted=unlisted(scan, found),
        hung=tuple(hung.values()),
    )


async def _plugin(state: dict[str, Any] | None, config: Config) -> PluginEvidence | str:
    if state is None:
        return f"none answers at {config.status_socket}"
    unwritten, down = state.get("unwritten"), state.get("parts_down")  # older releases lack these
    files = state.get("container_files", ())
    lacking = await asyncio.to_thread(missing, files, HOST_ROOT)
    log = state.get("kernel_log") or {}
    return PluginEvidence(
        streams=state["streams"],
        alone=state["alone"],
        displaced=tuple(state.get("displaced", ())),
        worker=state["worker"],
        replaced=state["replaced"],
        replacement_trouble=state.get("replacement_trouble"),
        files={path: lacking[path].reason if path in lacking else None for path in files},
        unwritten=tuple(map(str, unwritten)) if isinstance(unwritten, list) else None,
        down={str(part): str(why) for part, why in down.items()} if isinstance(down, dict) else {},
        kernel_log=log.get("mode"),
        kernel_log_trouble=log.get("trouble"),
        sick=log.get("sick", {}),
    )


async def _kubelet(config: Config) -> KubeletEvidence:
    directory, socket = config.device_plugin_dir, config.device_plugin_dir / KUBELET_SOCKET
    answers = await kubelet_of(config).answers()
    return KubeletEvidence(
        directory_trouble=host_survey.directory_trouble(directory),
        socket=await asyncio.to_thread(host_survey.obstacle, socket),
        age=host_survey.socket_age(socket),
        strangers=host_survey.strangers(directory, SOCKET_PREFIX),
        pods=answers.listed.pods if answers.listed else None,
        list_trouble=answers.listing if isinstance(answers.listing, str) else None,
        checkpoint_trouble=answers.checkpoint_trouble,
        reports_ends=answers.witness,
        ends_trouble=answers.refusal or answers.witness_trouble,
        holdings=answers.shown,
    )


async def _cluster(config: Config) -> ClusterEvidence | str:
    if not has_credentials(config.kubeconfig):
        return "no credentials for an API server"
    if not (config.kubeconfig or config.node_name):
        return "no NODE_NAME"
    return await asyncio.to_thread(look, config.kubeconfig, config.node_name or platform.node().lower())


def _desired(config: Config, state: dict[str, Any] | None, cluster: ClusterEvidence | str) -> int | None:
    if state is not None:
        number: int | None = state["desired"]["number"]
        return number
    label = None if isinstance(cluster, str) else cluster.label
    return vf_plan.by_label(vf_plan.UNKNOWN, label, config.sriov_num_vfs).number
