#!/bin/sh
# Installs what building, testing and the demo need beside the Rust toolchain (Debian, Ubuntu).
set -eu

packages=""
need() { # need PACKAGE COMMAND: a command counts wherever it came from.
    command -v "$2" >/dev/null 2>&1 || packages="$packages $1"
}
need_package() {
    dpkg -s "$1" 2>/dev/null | grep -q '^Status: .* installed$' || packages="$packages $1"
}

# Tools of the administrator are not on everybody's path.
PATH="$PATH:/usr/sbin:/sbin"
need nftables nft
need iproute2 ip
need conntrack conntrack
need iptables iptables-nft-restore
need iptables iptables-legacy-restore
need iptables ip6tables-nft-restore
need iptables ip6tables-legacy-restore
need procps sysctl
need iputils-ping ping
need valgrind valgrind
need gcc cc
need pkg-config pkg-config
# Without it nft prints numbers instead of the names of protocols.
need_package netbase
need_package libc6-dev
need_package libnftnl-dev
need_package libmnl-dev

# Of Prometheus, only what checks rules: the package would start a server.
promtool=""
command -v promtool >/dev/null 2>&1 || promtool=" promtool"

[ -n "$packages$promtool" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
    [ -n "$packages" ] || exit 0
    echo "missing packages; as root: apt-get install$packages" >&2
    exit 1
fi
echo "installing:$packages$promtool"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null
if [ -n "$promtool" ]; then
    directory="$(mktemp -d)"
    # As apt's own user it could not write there.
    (cd "$directory" && apt-get download -qq -o APT::Sandbox::User=root prometheus >/dev/null)
    dpkg-deb --fsys-tarfile "$directory"/prometheus_*.deb | tar -x -C "$directory" ./usr/bin/promtool
    install -m 0755 "$directory"/usr/bin/promtool /usr/local/bin/promtool
    rm -r "$directory"
fi
[ -n "$packages" ] || exit 0
# shellcheck disable=SC2086 # a list of words
apt-get install -qq -y --no-install-recommends $packages >/dev/null
