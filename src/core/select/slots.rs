//! A list in which every endpoint keeps its place as long as it can, changed in time in proportion
//! to the change.

use rustc_hash::FxHashMap;

use crate::core::model::{Endpoint, Endpoints};

/// A list of endpoints in their places, and which place each has.
#[derive(Debug, Clone, Default)]
pub struct Slots {
    list: Endpoints,
    places: FxHashMap<Endpoint, u32>,
}

impl Slots {
    /// The endpoints of a list, in its order; each once.
    #[must_use]
    pub fn new(list: Endpoints) -> Self {
        let places = (0..)
            .zip(list.iter())
            .map(|(place, endpoint)| (*endpoint, place));
        Self {
            places: places.collect(),
            list,
        }
    }

    /// The endpoints of a sorted list, those that are held in the places that they have as far as that
    /// leaves no gaps.
    #[must_use]
    pub fn placed(held: &Endpoints, sorted: &[Endpoint]) -> Self {
        let mut slots = Self::new(held.clone());
        let is_wanted = |endpoint: &&Endpoint| sorted.binary_search(endpoint).is_ok();
        let gone: Vec<Endpoint> = held
            .iter()
            .filter(|endpoint| !is_wanted(endpoint))
            .copied()
            .collect();
        slots.change(&gone, sorted);
        if slots.list.len() == sorted.len() {
            slots
        } else {
            // Somebody has put one in two places.
            Self::new(sorted.to_vec().into())
        }
    }

    /// The list.
    #[must_use]
    pub const fn list(&self) -> &Endpoints {
        &self.list
    }

    /// Whether an endpoint is on it.
    #[must_use]
    pub fn contains(&self, endpoint: &Endpoint) -> bool {
        self.places.contains_key(endpoint)
    }

    /// Takes some off and puts others on. Those that come take the places of those that go; the
    /// last ones move into the gaps that are left, and places stay without gaps.
    pub fn change(&mut self, gone: &[Endpoint], come: &[Endpoint]) {
        let mut gaps: Vec<u32> = gone
            .iter()
            .filter_map(|endpoint| self.places.remove(endpoint))
            .collect();
        gaps.sort_unstable();
        let mut gaps = gaps.into_iter();
        let mut changes: Vec<(usize, Endpoint)> = Vec::new();
        // A list longer than u32 cannot be held in memory.
        let mut length = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        for endpoint in come {
            if self.places.contains_key(endpoint) {
                continue;
            }
            let place = gaps.next().unwrap_or_else(|| {
                length += 1;
                length - 1
            });
            changes.push((place as usize, *endpoint));
            self.places.insert(*endpoint, place);
        }
        let gaps: Vec<u32> = gaps.collect();
        let count = u32::try_from(gaps.len()).unwrap_or(u32::MAX);
        let end = length - count;
        let mut movers = (end..length)
            .rev()
            .filter(|place| gaps.binary_search(place).is_err());
        for gap in gaps.iter().take_while(|gap| **gap < end) {
            if let Some(endpoint) = movers
                .next()
                .and_then(|place| self.list.get(place as usize))
            {
                changes.push((*gap as usize, endpoint));
                self.places.insert(endpoint, *gap);
            }
        }
        if !changes.is_empty() || length as usize != self.list.len() || count > 0 {
            self.list = self.list.with(&changes, end as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn endpoint(number: u16) -> Endpoint {
        Endpoint::new([10, 0, (number >> 8) as u8, number as u8].into(), 80)
    }

    proptest! {
        #[test]
        fn places_have_no_gaps_and_only_the_last_ones_move(
            first in proptest::collection::btree_set(0u16..600, 0..600),
            steps in proptest::collection::vec((proptest::collection::btree_set(0u16..700, 0..30), proptest::collection::btree_set(0u16..700, 0..30)), 1..6),
        ) {
            let mut wanted: BTreeSet<u16> = first.clone();
            let mut slots = Slots::new(first.into_iter().map(endpoint).collect());
            for (gone, come) in steps {
                let gone: Vec<u16> = gone.into_iter().filter(|number| wanted.contains(number)).collect();
                for number in &gone {
                    wanted.remove(number);
                }
                let come: Vec<u16> = come.into_iter().filter(|number| wanted.insert(*number)).collect();
                let before = slots.list().clone();
                let list = |numbers: &[u16]| numbers.iter().copied().map(endpoint).collect::<Vec<_>>();
                slots.change(&list(&gone), &list(&come));
                let found: BTreeSet<Endpoint> = slots.list().iter().copied().collect();
                let expected: BTreeSet<Endpoint> = wanted.iter().copied().map(endpoint).collect();
                prop_assert_eq!(&found, &expected);
                prop_assert_eq!(slots.list().len(), expected.len());
                for (place, endpoint) in (0u32..).zip(slots.list().iter()) {
                    prop_assert_eq!(slots.places[endpoint], place);
                }
                for (place, endpoint) in before.iter().enumerate().take(slots.list().len()) {
                    if expected.contains(endpoint) && !come.iter().any(|c| self::endpoint(*c) == *endpoint) {
                        prop_assert_eq!(slots.list().get(place), Some(*endpoint));
                    }
                }
            }
        }
    }
}
