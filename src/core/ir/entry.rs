//! Facts: each has one key, and is what a backend adds or takes away.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::destination::{Destination, Label};
use super::draws::Draw;
use crate::core::model::{Endpoint, Family, Protocol};

/// Which sources are treated alike on the way to a destination's endpoints (docs/semantics.md, E).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourcePolicy {
    /// A `ClusterIP`: pods keep their address, everyone else is masqueraded.
    ClusterIp,
    /// An external destination with policy Cluster: everyone is masqueraded.
    External,
    /// An external destination with policy Local: pods reach all endpoints with their own
    /// address, this host reaches all of them masqueraded, everyone else reaches the local
    /// ones with their own address.
    ExternalLocal,
}

/// What a destination does with a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Route {
    /// It goes away without an answer.
    Drop,
    /// It goes to one of the endpoints.
    Balance {
        /// How sources are told apart.
        policy: SourcePolicy,
        /// How many places the list has: as many as endpoints, unless some have several.
        endpoints: u32,
        /// What decides which place a connection is given.
        draw: Draw,
        /// Seconds after a client's last new connection for which its choice is remembered.
        affinity: Option<u32>,
    },
}

/// Which of a destination's two lists an endpoint is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum List {
    /// The list for everyone, or for pods and this host under [`SourcePolicy::ExternalLocal`].
    Primary,
    /// The list for sources from outside under [`SourcePolicy::ExternalLocal`].
    External,
}

impl List {
    /// Both, primary first.
    pub const BOTH: [Self; 2] = [Self::Primary, Self::External];
}

/// A fact that several owners may state; it holds as long as one of them does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shared {
    /// An address is an active Service's `ClusterIP`: its undefined ports are refused.
    ClusterIp(IpAddr),
    /// A range belongs to a `ServiceCIDR`: its unused addresses are dropped. Never overlaps
    /// another one.
    ServiceCidr(IpNetwork),
    /// A connection from an endpoint on this node that comes back to itself is masqueraded.
    Hairpin {
        /// The protocol.
        protocol: Protocol,
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// `NodePort`s are accepted on this address.
    NodePortAddress(IpAddr),
}

impl Shared {
    /// The family whose tables it belongs to.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self {
            Self::ClusterIp(address) | Self::NodePortAddress(address) => Family::of(*address),
            Self::Hairpin { endpoint, .. } => Family::of(endpoint.address),
            Self::ServiceCidr(IpNetwork::V4(_)) => Family::V4,
            Self::ServiceCidr(IpNetwork::V6(_)) => Family::V6,
        }
    }

    /// Whether traffic that would fail without the fact works with it. The others refuse traffic
    /// that nothing else serves.
    #[must_use]
    pub const fn admits(self) -> bool {
        match self {
            Self::Hairpin { .. } | Self::NodePortAddress(_) => true,
            Self::ClusterIp(_) | Self::ServiceCidr(_) => false,
        }
    }
}

/// One fact. Its key is everything but the fields named in the variant's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// What a destination does. Value: `route`, `label`.
    Route {
        /// The destination.
        destination: Destination,
        /// What it does.
        route: Route,
        /// Whose it is.
        label: Label,
    },
    /// What a destination does for sources from outside. Value: `route`.
    ExternalRoute {
        /// The destination.
        destination: Destination,
        /// What it does for them.
        route: Route,
    },
    /// One endpoint of a list. Value: `endpoint`.
    Slot {
        /// The destination.
        destination: Destination,
        /// Which list.
        list: List,
        /// Its place, from 0 without gaps.
        index: u32,
        /// Whether clients are remembered here: the place of an endpoint that clients come back to
        /// is another fact than that of one that they do not.
        remembered: bool,
        /// The endpoint in this place.
        endpoint: Endpoint,
    },
    /// A destination refuses connections. Value: `label`.
    NoEndpoints {
        /// The destination.
        destination: Destination,
        /// Whose it is.
        label: Label,
    },
    /// Only allowed sources may connect to a destination.
    Guarded {
        /// The destination.
        destination: Destination,
    },
    /// A source that may connect to a guarded destination.
    AllowedSource {
        /// The destination.
        destination: Destination,
        /// Its sources.
        network: IpNetwork,
    },
    /// A fact that several may state.
    Shared(Shared),
}

impl Entry {
    /// How many operations it may be to a backend.
    #[must_use]
    pub const fn weight(&self) -> usize {
        match self {
            Self::Slot {
                remembered: true, ..
            } => REMEMBERED_WEIGHT,
            _ => 1,
        }
    }

    /// The destination that it is about, unless several may state it.
    #[must_use]
    pub const fn destination(&self) -> Option<Destination> {
        match self {
            Self::Route { destination, .. }
            | Self::ExternalRoute { destination, .. }
            | Self::Slot { destination, .. }
            | Self::NoEndpoints { destination, .. }
            | Self::Guarded { destination }
            | Self::AllowedSource { destination, .. } => Some(*destination),
            Self::Shared(_) => None,
        }
    }

    /// The family whose tables the entry belongs to.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self {
            Self::Route { destination, .. }
            | Self::ExternalRoute { destination, .. }
            | Self::Slot { destination, .. }
            | Self::NoEndpoints { destination, .. }
            | Self::Guarded { destination }
            | Self::AllowedSource { destination, .. } => destination.family(),
            Self::Shared(shared) => shared.family(),
        }
    }
}

/// How many operations an endpoint that clients come back to may be to a backend.
pub const REMEMBERED_WEIGHT: usize = 3;
