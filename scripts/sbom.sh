#!/usr/bin/env bash
# Writes what an image consists of, as CycloneDX 1.5 in JSON, to standard output: the crates that the program is made
# of, and Debian's packages.
#
# jq is there where image.sh, which calls this, has been.
#
#   scripts/sbom.sh ROOT ARCHITECTURE      the image, unpacked; Debian's name of what it is for
set -euo pipefail
export LC_ALL=C
root=$(realpath "$1")
architecture=$2
cd "$(dirname "$0")/.."
# What the image is made from (the Dockerfile).
debian=13
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
# It lists what features could bring in: what is built is known to cargo.
(cd "$work" && cargo tree --locked --edges normal --target "$target" --prefix none) |
    awk '{ sub(/^v/, "", $2); print $1 "@" $2 }' | sort -u | jq -R . | jq -s . >"$work/built.json"
for file in "$root"/var/lib/dpkg/status.d/*; do
    awk -F ': ' '{ field[$1] = $2 }
        END { OFS = "\t"; print field["Package"], field["Architecture"], field["Version"], field["Source"] }' "$file"
done | jq -R --arg debian "$debian" 'split("\t")
    | {name: .[0], version: .[2], source: (.[3] | split(" ")[0] // "")} + {architecture: .[1]}
    | "pkg:deb/debian/\(.name | @uri)@\(.version | @uri)?arch=\(.architecture)&distro=debian-\($debian)" as $purl
    | ($purl + if .source == "" then "" else "&upstream=\(.source | @uri)" end) as $purl
    | {type: "library", "bom-ref": $purl, name: .name, version: .version, purl: $purl}' | jq -s . >"$work/packages.json"
jq --slurpfile packages "$work/packages.json" --slurpfile built "$work/built.json" \
    --arg architecture "$architecture" --arg debian "$debian" '
    (.. | strings) |= sub("^path\\+file://[^#]*#"; "")
    | ($built[0] | INDEX(.)) as $built
    | def is_built: $built[split("#")[-1]] != null;
    .metadata.component.purl = "pkg:cargo/\(.metadata.component.name)@\(.metadata.component.version)"
    | .metadata.component."bom-ref" as $self
    | .metadata.properties += [{name: "image:architecture", value: $architecture}]
    | .components |= map(select(."bom-ref" | is_built))
    | .dependencies |= map(select(.ref | is_built) | if .dependsOn then .dependsOn |= map(select(is_built)) else . end)
    | .components += [{type: "operating-system", "bom-ref": "debian", name: "debian", version: $debian}] + $packages[0]
    | .dependencies |= map(if .ref == $self then .dependsOn += [$packages[0][]."bom-ref"] else . end)
' "$work/pointsman_bin.cdx.json"
