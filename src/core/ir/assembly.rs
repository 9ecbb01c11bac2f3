//! The facts of one destination, put together again.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use super::destination::{Destination, Label};
use super::entry::{Entry, List, Route, SourcePolicy};
use super::forwarding::{Action, Forwarding, Sources};
use crate::core::model::{Endpoint, Endpoints};

/// The entries of one destination.
#[derive(Debug, Default)]
pub struct Assembly {
    route: Option<(Route, Label)>,
    external_route: Option<Route>,
    slots: [BTreeMap<u32, (Endpoint, bool)>; 2],
    no_endpoints: Option<Label>,
    guarded: bool,
    allowed_sources: Vec<IpNetwork>,
}

impl Assembly {
    /// Takes an entry of the destination; a shared fact is of none.
    pub fn put(&mut self, entry: Entry) {
        match entry {
            Entry::Route { route, label, .. } => self.route = Some((route, label)),
            Entry::ExternalRoute { route, .. } => self.external_route = Some(route),
            Entry::Slot {
                list,
                index,
                remembered,
                endpoint,
                ..
            } => {
                self.slots[list as usize].insert(index, (endpoint, remembered));
            }
            Entry::NoEndpoints { label, .. } => self.no_endpoints = Some(label),
            Entry::Guarded { .. } => self.guarded = true,
            Entry::AllowedSource { network, .. } => self.allowed_sources.push(network),
            Entry::Shared(_) => {}
        }
    }

    /// The forwarding that these entries are made of, as far as they are.
    #[must_use]
    pub fn whole(&self) -> Option<Forwarding> {
        let (action, label) = match (&self.route, &self.no_endpoints) {
            (None, Some(label)) => (Action::Reject, label.clone()),
            (Some((Route::Drop, label)), None) => (Action::Drop, label.clone()),
            (
                Some((
                    Route::Balance {
                        policy,
                        draw,
                        affinity,
                        ..
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
                    draw: *draw,
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
    #[must_use]
    pub fn is_all_of(&self, destination: Destination, forwarding: &Forwarding) -> bool {
        let mut mine = Vec::new();
        self.for_each_entry(destination, |entry| mine.push(entry));
        let mut its = Vec::new();
        forwarding.for_each_entry(destination, |entry| its.push(entry));
        mine.sort_unstable();
        its.sort_unstable();
        mine == its
    }

    /// Calls `entry` with every entry.
    pub fn for_each_entry(&self, destination: Destination, mut entry: impl FnMut(Entry)) {
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
