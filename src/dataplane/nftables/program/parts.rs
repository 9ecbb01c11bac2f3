//! What of the program comes and goes with what is in use.

use std::collections::{BTreeMap, BTreeSet};

use super::numbers::{Class, Size};

/// The parts of the program that come and go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Sizes of which there is a chain that draws.
    pub(crate) draws: BTreeSet<Size>,
    /// Sizes that lead to a chain.
    pub(crate) sizes: BTreeSet<Size>,
    /// The timeouts that there are rules for.
    pub(crate) timeouts: BTreeMap<Class, u32>,
    /// The lengths of prefixes that there are rules for.
    pub(crate) lengths: BTreeSet<u8>,
}
