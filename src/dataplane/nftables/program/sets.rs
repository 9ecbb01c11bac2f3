//! The program's sets and maps: what they are called, what their keys are made of, and which
//! entries live in them.
//!
//! Pure descriptions; `text` and `netlink` turn them into what nft and the kernel understand.

use crate::core::ir::Shared;
use crate::core::model::Family;

/// One of a table's sets or maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum SetId {
    /// What a cluster or external address does: its shape.
    ServiceIps,
    /// What a `NodePort` does.
    ServiceNodePorts,
    /// What an address does for sources from outside, under a Local policy.
    ExternalLocalIps,
    /// What a `NodePort` does for sources from outside, under a Local policy.
    ExternalLocalNodePorts,
    /// Endpoints by destination and place, or by id where clients are remembered.
    Endpoints,
    /// Endpoints by `NodePort` and place, or by id.
    NodePortEndpoints,
    /// Ids of endpoints that clients come back to, by destination and place, and by the id
    /// without its class.
    AffinityIds,
    /// The same by `NodePort`.
    AffinityNodePortIds,
    /// Clients, and the ids of the endpoints that they come back to.
    Affinity,
    /// Which chain a shape goes to.
    Routes,
    /// Which chain draws a place of so many.
    Draws,
    /// Which chain draws a place of so many that is filled for sure.
    SureDraws,
    /// Addresses that refuse connections.
    NoEndpointsIps,
    /// `NodePort`s that refuse connections.
    NoEndpointsNodePorts,
    /// `ClusterIP`s in use.
    ClusterIps,
    /// Ranges of `ServiceCIDR`s.
    ServiceCidrs,
    /// Local endpoints, as both ends of a connection.
    Hairpin,
    /// VIPs that admit only some sources.
    GuardedIps,
    /// The networks they admit, with the length of their prefix.
    AllowedSources,
    /// Node addresses that accept `NodePort`s.
    NodePortIps,
}

/// The sets and maps of a table, in the order in which they are listed.
pub(crate) const SETS: [SetId; 20] = [
    SetId::ServiceIps,
    SetId::ServiceNodePorts,
    SetId::ExternalLocalIps,
    SetId::ExternalLocalNodePorts,
    SetId::Endpoints,
    SetId::NodePortEndpoints,
    SetId::AffinityIds,
    SetId::AffinityNodePortIds,
    SetId::Affinity,
    SetId::Routes,
    SetId::Draws,
    SetId::SureDraws,
    SetId::NoEndpointsIps,
    SetId::NoEndpointsNodePorts,
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
    /// A number of ours (see `numbers`), host byte order, as the packet's priority holds it.
    Number,
    /// Half of the hash that stands for a client and a destination where both do not fit.
    ClientHash,
}

impl Field {
    /// Bytes of the value itself. In a key it fills whole 4-byte registers.
    pub(crate) const fn width(self, family: Family) -> usize {
        match (self, family) {
            (Self::Address, Family::V4) | (Self::Number | Self::ClientHash, _) => 4,
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
    /// A number of ours.
    Number,
    /// An endpoint: address and port.
    Endpoint,
}

/// How many clients a family remembers: some 130 bytes of the kernel's memory each. A full map
/// forgets nobody and remembers no one new; connections go through it either way.
pub(crate) const AFFINITY_SIZE: u32 = 1 << 21;

const ADDRESS_PORT: &[Field] = &[Field::Address, Field::Protocol, Field::Port];
const NODE_PORT: &[Field] = &[Field::Protocol, Field::Port];

impl SetId {
    /// Its name in the table.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ServiceIps => "service-ips",
            Self::ServiceNodePorts => "service-nodeports",
            Self::ExternalLocalIps => "external-local-ips",
            Self::ExternalLocalNodePorts => "external-local-nodeports",
            Self::Endpoints => "endpoints",
            Self::NodePortEndpoints => "nodeport-endpoints",
            Self::AffinityIds => "affinity-ids",
            Self::AffinityNodePortIds => "affinity-nodeport-ids",
            Self::Affinity => "affinity",
            Self::Routes => "routes",
            Self::Draws => "draws",
            Self::SureDraws => "sure-draws",
            Self::NoEndpointsIps => "no-endpoints-ips",
            Self::NoEndpointsNodePorts => "no-endpoints-nodeports",
            Self::ClusterIps => "cluster-ips",
            Self::ServiceCidrs => "service-cidrs",
            Self::Hairpin => "hairpin",
            Self::GuardedIps => "guarded-ips",
            Self::AllowedSources => "allowed-sources",
            Self::NodePortIps => "nodeport-ips",
        }
    }

    /// The set with this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        SETS.into_iter().find(|set| set.name() == name)
    }

    /// What its key is made of.
    ///
    /// The key of `affinity` is a client and what it connected to; in IPv6 a hash of them, because
    /// nft 1.0.6 aborts over a statement that updates a map under a concatenation of more than 16
    /// bytes (`netlink_gen_map_stmt` takes one register for it).
    pub(crate) const fn key(self, family: Family) -> &'static [Field] {
        use Field::{Address, ClientHash, Number, Port, Protocol};
        match self {
            Self::Endpoints | Self::AffinityIds => &[Address, Protocol, Port, Number],
            Self::NodePortEndpoints | Self::AffinityNodePortIds => &[Protocol, Port, Number],
            Self::ServiceIps | Self::ExternalLocalIps | Self::NoEndpointsIps | Self::GuardedIps => {
                ADDRESS_PORT
            }
            Self::ServiceNodePorts | Self::ExternalLocalNodePorts | Self::NoEndpointsNodePorts => {
                NODE_PORT
            }
            Self::Affinity => match family {
                Family::V4 => &[Address, Address, Protocol, Port],
                Family::V6 => &[ClientHash, ClientHash],
            },
            Self::Routes | Self::Draws | Self::SureDraws => &[Number],
            Self::Hairpin => &[Address, Address, Protocol, Port],
            Self::ClusterIps | Self::ServiceCidrs | Self::NodePortIps => &[Address],
            Self::AllowedSources => &[Address, Protocol, Port, Address, Number],
        }
    }

    /// What it holds under a key.
    pub(crate) const fn data(self) -> Data {
        match self {
            Self::Endpoints | Self::NodePortEndpoints => Data::Endpoint,
            Self::ServiceIps
            | Self::ServiceNodePorts
            | Self::ExternalLocalIps
            | Self::ExternalLocalNodePorts
            | Self::AffinityIds
            | Self::AffinityNodePortIds
            | Self::Affinity => Data::Number,
            Self::Routes | Self::Draws | Self::SureDraws => Data::Verdict,
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
        matches!(self, Self::ServiceCidrs)
    }

    /// Whether packets add its elements.
    pub(crate) const fn is_dynamic(self) -> bool {
        matches!(self, Self::Affinity)
    }

    /// Whether its elements are the program's, and not the cluster's.
    pub(crate) const fn is_of_the_program(self) -> bool {
        matches!(self, Self::Routes | Self::Draws | Self::SureDraws)
    }

    /// The set that a shared fact lives in.
    pub(crate) const fn of_shared(shared: &Shared) -> Self {
        match shared {
            Shared::ClusterIp(_) => Self::ClusterIps,
            Shared::ServiceCidr(_) => Self::ServiceCidrs,
            Shared::Hairpin { .. } => Self::Hairpin,
            Shared::NodePortAddress(_) => Self::NodePortIps,
        }
    }
}
