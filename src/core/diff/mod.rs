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
mod updates;

use std::collections::{BTreeMap, HashMap};

use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};

use crate::core::compile::Compiled;
use crate::core::ir::{
    Delta, Destination, DestinationChange, Entry, Forwarding, Operation, Shared,
};
use crate::core::model::{Endpoints, Family, Owner, PerFamily, Protocol};

use claims::Claims;
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
    /// Families of which nothing is applied or taken away.
    left_alone: PerFamily<bool>,
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
    /// Destinations that were found to be without what had been applied.
    lost: FxHashSet<Destination>,
    /// Everything wanted has been applied once.
    begun: bool,
    /// The backend held nothing at the first commit, and [`Self::take_unserved`] has more to tell.
    from_nothing: bool,
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
    /// Leaves all families but these alone: what is wanted of them is in no delta. [`Self::adopt`] must
    /// follow.
    pub fn program(&mut self, families: &[Family]) {
        self.left_alone = PerFamily::from_fn(|family| !families.contains(&family));
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
        if *self.left_alone.get(item.family()) {
            pending.done.push((owner, item));
            return Looked::Taken;
        }
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

    /// Notes that the backend has applied a delta. Returns the destinations whose flows may be stale from
    /// now on.
    pub fn commit(&mut self, pending: Pending) -> Vec<StaleFlows> {
        let mut stale = Vec::new();
        for (destination, now) in pending.flows {
            let before = match &now {
                Some(now) => self.flows.insert(destination, now.clone()),
                None => self.flows.remove(&destination),
            };
            stale.extend(flows::stale(destination, before, now));
        }
        stale.extend(flows::unanswered(&pending.delta));
        for turn in &pending.done {
            self.queue.done(turn);
        }
        for destination in &pending.without_strays {
            self.strays.remove(destination);
        }
        self.queue.set_turn(pending.turn);
        if self.applied.is_empty() && !self.begun {
            self.from_nothing = true;
            // Growing on the way, it would be in memory twice just when there is most of it.
            self.applied.reserve(self.claims.destinations());
        }
        for change in &pending.delta.destinations {
            let is_anew = !self.begun && !self.from_nothing;
            if is_anew || self.lost.contains(&change.destination) {
                stale.extend(flows::unserved(change));
            }
        }
        if self.queue.is_empty() {
            self.begun = true;
            self.lost.clear();
        }
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

    /// The flows that may have begun before anything was served, where the backend held nothing at first: those to all
    /// that is served by now, and for the last time once everything wanted has been applied. To note them with each
    /// commit would take memory just when most of it is needed.
    pub fn take_unserved(&mut self) -> impl Iterator<Item = StaleFlows> {
        let tells = self.from_nothing;
        self.from_nothing &= !self.begun;
        let applied = tells.then_some(&self.applied);
        let applied = applied.into_iter().flatten();
        applied.filter_map(|(destination, is)| flows::newly_served(*destination, is))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
