# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Real kubelets, and the image for them; for the scripts beside this file, which source it from the top directory.
#
# ../shared/kubelab (Kubernetes 1.20) and ../shared/kubelab137 (1.37, or another by LAB_VERSION) have scripts that build
# a single-node Kubernetes, start it and stop it. A lab is built, minutes the first time, into $KUBE_LAB (default
# /tmp/kube), ${KUBE_LAB}137 and so on. One node runs on a machine at a time: $KUBE_LAB.lock sees to that.

export KUBE_LAB=${KUBE_LAB:-/tmp/kube}
shared=$PWD/../shared
lock=$KUBE_LAB.lock
lock_seconds=3600
image=localhost/xpu-device-plugin:ci
archive=$PWD/build/xpu-device-plugin.tar
export XPU_IMAGE_BUILDER=localhost/xpu-device-plugin-builder XPU_IMAGE_BASE=localhost/xpu-device-plugin-base
# No container is started for a build, as there may be no way to start one here.
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs

build_image() {
    local time
    export BUILD_ARGS="--build-arg BUILDER_IMAGE=$XPU_IMAGE_BUILDER --build-arg BASE_IMAGE=$XPU_IMAGE_BASE"
    for time in 1 2 3; do # a step may fail to start
        if ./build.sh "$image"; then break; fi
        [ "$time" != 3 ]
    done
    rm -f "$archive"
    buildah push "$image" "docker-archive:$archive:$image"
    buildah rmi "$image" >/dev/null
}

# Where a lab's programs are. kubelab -> $KUBE_LAB, kubelab137 -> ${KUBE_LAB}137
place_of() { echo "$KUBE_LAB${1#kubelab}"; }

# build_lab NAME PLACE: two runs do not build at once. A build goes on where the one before it ended: a package that could
# not be fetched, or a last line cut by `head`, costs one more go.
build_lab() {
    mkdir -p "$2"
    local time
    for time in 1 2 3; do
        if KUBE_LAB=$2 flock --close --wait "$lock_seconds" "$2/build.lock" nice -n 19 "$shared/$1/build.sh"; then break; fi
        echo "$1: build $time of 3 ended with an error"
        [ "$time" != 3 ]
    done
}

# run_lab NAME PLACE ARGUMENT...: `make ARGUMENT...` on its node. The lock is kept until the node is stopped, and nothing
# that is started under it inherits it: a daemon that is left over would hold it.
run_lab() {
    local name=$1 place=$2
    shift 2
    exec 9>"$lock"
    flock --wait "$lock_seconds" 9 || { echo "no lock on $lock in $lock_seconds s"; return 1; }
    trap : INT TERM
    KUBE_LAB=$place tests/e2e/run-lab.sh "$shared/$name" "$place/run" "$archive" "$image" "$@" 9>&-
}
