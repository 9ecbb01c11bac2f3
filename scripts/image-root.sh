#!/bin/sh
# What the image consists of: builds the program for an architecture and puts it into a directory with the libraries and
# tools that it needs, and what Debian says of their packages. Part of the Dockerfile; takes a Debian with a Rust
# toolchain for granted, and changes it.
#
#   image-root.sh DIRECTORY ARCHITECTURE      Debian's name of it: amd64, arm64
set -eu

root=$1
architecture=$2
case $architecture in
amd64) triplet=x86_64-linux-gnu target=x86_64-unknown-linux-gnu ;;
arm64) triplet=aarch64-linux-gnu target=aarch64-unknown-linux-gnu ;;
*) echo "$architecture: neither amd64 nor arm64" >&2 && exit 1 ;;
esac
export DEBIAN_FRONTEND=noninteractive
compiler=gcc
if [ "$architecture" != "$(dpkg --print-architecture)" ]; then
    dpkg --add-architecture "$architecture"
    compiler="gcc gcc-$(echo "$triplet" | tr _ -)"
    name=$(echo "$target" | tr a-z- A-Z_)
    export "CARGO_TARGET_${name}_LINKER=$triplet-gcc" "CC_$(echo "$target" | tr - _)=$triplet-gcc"
    export PKG_CONFIG_ALLOW_CROSS=1 "PKG_CONFIG_LIBDIR=/usr/lib/$triplet/pkgconfig:/usr/share/pkgconfig"
    # Where there is none, the toolchain has the target already.
    ! command -v rustup >/dev/null || rustup target add "$target"
fi
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -qq -y --no-install-recommends $compiler libc6-dev pkg-config "libc6-dev:$architecture" \
    "libnftnl-dev:$architecture" "libmnl-dev:$architecture" "iptables:$architecture" >/dev/null

cargo build --release --locked --target "$target" --bin pointsman
mkdir -p "$root/usr/bin" "$root/usr/local/bin" "$root/usr/sbin" "$root/var/lib/dpkg/status.d"
# Names of functions stay, for backtraces; where in their files they are is most of the program's size.
"$triplet-strip" --strip-debug -o "$root/usr/bin/pointsman" "target/$target/release/pointsman"

# kube-proxy's DaemonSet names its program, and with another image finds this one.
ln -s /usr/bin/pointsman "$root/usr/local/bin/kube-proxy"

# Libraries that a program or a library needs, theirs, and what loads them.
copied=
libraries() {
    for file in "$@"; do
        loader=$(readelf -lW "$file" | sed -n 's/.*program interpreter: \(.*\)\]/\1/p')
        for needed in $loader $(readelf -dW "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
            case $needed in
            /*) path=$needed ;;
            *) path=$(find -L "/usr/lib/$triplet" -maxdepth 1 -name "$needed") ;;
            esac
            case " $copied " in
            *" $path "*) ;;
            *)
                copied="$copied $path"
                cp --parents -L "$path" "$root/"
                libraries "$path"
                ;;
            esac
        done
    done
}
libraries "$root/usr/bin/pointsman"
# The tools are two programs that go by their names; what they match and where they lead is loaded.
for variant in nft legacy; do
    cp "/usr/sbin/xtables-$variant-multi" "$root/usr/sbin/"
    for family in iptables ip6tables; do
        for what in "" -restore -save; do
            ln -s "xtables-$variant-multi" "$root/usr/sbin/$family-$variant$what"
        done
    done
done
cp --parents -r "/usr/lib/$triplet/xtables" "$root/"
libraries /usr/sbin/xtables-*-multi "/usr/lib/$triplet"/xtables/*.so

# Where scanners look for the packages of an image that has no dpkg.
for file in $copied /usr/sbin/xtables-nft-multi; do
    # Of what was diverted it says that in a line with words.
    dpkg -S "$file" "$(realpath "$file")" 2>/dev/null | sed -n 's/^\([a-z0-9.+-]*\(:[a-z0-9]*\)\{0,1\}\): .*/\1/p'
done | sort -u | while read -r package; do
    dpkg-query -s "$package" >"$root/var/lib/dpkg/status.d/${package%%:*}"
done
