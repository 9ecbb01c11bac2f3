//! Who owns a destination that several Services claim.
//!
//! The older Service wins: by creation time, then namespace and name. The others wait, and the
//! next one takes over in the same delta in which the winner lets go.

use rustc_hash::FxHashMap;

use crate::ir::Destination;
use crate::model::{ObjectKey, ServiceId};

/// A Service's place in the order of ownership: the smallest wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    created: i64,
    key: Option<ObjectKey>,
    owner: ServiceId,
}

impl Rank {
    pub(super) const fn new(created: i64, key: Option<ObjectKey>, owner: ServiceId) -> Self {
        Self {
            created,
            key,
            owner,
        }
    }
}

/// A Service's claim to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    rank: Rank,
    /// Which of the Service's destinations it is.
    pub(super) index: u32,
}

impl Claim {
    pub(super) const fn owner(&self) -> ServiceId {
        self.rank.owner
    }
}

/// The claims to one destination. Almost always there is one, and it should cost no more.
#[derive(Debug)]
enum Claimants {
    One(Claim),
    /// Sorted by rank, two or more.
    Many(Vec<Claim>),
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
    pub(super) fn claim(
        &mut self,
        destination: Destination,
        rank: Rank,
        index: u32,
    ) -> Option<ServiceId> {
        let claim = Claim { rank, index };
        let Some(claimants) = self.by_destination.get_mut(&destination) else {
            self.by_destination
                .insert(destination, Claimants::One(claim));
            return None;
        };
        self.waiting += 1;
        match claimants {
            Claimants::One(first) => {
                let other = first.owner();
                let mut both = vec![first.clone(), claim];
                both.sort_by(|a, b| a.rank.cmp(&b.rank));
                *claimants = Claimants::Many(both);
                Some(other)
            }
            Claimants::Many(many) => {
                let other = many.first().map(Claim::owner);
                let place = many.partition_point(|known| known.rank < claim.rank);
                many.insert(place, claim);
                other
            }
        }
    }

    /// Withdraws a Service's claim. Returns how many others remain.
    pub(super) fn release(&mut self, destination: Destination, owner: ServiceId) -> usize {
        match self.by_destination.get_mut(&destination) {
            Some(Claimants::One(claim)) if claim.owner() == owner => {
                self.by_destination.remove(&destination);
                0
            }
            Some(Claimants::Many(many)) => {
                let before = many.len();
                many.retain(|claim| claim.owner() != owner);
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

    /// The claim that is served.
    pub(super) fn winner(&self, destination: Destination) -> Option<&Claim> {
        match self.by_destination.get(&destination)? {
            Claimants::One(claim) => Some(claim),
            Claimants::Many(many) => many.first(),
        }
    }

    /// All claims that are served.
    pub(super) fn winners(&self) -> impl Iterator<Item = (Destination, &Claim)> {
        self.by_destination
            .keys()
            .filter_map(|destination| Some((*destination, self.winner(*destination)?)))
    }

    /// Destinations with a claim.
    pub(super) fn destinations(&self) -> impl Iterator<Item = Destination> {
        self.by_destination.keys().copied()
    }

    /// Number of claims that are not served.
    pub(super) const fn contested(&self) -> usize {
        self.waiting
    }
}
