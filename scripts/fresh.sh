#!/bin/sh
# Runs commands on a clean clone in a bare Debian root that has the Rust toolchain and nothing else:
# what a new machine lacks shows there. As root; installs debootstrap if it is missing.
#
#   scripts/fresh.sh [SUITE] [COMMAND...]      bookworm, and the README's two commands
set -eu

suite=${1:-bookworm}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- "make test" "make demo"

if [ "$(id -u)" -ne 0 ]; then
    echo "as root, please" >&2
    exit 1
fi
PATH="$PATH:/usr/sbin:/sbin"
command -v debootstrap >/dev/null 2>&1 ||
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends debootstrap >/dev/null
here=$(cd "$(dirname "$0")/.." && pwd)
sysroot=$(rustc --print sysroot)
cargo_home=${CARGO_HOME:-$HOME/.cargo}
root=$(mktemp -d)
chmod 755 "$root"
# Mounts are in a namespace of their own and go with it; so nothing outside is removed here.
trap 'rm -rf --one-file-system "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates,make "$suite" "$root" >/dev/null
mkdir -p "$root/toolchain" "$root/cargo" "$root/project"
git -C "$here" archive HEAD | tar -x -C "$root/project"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# Crates that were fetched already need not be fetched again.
for part in registry/cache registry/index config.toml; do
    [ ! -e "$cargo_home/$part" ] || {
        mkdir -p "$root/cargo/$(dirname "$part")"
        cp -r "$cargo_home/$part" "$root/cargo/$part"
    }
done
for command in "$@"; do
    echo "== $suite: $command"
    unshare --mount sh -eu -c '
        # The root has to be a mount, as on a machine: tests make namespaces with mounts of their own.
        mount --bind "$1" "$1"
        mount --bind "$2" "$1/toolchain"
        mount -t proc proc "$1/proc"
        mount -t sysfs sysfs "$1/sys"
        mount --rbind /dev "$1/dev"
        exec chroot "$1" env -i HOME=/root CARGO_HOME=/cargo CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0 \
            PATH=/toolchain/bin:/usr/bin:/bin sh -eu -c "cd /project && $3"
    ' sh "$root" "$sysroot" "$command"
done
echo "== $suite: all of it works on a bare machine"
