//! Elements of our sets and maps, as values: what an entry is in the kernel.
//!
//! `netlink` encodes and reads them, `text` prints them. Most entries are one element; an endpoint
//! that clients come back to is three, which `affinity` makes.

use std::borrow::Cow;

use super::choice::Verdict;
use super::lots::{Lane, Lot};
use super::numbers::{self, Class, Shape};
use super::sets::SetId;
use super::sizes::Size;
use crate::core::ir::{Destination, Entry, Host, LABEL_MAX, List, Route, Shared};
use crate::core::model::{Endpoint, Family};

/// What is written beside a shape for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Comment<'a> {
    /// Whose it is.
    pub(crate) label: Cow<'a, str>,
    /// For how long its Service wants clients remembered, if they are remembered for longer.
    pub(crate) wanted_seconds: Option<u32>,
}

const WANTED: (&str, &str) = (" (affinity of ", " s)");
/// With the longest timeout that there is, of five digits, it fits into a comment.
const _: () = assert!(LABEL_MAX + WANTED.0.len() + 5 + WANTED.1.len() <= 128);

impl<'a> Comment<'a> {
    /// Its text.
    pub(crate) fn text(&self) -> String {
        match self.wanted_seconds {
            None => self.label.to_string(),
            Some(seconds) => [&self.label, WANTED.0, &seconds.to_string(), WANTED.1].concat(),
        }
    }

    /// The comment with a text.
    pub(crate) fn from_text(text: &'a str) -> Self {
        let wanted = text.split_once(WANTED.0).and_then(|(label, rest)| {
            let seconds = rest.strip_suffix(WANTED.1)?.parse().ok()?;
            Some((label, seconds))
        });
        match wanted {
            Some((label, seconds)) => Self {
                label: label.into(),
                wanted_seconds: Some(seconds),
            },
            None => Self {
                label: text.into(),
                wanted_seconds: None,
            },
        }
    }
}

/// An element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Element<'a> {
    /// What a destination does, for everyone or for sources from outside.
    Shape {
        /// The destination.
        destination: Destination,
        /// For sources from outside?
        list: List,
        /// What it does.
        shape: Shape,
        /// Whose it is; nobody says so twice.
        comment: Option<Comment<'a>>,
    },
    /// The endpoint under a place or an id.
    Endpoint {
        /// The destination.
        destination: Destination,
        /// The place or id.
        number: u32,
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// The id under a place or under an id without its class.
    Id {
        /// The destination.
        destination: Destination,
        /// The place, or the id without its class.
        number: u32,
        /// The id.
        id: u32,
    },
    /// A destination that refuses connections.
    NoEndpoints {
        /// The destination.
        destination: Destination,
        /// Whose it is.
        label: Cow<'a, str>,
    },
    /// A VIP that admits only some sources.
    Guarded {
        /// The destination.
        destination: Destination,
    },
    /// A source that it admits.
    AllowedSource {
        /// The destination.
        destination: Destination,
        /// The sources.
        network: ipnetwork::IpNetwork,
    },
    /// A fact that several may state.
    Shared(Shared),
    /// Where one of the program's verdict maps leads.
    Verdict {
        /// The map.
        map: SetId,
        /// The key.
        number: u32,
        /// Where to.
        verdict: Cow<'a, Verdict>,
    },
}

impl<'a> Element<'a> {
    /// The element that an entry is. `class` is that of the clients that a route remembers, and
    /// `wanted_seconds` for how long its Service wants that, if the class is another; `lane` is the
    /// counter of a route that draws in turn. `None` for endpoints that clients come back to.
    pub(crate) fn of(
        entry: &'a Entry,
        class: Class,
        wanted_seconds: Option<u32>,
        lane: Lane,
    ) -> Option<Self> {
        Some(match entry {
            Entry::Route {
                destination,
                route,
                label,
            } => Self::Shape {
                destination: *destination,
                list: List::Primary,
                shape: shape(destination, *route, class, lane),
                comment: Some(Comment {
                    label: label.as_str().into(),
                    wanted_seconds,
                }),
            },
            Entry::ExternalRoute { destination, route } => Self::Shape {
                destination: *destination,
                list: List::External,
                shape: shape(destination, *route, class, lane),
                comment: None,
            },
            Entry::Slot {
                remembered: true, ..
            } => return None,
            Entry::Slot {
                destination,
                list,
                index,
                endpoint,
                ..
            } => Self::Endpoint {
                destination: *destination,
                number: numbers::place(*list, *index),
                endpoint: *endpoint,
            },
            Entry::NoEndpoints { destination, label } => Self::NoEndpoints {
                destination: *destination,
                label: label.as_str().into(),
            },
            Entry::Guarded { destination } => Self::Guarded {
                destination: *destination,
            },
            Entry::AllowedSource {
                destination,
                network,
            } => Self::AllowedSource {
                destination: *destination,
                network: *network,
            },
            Entry::Shared(shared) => Self::Shared(*shared),
        })
    }

    /// The same with nothing borrowed.
    pub(crate) fn into_owned(self) -> Element<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        match self {
            Self::Shape {
                destination,
                list,
                shape,
                comment,
            } => Element::Shape {
                destination,
                list,
                shape,
                comment: comment.map(|comment| Comment {
                    label: owned(comment.label),
                    ..comment
                }),
            },
            Self::NoEndpoints { destination, label } => Element::NoEndpoints {
                destination,
                label: owned(label),
            },
            Self::Endpoint {
                destination,
                number,
                endpoint,
            } => Element::Endpoint {
                destination,
                number,
                endpoint,
            },
            Self::Id {
                destination,
                number,
                id,
            } => Element::Id {
                destination,
                number,
                id,
            },
            Self::Guarded { destination } => Element::Guarded { destination },
            Self::AllowedSource {
                destination,
                network,
            } => Element::AllowedSource {
                destination,
                network,
            },
            Self::Shared(shared) => Element::Shared(shared),
            Self::Verdict {
                map,
                number,
                verdict,
            } => Element::Verdict {
                map,
                number,
                verdict: Cow::Owned(verdict.into_owned()),
            },
        }
    }

    /// The family whose table it is in; `None` if it is in both.
    pub(crate) const fn family(&self) -> Option<Family> {
        match self {
            Self::Shape { destination, .. }
            | Self::Endpoint { destination, .. }
            | Self::Id { destination, .. }
            | Self::NoEndpoints { destination, .. }
            | Self::Guarded { destination }
            | Self::AllowedSource { destination, .. } => Some(destination.family()),
            Self::Shared(shared) => Some(shared.family()),
            Self::Verdict { .. } => None,
        }
    }

    /// The set that it lives in.
    pub(crate) const fn set(&self) -> SetId {
        const fn pick(destination: &Destination, ip: SetId, node: SetId) -> SetId {
            match destination.host {
                Host::Address(_) => ip,
                Host::Node(_) => node,
            }
        }
        use SetId::{
            AffinityIds, AffinityNodePortIds, Endpoints, ExternalLocalIps, ExternalLocalNodePorts,
            NoEndpointsIps, NoEndpointsNodePorts, NodePortEndpoints, ServiceIps, ServiceNodePorts,
        };
        match self {
            Self::Shape {
                destination, list, ..
            } => match list {
                List::Primary => pick(destination, ServiceIps, ServiceNodePorts),
                List::External => pick(destination, ExternalLocalIps, ExternalLocalNodePorts),
            },
            Self::Endpoint { destination, .. } => pick(destination, Endpoints, NodePortEndpoints),
            Self::Id { destination, .. } => pick(destination, AffinityIds, AffinityNodePortIds),
            Self::NoEndpoints { destination, .. } => {
                pick(destination, NoEndpointsIps, NoEndpointsNodePorts)
            }
            Self::Guarded { .. } => SetId::GuardedIps,
            Self::AllowedSource { .. } => SetId::AllowedSources,
            Self::Shared(shared) => SetId::of_shared(shared),
            Self::Verdict { map, .. } => *map,
        }
    }
}

/// The shape of a route.
pub(crate) fn shape(destination: &Destination, route: Route, class: Class, lane: Lane) -> Shape {
    match route {
        Route::Drop => Shape::Drop,
        Route::Balance {
            policy,
            endpoints,
            draw,
            affinity,
        } => Shape::Balance {
            node_port: matches!(destination.host, Host::Node(_)),
            policy,
            class: if affinity.is_some() { class } else { 0 },
            lot: Lot::new(draw, Size::of(endpoints), lane),
        },
    }
}
