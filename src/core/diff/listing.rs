//! What the engine knows, for those who ask: what is wanted, and what is applied.

use super::{Engine, StaleFlows};
use crate::core::ir::{
    Delta, Destination, DestinationChange, Entry, Forwarding, Host, Operation, Shared,
};
use crate::core::model::{Family, Owner};

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

    /// What would be applied where there is nothing.
    #[must_use]
    pub fn whole(&self) -> Delta {
        let mut whole = Delta::default();
        for (destination, claim) in self.claims.winners() {
            let Some(compiled) = self.wanted.get(&claim.owner) else {
                continue;
            };
            let Some((_, forwarding)) = compiled.destinations.get(claim.index as usize) else {
                continue;
            };
            if *self.left_alone.get(destination.family()) {
                continue;
            }
            let owner = claim.owner;
            forwarding.for_each_entry(destination, |entry| {
                whole.add.push(Operation { owner, entry });
            });
            whole.destinations.push(DestinationChange {
                owner,
                destination,
                before: None,
                after: Some(forwarding.clone()),
            });
        }
        let shared = self.stated.keys().copied();
        let shared = shared.filter(|shared| !*self.left_alone.get(shared.family()));
        whole.add.extend(shared.map(|shared| Operation {
            owner: Owner::Cluster,
            entry: Entry::Shared(shared),
        }));
        whole
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
            gone: Vec::new(),
        })
    }

    /// What is wanted at a destination, and by whom: who has it, and then who waits for it.
    #[must_use]
    pub fn claims_to(&self, destination: Destination) -> Vec<(Owner, &Forwarding)> {
        let claims = self.claims.all_of(destination).iter();
        claims
            .filter_map(|claim| {
                let compiled = self.wanted.get(&claim.owner)?;
                let (_, forwarding) = compiled.destinations.get(claim.index as usize)?;
                Some((claim.owner, forwarding))
            })
            .collect()
    }

    /// The destinations of one Service, whether it has them or waits for them.
    pub fn destinations_of(&self, owner: Owner) -> impl Iterator<Item = Destination> {
        let compiled = self.wanted.get(&owner);
        let destinations = compiled
            .into_iter()
            .flat_map(|compiled| &compiled.destinations);
        destinations.map(|(destination, _)| *destination)
    }

    /// All destinations that somebody has.
    pub fn claimed_destinations(&self) -> impl Iterator<Item = Destination> {
        self.claims.winners().map(|(destination, _)| destination)
    }

    /// Whether a shared fact is wanted.
    #[must_use]
    pub fn states(&self, shared: &Shared) -> bool {
        self.stated.contains_key(shared)
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
