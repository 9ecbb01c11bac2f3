//! Taking over what a backend holds: after a start, and after an apply that failed.

use rustc_hash::FxHashMap;

use super::Engine;
use super::queue::Suspect;
use crate::core::ir::{Assembly, Destination, Entry};
use crate::core::model::{Endpoints, Owner};

impl Engine {
    /// Replaces what is taken to be applied by what the backend really holds.
    ///
    /// Entries that make no whole (a slot beyond a gap, say)
    /// are removed by the next delta, which also adds what is missing.
    pub fn adopt(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let mut before = std::mem::take(&mut self.applied);
        self.applied_shared.clear();
        self.strays.clear();
        let mut found: FxHashMap<Destination, Assembly> = FxHashMap::default();
        for entry in entries {
            match entry {
                Entry::Shared(shared) => {
                    self.applied_shared.insert(shared);
                }
                entry => {
                    if let Some(destination) = entry.destination() {
                        found.entry(destination).or_default().put(entry);
                    }
                }
            }
        }
        for (destination, found) in found {
            match found.whole() {
                Some(forwarding) if found.is_all_of(destination, &forwarding) => {
                    if before.get(&destination) == Some(&forwarding) {
                        before.remove(&destination);
                    }
                    self.applied.insert(destination, forwarding);
                }
                _ => {
                    let mut strays = Vec::new();
                    found.for_each_entry(destination, |entry| strays.push(entry));
                    strays.sort_unstable();
                    self.strays.insert(destination, strays);
                }
            }
        }
        self.queue.clear();
        for (destination, claim) in self.claims.winners() {
            self.queue
                .put(claim.owner, Suspect::Destination(destination));
        }
        let applied = self.applied.keys();
        // Where nothing is left of a destination, its flows may be.
        let known = applied.chain(self.strays.keys()).chain(self.flows.keys());
        for destination in known {
            if self.claims.winner(*destination).is_none() {
                self.queue
                    .put(Owner::Cluster, Suspect::Destination(*destination));
            }
        }
        // What began while rules were not there leads nowhere: these flows are looked through again.
        for destination in before.into_keys() {
            if let Some(flows) = self.flows.get_mut(&destination) {
                *flows = Endpoints::default();
            }
            self.lost.insert(destination);
        }
        let applied = self.applied_shared.iter().copied();
        for shared in applied.chain(self.stated.keys().copied()) {
            let is_wanted = self.stated.contains_key(&shared);
            let owner = Owner::Cluster;
            self.queue.put(owner, Suspect::shared(shared, is_wanted));
        }
    }
}
