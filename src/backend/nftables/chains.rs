//! The chains that grow with the shapes of Services, not with their number.
//!
//! A verdict in a map names a chain, and the chain's name says everything that it does: name
//! and [`Route`] translate into each other without looking at the kernel.

use std::collections::BTreeSet;
use std::fmt;

use super::clients::ClientMap;
use crate::ir::{self, Entry, Host, List, Route, SourcePolicy};

/// A chain for one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ShapeChain {
    /// Sends to one of the endpoints that fill some of `places` places.
    Balance {
        /// For `NodePort`s, whose endpoints have a map of their own.
        node_port: bool,
        /// Which list.
        list: List,
        /// How many places there are.
        places: u32,
        /// The map of the clients' choices.
        affinity: Option<ClientMap>,
    },
    /// Tells sources apart, then sends them on.
    Policy {
        /// For `NodePort`s.
        node_port: bool,
        /// How.
        policy: SourcePolicy,
        /// How many places the primary list has.
        places: u32,
        /// The map of the clients' choices.
        affinity: Option<ClientMap>,
    },
    /// Remembers a client's choice.
    Remember {
        /// In which map.
        map: ClientMap,
    },
}

impl ShapeChain {
    /// The chain that an entry's verdict goes to, if it is one that goes somewhere.
    pub(crate) fn of(entry: &Entry) -> Option<Self> {
        let is_node_port = |host: &Host| matches!(host, Host::Node(_));
        let map = |destination, affinity: &Option<u32>| {
            affinity.map(|timeout| ClientMap::of(destination, timeout))
        };
        match entry {
            Entry::Route {
                destination,
                route:
                    Route::Balance {
                        policy,
                        places,
                        affinity,
                    },
                ..
            } => Some(Self::Policy {
                node_port: is_node_port(&destination.host),
                policy: *policy,
                places: *places,
                affinity: map(destination, affinity),
            }),
            Entry::ExternalRoute {
                destination,
                route: Route::Balance {
                    places, affinity, ..
                },
            } => Some(Self::Balance {
                node_port: is_node_port(&destination.host),
                list: List::External,
                places: *places,
                affinity: map(destination, affinity),
            }),
            Entry::Remember {
                destination,
                timeout_seconds,
            } => Some(Self::Remember {
                map: ClientMap::of(destination, *timeout_seconds),
            }),
            _ => None,
        }
    }

    /// The chain that this one sends to at its end, if any.
    pub(crate) const fn next(self) -> Option<Self> {
        match self {
            Self::Policy {
                node_port,
                places,
                affinity,
                ..
            } => Some(Self::Balance {
                node_port,
                list: List::Primary,
                places,
                affinity,
            }),
            Self::Balance {
                node_port,
                list,
                places,
                affinity: Some(_),
            } => Some(Self::Balance {
                node_port,
                list,
                places,
                affinity: None,
            }),
            Self::Balance { affinity: None, .. } | Self::Remember { .. } => None,
        }
    }

    /// The affinity map that it uses, if any.
    pub(crate) const fn affinity_map(self) -> Option<ClientMap> {
        match self {
            Self::Balance { affinity, .. } => affinity,
            Self::Remember { map } => Some(map),
            Self::Policy { .. } => None,
        }
    }

    /// The chains that are needed where some are in use: with those that they lead to, and for
    /// all maps of a timeout if for one, so that their number does not grow with the Services.
    pub(crate) fn needed(used: impl Iterator<Item = Self>) -> BTreeSet<Self> {
        let mut needed = BTreeSet::new();
        for chain in used.flat_map(Self::for_all_maps) {
            let mut next = Some(chain);
            while let Some(chain) = next
                && needed.insert(chain)
            {
                next = chain.next();
            }
        }
        needed
    }

    fn for_all_maps(self) -> Vec<Self> {
        let maps = |map: ClientMap| map.all_of_timeout();
        match self {
            Self::Balance {
                node_port,
                list,
                places,
                affinity: Some(map),
            } => maps(map)
                .map(|map| Self::Balance {
                    node_port,
                    list,
                    places,
                    affinity: Some(map),
                })
                .collect(),
            Self::Policy {
                node_port,
                policy,
                places,
                affinity: Some(map),
            } => maps(map)
                .map(|map| Self::Policy {
                    node_port,
                    policy,
                    places,
                    affinity: Some(map),
                })
                .collect(),
            Self::Remember { map } => maps(map).map(|map| Self::Remember { map }).collect(),
            plain => vec![plain],
        }
    }

    /// The chain with this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let parsed = Self::parse(name)?;
        // One name per chain: no leading zeros, no signs.
        (parsed.to_string() == name).then_some(parsed)
    }

    fn parse(name: &str) -> Option<Self> {
        if let Some(map) = name.strip_prefix("remember-") {
            return Some(Self::Remember {
                map: ClientMap::from_name(map)?,
            });
        }
        let (name, affinity) = match name.split_once("-affinity-") {
            Some((name, map)) => (name, Some(ClientMap::from_name(map)?)),
            None => (name, None),
        };
        let (name, node_port) = match name.strip_prefix("np-") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let (kind, places) = name.rsplit_once('-')?;
        let places = places.parse().ok().filter(|given| {
            // What no list can have is not ours.
            usize::try_from(*given).is_ok_and(|given_usize| ir::places(given_usize) == *given)
        })?;
        let balance = |list| Self::Balance {
            node_port,
            list,
            places,
            affinity,
        };
        let policy = |policy| Self::Policy {
            node_port,
            policy,
            places,
            affinity,
        };
        Some(match kind {
            "lb" => balance(List::Primary),
            "lb-local" => balance(List::External),
            "cluster-ip" => policy(SourcePolicy::ClusterIp),
            "external" => policy(SourcePolicy::External),
            "external-local" => policy(SourcePolicy::ExternalLocal),
            _ => return None,
        })
    }
}

impl fmt::Display for ShapeChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (node_port, kind, places, affinity) = match *self {
            Self::Remember { map } => return write!(f, "remember-{map}"),
            Self::Balance {
                node_port,
                list,
                places,
                affinity,
            } => {
                let kind = match list {
                    List::Primary => "lb",
                    List::External => "lb-local",
                };
                (node_port, kind, places, affinity)
            }
            Self::Policy {
                node_port,
                policy,
                places,
                affinity,
            } => {
                let kind = match policy {
                    SourcePolicy::ClusterIp => "cluster-ip",
                    SourcePolicy::External => "external",
                    SourcePolicy::ExternalLocal => "external-local",
                };
                (node_port, kind, places, affinity)
            }
        };
        let prefix = if node_port { "np-" } else { "" };
        write!(f, "{prefix}{kind}-{places}")?;
        if let Some(map) = affinity {
            write!(f, "-affinity-{map}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_its_name_and_nothing_else_has_one() {
        let names = [
            "lb-4",
            "lb-local-8",
            "np-lb-4",
            "np-lb-local-131072",
            "cluster-ip-16",
            "external-8-affinity-10800-7",
            "np-external-local-4-affinity-1-0",
            "lb-4-affinity-86400-15",
            "remember-10800-3",
        ];
        for name in names {
            let chain = ShapeChain::from_name(name).unwrap();
            assert_eq!(chain.to_string(), name);
        }
        for name in [
            "lb-0",
            "lb-2",
            "lb-3",
            "lb-12",
            "lb-04",
            "lb-",
            "lb",
            "services",
            "np-remember-1-1",
            "remember-1",
            "lb-+4",
            "lb--4",
        ] {
            assert_eq!(ShapeChain::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn every_chain_leads_to_a_plain_choice() {
        let mut chain = ShapeChain::from_name("np-external-local-4-affinity-60-9").unwrap();
        let mut way = Vec::new();
        while let Some(next) = chain.next() {
            way.push(next.to_string());
            chain = next;
        }
        assert_eq!(way, ["np-lb-4-affinity-60-9", "np-lb-4"]);
    }
}
