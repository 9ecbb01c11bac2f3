.PHONY: setup demo test soak bench fuzz fresh kernels upgrade

# Tools of the administrator are not on everybody's path.
export PATH := $(PATH):/usr/sbin:/sbin

# What is needed beside the Rust toolchain; installs only what is missing.
setup:
	@scripts/setup.sh

# Builds pointsman and runs it on an online shop, in network namespaces. Needs root.
demo: setup
	cargo build --release --bin pointsman --example demo
	@"$${CARGO_TARGET_DIR:-target}"/release/examples/demo

# What is another thing in iptables mode (docs/semantics.md, O), or is about nf_tables itself.
NFTABLES_ONLY = n_f1_ e8_mark_ loopback::a_port_ flows::n_h1_ packets::n_e13_ recovery::a_family_ recovery::n_g4_ \
	recovery::cleanup_ packets::upgrade lifecycle::k lifecycle::once health::l2_ api::metrics::j_ node::e13_ \
	startup::a1_ startup::g2_ api::takeover node::k9_ algorithms::p3_ algorithms::p4_ algorithms::p8_

# The table of what packets experience, and flows, once more on a node without one of the families; and in
# iptables mode, by either variant.
test: setup
	cargo test
	POINTSMAN_TEST_WITHOUT=IPv6 cargo test --test it -- policies flows
	POINTSMAN_TEST_WITHOUT=IPv4 cargo test --test it -- policies flows --skip flows::h2_ --skip flows::n_h4_h5_
	for by in nft legacy; do \
		iptables-$$by-save -t nat >/dev/null || { echo "ignored: this kernel has no iptables-$$by"; continue; }; \
		POINTSMAN_TEST_BY=iptables-$$by cargo test --test it -- \
		policies packets flows health_checks api:: observed incidents $(foreach test,$(NFTABLES_ONLY),--skip $(test)) || exit 1; done

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

# What a fuzzer makes of input from outside, a minute for each parser of it.
fuzz: setup
	@scripts/fuzz.sh

# The README's commands on a clean clone in a bare Debian root, with the Rust toolchain and nothing else.
# Needs root.
fresh:
	scripts/fresh.sh bookworm

# The tests of `--test it` on Debian's kernels, each in a virtual machine: KERNELS=bookworm/cloud-amd64
# picks, scripts/kernels.sh lists them. Needs qemu-system-x86 and, unless there is KVM, hours.
kernels: setup
	scripts/kernels.sh $(KERNELS)

# An older version and this one follow each other under traffic: FROM=COMMIT, by default 0.1.0. Needs root.
upgrade: FROM = 4f1bccf
upgrade: setup
	scripts/upgrade.sh $(FROM)
