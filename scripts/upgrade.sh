#!/usr/bin/env bash
# Another version of pointsman and this one follow each other under traffic, up and down three times: no connection may
# be lost.
#
#   scripts/upgrade.sh [COMMIT]      by default that of 0.1.0
set -euo pipefail
cd "$(dirname "$0")/.."
from=${1:-4f1bccf}
there=$(mktemp -d)
trap 'git worktree remove --force "$there/source" 2>/dev/null; rm -rf "$there"' EXIT
git worktree add --quiet --detach "$there/source" "$from"
(cd "$there/source" && CARGO_TARGET_DIR="$there/target" cargo build --quiet --locked --bin pointsman)
POINTSMAN_BEFORE="$there/target/debug/pointsman" cargo test --test it -- \
    --nocapture upgrade::another_version_and_this_one_
