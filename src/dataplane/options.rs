//! What every backend needs to know besides the cluster's objects.

use crate::core::model::{Family, LocalDetector, PerFamily};

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
    /// Which families are programmed.
    pub families: Vec<Family>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            masquerade_bit: 14,
            masquerade_all: false,
            local_detector: PerFamily::default(),
            node_ports_everywhere: PerFamily::default(),
            on_loopback: PerFamily::default(),
            families: Family::BOTH.to_vec(),
        }
    }
}

impl Options {
    pub(crate) const fn mark(&self) -> u32 {
        1u32.wrapping_shl(self.masquerade_bit as u32)
    }
}
