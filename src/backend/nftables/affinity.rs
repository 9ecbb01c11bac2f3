//! Which remembered clients have to be forgotten.
//!
//! The kernel remembers where a client went; when that endpoint leaves the list, the memory has
//! to go too, or the client would be sent to a dead endpoint until the timeout. Pure bookkeeping:
//! the map is read and changed by the backend.

use std::collections::BTreeSet;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::ir::{Delta, Destination, Entry, Host, List, Route, SourcePolicy};
use crate::model::{Endpoint, Family};

/// Clients to forget, by destination.
#[derive(Debug, Default)]
pub(super) struct Forgetting {
    /// Destinations that remember, and for how long.
    timeouts: FxHashMap<Destination, u32>,
    /// What has gone since the last pass but one.
    rounds: [Gone; 2],
}

#[derive(Debug, Default)]
struct Gone {
    maps: BTreeSet<(Family, u32)>,
    endpoints: FxHashSet<(Destination, Endpoint)>,
    /// Destinations all of whose clients are forgotten.
    all: FxHashSet<Destination>,
}

impl Gone {
    fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }

    fn covers(&self, destination: Destination, endpoint: Endpoint) -> bool {
        self.all.contains(&destination) || self.endpoints.contains(&(destination, endpoint))
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
                        gone.maps.insert((destination.family(), *timeout));
                        gone.endpoints.insert((*destination, *endpoint));
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
                        gone.maps.insert((destination.family(), *timeout));
                        gone.all.insert(*destination);
                    }
                }
                _ => {}
            }
        }
        for operation in &delta.remove {
            if let Entry::Remember { destination, .. } = &operation.entry {
                self.timeouts.remove(destination);
            }
        }
        for operation in &delta.add {
            self.learn(&operation.entry);
        }
    }

    /// The maps to look through.
    pub(super) fn due(&self) -> BTreeSet<(Family, u32)> {
        self.rounds
            .iter()
            .flat_map(|gone| gone.maps.iter().copied())
            .collect()
    }

    /// Whether a remembered client has to be forgotten. `destination` is the address and port
    /// that it connected to, which for a `NodePort` is one of the node's addresses.
    pub(super) fn is_gone(&self, destination: Destination, endpoint: Endpoint) -> bool {
        let node_port = Destination {
            host: Host::Node(destination.family()),
            ..destination
        };
        self.rounds.iter().any(|gone| {
            gone.covers(destination, endpoint)
                || (!self.timeouts.contains_key(&destination) && gone.covers(node_port, endpoint))
        })
    }

    /// Ends a pass over the maps. What has gone is looked for twice, in passes some time
    /// apart: a packet that had made its choice just before the endpoint went is remembered
    /// just after. Returns whether there is another pass to make.
    pub(super) fn pass(&mut self) -> bool {
        self.rounds[1] = std::mem::take(&mut self.rounds[0]);
        !self.rounds[1].is_empty()
    }
}
