//! Whose clients are remembered: the kernel finds a list of `xt_recent` by walking past all others, for each rule
//! that is written and each packet that looks (`recent_table_lookup` in `net/netfilter/xt_recent.c`), so that
//! there are to be only so many.

use std::collections::HashMap;

use rustc_hash::FxBuildHasher;

use crate::core::ir::{Action, Destination, DestinationChange, Forwarding};

/// The most lists of a family, each destination's counted for itself: with so many a change takes the legacy
/// variant a second longer, and a first packet half a millisecond.
const MOST: usize = 8192;

/// The destinations with affinity.
#[derive(Debug, Clone, Default)]
pub(super) struct Memories {
    /// How many lists each has; none if there are too many already.
    lists: HashMap<Destination, Option<usize>, FxBuildHasher>,
    total: usize,
}

impl Memories {
    /// Whether clients of a destination are remembered, if it asks for that.
    pub(super) fn remembers(&self, destination: Destination) -> bool {
        !matches!(self.lists.get(&destination), Some(None))
    }

    /// What there is after these changes. Whoever is remembered already comes first.
    pub(super) fn with<'a, I>(&self, changes: impl Fn() -> I) -> Self
    where
        I: Iterator<Item = &'a DestinationChange>,
    {
        let mut after = self.clone();
        for change in changes() {
            if let Some(Some(lists)) = after.lists.remove(&change.destination) {
                after.total -= lists;
            }
        }
        let was = |change: &DestinationChange| self.lists.get(&change.destination).copied();
        for first in [true, false] {
            for change in changes() {
                let wanted = change.after.as_ref().map_or(0, lists);
                let is_first = matches!(was(change), Some(Some(_)));
                if wanted == 0 || is_first != first {
                    continue;
                }
                let fits = after.total + wanted <= MOST;
                let found = fits.then_some(wanted);
                after.total += found.unwrap_or(0);
                after.lists.insert(change.destination, found);
                if !fits && was(change) != Some(None) {
                    let label = change.after.as_ref().map(|after| after.label.as_str());
                    tracing::warn!(
                        service = label.unwrap_or_default(),
                        destination = %change.destination,
                        most = MOST,
                        "served without session affinity: iptables remembers the clients of so many endpoints, \
                         of all Services together; nftables mode has no such bound",
                    );
                }
            }
        }
        after
    }
}

/// How many lists a destination needs.
fn lists(forwarding: &Forwarding) -> usize {
    match &forwarding.action {
        Action::Balance {
            affinity: Some(_),
            primary,
            external,
            ..
        } => primary.iter().count() + external.as_ref().map_or(0, |list| list.iter().count()),
        _ => 0,
    }
}
