#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Makes two images to build on where none can be pulled: tests/image/bases.sh BUILDER BASE
#
# Debian 12 by debootstrap. BUILDER has Python, its headers and a C compiler, and the machine's certificates and
# pip's configuration, so that pip works in it; BASE has none of that. Needs root, debootstrap and buildah.
# SUITE and MIRROR in the environment choose another Debian.
set -eu
builder=$1
base=$2
suite=${SUITE:-bookworm}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

import() { # DIRECTORY IMAGE
    tar -C "$1" --exclude='./var/cache/apt/archives/*.deb' --exclude='./var/lib/apt/lists/*' \
        --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' -cf "$place/context/root.tar" .
    printf 'FROM scratch\nADD root.tar /\nCMD ["/bin/sh"]\n' >"$place/context/Dockerfile"
    buildah build --quiet --tag "$2" "$place/context"
}

mkdir "$place/context"
# shellcheck disable=SC2086 - no mirror is no argument
debootstrap --variant=minbase "$suite" "$place/base" ${MIRROR:-}
import "$place/base" "$base"
rm -rf "$place/base"
# shellcheck disable=SC2086
debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev,python3-dev,python3-venv \
    "$suite" "$place/builder" ${MIRROR:-}
for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do
    [ ! -e "$file" ] || cp "$file" "$place/builder$file"
done
import "$place/builder" "$builder"
