//! Stable slots: which place of a list each endpoint takes.
//!
//! A new connection picks a place, so places must be numbered without gaps; an endpoint must
//! not move when another one comes or goes, or one change would rewrite the whole list.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::core::model::{Endpoint, Endpoints};
use crate::core::select::Slots;

/// Up to so many endpoints a search in a sorted list is faster than a table.
const FEW: usize = 256;

/// Gives every wanted endpoint a slot, moving as few as possible from where they are.
///
/// `held` are the endpoints in slot order; `wanted` has no duplicates. An endpoint on both keeps
/// its slot if that slot still exists. Freed slots go to new endpoints first, then to those whose
/// slot fell off the end. With `n` wanted, the result has `n` slots.
///
/// A long list that differs from what is held in few slots, and moves nobody but from behind its
/// end, has been made from it and is right as it is: that takes time in proportion to the
/// difference.
#[must_use]
pub fn assign(held: &Endpoints, wanted: &Endpoints) -> Endpoints {
    if wanted.len() <= FEW && held.len() <= FEW {
        return assign_few(held, wanted);
    }
    if is_made_from(held, wanted) {
        return wanted.clone();
    }
    Slots::placed(held, &sorted(wanted)).list().clone()
}

/// The same for lists in which endpoints have several places: as many places of each as are wanted stay
/// where they are.
#[must_use]
pub fn assign_repeated(held: &Endpoints, wanted: &Endpoints) -> Endpoints {
    let mut missing: FxHashMap<Endpoint, u32> = FxHashMap::default();
    for endpoint in wanted.iter() {
        *missing.entry(*endpoint).or_insert(0) += 1;
    }
    let mut take = |endpoint: &Endpoint| match missing.get_mut(endpoint) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    };
    let mut slots: Vec<Option<Endpoint>> = vec![None; wanted.len()];
    for (slot, endpoint) in slots.iter_mut().zip(held.iter()) {
        if take(endpoint) {
            *slot = Some(*endpoint);
        }
    }
    let mut waiting = wanted.iter().filter(|endpoint| take(endpoint)).copied();
    let slots = slots.into_iter();
    slots
        .filter_map(|slot| slot.or_else(|| waiting.next()))
        .collect()
}

fn is_made_from(held: &Endpoints, wanted: &Endpoints) -> bool {
    let most = wanted.len() / 4;
    let (mut from, mut to) = (FxHashSet::default(), Vec::new());
    for (place, was, is) in held.differences(wanted) {
        // What is behind the other's end only comes or goes.
        if let Some(was) = was.filter(|_| place < wanted.len()) {
            from.insert(was);
            if from.len() > most {
                return false;
            }
        }
        to.extend(is);
    }
    from.is_empty() || !to.iter().any(|endpoint| from.contains(endpoint))
}

fn sorted(list: &Endpoints) -> Vec<Endpoint> {
    let mut sorted: Vec<Endpoint> = list.iter().copied().collect();
    if !sorted.is_sorted() {
        sorted.sort_unstable();
    }
    sorted
}

fn assign_few(held: &Endpoints, wanted: &Endpoints) -> Endpoints {
    let wanted = sorted(wanted);
    let mut placed = vec![false; wanted.len()];
    let mut slots: Vec<Option<Endpoint>> = vec![None; wanted.len()];
    for (slot, endpoint) in slots.iter_mut().zip(held.iter()) {
        if let Ok(index) = wanted.binary_search(endpoint)
            && !placed[index]
        {
            placed[index] = true;
            *slot = Some(*endpoint);
        }
    }
    let mut waiting = wanted
        .iter()
        .zip(&placed)
        .filter(|(_, placed)| !**placed)
        .map(|(endpoint, _)| *endpoint);
    let slots = slots.into_iter();
    let assigned = slots.filter_map(|slot| slot.or_else(|| waiting.next()));
    let assigned: Endpoints = assigned.collect();
    if assigned == *held {
        return held.clone();
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoints(last_bytes: &[u8]) -> Endpoints {
        last_bytes
            .iter()
            .map(|byte| Endpoint::new([10, 0, 0, *byte].into(), 80))
            .collect()
    }

    #[test]
    fn slots_follow_the_least_movement() {
        let cases: [(&str, &[u8], &[u8], &[u8]); 8] = [
            (
                "first load keeps the sorted order",
                &[],
                &[1, 2, 3],
                &[1, 2, 3],
            ),
            (
                "an added one goes to the end",
                &[2, 3],
                &[1, 2, 3],
                &[2, 3, 1],
            ),
            (
                "the last one fills the hole",
                &[1, 2, 3, 4],
                &[1, 3, 4],
                &[1, 4, 3],
            ),
            ("the last one leaves alone", &[1, 2, 3], &[1, 2], &[1, 2]),
            (
                "a replacement takes the slot",
                &[1, 2, 3],
                &[1, 3, 9],
                &[1, 9, 3],
            ),
            ("all go", &[1, 2], &[], &[]),
            (
                "a duplicate in the kernel is replaced",
                &[1, 1],
                &[1, 2],
                &[1, 2],
            ),
            ("nothing changes", &[3, 1, 2], &[1, 2, 3], &[3, 1, 2]),
        ];
        for (name, held, wanted, expected) in cases {
            assert_eq!(
                assign(&endpoints(held), &endpoints(wanted)),
                endpoints(expected),
                "{name}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_wanted_endpoint_has_exactly_one_slot(
            held in proptest::collection::vec(0u8..40, 0..40),
            wanted in proptest::collection::btree_set(0u8..40, 0..40),
        ) {
            let wanted = endpoints(&wanted.into_iter().collect::<Vec<_>>());
            let assigned = assign(&endpoints(&held), &wanted);
            prop_assert_eq!(Endpoints::from(sorted(&assigned)), wanted);
        }

        #[test]
        fn places_of_weighted_endpoints_are_as_many_as_wanted_and_stay_where_they_are(
            held in proptest::collection::vec(0u8..6, 0..60),
            wanted in proptest::collection::vec(0u8..6, 0..60),
        ) {
            let (held, wanted) = (endpoints(&held), endpoints(&wanted));
            let assigned = assign_repeated(&held, &wanted);
            prop_assert_eq!(Endpoints::from(sorted(&assigned)), Endpoints::from(sorted(&wanted)));
            let count = |list: &Endpoints, endpoint| list.iter().filter(|other| **other == endpoint).count();
            let moved = held.differences(&assigned).filter(|(place, ..)| *place < wanted.len()).count();
            let within: Endpoints = held.iter().take(wanted.len()).copied().collect();
            let mut all = sorted(&wanted);
            all.dedup();
            let stay: usize = all.iter().map(|one| count(&within, *one).min(count(&wanted, *one))).sum();
            prop_assert_eq!(moved, wanted.len() - stay);
        }

        #[test]
        fn an_endpoint_moves_only_when_its_slot_is_gone(
            held in proptest::collection::btree_set(0u8..40, 0..40),
            wanted in proptest::collection::btree_set(0u8..40, 0..40),
        ) {
            let held = endpoints(&held.into_iter().rev().collect::<Vec<_>>());
            let wanted = endpoints(&wanted.into_iter().collect::<Vec<_>>());
            let assigned = assign(&held, &wanted);
            for (slot, endpoint) in held.iter().enumerate().take(wanted.len()) {
                if wanted.iter().any(|wanted| wanted == endpoint) {
                    prop_assert_eq!(assigned.get(slot), Some(*endpoint));
                }
            }
        }
    }
}
