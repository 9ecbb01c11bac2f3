.PHONY: setup demo test bench fuzz fresh

# Tools of the administrator are not on everybody's path.
export PATH := $(PATH):/usr/sbin:/sbin

# What is needed beside the Rust toolchain; installs only what is missing.
setup:
	@scripts/setup.sh

# Builds pointsman and runs it on an online shop, in network namespaces. Needs root.
demo: setup
	cargo build --release --bin pointsman --example demo
	@"$${CARGO_TARGET_DIR:-target}"/release/examples/demo

test: setup
	cargo test

# What it costs at scale, beside the alternatives: a table, and target/bench.json. Needs root.
bench: setup
	cargo bench --bench report -- --json "$${CARGO_TARGET_DIR:-target}"/bench.json

# What a fuzzer makes of input from outside, a minute for each parser of it.
fuzz: setup
	@scripts/fuzz.sh

# The README's commands on a clean clone in a bare Debian root, with the Rust toolchain and nothing else.
# Needs root.
fresh:
	scripts/fresh.sh bookworm
