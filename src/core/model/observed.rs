//! What this node has seen of a Service's endpoints, which no object says.

use std::collections::BTreeMap;

use super::{Endpoint, Protocol};

/// What this node has seen of a Service's endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Those that do not answer, whoever was found first in front.
    pub ejected: Vec<(Protocol, Endpoint)>,
    /// How many of a list's places each is to have, by how many connections it has; others have as
    /// many as the mean.
    pub shares: BTreeMap<(Protocol, Endpoint), u32>,
    /// How much of a list may be ejected, in percent: less than 100.
    pub most_percent: u8,
}

impl Observed {
    /// How many of a list of so many endpoints may be ejected: never the last.
    #[must_use]
    pub fn most_ejected(&self, endpoints: usize) -> usize {
        let most = endpoints.saturating_mul(usize::from(self.most_percent)) / 100;
        most.min(endpoints.saturating_sub(1))
    }

    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ejected.is_empty() && self.shares.is_empty()
    }
}
