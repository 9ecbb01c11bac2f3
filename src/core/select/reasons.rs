//! Why an endpoint may take connections or may not: the same decisions as [`select`](super::select), told
//! one by one.

use super::{Candidate, ServingSlice, Topology, candidates, hinted_to, is_fallback};
use crate::core::model::{Endpoint, Hint, Name, Node, SliceEndpoint};

/// What an endpoint is to a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It takes connections.
    Used,
    /// It takes them although it is terminating, because nobody is ready.
    Fallback,
    /// It is terminating, and serves only where nobody is ready.
    Spare,
    /// It is terminating, and serves no longer.
    Gone,
    /// It has weight 0, and others have more.
    Drained,
    /// It is passed over, because it does not answer this node.
    Ejected,
    /// It is not ready.
    NotReady,
    /// It is ready, and on another node.
    OtherNode,
    /// It is ready, and hinted to other nodes.
    HintedToOtherNode,
    /// It is ready, and hinted to these zones.
    HintedToOtherZone(Vec<Name>),
}

impl Standing {
    /// Whether it takes connections.
    #[must_use]
    pub const fn is_used(&self) -> bool {
        matches!(self, Self::Used | Self::Fallback)
    }
}

/// One endpoint of a Service port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Which.
    pub endpoint: Endpoint,
    /// It is on this node.
    pub on_this_node: bool,
    /// What it is to connections that may go anywhere.
    pub anywhere: Standing,
    /// What it is to those that have to stay on this node.
    pub here: Standing,
    /// What it weighs.
    pub weight: u32,
}

/// What hints have been made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hints {
    /// There are none.
    None,
    /// Those to this node are followed.
    ThisNode,
    /// Those to this node's zone are followed.
    Zone(Name),
    /// There are some, and they are not followed.
    Ignored(NotFollowed),
}

/// Why hints are not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotFollowed {
    /// So many of so many ready endpoints have none.
    Missing {
        /// Ready endpoints without a hint.
        without: usize,
        /// All ready endpoints.
        ready: usize,
    },
    /// This node has no zone.
    NoZone,
    /// No ready endpoint is hinted to this zone.
    NotHere(Name),
}

/// All endpoints of a Service port, in order, and what its hints come to.
pub fn judge<'a>(
    slices: impl Iterator<Item = ServingSlice<'a>>,
    node: &Node,
) -> (Vec<Judged>, Hints) {
    let candidates = candidates(slices);
    let topology = Topology::of(candidates.iter().map(|(_, endpoint)| endpoint), node);
    let admitted = |known: &SliceEndpoint| known.ready && topology.admits(known);
    let anywhere = candidates.iter().any(|(_, known)| admitted(known));
    let here = candidates
        .iter()
        .any(|(_, known)| known.local && known.ready);
    let judged = candidates
        .iter()
        .map(|(endpoint, known)| Judged {
            endpoint: *endpoint,
            on_this_node: known.local,
            anywhere: if known.ready {
                match &topology {
                    _ if topology.admits(known) => Standing::Used,
                    Topology::SameNode => Standing::HintedToOtherNode,
                    _ => Standing::HintedToOtherZone(zones(known)),
                }
            } else {
                not_ready(known, anywhere)
            },
            here: match (known.local, known.ready) {
                (true, true) => Standing::Used,
                (false, true) => Standing::OtherNode,
                (true, false) => not_ready(known, here),
                (false, false) if is_fallback(known) => Standing::OtherNode,
                (false, false) => not_ready(known, true),
            },
            weight: known.weight,
        })
        .collect();
    let hints = hints(&candidates, &topology, node);
    (judged, hints)
}

fn zones(known: &SliceEndpoint) -> Vec<Name> {
    let zones = known.zone_hints.as_ref();
    zones.map_or_else(Vec::new, |zones| zones.to_vec())
}

const fn not_ready(known: &SliceEndpoint, others_are: bool) -> Standing {
    match (is_fallback(known), known.terminating) {
        (true, _) if !others_are => Standing::Fallback,
        (true, _) => Standing::Spare,
        (false, true) => Standing::Gone,
        (false, false) => Standing::NotReady,
    }
}

fn hints(candidates: &[Candidate], topology: &Topology<'_>, node: &Node) -> Hints {
    let ready = || {
        let known = candidates.iter().map(|(_, known)| known);
        known.filter(|known| known.ready)
    };
    let has_one =
        |known: &SliceEndpoint| known.zone_hints.is_some() || known.node_hint != Hint::None;
    match topology {
        Topology::SameNode => return Hints::ThisNode,
        Topology::SameZone(zone) => return Hints::Zone(Name::clone(zone)),
        Topology::Anywhere if !ready().any(has_one) => return Hints::None,
        Topology::Anywhere => {}
    }
    let count = ready().count();
    let without = ready().filter(|known| !has_one(known)).count();
    Hints::Ignored(if without > 0 {
        NotFollowed::Missing {
            without,
            ready: count,
        }
    } else {
        match &node.zone {
            None => NotFollowed::NoZone,
            Some(zone) if !ready().any(|known| hinted_to(known, zone)) => {
                NotFollowed::NotHere(Name::clone(zone))
            }
            // Some have only hints to nodes.
            Some(_) => NotFollowed::Missing {
                without: ready().filter(|known| known.zone_hints.is_none()).count(),
                ready: count,
            },
        }
    })
}
