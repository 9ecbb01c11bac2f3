//! What a Service is compiled to, and how much that may be.

use crate::core::ir::{Destination, Forwarding, Shared};
use crate::core::model::{Endpoints, Family, ObjectKey, PerFamily};

/// One Service, compiled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compiled {
    /// The age that decides contested destinations: smaller is older.
    pub created: i64,
    /// The name that decides between Services of one age.
    pub key: Option<ObjectKey>,
    /// What it claims, and what should happen there. A destination appears once.
    pub destinations: Box<[(Destination, Forwarding)]>,
    /// Where flows to its UDP destinations may go: a flow to anything else is stale. UDP has no
    /// handshake by which a client would notice.
    pub flows: Box<[(Destination, Endpoints)]>,
    /// Facts that it states together with others.
    pub shared: Box<[Shared]>,
    /// What a load balancer's health check of this node is told.
    pub health_check: Option<Box<HealthCheck>>,
    /// How many of its ports have endpoints, but none that a Local policy may use.
    pub without_local: PerFamily<WithoutLocal>,
    /// How many of its destinations are left out, because they and their endpoints are too many.
    pub left_out: u32,
    /// The endpoints of a list have weight 0, all of them: they are used all the same.
    pub all_drained: bool,
}

/// How much one Service may be: its ports, each with its endpoints, and to a backend its destinations,
/// each with its endpoints and source ranges, and its endpoints on this node. Its author multiplies
/// ports by addresses by endpoints; a Service of 100,000 endpoints with a few ports and addresses is
/// within it.
pub const MOST_ELEMENTS: usize = 1 << 20;

impl Compiled {
    /// The same without what belongs to a family.
    #[must_use]
    pub fn without(&self, family: Family) -> Self {
        let mut rest = self.clone();
        rest.destinations = of(&self.destinations, |(to, _)| to.family() != family);
        rest.flows = of(&self.flows, |(to, _)| to.family() != family);
        rest.shared = of(&self.shared, |shared| shared.family() != family);
        rest
    }

    /// Whether another one claims the same destinations with the same right.
    #[must_use]
    pub fn claims_what(&self, other: &Self) -> bool {
        let mine = self.destinations.iter().map(|(destination, _)| destination);
        let others = other
            .destinations
            .iter()
            .map(|(destination, _)| destination);
        self.created == other.created && self.key == other.key && mine.eq(others)
    }
}

fn of<T: Clone>(all: &[T], belongs: impl Fn(&T) -> bool) -> Box<[T]> {
    all.iter().filter(|one| belongs(one)).cloned().collect()
}

/// Service ports whose policy is Local and which have endpoints elsewhere only (docs/semantics.md, E2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WithoutLocal {
    /// `internalTrafficPolicy`.
    pub internal: u32,
    /// `externalTrafficPolicy`.
    pub external: u32,
}

/// A Service's health check (`spec.healthCheckNodePort`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port on the node.
    pub port: u16,
    /// Endpoints on this node, by address, in the families that the Service has: ready ones,
    /// without the fallback to terminating ones.
    pub local_endpoints: PerFamily<Option<usize>>,
}
