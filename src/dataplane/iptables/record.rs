//! What the tables of a family hold, as far as it is ours: what writes them and what looks for drift share it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::FxBuildHasher;

use super::saved::{Held, Unlike};

/// The tables, by their numbers here.
pub(super) const TABLES: [&str; 2] = ["nat", "filter"];
pub(super) const NAT: usize = 0;
pub(super) const FILTER: usize = 1;

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) tables: [Held; 2],
    /// Chains that are listed otherwise than they were written, right after they were.
    pub(super) odd: HashSet<Unlike, FxBuildHasher>,
    /// Goes up before and after each change of ours.
    pub(super) changes: u64,
    /// Whether the tool prints rules as they were written; `None` until there is something to tell by.
    pub(super) exact: Option<bool>,
    /// A rule is another one than it was, and a tool that prints rules otherwise than they were written does
    /// not show which.
    pub(super) doubtful: bool,
}

/// The same, shared.
pub(super) type Known = Arc<Mutex<Tables>>;

/// What is known, for as long as the guard lives.
pub(super) fn lock(known: &Known) -> MutexGuard<'_, Tables> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}
