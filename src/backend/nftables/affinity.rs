//! Which remembered clients have to be forgotten.
//!
//! The kernel remembers where a client went; when that endpoint leaves the list, the memory has
//! to go too, or the client would be sent to a dead endpoint until the timeout. Pure bookkeeping:
//! the map is read and changed by the backend.

use std::collections::BTreeSet;

use rustc_hash::{FxHashMap, FxHashSet};

use super::clients::ClientMap;
use crate::ir::{Delta, Destination, Entry, Host, List, Operation, Route, SourcePolicy};
use crate::model::{Endpoint, Family};

/// Clients to forget, by destination.
#[derive(Debug, Default)]
pub(super) struct Forgetting {
    /// Destinations that remember, and for how long.
    timeouts: FxHashMap<Destination, u32>,
    /// What has gone since the last search but one.
    rounds: [Gone; 2],
    /// What has come, or come back, since the last search began.
    returned: Gone,
}

/// What a search looks for, as it was when the search began.
#[derive(Debug, Default)]
pub(super) struct Search {
    by_address: FxHashSet<Destination>,
    gone: Gone,
}

#[derive(Debug, Default, Clone)]
struct Gone {
    maps: BTreeSet<(Family, ClientMap)>,
    endpoints: FxHashSet<(u32, Destination, Endpoint)>,
    /// Destinations all of whose clients are forgotten.
    all: FxHashSet<(u32, Destination)>,
}

impl Gone {
    fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }

    fn covers(&self, timeout: u32, destination: Destination, endpoint: Endpoint) -> bool {
        self.all.contains(&(timeout, destination))
            || self.endpoints.contains(&(timeout, destination, endpoint))
    }

    fn merge(&mut self, other: &Self) {
        self.maps.extend(&other.maps);
        self.endpoints.extend(&other.endpoints);
        self.all.extend(&other.all);
    }

    fn add_all(&mut self, timeout: u32, destination: Destination) {
        self.maps
            .insert((destination.family(), ClientMap::of(&destination, timeout)));
        self.all.insert((timeout, destination));
    }
}

/// Destinations whose timeout changes, and with it the map that remembers their clients.
#[derive(Debug, Default)]
pub(super) struct Moves(FxHashMap<Destination, (u32, u32)>);

impl Moves {
    /// The moves that a delta makes.
    pub(super) fn of(delta: &Delta) -> Self {
        let timeout = |operation: &Operation| match &operation.entry {
            Entry::Remember {
                destination,
                timeout_seconds,
            } => Some((*destination, *timeout_seconds)),
            _ => None,
        };
        let old: FxHashMap<Destination, u32> = delta.remove.iter().filter_map(timeout).collect();
        if old.is_empty() {
            return Self::default();
        }
        let new = delta.add.iter().filter_map(timeout);
        Self(
            new.filter_map(|(destination, to)| Some((destination, (*old.get(&destination)?, to))))
                .collect(),
        )
    }

    /// The maps that clients leave, and those that they come to.
    pub(super) fn maps(&self) -> BTreeSet<(Family, ClientMap, ClientMap)> {
        let map = |destination, timeout: &u32| ClientMap::of(destination, *timeout);
        self.0
            .iter()
            .map(|(destination, (from, to))| {
                (
                    destination.family(),
                    map(destination, from),
                    map(destination, to),
                )
            })
            .collect()
    }

    /// Whether clients of a destination go from one map to another. As in
    /// [`Search::is_gone`], a `NodePort` is known by one of the node's addresses.
    pub(super) fn has(&self, destination: Destination, from: ClientMap, to: ClientMap) -> bool {
        let (from, to) = (from.timeout_seconds, to.timeout_seconds);
        [destination, node_port(destination)]
            .iter()
            .any(|destination| self.0.get(destination) == Some(&(from, to)))
    }
}

/// The `NodePort` that a connection to an address and port may have been to.
const fn node_port(destination: Destination) -> Destination {
    Destination {
        host: Host::Node(destination.family()),
        ..destination
    }
}

impl Forgetting {
    /// Takes in an entry that the kernel holds already.
    pub(super) fn learn(&mut self, entry: &Entry) {
        if let Entry::Remember {
            destination,
            timeout_seconds,
        } = entry
        {
            self.timeouts.insert(*destination, *timeout_seconds);
        }
    }

    /// Takes in a delta that has been applied.
    pub(super) fn note(&mut self, delta: &Delta) {
        if self.timeouts.is_empty()
            && !delta
                .add
                .iter()
                .any(|operation| matches!(operation.entry, Entry::Remember { .. }))
        {
            return;
        }
        self.note_returned(delta);
        let mut kept: FxHashSet<(Destination, List, Endpoint)> = FxHashSet::default();
        let mut policies: FxHashMap<Destination, SourcePolicy> = FxHashMap::default();
        for operation in &delta.add {
            match &operation.entry {
                Entry::Slot {
                    destination,
                    list,
                    endpoint,
                    ..
                } => {
                    kept.insert((*destination, *list, *endpoint));
                }
                Entry::Route {
                    destination,
                    route: Route::Balance { policy, .. },
                    ..
                } => {
                    policies.insert(*destination, *policy);
                }
                _ => {}
            }
        }
        let gone = &mut self.rounds[0];
        for operation in &delta.remove {
            match &operation.entry {
                Entry::Slot {
                    destination,
                    list,
                    endpoint,
                    ..
                } => {
                    if let Some(timeout) = self.timeouts.get(destination)
                        && !kept.contains(&(*destination, *list, *endpoint))
                    {
                        let map = ClientMap::of(destination, *timeout);
                        gone.maps.insert((destination.family(), map));
                        gone.endpoints.insert((*timeout, *destination, *endpoint));
                    }
                }
                // Another policy chooses among other endpoints.
                Entry::Route {
                    destination,
                    route: Route::Balance { policy, .. },
                    ..
                } => {
                    if let Some(timeout) = self.timeouts.get(destination)
                        && policies.get(destination).is_some_and(|new| new != policy)
                    {
                        gone.add_all(*timeout, *destination);
                    }
                }
                _ => {}
            }
        }
        for operation in &delta.remove {
            if let Entry::Remember {
                destination,
                timeout_seconds,
            } = &operation.entry
            {
                // Nobody looks there any more, but somebody may again.
                gone.add_all(*timeout_seconds, *destination);
                self.timeouts.remove(destination);
            }
        }
        for operation in &delta.add {
            self.learn(&operation.entry);
            if let Entry::Remember {
                destination,
                timeout_seconds,
            } = &operation.entry
            {
                // Who is remembered there from now on is not to be forgotten.
                for gone in &mut self.rounds {
                    gone.all.remove(&(*timeout_seconds, *destination));
                }
            }
        }
    }

    /// The maps to look through.
    pub(super) fn due(&self) -> BTreeSet<(Family, ClientMap)> {
        self.rounds
            .iter()
            .flat_map(|gone| gone.maps.iter().copied())
            .collect()
    }

    /// Whether something has gone that no search has begun to look for.
    pub(super) fn is_new(&self) -> bool {
        !self.rounds[0].is_empty()
    }

    /// What is remembered from now on, although a search may be looking for it.
    fn note_returned(&mut self, delta: &Delta) {
        for operation in &delta.add {
            match &operation.entry {
                Entry::Slot {
                    destination,
                    endpoint,
                    ..
                } => {
                    if let Some(timeout) = self.timeouts.get(destination) {
                        let back = (*timeout, *destination, *endpoint);
                        self.returned.endpoints.insert(back);
                    }
                }
                Entry::Remember {
                    destination,
                    timeout_seconds,
                } => {
                    self.returned.all.insert((*timeout_seconds, *destination));
                }
                _ => {}
            }
        }
    }

    /// Begins a search. What has gone is looked for in two searches some time apart: a packet
    /// that had made its choice just before the endpoint went is remembered just after.
    pub(super) fn begin(&mut self) -> Search {
        let mut gone = std::mem::take(&mut self.rounds[1]);
        gone.merge(&self.rounds[0]);
        self.rounds[1] = std::mem::take(&mut self.rounds[0]);
        self.returned = Gone::default();
        Search {
            by_address: self.timeouts.keys().copied().collect(),
            gone,
        }
    }

    /// Takes back what a search that failed was looking for.
    pub(super) fn again(&mut self, search: &Search) {
        self.rounds[0].merge(&search.gone);
    }

    /// Whether what a search has found is to be remembered after all.
    pub(super) fn has_returned(
        &self,
        timeout: u32,
        destination: Destination,
        endpoint: Endpoint,
    ) -> bool {
        [destination, node_port(destination)]
            .iter()
            .any(|destination| self.returned.covers(timeout, *destination, endpoint))
    }

    /// Whether there is another search to make.
    pub(super) fn has_more(&self) -> bool {
        self.rounds.iter().any(|gone| !gone.is_empty())
    }
}

impl Search {
    /// Whether a client that a timeout's map remembers has to be forgotten. `destination` is the
    /// address and port that it connected to, which for a `NodePort` is one of the node's
    /// addresses.
    pub(super) fn is_gone(
        &self,
        timeout: u32,
        destination: Destination,
        endpoint: Endpoint,
    ) -> bool {
        self.gone.covers(timeout, destination, endpoint)
            || (!self.by_address.contains(&destination)
                && self.gone.covers(timeout, node_port(destination), endpoint))
    }
}
