#!/usr/bin/env bash
# Runs the tests of `--test it` on Debian's kernels, each in a virtual machine, one after the other.
# The programs are this machine's, so what differs between two runs is the kernel. Needs no root;
# KVM makes it fast, without it a kernel takes about half an hour.
#
#   scripts/kernels.sh [KERNEL...]
#
# KERNEL is SUITE/NAME for the package linux-image-NAME of a suite: bookworm/cloud-amd64. With a * in
# NAME it is the newest that fits: 'trixie-backports/6.18.*+deb13-amd64'. Names of tests in
# KERNELS_TESTS limit what runs. What is downloaded and printed stays in target/kernels.
set -euo pipefail

kernels=(
    buster/amd64
    bullseye/amd64
    bullseye/6.1-amd64
    bookworm/amd64
    bookworm/cloud-amd64
    bookworm-backports/amd64
    bookworm-backports/cloud-amd64
    trixie/amd64
    trixie/cloud-amd64
    'trixie-backports/6.18.*+deb13-amd64'
    trixie-backports/amd64
    trixie-backports/cloud-amd64
)
[ $# -eq 0 ] || kernels=("$@")
minutes=${KERNELS_MINUTES:-60}

# Why a test may fail on a kernel, or nothing: known RELEASE TEST.
known() {
    case "$1 $2" in
    5.10.*" packets::recovery::n_g4_"* | 5.10.*" packets::recovery::a_family_whose_rules_are_refused_"*)
        echo "a table has no owner before 5.12, and so the test has no way to make the kernel refuse" ;;
    *) ;;
    esac
}

here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"
export PATH="$PATH:/usr/sbin:/sbin"
for need in qemu-system-x86_64:qemu-system-x86 cpio:cpio depmod:kmod apt-get:apt strip:binutils; do
    command -v "${need%:*}" >/dev/null || {
        echo "missing: apt-get install ${need#*:}" >&2
        exit 1
    }
done
mkdir -p "${CARGO_TARGET_DIR:-target}/kernels"
cache=$(cd "${CARGO_TARGET_DIR:-target}/kernels" && pwd)
work=$(mktemp -d)
vm=
trap '[ -z "$vm" ] || kill "$vm" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# The machine's mirrors are asked for other suites than the machine's own, with lists of our own.
mirror() { # mirror LABEL
    # shellcheck disable=SC2016 # apt's variables
    apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' |
        sed -n "s/^$1 //p" | sort -u | head -n 1
}
debian=$(mirror Debian)
security=$(mirror Debian-Security)
if [ -z "$debian" ]; then
    echo "no mirror of Debian among apt's sources; or apt-get update was never run" >&2
    exit 1
fi

apt_in() { # apt_in SUITE COMMAND...: apt as if the suite were all there is.
    local lists=$cache/suites/$1 command=$2
    shift 2
    timeout 900 "$command" -qq -o Dir::Etc::sourcelist="$lists/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State::lists="$lists/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$lists/cache" \
        -o APT::Architecture=amd64 -o APT::Sandbox::User=root -o Acquire::Languages=none "$@"
}

declare -A updated
update() { # update SUITE
    [ -z "${updated[$1]:-}" ] || return 0
    updated[$1]=yes
    local lists=$cache/suites/$1
    mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial"
    echo "deb $debian $1 main" >"$lists/sources.list"
    case $1 in
    *-backports | sid | testing | unstable) ;;
    *) [ -z "$security" ] || echo "deb $security $1-security main" >>"$lists/sources.list" ;;
    esac
    # A suite that is gone shows in that it has no packages.
    apt_in "$1" apt-get update >/dev/null 2>&1 || true
}

unpack() { # unpack KERNEL: downloads what is not there yet; prints the directory that has it.
    local suite=${1%%/*} name=linux-image-${1#*/} packages key
    # shellcheck disable=SC2254 # the pattern is one
    name=$(apt_in "$suite" apt-cache pkgnames linux-image- | while read -r found; do
        case $found in $name) echo "$found" ;; esac
    done | sort -V | tail -n 1)
    [ -n "$name" ] || return 1
    # Newer kernels are in several packages; one without a whole version has nothing in it.
    packages=$(apt_in "$suite" apt-cache depends --recurse --no-recommends --no-suggests --no-breaks \
        --no-conflicts --no-replaces --no-enhances "$name" | grep -E '^linux-(image|binary|modules|base)-[0-9]+\.[0-9]+\.[0-9]' | sort -u)
    [ -n "$packages" ] || return 1
    key=$cache/unpacked/$(echo "$packages" | grep '^linux-image' | tail -n 1)
    if [ ! -e "$key/complete" ]; then
        rm -rf "$key" "$work/debs"
        mkdir -p "$key" "$work/debs"
        # shellcheck disable=SC2086 # a list of words
        (cd "$work/debs" && apt_in "$suite" apt-get download $packages) >&2 || return 1
        for package in "$work"/debs/*.deb; do
            dpkg-deb -x "$package" "$key" || return 1
        done
        touch "$key/complete"
    fi
    echo "$key"
}

pack() { # pack DIRECTORY FILE: as the kernel unpacks it.
    (cd "$1" && find . -print0 | cpio --null --quiet -o -H newc -R 0:0 | gzip -1) >"$2"
}

# Modules that a kernel may ask for by itself: the network, and what that is made of.
pack_modules() { # pack_modules UNPACKED FILE
    local from to=$work/modules release
    from=$(echo "$1"/lib/modules/* "$1"/usr/lib/modules/* | tr ' ' '\n' | grep -v '\*' | head -n 1)
    release=${from##*/}
    rm -rf "$to"
    mkdir -p "$to/usr/lib/modules/$release"
    (
        cd "$from"
        {
            ls modules.order modules.builtin modules.builtin.modinfo 2>/dev/null || true
            find kernel/net kernel/lib kernel/crypto kernel/arch/x86/crypto -name '*.ko*'
            find kernel/drivers/net -maxdepth 1 -name '*.ko*'
        } | cpio --quiet -pdm "$to/usr/lib/modules/$release"
    )
    ln -s usr/lib "$to/lib"
    depmod -b "$to" "$release"
    rm "$to/lib"
    pack "$to" "$2"
}

root=$work/root
put() { # put FILE...: at the place where it is here.
    local file
    for file in "$@"; do
        [ -e "$root$file" ] || install -D -m 755 "$(realpath "$file")" "$root$file"
    done
}
put_program() { # put_program PATH...: and its libraries.
    local program
    for program in "$@"; do
        put "$program"
        ldd "$program" 2>/dev/null | { grep -oE '/[^ ]+\.so[^ ]*' || true; } | while read -r library; do
            put "$library"
        done
    done
}

echo "== building"
# Where processors are emulated, unoptimized programs are what takes longest.
export CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=line-tables-only
cargo test --test it --no-run --message-format=json >"$work/built"
executable() { # executable NAME
    grep "\"name\":\"$1\"" "$work/built" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | head -n 1
}
tests=$(executable it)
program=$(executable pointsman)
# One of the tests asks cargo about the project.
cargo=$(rustc --print sysroot)/bin/cargo
[ -e "$cargo" ] || cargo=$(command -v cargo)

mkdir -p "$root"/{proc,sys,dev,run,tmp,etc,root,var,usr/bin,usr/sbin,usr/lib,usr/lib64}
for directory in bin sbin lib lib64; do
    ln -s "usr/$directory" "$root/$directory"
done
for name in sh cat cut env grep head id kill mkdir mount ping rm sed seq setpriv sleep sort ss sysctl tee timeout \
    touch true flock uname unshare conntrack dmesg ip modprobe nft; do
    path=$(type -P "$name") || {
        echo "missing: $name (make setup)" >&2
        exit 1
    }
    put_program "$path"
    # Wherever it is here, a test finds it by its name.
    [ -e "$root/usr/bin/$name" ] || [ -e "$root/usr/sbin/$name" ] || ln -s "$path" "$root/usr/bin/$name"
done
# Each of these is another name of one program, and what it matches with are libraries that it looks for.
for name in ip{,6}tables-{nft,legacy}{,-restore,-save} ip{,6}tables{,-restore,-save}; do
    path=$(type -P "$name") && put_program "$path"
done
for library in "$(dirname "$(ldconfig -p | sed -n 's/.*libxtables.* => //p' | head -n 1)")"/xtables/*.so; do
    put_program "$library"
done
put_program "$tests" "$program" "$cargo"
strip --strip-debug "$root$tests" "$root$program" "$root$cargo"
# Names that nft prints; and a client of an API server wants certificates, even if it needs none.
put /etc/protocols /etc/services /etc/ssl/certs/ca-certificates.crt
[ ! -d /etc/iproute2 ] || cp -r /etc/iproute2 "$root/etc"
echo "root:x:0:0::/root:/bin/sh" >"$root/etc/passwd"
echo "root:x:0:" >"$root/etc/group"
echo "127.0.0.1 localhost" >"$root/etc/hosts"
mkdir -p "$root$here"
git ls-files -z | cpio --null --quiet -pdm "$root$here"

cat >"$root/init" <<END
#!/bin/sh
export PATH=/usr/sbin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
exec </dev/null >/dev/ttyS1 2>&1
off() {
    echo "kernels: exit \$1"
    # The line has to be out before the machine is.
    sleep 1
    echo o >/proc/sysrq-trigger
    sleep 60
}
run() { # run LOG ARGUMENT...
    log=\$1
    shift
    { "$tests" --color never "\$@"; echo \$? >/tmp/code; } | tee "\$log"
}
echo "kernels: kernel \$(uname -r)"
echo "kernels: \$(nft --version)"
! grep -q kernels.probe /proc/cmdline || off 0
ip link set lo up
# The limits of connection tracking can be set before anything else has asked for it.
limit=/proc/sys/net/netfilter/nf_conntrack_max
[ ! -e \$limit ] || { echo "kernels: connection tracking is there already" && off 1; }
"$program" --init-only --conntrack-min 200000 --conntrack-max-per-core 1
[ "\$(cat \$limit)" = 200000 ] || { echo "kernels: --init-only has set no limit" && off 1; }
echo "kernels: --init-only has had connection tracking loaded"
# A node has these before it has a proxy; what else is needed the kernel loads by itself.
modprobe -a nf_conntrack br_netfilter
# What kube-proxy's default would be with 8 processors; tests make more connections than 2 GiB are good for.
sysctl -qw net.netfilter.nf_conntrack_max=262144
cd "$here"
run /tmp/first --test-threads 3 ${KERNELS_TESTS:-}
failed=\$(sed '1,/^failures:\$/d' /tmp/first | sed -n 's/^    \([a-z0-9_:]*\)\$/\1/p')
if [ -n "\$failed" ]; then
    echo "kernels: again"
    run /tmp/second --test-threads 1 --exact \$failed
fi
off "\$(cat /tmp/code)"
END
chmod 755 "$root/init"
pack "$root" "$work/root.cpio.gz"

boot() { # boot SECONDS LOGS VMLINUZ INITRD ARGUMENT...: ends when the machine is off.
    local seconds=$1 logs=$2 kernel=$3 initrd=$4
    shift 4
    rm -f "$logs/console" "$logs/tests"
    # What the kernel says is apart from what the tests say. The kernel keeps as many closed connections
    # as its memory lets it expect, and resets the next ones: tests make more than 2 GiB are good for.
    timeout "$seconds" qemu-system-x86_64 "${accelerator[@]}" -m 2048 -smp "${KERNELS_PROCESSORS:-2}" -nodefaults -display none \
        -no-reboot -kernel "$kernel" -initrd "$initrd" -serial "file:$logs/console" \
        -serial "file:$logs/tests" -append "console=ttyS0 panic=-1 mitigations=off thash_entries=262144 $*" </dev/null &
    vm=$!
    wait "$vm" || true
    vm=
    touch "$logs/console" "$logs/tests"
    sed -i 's/\r//g' "$logs/console" "$logs/tests"
}

choose_accelerator() { # choose_accelerator VMLINUZ INITRD
    # That /dev/kvm is there does not say that it can run this.
    accelerator=(-accel kvm -cpu host)
    if [ -w /dev/kvm ]; then
        boot 60 "$work" "$1" "$2" kernels.probe >/dev/null 2>&1
        ! grep -q '^kernels: exit 0$' "$work/tests" || return 0
    fi
    accelerator=(-accel tcg -cpu "qemu64,+rdrand")
}

names_of_failed() { # names_of_failed: of the last run in a log
    tac | sed '/^running [0-9]* tests\{0,1\}$/,$d' | tac | sed '1,/^failures:$/d' |
        sed -n 's/^    \([a-z0-9_:]*\)$/\1/p' | sort -u
}

accelerator=()
summary=()
ran=0
bad=0
say() { # say KERNEL TEXT
    summary+=("$(printf '%-36s %s' "$1" "$2")")
    echo "$1: $2"
}
for kernel in "${kernels[@]}"; do
    echo "== $kernel"
    update "${kernel%%/*}"
    if ! from=$(unpack "$kernel"); then
        say "$kernel" "not to be had"
        continue
    fi
    vmlinuz=$(find "$from" -name 'vmlinuz*' -type f | head -n 1)
    pack_modules "$from" "$work/modules.cpio.gz"
    cat "$work/root.cpio.gz" "$work/modules.cpio.gz" >"$work/initrd"
    [ ${#accelerator[@]} -gt 0 ] || choose_accelerator "$vmlinuz" "$work/initrd"
    logs=$cache/logs/${kernel//[\/*]/-}
    mkdir -p "$logs"
    started=$SECONDS
    boot $((minutes * 60)) "$logs" "$vmlinuz" "$work/initrd"
    took=$((SECONDS - started))
    ran=$((ran + 1))
    release=$(sed -n 's/^kernels: kernel //p' "$logs/tests")
    nft=$(sed -n 's/^kernels: nftables v\([^ ]*\).*/\1/p' "$logs/tests")
    counts=$(sed -n 's/^test result: [A-Za-z]*\. \(.*\); [0-9]* measured.*/\1/p' "$logs/tests" | head -n 1)
    about="${release:-?}, nft ${nft:-?}, ${accelerator[1]}: ${counts:-no result}, $took s"
    if ! grep -q '^kernels: exit ' "$logs/tests"; then
        bad=1
        say "$kernel" "$about; ended before its tests did, see $logs"
        tail -n 5 "$logs/console" "$logs/tests"
        continue
    fi
    say "$kernel" "$about"
    failed=$(names_of_failed <"$logs/tests")
    if ! grep -q '^kernels: exit 0$' "$logs/tests" && [ -z "$failed" ]; then
        bad=1
        sed -n 's/^kernels: /    /p' "$logs/tests"
    fi
    sed '/^kernels: again$/,$d' "$logs/tests" | names_of_failed | while read -r name; do
        ! grep -qxF "$name" <<<"$failed" || continue
        echo "    $name: failed among others, passed alone"
    done
    for name in $failed; do
        reason=$(known "$release" "$name")
        say "    $name" "failed${reason:+, as known: $reason}"
        [ -n "$reason" ] || bad=1
    done
    # A kernel that complains about itself is worth a look, whatever the tests say.
    grep -E 'BUG:|WARNING:|Oops|general protection' "$logs/console" | sort -u | head -n 5 || true
done

echo
printf '%s\n' "${summary[@]}"
[ "$ran" -gt 0 ] || bad=1
exit $bad
