//! Which endpoints of a Service port may take connections (SEMANTICS D).
//!
//! Pure: from the endpoints, the port's traffic policies and the node's topology to lists.
//! What the lists are used for is `compile`'s business.

use std::collections::BTreeMap;

use crate::model::{Endpoint, Family, Hint, Name, Protocol, SliceEndpoint};
use crate::model::{EndpointSlice, Node};

/// Which lists a Service port has a use for (SEMANTICS B11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uses {
    /// Some traffic may go to endpoints anywhere.
    pub cluster: bool,
    /// Some traffic may only go to endpoints on this node.
    pub local: bool,
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
    /// left alone.
    pub serving: Vec<Endpoint>,
    /// Whether an endpoint anywhere could take traffic: with none, connections are refused;
    /// with some but none to use, they are dropped.
    pub has_any: bool,
}

/// The slices' endpoints that belong to a Service port, each address and port once.
///
/// Of duplicates, one that is not terminating wins over one that is, and a ready one over one
/// that is not (SEMANTICS C6, made independent of the slices' order).
fn candidates<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    family: Family,
    port_name: &str,
    protocol: Protocol,
) -> BTreeMap<Endpoint, &'a SliceEndpoint> {
    let mut found: BTreeMap<Endpoint, &SliceEndpoint> = BTreeMap::new();
    let rank = |endpoint: &SliceEndpoint| (!endpoint.terminating, endpoint.ready, endpoint.serving);
    for slice in slices.filter(|slice| slice.family == family) {
        let ports = slice
            .ports
            .iter()
            .filter(|port| port.protocol == protocol && &*port.name == port_name);
        for port in ports {
            for endpoint in &slice.endpoints {
                found
                    .entry(Endpoint::new(endpoint.address, port.port))
                    .and_modify(|known| {
                        if rank(endpoint) >= rank(known) {
                            *known = endpoint;
                        }
                    })
                    .or_insert(endpoint);
            }
        }
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
        let topology = Topology::of(candidates.values().copied(), node);
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
        .values()
        .any(|endpoint| endpoint.ready || fallback(endpoint));
    selection.on_this_node = selection
        .cluster
        .iter()
        .chain(&selection.local)
        .copied()
        .filter(|endpoint| candidates.get(endpoint).is_some_and(|known| known.local))
        .collect();
    selection.serving = pick(&candidates, |endpoint| endpoint.serving);
    selection.on_this_node.sort_unstable();
    selection.on_this_node.dedup();
    selection
}

fn pick(
    candidates: &BTreeMap<Endpoint, &SliceEndpoint>,
    usable: impl Fn(&SliceEndpoint) -> bool,
) -> Vec<Endpoint> {
    candidates
        .iter()
        .filter(|(_, endpoint)| usable(endpoint))
        .map(|(key, _)| *key)
        .collect()
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
