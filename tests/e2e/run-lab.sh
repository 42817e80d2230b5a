#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
#   tests/e2e/run-lab.sh LAB STATE ARCHIVE IMAGE [ARGUMENT...]
#
# Runs the tests of the manifests that need kubectl, and `make ARGUMENT...`, on a single-node Kubernetes. Without
# arguments that is `make e2e`, the end-to-end suite.
#
#   LAB       a directory with scripts: `up.sh STATE` starts the node, `down.sh STATE` stops it and removes STATE,
#             `restart.sh NAME STATE` starts one program again. Their programs are in $KUBE_LAB/bin.
#   STATE     the directory of the running node
#   ARCHIVE   the plugin's image IMAGE, as `docker save` writes it
#
# One node runs on a machine at a time, which is for the caller to see to. If it does so by a lock, no process that
# is started here may inherit it: a daemon that is left over would hold it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
lab=$1 state=$2 archive=$3 image=$4
shift 4
[ $# -gt 0 ] || set -- e2e
suite=''

stop_node() {
    [ ! -d "$state/cmd" ] || "$lab/down.sh" "$state"
}

leave() {
    local status=$?
    trap - EXIT INT TERM
    if [ -n "$suite" ]; then
        kill "$suite" 2>/dev/null || true
        wait "$suite" || true
    fi
    if [ "$status" = 0 ]; then
        stop_node || status=1
    else
        KEEP=1 stop_node || true
        echo "the logs of the node are in $state/log" >&2
    fi
    exit "$status"
}

stop_node # an earlier run may have left it
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
LAB_NODE_STATUS=1s "$lab/up.sh" "$state"
"$KUBE_LAB/bin/ctr" --address "$state/containerd/containerd.sock" --namespace k8s.io images import "$archive"

export XPU_E2E_KUBECTL
XPU_E2E_KUBECTL=$(printf %q "$KUBE_LAB/bin/kubectl")
.venv/bin/python -m pytest tests/deployment/test_kustomize.py tests/deployment/test_readmes.py
# In the background, so that a signal is noticed at once and the suite is ended before its node is.
KUBECONFIG=$state/kubeconfig \
    XPU_E2E_REQUIRED=1 \
    XPU_E2E_IMAGE=localhost/busybox:1 \
    XPU_E2E_PLUGIN_IMAGE=$image \
    XPU_E2E_RESTART_KUBELET=$(printf '%q kubelet %q' "$lab/restart.sh" "$state") \
    XPU_E2E_KUBELET_LOG=$(printf 'cat %q' "$state/log/kubelet.log") \
    XPU_E2E_STOP_API_SERVER=$(printf '%q -c %q' bash "kill -KILL \$(<$(printf %q "$state/pids/kube-apiserver"))") \
    XPU_E2E_START_API_SERVER=$(printf '%q kube-apiserver %q' "$lab/restart.sh" "$state") \
    XPU_E2E_POD_RESOURCES_SOCKET=$state/kubelet/pod-resources/kubelet.sock \
    make "$@" &
suite=$!
wait "$suite"
suite=''
