//! What turns what is applied into what is wanted.

use super::destination::Destination;
use super::entry::Entry;
use super::forwarding::Forwarding;
use crate::core::model::Owner;

/// One operation of a [`Delta`]: an entry, and the Service to name if it is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// On whose behalf.
    pub owner: Owner,
    /// The entry.
    pub entry: Entry,
}

/// What turns one set of entries into another: first all removals, then all additions.
///
/// A changed value is the removal of the old entry and the addition of the new one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Entries to take away. Each is there.
    pub remove: Vec<Operation>,
    /// Entries to put in place. None of their keys is there once the removals are done.
    pub add: Vec<Operation>,
    /// The same once more, for a backend that writes destinations as a whole: all but the shared
    /// facts, and what is to be removed because it fits nowhere.
    pub destinations: Vec<DestinationChange>,
}

/// What a destination was, and what it becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationChange {
    /// On whose behalf.
    pub owner: Owner,
    /// The destination. A delta has it once.
    pub destination: Destination,
    /// What is there; `None` if nothing is that makes a whole.
    pub before: Option<Forwarding>,
    /// What is to be there.
    pub after: Option<Forwarding>,
}

impl Delta {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Number of operations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.remove.len() + self.add.len()
    }

    /// How many operations it may be to a backend, without so many removals and additions, the first
    /// ones.
    #[must_use]
    pub fn weight_from(&self, (removals, additions): (usize, usize)) -> usize {
        let removals = self.remove.get(removals..).unwrap_or(&[]);
        let additions = self.add.get(additions..).unwrap_or(&[]);
        let operations = removals.iter().chain(additions);
        operations.map(|operation| operation.entry.weight()).sum()
    }
}
