//! What every backend needs to know besides the cluster's objects.

use std::time::Duration;

use crate::core::model::{Family, LocalDetector, PerFamily};

/// What the rules are programmed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// nftables, or iptables where the kernel has no nf_tables.
    Either,
    /// nftables.
    Nftables,
    /// iptables.
    Iptables,
}

impl Mode {
    /// As kube-proxy calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nftables | Self::Either => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

/// What the program depends on besides the cluster's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The bit of the packet mark that asks for masquerading, 0 to 31.
    pub masquerade_bit: u8,
    /// Whether `ClusterIP` traffic of pods is masqueraded too.
    pub masquerade_all: bool,
    /// How pods are recognised.
    pub local_detector: PerFamily<LocalDetector>,
    /// Whether `NodePort`s are accepted on every local address but loopback, or only on those
    /// in the `nodeport-ips` set.
    pub node_ports_everywhere: PerFamily<bool>,
    /// Whether `NodePort`s are served on loopback addresses, by who takes TCP connections there: other
    /// protocols are refused and counted.
    pub on_loopback: PerFamily<bool>,
    /// Whether iptables mode leads `NodePort`s on 127.0.0.1 to their endpoints, which the kernel does with
    /// `route_localnet`.
    pub localhost_node_ports: bool,
    /// Which families are programmed.
    pub families: Vec<Family>,
    /// How often somebody else's changes are looked for, where nobody tells of them.
    pub look_every: Duration,
    /// Whether packets that belong to no connection are dropped where they are forwarded.
    pub drop_invalid: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            masquerade_bit: 14,
            masquerade_all: false,
            local_detector: PerFamily::default(),
            node_ports_everywhere: PerFamily::default(),
            on_loopback: PerFamily::default(),
            localhost_node_ports: false,
            families: Family::BOTH.to_vec(),
            look_every: Duration::from_secs(30),
            drop_invalid: true,
        }
    }
}

impl Options {
    pub(crate) const fn mark(&self) -> u32 {
        1u32.wrapping_shl(self.masquerade_bit as u32)
    }
}

/// Of what connections are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CountingLevel {
    /// Of nothing.
    Nothing,
    /// Of each Service.
    Services,
    /// The same, and of each of its endpoints.
    Endpoints,
}
