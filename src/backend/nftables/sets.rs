//! The program's sets and maps: what they are called, what their keys are made of, and which
//! entries live in them.
//!
//! Pure descriptions; `text` and `netlink` turn them into what nft and the kernel understand.

use super::clients::ClientMap;
use crate::ir::{Destination, Entry, Host, List, Shared};
use crate::model::Family;

/// One of a table's sets or maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum SetId {
    /// Endpoints by destination and slot.
    Endpoints,
    /// Endpoints by `NodePort` and slot.
    NodePortEndpoints,
    /// What a cluster or external address does.
    ServiceIps,
    /// What a `NodePort` does.
    ServiceNodePorts,
    /// What an address does for sources from outside, under a Local policy.
    ExternalLocalIps,
    /// What a `NodePort` does for sources from outside, under a Local policy.
    ExternalLocalNodePorts,
    /// Addresses that refuse connections.
    NoEndpointsIps,
    /// `NodePort`s that refuse connections.
    NoEndpointsNodePorts,
    /// Addresses whose clients are remembered.
    AffinityIps,
    /// `NodePort`s whose clients are remembered.
    AffinityNodePorts,
    /// Clients and where they went.
    Affinity(ClientMap),
    /// `ClusterIP`s in use.
    ClusterIps,
    /// Ranges of `ServiceCIDR`s.
    ServiceCidrs,
    /// Local endpoints, as both ends of a connection.
    Hairpin,
    /// VIPs that admit only some sources.
    GuardedIps,
    /// The sources they admit.
    AllowedSources,
    /// Node addresses that accept `NodePort`s.
    NodePortIps,
}

/// The sets that every table has, in the order in which the program lists them.
pub(crate) const FIXED_SETS: [SetId; 16] = [
    SetId::Endpoints,
    SetId::NodePortEndpoints,
    SetId::ServiceIps,
    SetId::ServiceNodePorts,
    SetId::ExternalLocalIps,
    SetId::ExternalLocalNodePorts,
    SetId::NoEndpointsIps,
    SetId::NoEndpointsNodePorts,
    SetId::AffinityIps,
    SetId::AffinityNodePorts,
    SetId::ClusterIps,
    SetId::ServiceCidrs,
    SetId::Hairpin,
    SetId::GuardedIps,
    SetId::AllowedSources,
    SetId::NodePortIps,
];

/// A part of a key or of a map's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// An address of the table's family, network byte order.
    Address,
    /// A protocol number.
    Protocol,
    /// A port, network byte order.
    Port,
    /// The place in a list, host byte order, as `numgen` makes it.
    Slot,
}

impl Field {
    /// Bytes of the value itself. In a key it fills whole 4-byte registers.
    pub(crate) const fn width(self, family: Family) -> usize {
        match (self, family) {
            (Self::Address, Family::V4) | (Self::Slot, _) => 4,
            (Self::Address, Family::V6) => 16,
            (Self::Protocol, _) => 1,
            (Self::Port, _) => 2,
        }
    }

    /// Bytes of whole registers.
    pub(crate) const fn registers(self, family: Family) -> usize {
        self.width(family).next_multiple_of(4)
    }
}

/// What a map holds under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    /// Nothing: a set.
    None,
    /// A verdict.
    Verdict,
    /// An endpoint: address and port.
    Endpoint,
}

/// How many clients an affinity map remembers; a timeout has sixteen. A full map forgets nobody and
/// remembers no one new; connections go through it either way.
pub(crate) const AFFINITY_SIZE: u32 = 1 << 20;

const ADDRESS_PORT: &[Field] = &[Field::Address, Field::Protocol, Field::Port];
const NODE_PORT: &[Field] = &[Field::Protocol, Field::Port];

impl SetId {
    /// Whether its elements are endpoints in their slots.
    pub(crate) const fn holds_slots(self) -> bool {
        matches!(self, Self::Endpoints | Self::NodePortEndpoints)
    }

    /// Its name in the table.
    pub(crate) fn name(self) -> String {
        let fixed = match self {
            Self::Endpoints => "endpoints",
            Self::NodePortEndpoints => "nodeport-endpoints",
            Self::ServiceIps => "service-ips",
            Self::ServiceNodePorts => "service-nodeports",
            Self::ExternalLocalIps => "external-local-ips",
            Self::ExternalLocalNodePorts => "external-local-nodeports",
            Self::NoEndpointsIps => "no-endpoints-ips",
            Self::NoEndpointsNodePorts => "no-endpoints-nodeports",
            Self::AffinityIps => "affinity-ips",
            Self::AffinityNodePorts => "affinity-nodeports",
            Self::Affinity(map) => return format!("affinity-{map}"),
            Self::ClusterIps => "cluster-ips",
            Self::ServiceCidrs => "service-cidrs",
            Self::Hairpin => "hairpin",
            Self::GuardedIps => "guarded-ips",
            Self::AllowedSources => "allowed-sources",
            Self::NodePortIps => "nodeport-ips",
        };
        fixed.to_owned()
    }

    /// The set with this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        FIXED_SETS
            .into_iter()
            .find(|set| set.name() == name)
            .or_else(|| {
                let map = ClientMap::from_name(name.strip_prefix("affinity-")?)?;
                Some(Self::Affinity(map))
            })
    }

    /// What its key is made of.
    pub(crate) const fn key(self) -> &'static [Field] {
        use Field::{Address, Port, Protocol, Slot};
        match self {
            Self::Endpoints => &[Address, Protocol, Port, Slot],
            Self::NodePortEndpoints => &[Protocol, Port, Slot],
            Self::ServiceIps
            | Self::ExternalLocalIps
            | Self::NoEndpointsIps
            | Self::AffinityIps
            | Self::GuardedIps => ADDRESS_PORT,
            Self::ServiceNodePorts
            | Self::ExternalLocalNodePorts
            | Self::NoEndpointsNodePorts
            | Self::AffinityNodePorts => NODE_PORT,
            Self::Affinity(_) | Self::Hairpin => &[Address, Address, Protocol, Port],
            Self::ClusterIps | Self::ServiceCidrs | Self::NodePortIps => &[Address],
            Self::AllowedSources => &[Address, Protocol, Port, Address],
        }
    }

    /// What it holds under a key.
    pub(crate) const fn data(self) -> Data {
        match self {
            Self::Endpoints | Self::NodePortEndpoints | Self::Affinity(_) => Data::Endpoint,
            Self::ServiceIps
            | Self::ServiceNodePorts
            | Self::ExternalLocalIps
            | Self::ExternalLocalNodePorts
            | Self::AffinityIps
            | Self::AffinityNodePorts => Data::Verdict,
            Self::NoEndpointsIps
            | Self::NoEndpointsNodePorts
            | Self::ClusterIps
            | Self::ServiceCidrs
            | Self::Hairpin
            | Self::GuardedIps
            | Self::AllowedSources
            | Self::NodePortIps => Data::None,
        }
    }

    /// Whether its elements are ranges.
    pub(crate) const fn is_interval(self) -> bool {
        matches!(self, Self::ServiceCidrs | Self::AllowedSources)
    }

    /// Whether packets add its elements.
    pub(crate) const fn is_dynamic(self) -> bool {
        matches!(self, Self::Affinity(_))
    }

    /// The set that an entry lives in.
    pub(crate) const fn of(entry: &Entry) -> Self {
        const fn pick(destination: &Destination, ip: SetId, node: SetId) -> SetId {
            match destination.host {
                Host::Address(_) => ip,
                Host::Node(_) => node,
            }
        }
        match entry {
            Entry::Route { destination, .. } => {
                pick(destination, Self::ServiceIps, Self::ServiceNodePorts)
            }
            Entry::ExternalRoute { destination, .. } => pick(
                destination,
                Self::ExternalLocalIps,
                Self::ExternalLocalNodePorts,
            ),
            Entry::Slot { destination, .. } => {
                pick(destination, Self::Endpoints, Self::NodePortEndpoints)
            }
            Entry::NoEndpoints { destination, .. } => pick(
                destination,
                Self::NoEndpointsIps,
                Self::NoEndpointsNodePorts,
            ),
            Entry::Remember { destination, .. } => {
                pick(destination, Self::AffinityIps, Self::AffinityNodePorts)
            }
            Entry::Guarded { .. } => Self::GuardedIps,
            Entry::AllowedSource { .. } => Self::AllowedSources,
            Entry::Shared(Shared::ClusterIp(_)) => Self::ClusterIps,
            Entry::Shared(Shared::ServiceCidr(_)) => Self::ServiceCidrs,
            Entry::Shared(Shared::Hairpin { .. }) => Self::Hairpin,
            Entry::Shared(Shared::NodePortAddress(_)) => Self::NodePortIps,
        }
    }
}

/// The number of the first slot of a destination's second list: both lists share one map, and
/// no list is longer than this.
pub(crate) const EXTERNAL_OFFSET: u32 = 1 << 24;

/// The slot number under which an entry of a list is stored.
pub(crate) const fn slot_number(list: List, index: u32) -> u32 {
    match list {
        List::Primary => index,
        List::External => index.wrapping_add(EXTERNAL_OFFSET),
    }
}

/// The list and index of a slot number.
pub(crate) const fn slot_place(number: u32) -> (List, u32) {
    match number.checked_sub(EXTERNAL_OFFSET) {
        None => (List::Primary, number),
        Some(index) => (List::External, index),
    }
}
