#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Build the container image with docker, podman or buildah: the first that is installed and works.
#
#   ./build.sh [IMAGE]            default kunlunxpu/xpu-device-plugin:v and the version in pyproject.toml
#
# More arguments for the build by BUILD_ARGS, e.g. BUILD_ARGS="--build-arg BASE_IMAGE=..."
set -eu
cd "$(dirname "$0")"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
image=${1:-kunlunxpu/xpu-device-plugin:v$version}
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
for tool in docker podman buildah; do
    # `info` fails also where docker's client is, but no engine.
    if "$tool" info >/dev/null 2>&1; then
        echo "building $image with $tool"
        # shellcheck disable=SC2086 - several arguments are wanted
        exec "$tool" build --build-arg REVISION="$revision" --build-arg VERSION="$version" ${BUILD_ARGS:-} -t "$image" -f docker/Dockerfile .
    fi
done
echo "build.sh: needs docker, podman or buildah; none of them is installed and working" >&2
exit 1
