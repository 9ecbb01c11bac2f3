//! Everything about one destination, and the facts that it is made of.

use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::destination::{Destination, Label};
use super::draws::Draw;
use super::entry::{Entry, List, REMEMBERED_WEIGHT, Route, SourcePolicy};
use crate::core::model::Endpoints;

/// What happens at a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// No endpoints anywhere: connections are refused.
    Reject,
    /// Endpoints somewhere, but none that this policy may use: connections are dropped.
    Drop,
    /// Connections go to endpoints.
    Balance {
        /// How sources are told apart.
        policy: SourcePolicy,
        /// The list for everyone, or for pods and this host; never empty.
        primary: Endpoints,
        /// The list for sources from outside, under [`SourcePolicy::ExternalLocal`] only; an
        /// empty one drops them.
        external: Option<Endpoints>,
        /// What decides which place of a list a connection is given.
        draw: Draw,
        /// Session affinity in seconds.
        affinity: Option<u32>,
    },
}

/// Everything about one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarding {
    /// Whose it is.
    pub label: Label,
    /// What happens to new connections.
    pub action: Action,
    /// Who may connect.
    pub sources: Sources,
}

/// Who may connect to a destination. Networks are sorted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Sources {
    /// Everyone.
    #[default]
    Any,
    /// Everyone, still or again: these are in place without being asked for, on the way from the one
    /// to the other.
    Prepared(Arc<[IpNetwork]>),
    /// These and nobody else.
    Only(Arc<[IpNetwork]>),
}

impl Sources {
    /// The networks that are in place.
    #[must_use]
    pub fn networks(&self) -> &[IpNetwork] {
        match self {
            Self::Any => &[],
            Self::Prepared(networks) | Self::Only(networks) => networks,
        }
    }
}

impl Forwarding {
    /// The endpoints of one list, if there is one.
    #[must_use]
    pub const fn list(&self, list: List) -> Option<&Endpoints> {
        match (&self.action, list) {
            (Action::Balance { primary, .. }, List::Primary) => Some(primary),
            (Action::Balance { external, .. }, List::External) => external.as_ref(),
            _ => None,
        }
    }

    /// Whether clients come back to the endpoint that they had.
    #[must_use]
    pub const fn remembers(&self) -> bool {
        matches!(
            self.action,
            Action::Balance {
                affinity: Some(_),
                ..
            }
        )
    }

    /// Whether clients that are remembered here stay so if this becomes `other`: the choice is
    /// among the same endpoints, and made for as long.
    #[must_use]
    pub fn remembers_as(&self, other: &Self) -> bool {
        let how = |forwarding: &Self| match &forwarding.action {
            Action::Balance {
                policy,
                affinity: Some(seconds),
                ..
            } => Some((*policy, *seconds)),
            _ => None,
        };
        how(self) == how(other)
    }

    /// Whether another one differs in slots only: all other entries are the same.
    #[must_use]
    pub fn has_facts_of(&self, other: &Self) -> bool {
        let actions = match (&self.action, &other.action) {
            (
                Action::Balance {
                    policy,
                    primary,
                    external,
                    draw,
                    affinity,
                },
                Action::Balance {
                    policy: other_policy,
                    primary: other_primary,
                    external: other_external,
                    draw: other_draw,
                    affinity: other_affinity,
                },
            ) => {
                let count = |list: &Option<Endpoints>| list.as_ref().map(Endpoints::len);
                policy == other_policy
                    && draw == other_draw
                    && affinity == other_affinity
                    && primary.len() == other_primary.len()
                    && count(external) == count(other_external)
            }
            (one, another) => one == another,
        };
        actions && self.label == other.label && self.sources == other.sources
    }

    /// Calls `entry` with every entry of this destination but its slots and the networks of its
    /// sources: a few.
    pub fn for_each_fact(&self, destination: Destination, mut entry: impl FnMut(Entry)) {
        match &self.action {
            Action::Reject => entry(Entry::NoEndpoints {
                destination,
                label: self.label.clone(),
            }),
            Action::Drop => entry(Entry::Route {
                destination,
                route: Route::Drop,
                label: self.label.clone(),
            }),
            Action::Balance {
                policy,
                primary,
                external,
                draw,
                affinity,
            } => {
                let balance = |list: &Endpoints| Route::Balance {
                    policy: *policy,
                    // A list longer than u32 cannot be held in memory.
                    endpoints: u32::try_from(list.len()).unwrap_or(u32::MAX),
                    draw: *draw,
                    affinity: *affinity,
                };
                entry(Entry::Route {
                    destination,
                    route: balance(primary),
                    label: self.label.clone(),
                });
                if let Some(external) = external {
                    entry(Entry::ExternalRoute {
                        destination,
                        route: if external.is_empty() {
                            Route::Drop
                        } else {
                            balance(external)
                        },
                    });
                }
            }
        }
        if let Sources::Only(_) = &self.sources {
            entry(Entry::Guarded { destination });
        }
    }

    /// Calls `entry` with every entry of this destination.
    pub fn for_each_entry(&self, destination: Destination, mut entry: impl FnMut(Entry)) {
        self.for_each_fact(destination, &mut entry);
        for network in self.sources.networks().iter().copied() {
            entry(Entry::AllowedSource {
                destination,
                network,
            });
        }
        let remembered = self.remembers();
        for list in List::BOTH {
            let endpoints = self.list(list).into_iter().flat_map(Endpoints::iter);
            for (index, endpoint) in (0..).zip(endpoints) {
                entry(Entry::Slot {
                    destination,
                    list,
                    index,
                    remembered,
                    endpoint: *endpoint,
                });
            }
        }
    }
}

impl Forwarding {
    /// How places are drawn, if connections go to endpoints.
    #[must_use]
    pub const fn draw(&self) -> Option<Draw> {
        match &self.action {
            Action::Balance { draw, .. } => Some(*draw),
            Action::Reject | Action::Drop => None,
        }
    }

    /// How many operations all of it may be to a backend.
    #[must_use]
    pub fn weight(&self) -> usize {
        let each = if self.remembers() {
            REMEMBERED_WEIGHT
        } else {
            1
        };
        let lists = List::BOTH.into_iter().filter_map(|list| self.list(list));
        let endpoints: usize = lists.map(Endpoints::len).sum();
        let sources = self.sources.networks().len();
        (each * endpoints).saturating_add(sources).saturating_add(2)
    }
}
