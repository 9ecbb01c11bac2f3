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

[ -n "$packages" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "missing packages; as root: apt-get install$packages" >&2
    exit 1
fi
echo "installing:$packages"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null
# shellcheck disable=SC2086 # a list of words
apt-get install -qq -y --no-install-recommends $packages >/dev/null
