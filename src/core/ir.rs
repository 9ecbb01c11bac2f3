//! The intermediate representation: what a node's packets must experience, independent of the
//! backend that makes it so.
//!
//! A [`Forwarding`] says everything about one [`Destination`]. It flattens into [`Entry`]s, the
//! unit in which a backend is changed: each is one fact with one key, and two facts never share
//! a key. Nothing here knows nftables, and nothing here decides what a Service means.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::core::model::{Endpoint, Endpoints, Family, Owner, Protocol};

/// The address part of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// One address: a `ClusterIP`, an external IP or a load-balancer VIP.
    Address(IpAddr),
    /// The node's own addresses in a family, as far as they accept `NodePort`s.
    Node(Family),
}

/// What a client connects to. At most one Service port owns a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// The address.
    pub host: Host,
    /// The protocol.
    pub protocol: Protocol,
    /// The port, in host byte order.
    pub port: u16,
}

impl Destination {
    /// The family that it belongs to.
    #[must_use]
    pub const fn family(self) -> Family {
        match self.host {
            Host::Address(address) => Family::of(address),
            Host::Node(family) => family,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}")?,
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
            Host::Node(Family::V4) => f.write_str("node(IPv4)")?,
            Host::Node(Family::V6) => f.write_str("node(IPv6)")?,
        }
        write!(f, ":{}/{}", self.port, self.protocol)
    }
}

/// Which sources are treated alike on the way to a destination's endpoints (docs/semantics.md, E).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourcePolicy {
    /// A `ClusterIP`: pods keep their address, everyone else is masqueraded.
    ClusterIp,
    /// An external destination with policy Cluster: everyone is masqueraded.
    External,
    /// An external destination with policy Local: pods reach all endpoints with their own
    /// address, this host reaches all of them masqueraded, everyone else reaches the local
    /// ones with their own address.
    ExternalLocal,
}

/// What a destination does with a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Route {
    /// It goes away without an answer.
    Drop,
    /// It goes to one of the endpoints.
    Balance {
        /// How sources are told apart.
        policy: SourcePolicy,
        /// How many endpoints the list has.
        endpoints: u32,
        /// Seconds after a client's last new connection for which its choice is remembered.
        affinity: Option<u32>,
    },
}

/// Which of a destination's two lists an endpoint is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum List {
    /// The list for everyone, or for pods and this host under [`SourcePolicy::ExternalLocal`].
    Primary,
    /// The list for sources from outside under [`SourcePolicy::ExternalLocal`].
    External,
}

impl List {
    /// Both, primary first.
    pub const BOTH: [Self; 2] = [Self::Primary, Self::External];
}

/// The longest label, in bytes. A backend writes it into a comment, beside a remark of its own; the
/// shortest comments are nft's, of 128 bytes (`NFTNL_UDATA_COMMENT_MAXLEN` in libnftnl's `udata.h`).
pub const LABEL_MAX: usize = 104;

/// Who a destination belongs to, for people: `namespace/name:port`, shortened to [`LABEL_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label(Arc<str>);

impl Label {
    /// A label from its text. Anything that nft could not print as a comment is left out.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let clean = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
        if text.len() <= LABEL_MAX && text.chars().all(clean) {
            return Self(Arc::from(text));
        }
        let short: String = text.chars().filter(|c| clean(*c)).take(LABEL_MAX).collect();
        Self(Arc::from(short))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

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
                    affinity,
                },
                Action::Balance {
                    policy: other_policy,
                    primary: other_primary,
                    external: other_external,
                    affinity: other_affinity,
                },
            ) => {
                let count = |list: &Option<Endpoints>| list.as_ref().map(Endpoints::len);
                policy == other_policy
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
                affinity,
            } => {
                entry(Entry::Route {
                    destination,
                    route: balance(*policy, primary, *affinity),
                    label: self.label.clone(),
                });
                if let Some(external) = external {
                    entry(Entry::ExternalRoute {
                        destination,
                        route: if external.is_empty() {
                            Route::Drop
                        } else {
                            balance(*policy, external, *affinity)
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

fn balance(policy: SourcePolicy, endpoints: &Endpoints, affinity: Option<u32>) -> Route {
    Route::Balance {
        policy,
        // A list longer than u32 cannot be held in memory.
        endpoints: u32::try_from(endpoints.len()).unwrap_or(u32::MAX),
        affinity,
    }
}

/// A fact that several owners may state; it holds as long as one of them does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shared {
    /// An address is an active Service's `ClusterIP`: its undefined ports are refused.
    ClusterIp(IpAddr),
    /// A range belongs to a `ServiceCIDR`: its unused addresses are dropped. Never overlaps
    /// another one.
    ServiceCidr(IpNetwork),
    /// A connection from an endpoint on this node that comes back to itself is masqueraded.
    Hairpin {
        /// The protocol.
        protocol: Protocol,
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// `NodePort`s are accepted on this address.
    NodePortAddress(IpAddr),
}

impl Shared {
    /// The family whose tables it belongs to.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self {
            Self::ClusterIp(address) | Self::NodePortAddress(address) => Family::of(*address),
            Self::Hairpin { endpoint, .. } => Family::of(endpoint.address),
            Self::ServiceCidr(IpNetwork::V4(_)) => Family::V4,
            Self::ServiceCidr(IpNetwork::V6(_)) => Family::V6,
        }
    }

    /// Whether traffic that would fail without the fact works with it. The others refuse traffic
    /// that nothing else serves.
    #[must_use]
    pub const fn admits(self) -> bool {
        match self {
            Self::Hairpin { .. } | Self::NodePortAddress(_) => true,
            Self::ClusterIp(_) | Self::ServiceCidr(_) => false,
        }
    }
}

/// One fact. Its key is everything but the fields named in the variant's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// What a destination does. Value: `route`, `label`.
    Route {
        /// The destination.
        destination: Destination,
        /// What it does.
        route: Route,
        /// Whose it is.
        label: Label,
    },
    /// What a destination does for sources from outside. Value: `route`.
    ExternalRoute {
        /// The destination.
        destination: Destination,
        /// What it does for them.
        route: Route,
    },
    /// One endpoint of a list. Value: `endpoint`.
    Slot {
        /// The destination.
        destination: Destination,
        /// Which list.
        list: List,
        /// Its place, from 0 without gaps.
        index: u32,
        /// Whether clients are remembered here: the place of an endpoint that clients come back to
        /// is another fact than that of one that they do not.
        remembered: bool,
        /// The endpoint in this place.
        endpoint: Endpoint,
    },
    /// A destination refuses connections. Value: `label`.
    NoEndpoints {
        /// The destination.
        destination: Destination,
        /// Whose it is.
        label: Label,
    },
    /// Only allowed sources may connect to a destination.
    Guarded {
        /// The destination.
        destination: Destination,
    },
    /// A source that may connect to a guarded destination.
    AllowedSource {
        /// The destination.
        destination: Destination,
        /// Its sources.
        network: IpNetwork,
    },
    /// A fact that several may state.
    Shared(Shared),
}

impl Entry {
    /// How many operations it may be to a backend.
    #[must_use]
    pub const fn weight(&self) -> usize {
        match self {
            Self::Slot {
                remembered: true, ..
            } => REMEMBERED_WEIGHT,
            _ => 1,
        }
    }

    /// The family whose tables the entry belongs to.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self {
            Self::Route { destination, .. }
            | Self::ExternalRoute { destination, .. }
            | Self::Slot { destination, .. }
            | Self::NoEndpoints { destination, .. }
            | Self::Guarded { destination }
            | Self::AllowedSource { destination, .. } => destination.family(),
            Self::Shared(shared) => shared.family(),
        }
    }
}

impl Forwarding {
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

/// How many operations an endpoint that clients come back to may be to a backend.
pub const REMEMBERED_WEIGHT: usize = 3;

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

    /// How many operations it may be to a backend.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.weight_from((0, 0))
    }

    /// The same without so many removals and additions, the first ones.
    #[must_use]
    pub fn weight_from(&self, (removals, additions): (usize, usize)) -> usize {
        let removals = self.remove.get(removals..).unwrap_or(&[]);
        let additions = self.add.get(additions..).unwrap_or(&[]);
        let operations = removals.iter().chain(additions);
        operations.map(|operation| operation.entry.weight()).sum()
    }
}
