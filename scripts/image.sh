#!/usr/bin/env bash
# Builds the image of what is committed, without a registry: with buildah, on a Debian root that is made here, and with
# this machine's toolchain. Writes it, unpacked too, and what it consists of (sbom.sh) to target/image, and prints its
# digest. As root.
#
#   scripts/image.sh [ARCHITECTURE]      amd64, or arm64, for which Debian's toolchain is taken: this machine's has no
#                                        library for it
#
# FROM is in the Dockerfile for those who have a registry: docker build --platform linux/amd64,linux/arm64 .
set -euo pipefail
cd "$(dirname "$0")/.."
architecture=${1:-$(dpkg --print-architecture)}
PATH="$PATH:/usr/sbin:/sbin"
for tool in debootstrap buildah jq; do
    command -v "$tool" >/dev/null && continue
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$tool" >/dev/null
done
if [ -z "${IMAGE_WORK:-}" ]; then
    # Mounts go with a namespace of their own, whatever happens.
    IMAGE_WORK=$(mktemp -d)
    export IMAGE_WORK
    trap 'rm -rf --one-file-system "$IMAGE_WORK"' EXIT
    unshare --mount "$0" "$architecture"
    exit
fi
work=$IMAGE_WORK
out=$(realpath -m "${CARGO_TARGET_DIR:-target}/image")
mkdir -p "$work/tmp" "$work/source" "$out"
export TMPDIR="$work/tmp"
git archive HEAD | tar -x -C "$work/source"
buildah() {
    command buildah --root "$work/store" --runroot "$work/run" --storage-driver "${STORAGE_DRIVER:-overlay}" "$@"
}

debootstrap --variant=minbase --include=ca-certificates trixie "$work/base" >"$work/debootstrap.log"
toolchain=()
if [ "$architecture" = "$(dpkg --print-architecture)" ]; then
    toolchain=(-v "$(rustc --print sysroot):/usr/local/toolchain:ro")
else
    mirror=$(awk '$1 == "deb" { print $2; exit }' "$work/base/etc/apt/sources.list")
    echo "deb $mirror trixie-backports main" >>"$work/base/etc/apt/sources.list"
    cp /etc/resolv.conf "$work/base/etc/resolv.conf"
    chroot "$work/base" sh -euc "
        export DEBIAN_FRONTEND=noninteractive
        dpkg --add-architecture $architecture
        apt-get update -qq ${APT_OPTIONS:-}
        apt-get install -qq -y --no-install-recommends ${APT_OPTIONS:-} -t trixie-backports rustc cargo libstd-rust-dev:$architecture
    " >"$work/toolchain.log"
fi
container=$(buildah from scratch)
buildah add --quiet "$container" "$work/base" / >/dev/null
# QUICK=1 is for trying the image, not the program.
quick=()
[ -z "${QUICK:-}" ] || for setting in LTO=off CODEGEN_UNITS=16 OPT_LEVEL=1 DEBUG=0; do
    quick+=(--env "CARGO_PROFILE_RELEASE_$setting")
done
buildah config --env CARGO_HOME=/usr/local/cargo "${quick[@]}" \
    --env PATH=/usr/local/toolchain/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
buildah commit --quiet --rm "$container" rust:1-slim-trixie >/dev/null
rm -rf --one-file-system "$work/base"

# Crates that were fetched already need not be fetched again.
registry=${CARGO_HOME:-$HOME/.cargo}/registry
for part in cache index; do
    [ ! -e "$registry/$part" ] || toolchain+=(-v "$registry/$part:/usr/local/cargo/registry/$part:ro")
done
# Neither the time nor what built it is part of the image: who builds the same has the same digest.
buildah bud --isolation chroot --pull=never --no-cache --timestamp 0 --identity-label=false --format oci \
    --build-arg "TARGETARCH=$architecture" -v /etc/ssl/certs:/etc/ssl/certs:ro \
    "${toolchain[@]}" -t "localhost/pointsman:$architecture" "$work/source" >"$work/build.log" 2>&1 ||
    { tail -n 40 "$work/build.log" && exit 1; }
if [ "$architecture" != "$(dpkg --print-architecture)" ]; then
    # What was built here says that it is for here.
    container=$(buildah from --pull-never "localhost/pointsman:$architecture")
    buildah config --arch "$architecture" "$container"
    buildah commit --quiet --rm --timestamp 0 --identity-label=false --format oci "$container" \
        "localhost/pointsman:$architecture" >/dev/null
fi
rm -rf "$out/$architecture"
mkdir -p "$out/$architecture"
buildah push --quiet "localhost/pointsman:$architecture" "oci:$out/$architecture/oci:pointsman"

# The same, unpacked, for whoever runs it without a registry.
container=$(buildah from --pull-never "localhost/pointsman:$architecture")
cp -a "$(buildah mount "$container")" "$out/$architecture/root"
layout="$out/$architecture/oci"
blob() { cat "$layout/blobs/${1/://}"; }
manifest=$(jq -r '.manifests[0].digest' "$layout/index.json")
blob "$(blob "$manifest" | jq -r .config.digest)" >"$out/$architecture/config.json"
echo "$architecture: $manifest, $(du -sb "$out/$architecture/root" | cut -f1) bytes, compressed" \
    "$(blob "$manifest" | jq '[.layers[].size] | add')"
scripts/sbom.sh "$out/$architecture/root" "$architecture" >"$work/sbom.json"
mv "$work/sbom.json" "$out/$architecture/"
