//! The sync loop's tasks, each with a deadline of its own.

use std::time::{Duration, Instant};

use super::schedule::Deadline;

/// When each task is due.
#[derive(Debug)]
pub(super) struct Tasks {
    pub(super) sync: Deadline,
    /// To read the kernel again.
    pub(super) repair: Deadline,
    /// To take away what is unused.
    pub(super) tidy: Deadline,
    /// To hear of changes by others.
    pub(super) watch: Deadline,
    /// To remove what another proxy has left.
    pub(super) take_over: Deadline,
    /// To give a family that was refused another chance.
    pub(super) resting: Deadline,
    /// To look for families that the kernel lacks.
    pub(super) families: Deadline,
    /// To see what rules have counted.
    pub(super) count: Deadline,
}

impl Tasks {
    /// Nothing is due. After failures in a row pauses grow up to the longest.
    pub(super) const fn new(longest_retry: Duration) -> Self {
        Self {
            sync: Deadline::new(longest_retry),
            repair: Deadline::new(longest_retry),
            tidy: Deadline::new(longest_retry),
            watch: Deadline::new(longest_retry),
            take_over: Deadline::new(longest_retry),
            resting: Deadline::new(longest_retry),
            families: Deadline::new(longest_retry),
            count: Deadline::new(longest_retry),
        }
    }

    /// When the next of them is due.
    pub(super) fn next(&self, may_sync: bool) -> Option<Instant> {
        let sync = may_sync.then_some(&self.sync);
        let others = [
            &self.repair,
            &self.tidy,
            &self.watch,
            &self.take_over,
            &self.resting,
            &self.families,
            &self.count,
        ];
        let all = others.into_iter().chain(sync);
        all.filter_map(Deadline::at).min()
    }
}
