//! What every chain of the program has in common: whose table it is, the keys of its sets, and what
//! the operator has said.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::sets::SetId;
use super::statement::{Load, Rule, Statement};
use crate::core::model::Family;
use crate::dataplane::options::Options;

/// The name of our table in each family.
pub(crate) const TABLE: &str = "pointsman";

/// The table of kube-proxy's nftables mode, in each family.
pub(crate) const KUBE_PROXY_TABLE: &str = "kube-proxy";

pub(crate) const DESTINATION: [Load; 3] = [
    Load::DestinationAddress,
    Load::Protocol,
    Load::DestinationPort,
];
pub(crate) const NODE_PORT: [Load; 2] = [Load::Protocol, Load::DestinationPort];

/// The program of one family.
pub(crate) struct Program<'a> {
    pub(crate) config: &'a Options,
    pub(crate) family: Family,
}

impl<'a> Program<'a> {
    pub(crate) const fn new(config: &'a Options, family: Family) -> Self {
        Self { config, family }
    }

    /// Matches packets to an address that accepts `NodePort`s.
    pub(crate) fn node_port_condition(&self) -> Rule {
        let load = Load::DestinationAddress;
        if !*self.config.node_ports_everywhere.get(self.family) {
            return vec![Statement::InSet {
                key: vec![load],
                set: SetId::NodePortIps,
                negate: false,
            }];
        }
        let mut rule = vec![Statement::AddressIsLocal {
            load,
            negate: false,
        }];
        rule.extend(self.to_loopback(true));
        rule
    }

    /// Matches packets to a loopback address, or to any other.
    pub(crate) fn to_loopback(&self, negate: bool) -> Option<Statement> {
        let loopback = match self.family {
            Family::V4 => IpNetwork::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
            Family::V6 => IpNetwork::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
        };
        Some(Statement::AddressIn {
            load: Load::DestinationAddress,
            network: loopback.ok()?,
            negate,
        })
    }
}
