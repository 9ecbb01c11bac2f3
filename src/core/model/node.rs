//! This node.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Family, Name, PerFamily};

/// What matters of the Node object that pointsman runs on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Its name, lowercased.
    pub name: Name,
    /// Label `topology.kubernetes.io/zone`, if it has one.
    pub zone: Option<Name>,
    /// `status.addresses` that are IP addresses: internal ones first, then external ones.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Whether load balancers may send new traffic: it exists and is not about to go.
    pub eligible: bool,
}

impl Node {
    /// A node of which only the name is known.
    pub fn named(name: impl Into<Name>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// The first address of each family.
    #[must_use]
    pub fn primary_addresses(&self) -> PerFamily<Option<IpAddr>> {
        PerFamily::from_fn(|family| {
            self.addresses
                .iter()
                .copied()
                .find(|address| Family::of(*address) == family)
        })
    }
}
