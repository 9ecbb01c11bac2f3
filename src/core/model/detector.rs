//! How pods are recognised.

use ipnetwork::IpNetwork;

/// How packets of pods on this cluster are recognised (`detectLocalMode`), in one family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LocalDetector {
    /// They are not: nobody counts as a pod, and `ClusterIP` traffic is never masqueraded.
    #[default]
    None,
    /// By their source address.
    Network(IpNetwork),
    /// By the interface that they come in by.
    Interface(String),
    /// By the first characters of the interface that they come in by.
    InterfacePrefix(String),
}
