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
mod listing;

mod memo;
mod placement;
mod queue;
mod steps;

use std::collections::{BTreeMap, HashMap};

use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};

use crate::core::compile::Compiled;
use crate::core::ir::{
    Delta, Destination, DestinationChange, Entry, Forwarding, Operation, Shared,
};
use crate::core::model::{Endpoints, Owner, Protocol};

use claims::{Claims, Rank};
use difference::difference;
use memo::SlotMemo;
use queue::{Queue, Suspect, Turn};

pub use flows::StaleFlows;

/// Two Services claim one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contested {
    /// The destination.
    pub destination: Destination,
    /// Who has it.
    pub winner: Owner,
    /// Who waits for it.
    pub loser: Owner,
}

/// What is applied and what is wanted.
#[derive(Debug, Default)]
pub struct Engine {
    /// What each Service wants.
    wanted: HashMap<Owner, Box<Compiled>, FxBuildHasher>,
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
    /// What may differ in its applied and wanted state.
    queue: Queue,
}

/// A delta, and what will be applied once the backend has taken it.
#[derive(Debug, Default)]
pub struct Pending {
    delta: Delta,
    weight: usize,
    /// Destinations that are as wanted: what was adopted gives way to it, to be in memory once.
    unchanged: Vec<(Destination, Option<Forwarding>)>,
    shared: Vec<(Shared, bool)>,
    /// Where flows may go from now on, where that has changed.
    flows: Vec<(Destination, Option<Endpoints>)>,
    /// What was looked at to make the delta, changed or not, and is done with it.
    done: Vec<(Owner, Suspect)>,
    /// Destinations whose strays go.
    without_strays: Vec<Destination>,
    /// Destinations that nobody claims and shared facts that differ, which several may have put in.
    seen: FxHashSet<Suspect>,
    /// Whose turn is next.
    turn: Option<Turn>,
}

/// What a destination may take in one transaction whatever else is said.
pub const UNDIVIDED: usize = 1 << 9;

/// How many turns of one owner fill a transaction.
const TURNS: usize = 8;

/// What became of something that was to be looked at.
#[derive(Debug, PartialEq, Eq)]
enum Looked {
    /// It is in the delta, if it differs.
    Taken,
    /// Some of it is: there is no room for all.
    InPart,
    /// There is no room for it.
    Full,
}

impl Pending {
    /// The operations.
    #[must_use]
    pub const fn delta(&self) -> &Delta {
        &self.delta
    }
}

impl Engine {
    /// Sets what a Service wants; `None` when it is gone. Returns the destinations that it
    /// newly shares with others.
    pub fn update(&mut self, id: Owner, wanted: Option<Compiled>) -> Vec<Contested> {
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
                    Self::mark(&self.claims, &mut self.queue, id, *destination);
                } else {
                    self.queue.put(id, Suspect::Destination(*destination));
                }
            }
            for shared in &old.shared {
                self.unstate(id, *shared);
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
                match others {
                    None => self.queue.put(id, Suspect::Destination(*destination)),
                    Some(winner) => {
                        if !before.contains(destination) {
                            contested.push((*destination, winner));
                        }
                        Self::mark(&self.claims, &mut self.queue, id, *destination);
                    }
                }
            }
            for shared in &wanted.shared {
                self.state(id, *shared);
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
    fn update_in_place(&mut self, id: Owner, wanted: Compiled) -> Option<Compiled> {
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
                Self::mark(&self.claims, &mut self.queue, id, *destination);
            }
        }
        let before = std::mem::replace(&mut **old, wanted).shared;
        let now = &old.shared;
        if before != *now {
            // Both are sorted.
            let missing = |one: &[Shared], other: &[Shared]| -> Vec<Shared> {
                let one = one.iter().copied();
                one.filter(|shared| other.binary_search(shared).is_err())
                    .collect()
            };
            let (come, gone) = (missing(now, &before), missing(&before, now));
            for shared in come {
                self.state(id, shared);
            }
            for shared in gone {
                self.unstate(id, shared);
            }
        }
        None
    }

    /// Puts a destination in on behalf of who has it, or had it.
    fn mark(claims: &Claims, queue: &mut Queue, id: Owner, destination: Destination) {
        let owner = claims.winner(destination).map_or(id, |claim| claim.owner);
        queue.put(owner, Suspect::Destination(destination));
    }

    fn state(&mut self, owner: Owner, shared: Shared) {
        *self.stated.entry(shared).or_insert(0) += 1;
        self.queue.put(owner, Suspect::shared(shared, true));
    }

    fn unstate(&mut self, owner: Owner, shared: Shared) {
        if let Some(count) = self.stated.get_mut(&shared) {
            *count -= 1;
            if *count == 0 {
                self.stated.remove(&shared);
            }
        }
        let is_wanted = self.stated.contains_key(&shared);
        self.queue.put(owner, Suspect::shared(shared, is_wanted));
    }

    /// The difference between what is applied and what is wanted.
    ///
    /// Calling it again before a commit gives the same delta again.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn pending(&self) -> Pending {
        self.pending_up_to(usize::MAX)
    }

    /// A part of that difference, of so many operations at most. What is left comes with the next
    /// call after a commit.
    ///
    /// Every owner has its turn, so that none waits for all that another has to do. A destination is
    /// divided only if it takes more than that alone, and more than [`UNDIVIDED`]; what a part makes
    /// of it serves.
    #[must_use]
    pub fn pending_up_to(&self, operations: usize) -> Pending {
        let mut pending = Pending::default();
        // What belongs to all lets traffic in before anything else does, and refuses it last.
        let own = || self.queue.of(Owner::Cluster).map(|(_, item)| *item);
        let (first, last): (Vec<Suspect>, Vec<Suspect>) =
            own().partition(|item| matches!(item, Suspect::Admitting(_)));
        let mut memo = SlotMemo::default();
        for item in first {
            let looked = self.look_at(Owner::Cluster, item, operations, &mut memo, &mut pending);
            if looked != Looked::Taken {
                return pending;
            }
        }
        let mut turns = self.queue.turns((operations / TURNS).max(1));
        while let Some((owner, item)) = turns.next() {
            let before = pending.weight;
            match self.look_at(owner, item, operations, &mut memo, &mut pending) {
                Looked::Taken => turns.charge(pending.weight - before),
                Looked::InPart => {
                    pending.turn = self.queue.turn_after(owner);
                    return pending;
                }
                Looked::Full => {
                    pending.turn = Some(Queue::turn_at(owner, item));
                    return pending;
                }
            }
        }
        for item in last {
            let looked = self.look_at(Owner::Cluster, item, operations, &mut memo, &mut pending);
            if looked != Looked::Taken {
                return pending;
            }
        }
        pending
    }

    fn look_at(
        &self,
        owner: Owner,
        item: Suspect,
        operations: usize,
        memo: &mut SlotMemo,
        pending: &mut Pending,
    ) -> Looked {
        // Ranges stay together: a new one may overlap an old one.
        let together = matches!(item, Suspect::Refusing(Shared::ServiceCidr(_)));
        if pending.weight >= operations && !together {
            return Looked::Full;
        }
        match item {
            Suspect::Destination(destination) => {
                self.look_at_destination(owner, destination, operations, memo, pending)
            }
            Suspect::Admitting(shared) | Suspect::Refusing(shared) | Suspect::Withdrawn(shared) => {
                pending.done.push((owner, item));
                let wanted = self.stated.contains_key(&shared);
                // What has changed since has been put in as what it is now.
                if item == Suspect::shared(shared, wanted) {
                    self.look_at_shared(owner, shared, wanted, pending);
                }
                Looked::Taken
            }
        }
    }

    fn look_at_destination(
        &self,
        for_owner: Owner,
        destination: Destination,
        operations: usize,
        memo: &mut SlotMemo,
        pending: &mut Pending,
    ) -> Looked {
        let claim = self.claims.winner(destination);
        let suspect = Suspect::Destination(destination);
        // Who has it has put it in as well.
        let is_mine = match claim {
            Some(claim) => claim.owner == for_owner,
            None => !pending.seen.contains(&suspect),
        };
        if !is_mine {
            pending.done.push((for_owner, suspect));
            return Looked::Taken;
        }
        let compiled = claim.and_then(|claim| self.wanted.get(&claim.owner));
        let wanted =
            claim.and_then(|claim| Some(&compiled?.destinations.get(claim.index as usize)?.1));
        let owner = claim.map_or(Owner::Cluster, |claim| claim.owner);
        let applied = self.applied.get(&destination);
        let after = wanted.map(|wanted| memo.place(wanted, applied));
        let before = (pending.delta.remove.len(), pending.delta.add.len());
        let strays = self.strays.get(&destination);
        pending
            .delta
            .remove
            .extend(strays.into_iter().flatten().map(|entry| Operation {
                owner: Owner::Cluster,
                entry: entry.clone(),
            }));
        // What is there of no use, and may be in the way, goes all at once.
        let divisible = strays.is_none();
        let most = operations.max(UNDIVIDED);
        let is_long = divisible && steps::at_least(applied, after.as_ref()) > most;
        let differs = applied != after.as_ref();
        if !is_long && differs {
            let delta = &mut pending.delta;
            difference(destination, applied, after.as_ref(), owner, delta);
        }
        let weight = pending.delta.weight_from(before);
        let too_much =
            pending.weight + weight > operations && (pending.weight > 0 || weight > UNDIVIDED);
        if is_long || (divisible && too_much) {
            pending.delta.remove.truncate(before.0);
            pending.delta.add.truncate(before.1);
            if pending.weight > 0 {
                return Looked::Full;
            }
            let step = steps::toward(applied, after.as_ref(), most);
            let delta = &mut pending.delta;
            difference(destination, applied, step.as_ref(), owner, delta);
            pending.weight += pending.delta.weight_from(before);
            pending.delta.destinations.push(DestinationChange {
                owner,
                destination,
                before: applied.cloned(),
                after: step,
            });
            return Looked::InPart;
        }
        pending.weight += weight;
        pending.done.push((for_owner, suspect));
        if claim.is_none() {
            pending.seen.insert(suspect);
        }
        if !divisible {
            pending.without_strays.push(destination);
        }
        if destination.protocol == Protocol::Udp {
            let flows = compiled.and_then(|compiled| flows::of(compiled, &destination));
            if self.flows.get(&destination) != flows {
                pending.flows.push((destination, flows.cloned()));
            }
        }
        if differs {
            pending.delta.destinations.push(DestinationChange {
                owner,
                destination,
                before: applied.cloned(),
                after,
            });
        } else {
            pending.unchanged.push((destination, after));
        }
        Looked::Taken
    }

    fn look_at_shared(&self, owner: Owner, shared: Shared, wanted: bool, pending: &mut Pending) {
        if wanted == self.applied_shared.contains(&shared)
            || !pending.seen.insert(Suspect::shared(shared, wanted))
        {
            return;
        }
        pending.weight += 1;
        pending.shared.push((shared, wanted));
        let operations = if wanted {
            &mut pending.delta.add
        } else {
            &mut pending.delta.remove
        };
        operations.push(Operation {
            owner,
            entry: Entry::Shared(shared),
        });
    }

    /// Whether nothing is left that may differ.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether nothing is left that may differ on an owner's behalf.
    #[must_use]
    pub fn has_settled(&self, owner: Owner) -> bool {
        !self.queue.holds(owner)
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
        for turn in &pending.done {
            self.queue.done(turn);
        }
        for destination in &pending.without_strays {
            self.strays.remove(destination);
        }
        self.queue.set_turn(pending.turn);
        let changed = pending.delta.destinations.into_iter();
        let changed = changed.map(|change| (change.destination, change.after));
        for (destination, forwarding) in changed.chain(pending.unchanged) {
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
        stale
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
