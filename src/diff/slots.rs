//! Stable slots: which place of a list each endpoint takes.
//!
//! A new connection picks a place, so places must be numbered without gaps; an endpoint must
//! not move when another one comes or goes, or one change would rewrite the whole list.

use crate::model::Endpoint;

/// Gives every wanted endpoint a slot, moving as few as possible from where they are.
///
/// `held` are the endpoints in slot order; `wanted` is sorted and without duplicates. An
/// endpoint on both keeps its slot if that slot still exists. Freed slots go to new endpoints
/// first, then to those whose slot fell off the end. With `n` wanted, the result has `n` slots.
#[must_use]
pub fn assign(held: &[Endpoint], wanted: &[Endpoint]) -> Vec<Endpoint> {
    let mut placed = vec![false; wanted.len()];
    let mut slots: Vec<Option<Endpoint>> = vec![None; wanted.len()];
    for (slot, endpoint) in slots.iter_mut().zip(held) {
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
    slots
        .into_iter()
        .filter_map(|slot| slot.or_else(|| waiting.next()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoints(last_bytes: &[u8]) -> Vec<Endpoint> {
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
            let mut assigned = assign(&endpoints(&held), &wanted);
            assigned.sort_unstable();
            prop_assert_eq!(assigned, wanted);
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
                if wanted.contains(endpoint) {
                    prop_assert_eq!(assigned[slot], *endpoint);
                }
            }
        }
    }
}
