//! Whose a chain of iptables is, by its name.

use crate::host::sysctl;

/// Chains of kube-proxy with one name, and the beginnings of those it has many of
/// (`pkg/proxy/iptables/proxier.go`).
const CHAINS: [&str; 14] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-MARK-DROP",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    // Of ipvs mode (`pkg/proxy/ipvs/proxier.go`).
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-SOURCE-RANGES-FIREWALL",
];
const PREFIXES: [&str; 6] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-FW-",
    "KUBE-XLB-",
    "KUBE-SEP-",
];

/// Whether a chain is kube-proxy's.
pub(super) fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// Whether a chain is one of kube-proxy's that others use too: they have it mark what is to be masqueraded, as
/// the plugin `portmap` does by its `externalSetMarkChain`.
pub(super) fn is_for_others_too(chain: &str) -> bool {
    ["KUBE-MARK-MASQ", "KUBE-MARK-DROP"].contains(&chain)
}

/// Whether a chain is one that the kernel has of itself, or that iptables makes as if it were.
pub(super) fn is_built_in(chain: &str) -> bool {
    ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"].contains(&chain)
}

/// The longest name that iptables gives a chain (`XT_EXTENSION_MAXNAMELEN` in the kernel's
/// `include/uapi/linux/netfilter/x_tables.h`, without its NUL).
const LONGEST: usize = 28;

/// Whether a chain is ours.
pub(super) fn is_ours(chain: &str) -> bool {
    chain.len() <= LONGEST
        && ["POINTSMAN-", "PTM-", "PTMG-", "PTMH-"]
            .iter()
            .any(|prefix| chain.starts_with(prefix))
}

/// Says that so many of our chains are gone, and what goes with them.
pub(super) fn told(chains: usize) {
    if chains > 0 {
        tracing::info!(chains, "removed our chains of iptables mode");
        sysctl::warn_of_localnet();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_chains_are_not_kube_proxys() {
        for chain in ["KUBE-SERVICES", "KUBE-SVC-ABC", "KUBE-SEP-X", "KUBE-FW-1"] {
            assert!(is_kube_proxys(chain), "{chain}");
        }
        for chain in [
            "KUBE-FIREWALL",
            "KUBE-KUBELET-CANARY",
            "PREROUTING",
            "KUBE-ROUTER",
        ] {
            assert!(!is_kube_proxys(chain), "{chain}");
        }
    }
}
