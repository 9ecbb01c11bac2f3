//! What of the program comes and goes with what is in use.

use std::collections::{BTreeMap, BTreeSet};

use super::lots::Lot;
use super::numbers::Class;

/// The parts of the program that come and go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Lots that there is a chain for.
    pub(crate) draws: BTreeSet<Lot>,
    /// Lots that lead to a chain.
    pub(crate) lots: BTreeSet<Lot>,
    /// The timeouts that there are rules for.
    pub(crate) timeouts: BTreeMap<Class, u32>,
    /// The lengths of prefixes that there are rules for.
    pub(crate) lengths: BTreeSet<u8>,
}
