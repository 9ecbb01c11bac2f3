//! What Services want, as it changes: who claims what, and what may differ from now on.

use rustc_hash::FxHashSet;

use super::claims::{Claims, Rank};
use super::queue::{Queue, Suspect};
use super::{Contested, Engine};
use crate::core::compile::Compiled;
use crate::core::ir::{Destination, Shared};
use crate::core::model::{Family, Owner, Protocol};

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

    /// Wants of a Service nothing any more that belongs to a family, until it is updated.
    pub fn leave_out(&mut self, id: Owner, family: Family) {
        let without = self.wanted.get(&id).map(|wanted| wanted.without(family));
        self.update(id, without);
    }

    /// Those of the given contests that are not over: who waits still claims what it waits for.
    pub fn still_contested(&self, contested: Vec<Contested>) -> Vec<Contested> {
        let rank = |owner| self.wanted.get(&owner).map(|it| Rank::of(it, owner));
        let claims = |owner, destination| self.claims.holds(destination, owner, rank);
        let contested = contested.into_iter().filter_map(|contest| {
            let winner = self.claims.winner(contest.destination)?.owner;
            let both = [contest.winner, contest.loser];
            let both_claim = both.iter().all(|owner| claims(*owner, contest.destination));
            let loser = if winner == contest.loser {
                contest.winner
            } else {
                contest.loser
            };
            both_claim.then_some(Contested {
                winner,
                loser,
                ..contest
            })
        });
        contested.collect()
    }
}
