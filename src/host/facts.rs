//! What this machine is set to, as far as connections to Services depend on it. Reads, and changes nothing.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What was found. What cannot be read is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// The kernel's release, as `uname -r`.
    pub kernel: String,
    /// `net.ipv4.ip_forward`.
    pub ipv4_forwarding: Option<u64>,
    /// `net.ipv6.conf.all.forwarding`.
    pub ipv6_forwarding: Option<u64>,
    /// `net.ipv6.conf.all.disable_ipv6`.
    pub ipv6_disabled: Option<u64>,
    /// `net.ipv4.conf.all.rp_filter`.
    pub rp_filter: Option<u64>,
    /// `net.netfilter.nf_conntrack_tcp_be_liberal`.
    pub tcp_be_liberal: Option<u64>,
    /// Flows that conntrack has.
    pub conntrack_count: Option<u64>,
    /// Flows that conntrack can have.
    pub conntrack_max: Option<u64>,
    /// `net.bridge.bridge-nf-call-iptables`: what goes over a bridge meets the rules.
    pub bridge_calls_iptables: Option<u64>,
    /// There is a bridge with ports.
    pub has_bridge: bool,
    /// Tables of iptables-legacy.
    pub legacy_tables: Vec<String>,
    /// Virtual servers of IPVS.
    pub ipvs_services: usize,
    /// The version of the `nft` that is in the path.
    pub nft: Option<String>,
}

impl Facts {
    /// Looks.
    #[must_use]
    pub fn gather() -> Self {
        let sysctl = |name: &str| number(&format!("/proc/sys/{name}"));
        let kernel = nix::sys::utsname::uname();
        Self {
            kernel: kernel.map_or_else(
                |_| String::new(),
                |name| name.release().to_string_lossy().into_owned(),
            ),
            ipv4_forwarding: sysctl("net/ipv4/ip_forward"),
            ipv6_forwarding: sysctl("net/ipv6/conf/all/forwarding"),
            ipv6_disabled: sysctl("net/ipv6/conf/all/disable_ipv6"),
            rp_filter: sysctl("net/ipv4/conf/all/rp_filter"),
            tcp_be_liberal: sysctl("net/netfilter/nf_conntrack_tcp_be_liberal"),
            conntrack_count: sysctl("net/netfilter/nf_conntrack_count"),
            conntrack_max: sysctl("net/netfilter/nf_conntrack_max"),
            bridge_calls_iptables: sysctl("net/bridge/bridge-nf-call-iptables"),
            has_bridge: has_bridge(Path::new("/sys/class/net")),
            legacy_tables: lines("/proc/net/ip_tables_names")
                .into_iter()
                .chain(
                    lines("/proc/net/ip6_tables_names")
                        .into_iter()
                        .map(|name| name + " (IPv6)"),
                )
                .collect(),
            ipvs_services: lines("/proc/net/ip_vs")
                .iter()
                .filter(|line| {
                    ["TCP", "UDP", "SCTP"]
                        .iter()
                        .any(|protocol| line.starts_with(protocol))
                })
                .count(),
            nft: nft_version(),
        }
    }

    /// The kernel's version: major and minor.
    #[must_use]
    pub fn kernel_version(&self) -> Option<(u32, u32)> {
        let mut parts = self.kernel.split(['.', '-', '+']);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn lines(path: &str) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn has_bridge(interfaces: &Path) -> bool {
    let entries = fs::read_dir(interfaces).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path().join("brif"))
        .any(|ports| fs::read_dir(ports).is_ok_and(|mut ports| ports.next().is_some()))
}

/// What `nft --version` says: "nftables v1.0.6 (Lester Gooch #5)".
fn nft_version() -> Option<String> {
    let output = std::process::Command::new("nft")
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('v'))?;
    Some(version.to_owned())
}
