//! Which endpoints of a Service port may take connections (SEMANTICS D).
//!
//! Pure: from the endpoints, the port's traffic policies and the node's topology to lists.
//! What the lists are used for is `compile`'s business.

use crate::model::{Endpoint, Family, Hint, Name, Protocol, SliceEndpoint};
use crate::model::{EndpointSlice, Node};

/// Which lists a Service port has a use for (SEMANTICS B11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uses {
    /// Some traffic may go to endpoints anywhere.
    pub cluster: bool,
    /// Some traffic may only go to endpoints on this node.
    pub local: bool,
    /// Flows are told apart by whether their endpoint still serves.
    pub flows: bool,
}

/// The endpoints of one Service port in one family. Lists are sorted and without duplicates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// For traffic that may go anywhere.
    pub cluster: Vec<Endpoint>,
    /// For traffic that must stay on this node.
    pub local: Vec<Endpoint>,
    /// Endpoints of either list that run on this node.
    pub on_this_node: Vec<Endpoint>,
    /// Endpoints anywhere that still serve, whatever else they are: flows that go to them are
    /// left alone. Empty if nobody asks.
    pub serving: Vec<Endpoint>,
    /// Whether an endpoint anywhere could take traffic: with none, connections are refused;
    /// with some but none to use, they are dropped.
    pub has_any: bool,
}

/// An endpoint, and what its slice says about it.
type Candidate = (Endpoint, SliceEndpoint);

/// The slices' endpoints that belong to a Service port, each address and port once, sorted.
///
/// Of duplicates, one that is not terminating wins over one that is, and a ready one over one
/// that is not (SEMANTICS C6, made independent of the slices' order).
fn candidates<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    family: Family,
    port_name: &str,
    protocol: Protocol,
) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    for slice in slices.filter(|slice| slice.family == family) {
        let ports = slice
            .ports
            .iter()
            .filter(|port| port.protocol == protocol && &*port.name == port_name);
        for port in ports {
            found.reserve_exact(slice.endpoints.len());
            let endpoints = slice.endpoints.iter();
            found.extend(
                endpoints.map(|endpoint| (Endpoint::new(endpoint.address, port.port), endpoint)),
            );
        }
    }
    if !found.is_sorted_by(|(a, _), (b, _)| a < b) {
        let rank =
            |endpoint: &SliceEndpoint| (!endpoint.terminating, endpoint.ready, endpoint.serving);
        // Of equal ones the last in the slices' order stands first, and is kept.
        found.reverse();
        found.sort_by(|(a, known_a), (b, known_b)| {
            a.cmp(b).then_with(|| rank(known_b).cmp(&rank(known_a)))
        });
        found.dedup_by_key(|(endpoint, _)| *endpoint);
    }
    found
}

/// Selects the endpoints of one Service port in one family.
pub fn select<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    family: Family,
    port_name: &str,
    protocol: Protocol,
    uses: Uses,
    node: &Node,
) -> Selection {
    let candidates = candidates(slices, family, port_name, protocol);
    if candidates.is_empty() {
        return Selection::default();
    }
    let fallback =
        |endpoint: &SliceEndpoint| !endpoint.ready && endpoint.serving && endpoint.terminating;
    let mut selection = Selection::default();

    if uses.cluster {
        let topology = Topology::of(candidates.iter().map(|(_, endpoint)| endpoint), node);
        selection.cluster = pick(&candidates, |endpoint| {
            endpoint.ready && topology.admits(endpoint)
        });
        if selection.cluster.is_empty() {
            selection.cluster = pick(&candidates, fallback);
        }
    }
    if uses.local {
        selection.local = pick(&candidates, |endpoint| endpoint.local && endpoint.ready);
        if selection.local.is_empty() {
            selection.local = pick(&candidates, |endpoint| endpoint.local && fallback(endpoint));
        }
    }
    selection.has_any = candidates
        .iter()
        .any(|(_, endpoint)| endpoint.ready || fallback(endpoint));
    if uses.flows {
        selection.serving = pick(&candidates, |endpoint| endpoint.serving);
    }
    // Sorted like all that is picked from the candidates.
    selection.on_this_node = candidates
        .iter()
        .filter(|(_, known)| known.local)
        .map(|(endpoint, _)| *endpoint)
        .filter(|endpoint| {
            let on = |list: &[Endpoint]| list.binary_search(endpoint).is_ok();
            on(&selection.cluster) || on(&selection.local)
        })
        .collect();
    selection
}

fn pick(candidates: &[Candidate], usable: impl Fn(&SliceEndpoint) -> bool) -> Vec<Endpoint> {
    let usable = candidates.iter().filter(|(_, known)| usable(known));
    let count = usable.clone().count();
    let mut picked = Vec::with_capacity(count);
    picked.extend(usable.map(|(endpoint, _)| *endpoint));
    picked
}

/// Which ready endpoints the slices' hints leave to this node (SEMANTICS D2).
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
#[path = "select_tests.rs"]
mod tests;
