//! What the engine knows, for those who ask: what is wanted, and what is applied.

use super::{Engine, StaleFlows};
use crate::core::ir::{Destination, Entry, Forwarding, Host, Shared};
use crate::core::model::Family;

impl Engine {
    /// All entries that are wanted, in a stable order, as if compiled from nothing.
    #[must_use]
    pub fn wanted_entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (destination, forwarding) in self.wanted_destinations() {
            forwarding.for_each_entry(destination, |entry| entries.push(entry));
        }
        entries.extend(self.stated.keys().copied().map(Entry::Shared));
        entries.sort_unstable();
        entries
    }

    /// What is wanted at each destination, by the Service that owns it, in a stable order.
    #[must_use]
    pub fn wanted_destinations(&self) -> Vec<(Destination, &Forwarding)> {
        let mut wanted: Vec<(Destination, &Forwarding)> = self
            .claims
            .winners()
            .filter_map(|(destination, claim)| {
                let compiled = self.wanted.get(&claim.owner)?;
                let (_, forwarding) = compiled.destinations.get(claim.index as usize)?;
                Some((destination, forwarding))
            })
            .collect();
        wanted.sort_unstable_by_key(|(destination, _)| *destination);
        wanted
    }

    /// The shared facts that are wanted, in a stable order.
    #[must_use]
    pub fn wanted_shared(&self) -> Vec<Shared> {
        let mut shared: Vec<Shared> = self.stated.keys().copied().collect();
        shared.sort_unstable();
        shared
    }

    /// All entries that are applied, in a stable order.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn applied_entries(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.strays.values().flatten().cloned().collect();
        for (destination, forwarding) in &self.applied {
            forwarding.for_each_entry(*destination, |entry| entries.push(entry));
        }
        entries.extend(self.applied_shared.iter().copied().map(Entry::Shared));
        entries.sort_unstable();
        entries
    }

    /// What is wanted at `NodePort`s, whether the backend takes it or not.
    pub fn wanted_node_ports(&self) -> impl Iterator<Item = (Destination, &Forwarding)> {
        let winners = self.claims.winners();
        let node_ports = winners.filter(|(to, _)| matches!(to.host, Host::Node(_)));
        node_ports.filter_map(|(destination, claim)| {
            let compiled = self.wanted.get(&claim.owner)?;
            let (_, forwarding) = compiled.destinations.get(claim.index as usize)?;
            Some((destination, forwarding))
        })
    }

    /// Where flows to UDP `NodePort`s of a family may go.
    pub fn node_port_flows(&self, family: Family) -> impl Iterator<Item = StaleFlows> {
        let flows = self.flows.iter();
        let of_node = flows.filter(move |(to, _)| to.host == Host::Node(family));
        of_node.map(|(destination, keep)| StaleFlows {
            destination: *destination,
            keep: keep.clone(),
        })
    }

    /// What is applied at a destination.
    #[must_use]
    pub fn applied(&self, destination: &Destination) -> Option<&Forwarding> {
        self.applied.get(destination)
    }

    /// Whether a Service of a family is wanted.
    #[must_use]
    pub fn serves(&self, family: Family) -> bool {
        let mut winners = self.claims.winners();
        winners.any(|(destination, _)| destination.family() == family)
    }

    /// Number of claims that another Service's claim keeps from being served.
    #[must_use]
    pub const fn contested_claims(&self) -> usize {
        self.claims.contested()
    }
}
