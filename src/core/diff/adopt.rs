//! Taking over what a backend holds: after a start, and after an apply that failed.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use rustc_hash::FxHashMap;

use super::Engine;
use super::queue::Suspect;
use crate::core::ir::{
    Action, Destination, Entry, Forwarding, Label, List, Route, SourcePolicy, Sources,
};
use crate::core::model::{Endpoint, Endpoints, Owner};

/// The entries found at one destination.
#[derive(Default)]
struct Found {
    route: Option<(Route, Label)>,
    external_route: Option<Route>,
    slots: [BTreeMap<u32, (Endpoint, bool)>; 2],
    no_endpoints: Option<Label>,
    guarded: bool,
    allowed_sources: Vec<IpNetwork>,
}

impl Engine {
    /// Replaces what is taken to be applied by what the backend really holds.
    ///
    /// Entries that make no whole (a slot beyond a gap, say)
    /// are removed by the next delta, which also adds what is missing.
    pub fn adopt(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let mut before = std::mem::take(&mut self.applied);
        self.applied_shared.clear();
        self.strays.clear();
        let mut found: FxHashMap<Destination, Found> = FxHashMap::default();
        for entry in entries {
            match entry {
                Entry::Shared(shared) => {
                    self.applied_shared.insert(shared);
                }
                Entry::Route {
                    destination,
                    route,
                    label,
                } => found.entry(destination).or_default().route = Some((route, label)),
                Entry::ExternalRoute { destination, route } => {
                    found.entry(destination).or_default().external_route = Some(route);
                }
                Entry::Slot {
                    destination,
                    list,
                    index,
                    remembered,
                    endpoint,
                } => {
                    found.entry(destination).or_default().slots[list as usize]
                        .insert(index, (endpoint, remembered));
                }
                Entry::NoEndpoints { destination, label } => {
                    found.entry(destination).or_default().no_endpoints = Some(label);
                }
                Entry::Guarded { destination } => {
                    found.entry(destination).or_default().guarded = true;
                }
                Entry::AllowedSource {
                    destination,
                    network,
                } => found
                    .entry(destination)
                    .or_default()
                    .allowed_sources
                    .push(network),
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

impl Found {
    /// The forwarding that these entries are made of, as far as they are.
    fn whole(&self) -> Option<Forwarding> {
        let (action, label) = match (&self.route, &self.no_endpoints) {
            (None, Some(label)) => (Action::Reject, label.clone()),
            (Some((Route::Drop, label)), None) => (Action::Drop, label.clone()),
            (
                Some((
                    Route::Balance {
                        policy, affinity, ..
                    },
                    label,
                )),
                None,
            ) => {
                let external = *policy == SourcePolicy::ExternalLocal;
                let action = Action::Balance {
                    policy: *policy,
                    primary: self.list(List::Primary),
                    external: external.then(|| self.list(List::External)),
                    affinity: *affinity,
                };
                (action, label.clone())
            }
            _ => return None,
        };
        let mut allowed_sources = self.allowed_sources.clone();
        allowed_sources.sort_unstable_by_key(|network| (network.ip(), network.prefix()));
        Some(Forwarding {
            label,
            action,
            sources: match (self.guarded, allowed_sources.is_empty()) {
                (true, _) => Sources::Only(allowed_sources.into()),
                (false, true) => Sources::Any,
                (false, false) => Sources::Prepared(allowed_sources.into()),
            },
        })
    }

    fn list(&self, list: List) -> Endpoints {
        self.slots[list as usize]
            .values()
            .map(|(endpoint, _)| *endpoint)
            .collect()
    }

    /// Whether a forwarding has exactly these entries.
    fn is_all_of(&self, destination: Destination, forwarding: &Forwarding) -> bool {
        let mut mine = Vec::new();
        self.for_each_entry(destination, |entry| mine.push(entry));
        let mut its = Vec::new();
        forwarding.for_each_entry(destination, |entry| its.push(entry));
        mine.sort_unstable();
        its.sort_unstable();
        mine == its
    }

    fn for_each_entry(&self, destination: Destination, mut entry: impl FnMut(Entry)) {
        if let Some((route, label)) = &self.route {
            entry(Entry::Route {
                destination,
                route: *route,
                label: label.clone(),
            });
        }
        if let Some(route) = self.external_route {
            entry(Entry::ExternalRoute { destination, route });
        }
        for list in List::BOTH {
            for (index, (endpoint, remembered)) in &self.slots[list as usize] {
                entry(Entry::Slot {
                    destination,
                    list,
                    index: *index,
                    remembered: *remembered,
                    endpoint: *endpoint,
                });
            }
        }
        if let Some(label) = &self.no_endpoints {
            entry(Entry::NoEndpoints {
                destination,
                label: label.clone(),
            });
        }
        if self.guarded {
            entry(Entry::Guarded { destination });
        }
        for network in &self.allowed_sources {
            entry(Entry::AllowedSource {
                destination,
                network: *network,
            });
        }
    }
}
