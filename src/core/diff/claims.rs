//! Who owns a destination that several Services claim.
//!
//! The older Service wins: by creation time, then namespace and name. The others wait, and the
//! next one takes over in the same delta in which the winner lets go.

use std::collections::hash_map::Entry as Slot;

use rustc_hash::FxHashMap;

use crate::core::compile::Compiled;
use crate::core::ir::Destination;
use crate::core::model::{ObjectKey, Owner};

/// A Service's place in the order of ownership: the smallest wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank<'a> {
    created: i64,
    key: Option<&'a ObjectKey>,
    owner: Owner,
}

impl<'a> Rank<'a> {
    pub(super) const fn of(compiled: &'a Compiled, owner: Owner) -> Self {
        Self {
            created: compiled.created,
            key: compiled.key.as_ref(),
            owner,
        }
    }
}

/// A Service's claim to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// Whose it is.
    pub(super) owner: Owner,
    /// Which of the Service's destinations it is.
    pub(super) index: u32,
}

/// The claims to one destination. Almost always there is one, and it should cost no more.
#[derive(Debug)]
enum Claimants {
    One(Claim),
    /// Sorted by rank, two or more.
    #[allow(
        clippy::box_collection,
        reason = "a vector would make every claim larger for the few that are contested"
    )]
    Many(Box<Vec<Claim>>),
}

/// All claims.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_destination: FxHashMap<Destination, Claimants>,
    waiting: usize,
}

impl Claims {
    /// Adds a claim. Returns another claimant of the same destination, if there is one: the
    /// winner so far.
    pub(super) fn claim<'a>(
        &mut self,
        destination: Destination,
        owner: Owner,
        index: u32,
        rank_of: impl Fn(Owner) -> Rank<'a>,
    ) -> Option<Owner> {
        let claim = Claim { owner, index };
        let claimants = match self.by_destination.entry(destination) {
            Slot::Vacant(slot) => {
                slot.insert(Claimants::One(claim));
                return None;
            }
            Slot::Occupied(slot) => slot.into_mut(),
        };
        self.waiting += 1;
        match claimants {
            Claimants::One(first) => {
                let other = first.owner;
                let mut both = vec![*first, claim];
                both.sort_by_key(|claim| rank_of(claim.owner));
                *claimants = Claimants::Many(Box::new(both));
                Some(other)
            }
            Claimants::Many(many) => {
                let other = many.first().map(|claim| claim.owner);
                let mine = rank_of(owner);
                let place = many.partition_point(|known| rank_of(known.owner) < mine);
                many.insert(place, claim);
                other
            }
        }
    }

    /// Withdraws a Service's claim. Returns how many others remain.
    pub(super) fn release(&mut self, destination: Destination, owner: Owner) -> usize {
        match self.by_destination.get_mut(&destination) {
            Some(Claimants::One(claim)) if claim.owner == owner => {
                self.by_destination.remove(&destination);
                0
            }
            Some(Claimants::Many(many)) => {
                let before = many.len();
                many.retain(|claim| claim.owner != owner);
                self.waiting -= before - many.len();
                let remaining = many.len();
                if remaining == 1
                    && let Some(last) = many.pop()
                {
                    self.by_destination
                        .insert(destination, Claimants::One(last));
                }
                remaining
            }
            Some(Claimants::One(_)) => 1,
            None => 0,
        }
    }

    /// Whether somebody claims a destination.
    pub(super) fn holds<'a>(
        &self,
        destination: Destination,
        owner: Owner,
        rank_of: impl Fn(Owner) -> Option<Rank<'a>>,
    ) -> bool {
        match self.by_destination.get(&destination) {
            Some(Claimants::One(claim)) => claim.owner == owner,
            Some(Claimants::Many(many)) => {
                let mine = rank_of(owner);
                many.binary_search_by_key(&mine, |claim| rank_of(claim.owner))
                    .is_ok()
            }
            None => false,
        }
    }

    /// The claim that is served.
    pub(super) fn winner(&self, destination: Destination) -> Option<&Claim> {
        match self.by_destination.get(&destination)? {
            Claimants::One(claim) => Some(claim),
            Claimants::Many(many) => many.first(),
        }
    }

    /// All claims to a destination, the one that is served first.
    pub(super) fn all_of(&self, destination: Destination) -> &[Claim] {
        match self.by_destination.get(&destination) {
            None => &[],
            Some(Claimants::One(claim)) => std::slice::from_ref(claim),
            Some(Claimants::Many(many)) => many,
        }
    }

    /// All claims that are served.
    pub(super) fn winners(&self) -> impl Iterator<Item = (Destination, &Claim)> {
        self.by_destination
            .keys()
            .filter_map(|destination| Some((*destination, self.winner(*destination)?)))
    }

    /// Number of destinations that somebody claims.
    pub(super) fn destinations(&self) -> usize {
        self.by_destination.len()
    }

    /// Number of claims that are not served.
    pub(super) const fn contested(&self) -> usize {
        self.waiting
    }
}
