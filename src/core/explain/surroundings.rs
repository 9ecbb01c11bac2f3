//! What answers are taken from.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::core::compile::{NodePortAddresses, accepted_node_port_addresses};
use crate::core::diff::Engine;
use crate::core::ir::{Destination, Host};
use crate::core::model::{
    KnownService, LocalDetector, Owner, PerFamily, Protocol, ServiceId, State,
};

/// What the answers are taken from.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The cluster's objects.
    pub state: &'a State,
    /// What is wanted, and what is applied.
    pub engine: &'a Engine,
    /// The kernel is kept in step with it: what is applied is in effect.
    pub programs: bool,
    /// Which of the node's addresses accept `NodePort`s.
    pub node_ports: &'a NodePortAddresses,
    /// Services that are too large, and how many of their destinations are left out.
    pub left_out: &'a BTreeMap<ServiceId, u32>,
    /// How pods are recognised.
    pub detector: &'a PerFamily<LocalDetector>,
    /// Connections to `ClusterIP`s are always masqueraded.
    pub masquerade_all: bool,
}

impl<'a> Surroundings<'a> {
    pub(super) fn owned(&self, host: Host, port: u16, protocol: Protocol) -> Option<Destination> {
        let destination = Destination {
            host,
            protocol,
            port,
        };
        let is_claimed = !self.engine.claims_to(destination).is_empty();
        is_claimed.then_some(destination)
    }

    /// Whether an address is one of this node's that accept `NodePort`s.
    pub(super) fn accepts_node_ports(&self, address: IpAddr) -> bool {
        accepted_node_port_addresses(self.state, self.node_ports).contains(&address)
    }

    pub(super) fn name(&self, owner: Owner) -> String {
        let key = owner.service().and_then(|id| self.state.name(id));
        key.map_or_else(|| "the cluster".to_owned(), ToString::to_string)
    }

    pub(super) fn service(&self, owner: Owner) -> Option<KnownService<'a>> {
        self.state.service(owner.service()?)
    }
}
