//! Routes that a delta changes and that are the same element before and after.

use rustc_hash::{FxHashMap, FxHashSet};

use super::program::element::shape;
use super::program::lots::{Lane, Lot};
use super::program::sizes::EXACT;
use crate::core::ir::{Delta, Destination, Entry, List, Operation};

/// A route that a delta takes away and puts in place as the same element: beyond 256 endpoints one
/// more or less is no other size.
pub(super) type Unchanged = FxHashSet<(Destination, List)>;

/// How a place of the list that a route leads to is drawn, on a lane.
pub(super) fn lot(entry: &Entry, lane: Lane) -> Option<Lot> {
    match entry {
        Entry::Route {
            destination, route, ..
        }
        | Entry::ExternalRoute { destination, route } => shape(destination, *route, 0, lane).lot(),
        _ => None,
    }
}

/// Which routes of long lists are the same element before and after.
pub(super) fn unchanged(delta: &Delta) -> Unchanged {
    let long = |operation: &Operation| -> Option<(Destination, List)> {
        let (destination, list) = match &operation.entry {
            Entry::Route { destination, .. } => (*destination, List::Primary),
            Entry::ExternalRoute { destination, .. } => (*destination, List::External),
            _ => return None,
        };
        let long = lot(&operation.entry, 0).is_some_and(|lot| lot.size().places() > EXACT);
        long.then_some((destination, list))
    };
    let removed: FxHashMap<(Destination, List), &Entry> = delta
        .remove
        .iter()
        .filter_map(|operation| Some((long(operation)?, &operation.entry)))
        .collect();
    if removed.is_empty() {
        return Unchanged::default();
    }
    let is_same = |before: &Entry, after: &Entry| match (before, after) {
        (
            Entry::Route { route, label, .. },
            Entry::Route {
                route: other,
                label: other_label,
                ..
            },
        ) => same_but_count(*route, *other) && label == other_label,
        (Entry::ExternalRoute { route, .. }, Entry::ExternalRoute { route: other, .. }) => {
            same_but_count(*route, *other)
        }
        _ => false,
    };
    delta
        .add
        .iter()
        .filter_map(|operation| {
            let key = long(operation)?;
            let before = removed.get(&key)?;
            let same =
                lot(before, 0) == lot(&operation.entry, 0) && is_same(before, &operation.entry);
            same.then_some(key)
        })
        .collect()
}

/// Whether two routes differ in the number of endpoints only.
pub(super) fn same_but_count(route: crate::core::ir::Route, other: crate::core::ir::Route) -> bool {
    use crate::core::ir::Route::Balance;
    match (route, other) {
        (
            Balance {
                policy,
                draw,
                affinity,
                ..
            },
            Balance {
                policy: other_policy,
                draw: other_draw,
                affinity: other_affinity,
                ..
            },
        ) => policy == other_policy && draw == other_draw && affinity == other_affinity,
        _ => false,
    }
}

pub(super) fn is_unchanged(entry: &Entry, unchanged: &Unchanged) -> bool {
    !unchanged.is_empty()
        && match entry {
            Entry::Route { destination, .. } => unchanged.contains(&(*destination, List::Primary)),
            Entry::ExternalRoute { destination, .. } => {
                unchanged.contains(&(*destination, List::External))
            }
            _ => false,
        }
}
