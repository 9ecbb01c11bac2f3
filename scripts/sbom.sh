#!/usr/bin/env bash
# Writes what an image consists of, as CycloneDX 1.5 in JSON, to standard output: the crates that the program is made
# of, and Debian's packages.
#
#   scripts/sbom.sh ROOT ARCHITECTURE      the image, unpacked; Debian's name of what it is for
set -euo pipefail
cd "$(dirname "$0")/.."
root=$1
architecture=$2
version=0.5.9
tools=$(realpath -m "${CARGO_TARGET_DIR:-target}/tools/cyclonedx-$version")
if [ ! -x "$tools/bin/cargo-cyclonedx" ]; then
    # Without what its own profile would have done to make it faster.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_DEBUG=0 \
        cargo install --locked --quiet --root "$tools" "cargo-cyclonedx@$version" >&2
fi
case $architecture in
amd64) target=x86_64-unknown-linux-gnu ;;
arm64) target=aarch64-unknown-linux-gnu ;;
*) echo "$architecture: neither amd64 nor arm64" >&2 && exit 1 ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git archive HEAD | tar -x -C "$work"
# Neither the time nor where it was asked for is part of it.
SOURCE_DATE_EPOCH=0 "$tools/bin/cargo-cyclonedx" cyclonedx --quiet --manifest-path "$work/Cargo.toml" --format json \
    --spec-version 1.5 --describe binaries --no-build-deps --target "$target"
for file in "$root"/var/lib/dpkg/status.d/*; do
    awk -F ': ' '$1 == "Package" || $1 == "Version" || $1 == "Architecture" { print $2 }' "$file" | paste -s
done | jq -R 'split("\t") | {name: .[0], architecture: .[1], version: .[2]}
    | {type: "library", "bom-ref": "pkg:deb/debian/\(.name)@\(.version | @uri)?arch=\(.architecture)",
       name: .name, version: .version} | .purl = ."bom-ref"' | jq -s . >"$work/packages.json"
jq --slurpfile packages "$work/packages.json" --arg architecture "$architecture" '
    (.. | strings) |= sub("^path\\+file://[^#]*#"; "")
    | .metadata.component.purl = "pkg:cargo/\(.metadata.component.name)@\(.metadata.component.version)"
    | .metadata.component."bom-ref" as $self
    | .metadata.properties += [{name: "image:architecture", value: $architecture}]
    | .components += $packages[0]
    | .dependencies |= map(if .ref == $self then .dependsOn += [$packages[0][]."bom-ref"] else . end)
' "$work/pointsman_bin.cdx.json"
