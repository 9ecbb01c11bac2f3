//! Endpoints and the slices that carry them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Family, Name, Protocol};

/// Where a connection can be sent: an address and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port, in host byte order.
    pub port: u16,
}

impl Endpoint {
    /// An endpoint from its parts.
    #[must_use]
    pub const fn new(address: IpAddr, port: u16) -> Self {
        Self { address, port }
    }

    /// The family of the address.
    #[must_use]
    pub const fn family(self) -> Family {
        Family::of(self.address)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// One of an `EndpointSlice`'s ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SlicePort {
    /// The name that pairs it with a Service's port; empty for an unnamed one.
    pub name: Name,
    /// The protocol that pairs it with a Service's port.
    pub protocol: Protocol,
    /// The port on the endpoints; never 0.
    pub port: u16,
}

/// What an endpoint's hints say about this node (KEP-2433, KEP-3015).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Hint {
    /// No hint.
    #[default]
    None,
    /// Hints that name only others.
    Elsewhere,
    /// A hint that names this node.
    Here,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first address: kube-proxy and pointsman use no other.
    pub address: IpAddr,
    /// Condition `ready`; absent means true.
    pub ready: bool,
    /// Condition `serving`; absent means true.
    pub serving: bool,
    /// Condition `terminating`; absent means false.
    pub terminating: bool,
    /// Whether it runs on this node.
    pub local: bool,
    /// What `hints.forNodes` says about this node.
    pub node_hint: Hint,
    /// How many connections it is to have in proportion to others; 1 unless somebody says so, 0 for
    /// no new ones.
    pub weight: u32,
    /// The zones of `hints.forZones`, if any.
    pub zone_hints: Option<ZoneHints>,
}

/// Zones that hints name. Boxed inside so that the many endpoints without any pay for one pointer.
pub type ZoneHints = Arc<Box<[Name]>>;
