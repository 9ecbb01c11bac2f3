//! Which endpoints of a Service port may take connections (docs/semantics.md, D).
//!
//! Pure: from the endpoints, the port's traffic policies and the node's topology to lists.
//! What the lists are used for is `compile`'s business. [`select`] selects all at once, [`Tracked`]
//! the same by what changes.

pub mod places;
mod reasons;
mod slots;
mod tracked;

pub use reasons::{Hints, Judged, NotFollowed, Standing, judge};
pub use slots::Slots;
pub use tracked::Tracked;

use rustc_hash::FxHashMap;

use crate::core::model::{
    Endpoint, EndpointSlice, Endpoints, Family, Hint, Name, Node, Protocol, SliceEndpoint,
};

/// Which lists a Service port has a use for (docs/semantics.md, B11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uses {
    /// Some traffic may go to endpoints anywhere.
    pub cluster: bool,
    /// Some traffic may only go to endpoints on this node.
    pub local: bool,
    /// Flows are told apart by whether their endpoint still serves.
    pub flows: bool,
}

/// The endpoints of one Service port in one family. Lists are without duplicates, and sorted when
/// selected all at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// For traffic that may go anywhere.
    pub cluster: Endpoints,
    /// For traffic that must stay on this node.
    pub local: Endpoints,
    /// Endpoints of either list that run on this node.
    pub on_this_node: Vec<Endpoint>,
    /// Endpoints anywhere that still serve, whatever else they are: flows that go to them are
    /// left alone. Empty if nobody asks.
    pub serving: Endpoints,
    /// Whether an endpoint anywhere could take traffic: with none, connections are refused;
    /// with some but none to use, they are dropped.
    pub has_any: bool,
    /// What endpoints weigh, if it is not the same for all.
    pub weights: Option<Weights>,
}

/// The weights of endpoints.
pub type Weights = FxHashMap<Endpoint, u32>;

/// An endpoint, and what its slice says about it.
type Candidate = (Endpoint, SliceEndpoint);

/// A slice, and the port on its endpoints that serves a Service port.
pub type ServingSlice<'a> = (&'a EndpointSlice, u16);

/// A slice with each of its ports that serves a Service port.
pub fn serving<'a>(
    slice: &'a EndpointSlice,
    family: Family,
    name: &str,
    protocol: Protocol,
) -> impl Iterator<Item = ServingSlice<'a>> {
    let of_family = slice.family == family;
    slice
        .ports
        .iter()
        .filter(move |port| of_family && port.protocol == protocol && *port.name == *name)
        .map(move |port| (slice, port.port))
}

/// Which of two slices' words about one endpoint counts: the greater. One that is not terminating
/// wins over one that is, and a ready one over one that is not (docs/semantics.md, C6, made independent of
/// the slices' order).
fn rank(endpoint: &SliceEndpoint) -> impl Ord + '_ {
    let hint = match endpoint.node_hint {
        Hint::None => 0,
        Hint::Elsewhere => 1,
        Hint::Here => 2,
    };
    (
        !endpoint.terminating,
        endpoint.ready,
        endpoint.serving,
        endpoint.local,
        hint,
        &endpoint.zone_hints,
        endpoint.weight,
    )
}

/// Whether it takes connections where nobody is ready.
const fn is_fallback(endpoint: &SliceEndpoint) -> bool {
    !endpoint.ready && endpoint.serving && endpoint.terminating
}

/// The slices' endpoints that belong to a Service port, each address and port once, sorted.
fn candidates<'a>(slices: impl Iterator<Item = ServingSlice<'a>>) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    for (slice, port) in slices {
        found.reserve_exact(slice.endpoints.len());
        let endpoints = slice.endpoints.iter();
        found.extend(endpoints.map(|endpoint| (Endpoint::new(endpoint.address, port), endpoint)));
    }
    if !found.is_sorted_by(|(a, _), (b, _)| a < b) {
        found.sort_by(|(a, known_a), (b, known_b)| {
            a.cmp(b).then_with(|| rank(known_b).cmp(&rank(known_a)))
        });
        found.dedup_by_key(|(endpoint, _)| *endpoint);
    }
    found
}

/// Selects the endpoints of one Service port in one family, from the slices of that family that
/// serve it.
pub fn select<'a>(
    slices: impl Iterator<Item = ServingSlice<'a>>,
    uses: Uses,
    node: &Node,
) -> Selection {
    let candidates = candidates(slices);
    if candidates.is_empty() {
        return Selection::default();
    }
    let mut selection = Selection::default();

    if uses.cluster {
        let topology = Topology::of(candidates.iter().map(|(_, endpoint)| endpoint), node);
        selection.cluster = pick(&candidates, |endpoint| {
            endpoint.ready && topology.admits(endpoint)
        });
        if selection.cluster.is_empty() {
            selection.cluster = pick(&candidates, is_fallback);
        }
    }
    if uses.local {
        selection.local = pick(&candidates, |endpoint| endpoint.local && endpoint.ready);
        if selection.local.is_empty() {
            let fallback = |endpoint: &SliceEndpoint| endpoint.local && is_fallback(endpoint);
            selection.local = pick(&candidates, fallback);
        }
    }
    selection.has_any = candidates
        .iter()
        .any(|(_, endpoint)| endpoint.ready || is_fallback(endpoint));
    if uses.flows {
        selection.serving = pick(&candidates, |endpoint| endpoint.serving);
    }
    selection.weights = weights(&candidates);
    selection.on_this_node = on_this_node(&candidates, [&selection.cluster, &selection.local]);
    selection
}

fn weights(candidates: &[Candidate]) -> Option<Weights> {
    let weighed = |(endpoint, known): &Candidate| (*endpoint, known.weight);
    let differ = candidates.iter().any(|(_, known)| known.weight != 1);
    differ.then(|| candidates.iter().map(weighed).collect())
}

/// The candidates on this node that are on one of some lists, all sorted.
fn on_this_node(candidates: &[Candidate], lists: [&Endpoints; 2]) -> Vec<Endpoint> {
    let mut lists = lists.map(|list| list.iter().peekable());
    candidates
        .iter()
        .filter(|(_, known)| known.local)
        .filter(|(endpoint, _)| {
            let mut on_a_list = false;
            for list in &mut lists {
                while list.next_if(|other| *other < endpoint).is_some() {}
                on_a_list |= list.peek() == Some(&endpoint);
            }
            on_a_list
        })
        .map(|(endpoint, _)| *endpoint)
        .collect()
}

fn pick(candidates: &[Candidate], usable: impl Fn(&SliceEndpoint) -> bool) -> Endpoints {
    let usable = candidates.iter().filter(|(_, known)| usable(known));
    let count = usable.clone().count();
    let mut picked = Vec::with_capacity(count);
    picked.extend(usable.map(|(endpoint, _)| *endpoint));
    picked.into()
}

/// Which ready endpoints the slices' hints leave to this node (docs/semantics.md, D2).
enum Topology<'a> {
    /// Those hinted to this node.
    SameNode,
    /// Those hinted to this zone.
    SameZone(&'a Name),
    /// All of them.
    Anywhere,
}

impl<'a> Topology<'a> {
    /// Hints count only if every ready endpoint has one and one of them names us.
    fn of<'e>(endpoints: impl Iterator<Item = &'e SliceEndpoint> + Clone, node: &'a Node) -> Self {
        let ready = endpoints.filter(|endpoint| endpoint.ready);
        if ready
            .clone()
            .all(|endpoint| endpoint.node_hint != Hint::None)
            && ready
                .clone()
                .any(|endpoint| endpoint.node_hint == Hint::Here)
        {
            return Self::SameNode;
        }
        let Some(zone) = &node.zone else {
            return Self::Anywhere;
        };
        if ready.clone().all(|endpoint| endpoint.zone_hints.is_some())
            && ready.clone().any(|endpoint| hinted_to(endpoint, zone))
        {
            return Self::SameZone(zone);
        }
        Self::Anywhere
    }

    fn admits(&self, endpoint: &SliceEndpoint) -> bool {
        match self {
            Self::SameNode => endpoint.node_hint == Hint::Here,
            Self::SameZone(zone) => hinted_to(endpoint, zone),
            Self::Anywhere => true,
        }
    }
}

fn hinted_to(endpoint: &SliceEndpoint, zone: &Name) -> bool {
    endpoint
        .zone_hints
        .as_ref()
        .is_some_and(|hints| hints.contains(zone))
}

#[cfg(test)]
mod tests;
