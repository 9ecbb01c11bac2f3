//! What belongs to no Service: the `ServiceCIDR`s and the addresses of `NodePort`s.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::compiled::Compiled;
use crate::core::ir::Shared;
use crate::core::model::{Family, PerFamily, State};
use crate::core::networks;

/// Which of the node's addresses accept `NodePort`s (`nodePortAddresses`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NodePortAddresses {
    /// The node's first address of each family; nobody in a family without one.
    #[default]
    Primary,
    /// Every local address but loopback.
    All,
    /// The addresses of local interfaces inside these networks; a family without a network, or
    /// with one that holds everything, accepts them on every address but loopback.
    Networks(Vec<IpNetwork>),
    /// The node's first address of each family, and those inside these networks.
    PrimaryAnd(Vec<IpNetwork>),
}

impl NodePortAddresses {
    /// Whether every local address of a family accepts them.
    #[must_use]
    pub fn all(&self, family: Family) -> bool {
        match self {
            Self::Primary => false,
            Self::All => true,
            Self::Networks(list) => {
                let mut mine = list
                    .iter()
                    .filter(|network| networks::family(**network) == family)
                    .peekable();
                mine.peek().is_none() || mine.any(|network| network.prefix() == 0)
            }
            Self::PrimaryAnd(list) => list
                .iter()
                .any(|network| network.prefix() == 0 && networks::family(*network) == family),
        }
    }

    /// Whether the loopback address of any family is asked for so.
    #[must_use]
    pub fn any_loopback(&self) -> bool {
        let mut families = Family::BOTH.into_iter();
        families.any(|family| self.loopback(family))
    }

    /// Whether the loopback address of a family, 127.0.0.1 or `::1`, is asked for by a range of such
    /// addresses. Who asks for all addresses does not mean it (KEP-6032).
    #[must_use]
    pub fn loopback(&self, family: Family) -> bool {
        match self {
            Self::Primary | Self::All => false,
            Self::Networks(list) | Self::PrimaryAnd(list) => list.iter().any(|network| {
                let localhost = match family {
                    Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
                };
                network.contains(localhost) && network.network().is_loopback()
            }),
        }
    }

    /// Whether 127.0.0.1 is among them for who takes all addresses to be all.
    #[must_use]
    pub fn hold_localhost(&self) -> bool {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        match self {
            Self::Primary => false,
            Self::All => true,
            Self::Networks(list) | Self::PrimaryAnd(list) => {
                self.all(Family::V4) || list.iter().any(|network| network.contains(localhost))
            }
        }
    }
}

/// Compiles what belongs to no Service: the `ServiceCIDR`s and the addresses of `NodePort`s.
#[must_use]
pub fn compile_cluster(state: &State, node_ports: &NodePortAddresses) -> Compiled {
    let mut shared: Vec<Shared> = networks::merge(state.service_cidrs())
        .into_iter()
        .map(Shared::ServiceCidr)
        .collect();
    shared.extend(node_port_addresses(state, node_ports).map(Shared::NodePortAddress));
    shared.sort_unstable();
    shared.dedup();
    Compiled {
        shared: shared.into(),
        ..Compiled::default()
    }
}

/// The addresses of the node that accept `NodePort`s, one by one even where all do.
#[must_use]
pub fn accepted_node_port_addresses(state: &State, accepted: &NodePortAddresses) -> Vec<IpAddr> {
    let listed = node_port_addresses(state, accepted);
    let all = state
        .interface_addresses()
        .filter(|address| !address.is_loopback() && accepted.all(Family::of(*address)));
    listed.chain(all).collect()
}

fn node_port_addresses<'a>(
    state: &'a State,
    accepted: &'a NodePortAddresses,
) -> Box<dyn Iterator<Item = IpAddr> + 'a> {
    let primary = || {
        let PerFamily { v4, v6 } = state.node().primary_addresses();
        let primary = v4.into_iter().chain(v6);
        primary
            .filter(|address| !address.is_loopback())
            .filter(|address| !accepted.all(Family::of(*address)))
    };
    let within = |list: &'a [IpNetwork]| {
        state
            .interface_addresses()
            .filter(|address| !address.is_loopback())
            .filter(|address| !accepted.all(Family::of(*address)))
            .filter(|address| list.iter().any(|network| network.contains(*address)))
    };
    match accepted {
        NodePortAddresses::All => Box::new(std::iter::empty()),
        NodePortAddresses::Primary => Box::new(primary()),
        NodePortAddresses::Networks(list) => Box::new(within(list)),
        NodePortAddresses::PrimaryAnd(list) => Box::new(primary().chain(within(list))),
    }
}
