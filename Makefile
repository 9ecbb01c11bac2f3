.PHONY: setup demo test

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
