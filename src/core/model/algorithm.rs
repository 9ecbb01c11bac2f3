//! How a Service wants its connections spread.

/// Which endpoint a new connection goes to. Names are those of IPVS's schedulers, where it has one; what each
/// promises is in docs/balancing.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Algorithm {
    /// Any, with a probability in proportion to its weight.
    #[default]
    Random,
    /// One after the other, as often in a round as it has weight (`rr`, `wrr`).
    RoundRobin,
    /// The one that the source's address hashes to, of a small table (`sh`).
    SourceHash,
    /// The one that the destination's address hashes to (`dh`).
    DestinationHash,
    /// The one that the source's address hashes to, of a large table (`mh`).
    Maglev,
    /// One with few live connections for its weight (`lc`, `wlc`).
    LeastConnection,
    /// One whose connections, with the new one, are few for its weight (`sed`).
    ShortestExpectedDelay,
    /// One without connections if there is any, and otherwise as [`Self::ShortestExpectedDelay`] (`nq`).
    NeverQueue,
}

impl Algorithm {
    /// What an algorithm is called, the first name being its own.
    pub const NAMES: [(&'static str, Self); 11] = [
        ("random", Self::Random),
        ("rr", Self::RoundRobin),
        ("sh", Self::SourceHash),
        ("dh", Self::DestinationHash),
        ("maglev", Self::Maglev),
        ("lc", Self::LeastConnection),
        ("sed", Self::ShortestExpectedDelay),
        ("nq", Self::NeverQueue),
        // With weights these are no others, and without they are the same.
        ("wrr", Self::RoundRobin),
        ("wlc", Self::LeastConnection),
        ("mh", Self::Maglev),
    ];

    /// The algorithm with a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let named = Self::NAMES.into_iter().find(|(known, _)| *known == name);
        named.map(|(_, algorithm)| algorithm)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        let named = Self::NAMES.into_iter().find(|(_, known)| *known == self);
        named.map_or("random", |(name, _)| name)
    }

    /// All names, for people.
    #[must_use]
    pub fn names() -> String {
        Self::NAMES.map(|(name, _)| name).join(", ")
    }

    /// Whether it goes by how many connections each endpoint has.
    #[must_use]
    pub const fn counts_connections(self) -> bool {
        matches!(
            self,
            Self::LeastConnection | Self::ShortestExpectedDelay | Self::NeverQueue
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheduler_of_ipvs_that_weighs_endpoints_of_this_node_has_its_name() {
        for name in ["rr", "wrr", "lc", "wlc", "sh", "dh", "sed", "nq", "mh"] {
            assert!(Algorithm::named(name).is_some(), "{name}");
        }
        for (name, algorithm) in Algorithm::NAMES.into_iter().take(8) {
            assert_eq!(
                (algorithm.name(), Algorithm::named(name)),
                (name, Some(algorithm))
            );
        }
        assert_eq!(Algorithm::named("lblc"), None);
        assert_eq!(Algorithm::named(""), None);
    }
}
