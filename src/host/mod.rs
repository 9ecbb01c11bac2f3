//! What this machine is, and what it lets us do.

pub mod descriptors;
pub mod facts;
pub mod file_watch;
pub mod interfaces;
pub mod netlink;
pub mod oom;
pub mod sysctl;

/// Whether IPv6 is switched off on this node, as far as addresses go: nf_tables has its rules all the
/// same.
#[must_use]
pub fn ipv6_is_off() -> bool {
    let off = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
    !std::fs::read_to_string(off).is_ok_and(|value| value.trim() == "0")
}

/// Whether kube-proxy's ipvs mode has been here, and its addresses still are.
#[must_use]
pub fn has_ipvs() -> bool {
    nix::net::if_::if_nametoindex("kube-ipvs0").is_ok()
}
