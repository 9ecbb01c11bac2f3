//! The diff engine: from what is applied to what is wanted, in the fewest element operations.
//!
//! It holds what each Service wants and what the backend holds, both per destination, and turns
//! the difference into a [`Delta`]. Work is proportional to what changed: only destinations and
//! shared facts touched since the last delta are looked at. Pure: no I/O, no clock, no failure.
//!
//! The caller's side of the bargain: every [`Pending`] is either committed, when the backend
//! has applied it, or dropped, after which [`Engine::adopt`] must be told what the backend
//! holds if that may have changed.

mod adopt;
mod claims;
mod difference;
mod flows;
mod memo;
mod slots;
mod steps;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};

use crate::core::compile::Compiled;
use crate::core::ir::{Delta, Destination, Entry, Forwarding, Operation, Shared};
use crate::core::model::{Endpoints, Protocol, ServiceId};

use claims::{Claims, Rank};
use difference::difference;
use memo::SlotMemo;

pub use flows::StaleFlows;

/// Two Services claim one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contested {
    /// The destination.
    pub destination: Destination,
    /// Who has it.
    pub winner: ServiceId,
    /// Who waits for it.
    pub loser: ServiceId,
}

/// What is applied and what is wanted.
#[derive(Debug, Default)]
pub struct Engine {
    /// What each Service wants.
    wanted: HashMap<ServiceId, Box<Compiled>, FxBuildHasher>,
    /// Who claims each destination.
    claims: Claims,
    /// How many Services state each shared fact.
    stated: FxHashMap<Shared, u32>,
    /// What the backend holds at each destination; lists are in slot order.
    applied: FxHashMap<Destination, Forwarding>,
    /// The shared facts that the backend holds.
    applied_shared: FxHashSet<Shared>,
    /// Where flows to each UDP destination may go, as of the last commit.
    flows: FxHashMap<Destination, Endpoints>,
    /// Entries the backend holds that fit nowhere: they go when their destination is looked at.
    strays: BTreeMap<Destination, Vec<Entry>>,
    /// Destinations whose applied and wanted state may differ.
    dirty: BTreeSet<Destination>,
    /// Shared facts that admit traffic and whose applied and wanted state may differ.
    dirty_admitting: BTreeSet<Shared>,
    /// The same of facts that refuse it.
    dirty_refusing: BTreeSet<Shared>,
}

/// A delta, and what will be applied once the backend has taken it.
#[derive(Debug, Default)]
pub struct Pending {
    delta: Delta,
    destinations: Vec<(Destination, Option<Forwarding>)>,
    shared: Vec<(Shared, bool)>,
    /// Where flows may go from now on, where that has changed.
    flows: Vec<(Destination, Option<Endpoints>)>,
    /// What was looked at to make the delta, changed or not.
    looked_at: Vec<Destination>,
    shared_looked_at: Vec<Shared>,
}

/// What a destination may take in one transaction whatever else is said.
pub const UNDIVIDED: usize = 1 << 9;

impl Pending {
    /// Takes back what was put in for the destination that was looked at last.
    fn take_back(&mut self, (removals, additions): (usize, usize)) {
        self.delta.remove.truncate(removals);
        self.delta.add.truncate(additions);
        if let Some(destination) = self.looked_at.pop() {
            self.flows.retain(|(known, _)| *known != destination);
        }
    }

    /// The operations.
    #[must_use]
    pub const fn delta(&self) -> &Delta {
        &self.delta
    }
}

impl Engine {
    /// Sets what a Service wants; `None` when it is gone. Returns the destinations that it
    /// newly shares with others.
    pub fn update(&mut self, id: ServiceId, wanted: Option<Compiled>) -> Vec<Contested> {
        let wanted = match wanted {
            None => None,
            Some(wanted) => match self.update_in_place(id, wanted) {
                None => return Vec::new(),
                Some(wanted) => Some(Box::new(wanted)),
            },
        };
        let old = self.wanted.remove(&id);
        let mut before = FxHashSet::default();
        if let Some(old) = old {
            for (destination, _) in &old.destinations {
                if self.claims.release(*destination, id) > 0 {
                    before.insert(*destination);
                }
                self.dirty.insert(*destination);
            }
            for shared in &old.shared {
                self.unstate(*shared);
            }
        }
        let mut contested = Vec::new();
        if let Some(wanted) = wanted {
            for (index, (destination, _)) in (0..).zip(&wanted.destinations) {
                let rank_of = |owner| match self.wanted.get(&owner) {
                    Some(compiled) if owner != id => Rank::of(compiled, owner),
                    _ => Rank::of(&wanted, id),
                };
                let others = self.claims.claim(*destination, id, index, rank_of);
                if let Some(winner) = others
                    && !before.contains(destination)
                {
                    contested.push((*destination, winner));
                }
                self.dirty.insert(*destination);
            }
            for shared in &wanted.shared {
                self.state(*shared);
            }
            self.wanted.insert(id, wanted);
        }
        contested
            .into_iter()
            .map(|(destination, other)| {
                let winner = self
                    .claims
                    .winner(destination)
                    .map_or(id, |claim| claim.owner);
                Contested {
                    destination,
                    winner,
                    loser: if winner == id { other } else { id },
                }
            })
            .collect()
    }

    /// Takes a change that leaves a Service's claims as they are, as nearly all do: endpoints
    /// come and go. Gives back what is more than that.
    fn update_in_place(&mut self, id: ServiceId, wanted: Compiled) -> Option<Compiled> {
        let Some(old) = self.wanted.get_mut(&id) else {
            return Some(wanted);
        };
        if !old.claims_what(&wanted) {
            return Some(wanted);
        }
        let pairs = old.destinations.iter().zip(&wanted.destinations);
        for ((destination, was), (_, is)) in pairs {
            // The flows of a destination lie beside it.
            if was != is || destination.protocol == Protocol::Udp {
                self.dirty.insert(*destination);
            }
        }
        let now = (old.shared != wanted.shared).then(|| wanted.shared.clone());
        let before = std::mem::replace(&mut **old, wanted).shared;
        if let Some(now) = now {
            for shared in now {
                self.state(shared);
            }
            for shared in before {
                self.unstate(shared);
            }
        }
        None
    }

    fn state(&mut self, shared: Shared) {
        *self.stated.entry(shared).or_insert(0) += 1;
        self.mark_shared(shared);
    }

    fn unstate(&mut self, shared: Shared) {
        if let Some(count) = self.stated.get_mut(&shared) {
            *count -= 1;
            if *count == 0 {
                self.stated.remove(&shared);
            }
        }
        self.mark_shared(shared);
    }

    fn mark_shared(&mut self, shared: Shared) {
        if shared.admits() {
            self.dirty_admitting.insert(shared);
        } else {
            self.dirty_refusing.insert(shared);
        }
    }

    /// The difference between what is applied and what is wanted.
    ///
    /// Calling it again before a commit gives the same delta again.
    #[must_use]
    pub fn pending(&self) -> Pending {
        self.pending_up_to(usize::MAX)
    }

    /// A part of that difference, of so many operations at most. What is left comes with the next
    /// call after a commit.
    ///
    /// A destination is divided only if it takes more than that alone, and more than
    /// [`UNDIVIDED`]; what a part makes of it serves. Facts that admit traffic come first and those
    /// that refuse it last, so that no part refuses what the whole would serve.
    #[must_use]
    pub fn pending_up_to(&self, operations: usize) -> Pending {
        let mut pending = Pending::default();
        let is_stated = |shared: &&Shared| self.stated.contains_key(*shared);
        for shared in self.dirty_admitting.iter().filter(is_stated) {
            if pending.delta.len() >= operations {
                return pending;
            }
            self.pending_shared(*shared, &mut pending);
        }
        let mut memo = SlotMemo::default();
        let mut weight = pending.delta.weight();
        for destination in &self.dirty {
            if weight >= operations {
                return pending;
            }
            let before = (pending.delta.remove.len(), pending.delta.add.len());
            pending.looked_at.push(*destination);
            let strays = self.strays.get(destination).into_iter().flatten();
            pending.delta.remove.extend(strays.map(|entry| Operation {
                owner: ServiceId::CLUSTER,
                entry: entry.clone(),
            }));
            let claim = self.claims.winner(*destination);
            let compiled = claim.and_then(|claim| self.wanted.get(&claim.owner));
            let wanted =
                claim.and_then(|claim| Some(&compiled?.destinations.get(claim.index as usize)?.1));
            if destination.protocol == Protocol::Udp {
                let flows = compiled.and_then(|compiled| flows::of(compiled, destination));
                if self.flows.get(destination) != flows {
                    pending.flows.push((*destination, flows.cloned()));
                }
            }
            let owner = claim.map_or(ServiceId::CLUSTER, |claim| claim.owner);
            let applied = self.applied.get(destination);
            let next = wanted.map(|wanted| memo.place(wanted, applied));
            // What is there of no use, and may be in the way, goes all at once.
            let divisible = !self.strays.contains_key(destination);
            let most = operations.max(UNDIVIDED);
            let is_long = divisible && steps::at_least(applied, next.as_ref()) > most;
            if !is_long && applied != next.as_ref() {
                difference(
                    *destination,
                    applied,
                    next.as_ref(),
                    owner,
                    &mut pending.delta,
                );
            }
            let of_this = pending.delta.weight_from(before);
            let too_much = weight + of_this > operations && (weight > 0 || of_this > UNDIVIDED);
            if is_long || (divisible && too_much) {
                pending.take_back(before);
                if weight > 0 {
                    return pending;
                }
                let step = steps::toward(applied, next.as_ref(), most);
                let delta = &mut pending.delta;
                difference(*destination, applied, step.as_ref(), owner, delta);
                pending.destinations.push((*destination, step));
                return pending;
            }
            weight += of_this;
            // What was adopted and is as wanted gives way to the wanted, to be in memory once.
            pending.destinations.push((*destination, next));
        }
        for shared in &self.dirty_refusing {
            // Ranges follow the addresses, and stay together: a new one may overlap an old one.
            let divisible = matches!(shared, Shared::ClusterIp(_));
            if divisible && weight >= operations {
                return pending;
            }
            let before = pending.delta.len();
            self.pending_shared(*shared, &mut pending);
            weight += pending.delta.len() - before;
        }
        for shared in self.dirty_admitting.iter().filter(|s| !is_stated(s)) {
            if weight >= operations {
                return pending;
            }
            let before = pending.delta.len();
            self.pending_shared(*shared, &mut pending);
            weight += pending.delta.len() - before;
        }
        pending
    }

    fn pending_shared(&self, shared: Shared, pending: &mut Pending) {
        pending.shared_looked_at.push(shared);
        let wanted = self.stated.contains_key(&shared);
        if wanted == self.applied_shared.contains(&shared) {
            return;
        }
        pending.shared.push((shared, wanted));
        let operations = if wanted {
            &mut pending.delta.add
        } else {
            &mut pending.delta.remove
        };
        operations.push(Operation {
            owner: ServiceId::CLUSTER,
            entry: Entry::Shared(shared),
        });
    }

    /// Whether nothing is left that may differ.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.dirty.is_empty() && self.dirty_admitting.is_empty() && self.dirty_refusing.is_empty()
    }

    /// Notes that the backend has applied a delta. Returns the UDP destinations whose flows may
    /// be stale from now on.
    pub fn commit(&mut self, pending: Pending) -> Vec<StaleFlows> {
        let mut stale = Vec::new();
        for (destination, now) in pending.flows {
            let before = match &now {
                Some(now) => self.flows.insert(destination, now.clone()),
                None => self.flows.remove(&destination),
            };
            stale.extend(flows::stale(destination, before, now));
        }
        for destination in &pending.looked_at {
            self.dirty.remove(destination);
            self.strays.remove(destination);
        }
        for (destination, forwarding) in pending.destinations {
            match forwarding {
                Some(forwarding) => self.applied.insert(destination, forwarding),
                None => self.applied.remove(&destination),
            };
        }
        for (shared, wanted) in pending.shared {
            if wanted {
                self.applied_shared.insert(shared);
            } else {
                self.applied_shared.remove(&shared);
            }
        }
        for shared in &pending.shared_looked_at {
            if shared.admits() {
                self.dirty_admitting.remove(shared);
            } else {
                self.dirty_refusing.remove(shared);
            }
        }
        stale
    }

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
    pub fn applied_entries(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.strays.values().flatten().cloned().collect();
        for (destination, forwarding) in &self.applied {
            forwarding.for_each_entry(*destination, |entry| entries.push(entry));
        }
        entries.extend(self.applied_shared.iter().copied().map(Entry::Shared));
        entries.sort_unstable();
        entries
    }

    /// What is applied at a destination.
    #[must_use]
    pub fn applied(&self, destination: &Destination) -> Option<&Forwarding> {
        self.applied.get(destination)
    }

    /// Number of claims that another Service's claim keeps from being served.
    #[must_use]
    pub const fn contested_claims(&self) -> usize {
        self.claims.contested()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
