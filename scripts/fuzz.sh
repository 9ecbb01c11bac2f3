#!/bin/sh
# Feeds each parser of input from outside with what a fuzzer makes of fuzz/corpus/, and says how far it came.
# Ends with an error if something crashes, hangs or takes more than a gigabyte.
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]      60 seconds each, all targets one after the other
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
status=0
for target in "$@"; do
    # The checkout stays as it is.
    mkdir -p "$work/corpus" "$work/artifacts/$target"
    cp -r "fuzz/corpus/$target" "$work/corpus/$target"
    log="$work/$target.log"
    if ! cargo fuzz run --sanitizer "$sanitizer" "$target" "$work/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=1024 -use_value_profile=1 \
        -print_final_stats=1 -artifact_prefix="$work/artifacts/$target/" >"$log" 2>&1; then
        echo "$target: ended with an error; the input is in $work/artifacts/$target" >&2
        tail -n 40 "$log" >&2
        status=1
        kept=yes
    fi
    figure() { awk -v name="$1" '$1 == name ":" { print $2 }' "$log" | tail -n 1; }
    last() { sed -n "s|.* $1: *\([0-9]*\).*|\1|p" "$log" | tail -n 1; }
    printf '%-14s %12s %8s %9s %9s %8s\n' "$target" "$(figure stat::number_of_executed_units)" \
        "$(figure stat::average_exec_per_sec)" "$(last cov)" "$(last ft)" \
        "$(find "$work/corpus/$target" -type f | wc -l)" >>"$table"
    tail -n 1 "$table"
done
echo
cat "$table"
exit $status
