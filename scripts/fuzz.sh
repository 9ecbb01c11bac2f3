#!/bin/sh
# Feeds each parser of input from outside with what a fuzzer makes of fuzz/corpus/, and says how far it came.
# Ends with an error if something crashes, hangs or takes more than a gigabyte.
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]      60 seconds each, all targets, as many at once as processors
#
# SANITIZER=address has memory errors found in libnftnl too; it is slower.
set -eu

cd "$(dirname "$0")/.."
seconds=${1:-60}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- objects manifests configuration netlink watch-frames
cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
# Coverage is counted by flags of the compiler that are not stable.
export RUSTC_BOOTSTRAP=1
sanitizer=${SANITIZER:-none}
cargo fuzz build --sanitizer "$sanitizer"

work=$(mktemp -d)
# What fuzz targets write, too.
mkdir "$work/tmp"
export TMPDIR="$work/tmp"
kept=""
trap '[ -n "$kept" ] || rm -rf "$work"' EXIT
table="$work/table"
printf '%-14s %12s %8s %9s %9s %8s\n' target executions 'per s' coverage features corpus >"$table"

feed() { # feed TARGET: gives its input to it.
    # The checkout stays as it is.
    mkdir -p "$work/corpus" "$work/artifacts/$1"
    cp -r "fuzz/corpus/$1" "$work/corpus/$1"
    cargo fuzz run --sanitizer "$sanitizer" "$1" "$work/corpus/$1" -- \
        -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=1024 -use_value_profile=1 \
        -print_final_stats=1 -artifact_prefix="$work/artifacts/$1/" >"$work/$1.log" 2>&1
}

status=0
finish() { # finish PID TARGET: waits for it, and says how far it came.
    log="$work/$2.log"
    if ! wait "$1"; then
        echo "$2: ended with an error; the input is in $work/artifacts/$2" >&2
        tail -n 40 "$log" >&2
        status=1
        kept=yes
    fi
    figure() { awk -v name="$1" '$1 == name ":" { print $2 }' "$log" | tail -n 1; }
    last() { sed -n "s|.* $1: *\([0-9]*\).*|\1|p" "$log" | tail -n 1; }
    printf '%-14s %12s %8s %9s %9s %8s\n' "$2" "$(figure stat::number_of_executed_units)" \
        "$(figure stat::average_exec_per_sec)" "$(last cov)" "$(last ft)" \
        "$(find "$work/corpus/$2" -type f | wc -l)" >>"$table"
    tail -n 1 "$table"
}

# A fuzzer is one thread: as many at once as there are processors.
at_once=$(nproc)
while [ $# -gt 0 ]; do
    running=""
    while [ $# -gt 0 ] && [ "$(echo "$running" | wc -w)" -lt "$at_once" ]; do
        feed "$1" &
        running="$running $!:$1"
        shift
    done
    for one in $running; do
        finish "${one%%:*}" "${one#*:}"
    done
done
echo
cat "$table"
exit $status
