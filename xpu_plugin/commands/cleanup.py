# SPDX-License-Identifier: Apache-2.0
"""`xpu-device-plugin cleanup`: remove the plugin's marks on the node, and the record of its label."""

import os
import platform
import sys

from xpu_plugin.config import CLEANUP_OPTIONS, PROGRAM, Parser, UsageError, read_config
from xpu_plugin.edges.apiserver.client import has_credentials
from xpu_plugin.edges.apiserver.node_watcher import ApiError, remove
from xpu_plugin.edges.state import state_file
from xpu_plugin.edges.state.label import forget
from xpu_plugin.model.node_labels import LABELS
from xpu_plugin.model.vf_plan import DETAIL_ANNOTATION, STATE_LABEL


def main(arguments: list[str]) -> int:
    """Return the exit status: 0 all is removed, 1 the API server or the disk refuses, 2 bad usage."""
    parser = Parser(
        prog=f"{PROGRAM} cleanup",
        description="Remove the labels, the annotation and the condition that the plugin has written on a "
        "node. Use it after you uninstall the plugin: a running plugin writes them again. The label with the "
        "desired VF count is yours and stays. The record of that label in --state-dir is removed, so that "
        "the argument counts if the label cannot be read, or if the Node was created again without it.",
    )
    config, _, _ = read_config(arguments, os.environ, options=CLEANUP_OPTIONS, parser=parser)
    if not has_credentials(config.kubeconfig):
        raise UsageError("cleanup: outside of a pod it needs --kubeconfig FILE")
    if config.kubeconfig:
        try:
            state_file.read(config.kubeconfig)
        except (OSError, ValueError) as error:
            raise UsageError(f"--kubeconfig: {error}; accepted: a readable file") from None
    node = config.node_name or platform.node().lower()
    labels = (*LABELS, STATE_LABEL)
    try:
        forgotten = forget(config.state_dir)
    except OSError as error:
        print(f"{PROGRAM}: cannot forget the label of node {node}: {error}", file=sys.stderr)
        return 1
    if forgotten:
        print(f"{node}: the label last seen is forgotten")
    try:
        remove(node, config.kubeconfig, labels=labels, annotations=(DETAIL_ANNOTATION,))
    except ApiError as error:
        print(f"{PROGRAM}: cannot clean up node {node}: {error}", file=sys.stderr)
        return 1
    print(f"{node}: labels, annotation and condition of {PROGRAM} are removed")
    return 0
