//! What a Service is compiled to, under construction, and how much of it there may be.

use rustc_hash::FxHashSet;

use super::compiled::{MOST_ELEMENTS, WithoutLocal};
use crate::core::ir::{Destination, Forwarding, Shared};
use crate::core::model::{Endpoints, PerFamily, Service};

/// Up to so many destinations a look at each is faster than a table.
const FEW_DESTINATIONS: usize = 16;
/// What is set aside for a Service at once, at most.
const ROOM: usize = 128;
/// The least that a destination is to a backend.
const LEAST: usize = 2;

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claimed {
    /// It stands.
    Now,
    /// An earlier one stands.
    Before,
    /// There is no room for it.
    TooMuch,
}

#[derive(Default)]
pub(super) struct Draft {
    pub(super) destinations: Vec<(Destination, Forwarding)>,
    claimed: FxHashSet<Destination>,
    pub(super) flows: Vec<(Destination, Endpoints)>,
    pub(super) shared: Vec<Shared>,
    pub(super) without_local: PerFamily<WithoutLocal>,
    /// Elements of all destinations.
    elements: usize,
    /// Claims, those in vain too.
    claims: usize,
    pub(super) left_out: u32,
    /// The endpoints of a list have weight 0, all of them.
    pub(super) all_drained: bool,
}

impl Draft {
    /// Room for as much as a Service mostly has: what is compiled stays in memory.
    pub(super) fn with_room_for(service: &Service) -> Self {
        let families = service.cluster_ips.iter().flat_map(|(_, ip)| ip).count();
        let of_ports: usize = service
            .ports
            .iter()
            .map(|port| families * (1 + usize::from(port.node_port != 0)))
            .sum();
        let addresses = service.external_ips.len() + service.vips.len();
        let most = of_ports.saturating_add(addresses.saturating_mul(service.ports.len()));
        Self {
            destinations: Vec::with_capacity(most.min(ROOM)),
            shared: Vec::with_capacity(families),
            ..Self::default()
        }
    }

    /// Whether nothing more fits, or enough has been tried.
    pub(super) const fn is_full(&self) -> bool {
        self.elements + LEAST > MOST_ELEMENTS || self.claims > MOST_ELEMENTS
    }

    /// Takes so many elements, if they and a destination fit.
    pub(super) const fn reserve(&mut self, elements: usize) -> bool {
        let fits = self.elements + elements + LEAST <= MOST_ELEMENTS;
        if fits {
            self.elements += elements;
        }
        fits
    }

    /// So many destinations are left out.
    pub(super) fn leave_out(&mut self, destinations: usize) {
        let destinations = u32::try_from(destinations).unwrap_or(u32::MAX);
        self.left_out = self.left_out.saturating_add(destinations);
    }

    /// Claims a destination. Of two claims of one Service to it the first stands.
    pub(super) fn claim(&mut self, destination: Destination, forwarding: Forwarding) -> Claimed {
        self.claims += 1;
        if self.is_claimed(&destination) {
            return Claimed::Before;
        }
        let elements = self.elements.saturating_add(forwarding.weight());
        if elements > MOST_ELEMENTS {
            return Claimed::TooMuch;
        }
        self.elements = elements;
        if !self.claimed.is_empty() {
            self.claimed.insert(destination);
        }
        self.destinations.push((destination, forwarding));
        Claimed::Now
    }

    fn is_claimed(&mut self, destination: &Destination) -> bool {
        let known = self.destinations.iter().map(|(known, _)| known);
        if self.destinations.len() < FEW_DESTINATIONS {
            return known.into_iter().any(|known| known == destination);
        }
        if self.claimed.is_empty() {
            self.claimed = known.copied().collect();
        }
        self.claimed.contains(destination)
    }
}
