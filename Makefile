.PHONY: setup demo test soak bench fresh

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

# Hours of everything at once: objects that change by chance, an API server that goes and comes, kills and
# tampering, while traffic goes on; a table, and what was wrong. SECONDS says for how long. Needs root.
soak: SECONDS = 3600
soak: setup
	cargo build --release --bin pointsman
	POINTSMAN_UNDER_TEST="$${CARGO_TARGET_DIR:-target}"/release/pointsman SOAK_SECONDS=$(SECONDS) \
		cargo test --test soak

# What it costs at scale, beside the alternatives: a table, and target/bench.json. Needs root.
bench: setup
	cargo bench --bench report -- --json "$${CARGO_TARGET_DIR:-target}"/bench.json

# The README's commands on a clean clone in a bare Debian root, with the Rust toolchain and nothing else.
# Needs root.
fresh:
	scripts/fresh.sh bookworm
