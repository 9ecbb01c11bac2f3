//! How many places of a list each endpoint has, and which, where that matters.
//!
//! A weight is a number of places. Lists are bounded: weights that would make a longer one are made
//! smaller in proportion, and nobody who has weight loses its last place.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;

use crate::core::model::{Endpoint, Endpoints};

/// An endpoint and its weight.
pub type Weighted = (Endpoint, u32);

/// Up to so many places weights are exact, once they have no common divisor.
pub const EXACT_PLACES: usize = 4_096;

/// How many places a list of so many endpoints may have, whatever they weigh.
#[must_use]
pub const fn most(endpoints: usize) -> u64 {
    let twice = 2 * endpoints as u64;
    if twice > EXACT_PLACES as u64 {
        twice
    } else {
        EXACT_PLACES as u64
    }
}

/// How many places each has: its weight, without what all have in common, and less where all together
/// were more than [`EXACT_PLACES`] or twice as many as endpoints. None has 0 but who has no weight.
#[must_use]
pub fn counts(list: &[Weighted]) -> Vec<u32> {
    let divisor = list
        .iter()
        .fold(0, |divisor, (_, weight)| gcd(divisor, *weight));
    if divisor == 0 {
        return vec![0; list.len()];
    }
    let weights: Vec<u64> = list
        .iter()
        .map(|(_, weight)| u64::from(weight / divisor))
        .collect();
    let total: u64 = weights.iter().sum();
    let most = most(list.len());
    if total <= most {
        return weights.into_iter().map(bounded).collect();
    }
    apportion(&weights, most)
}

/// Shares out so many places in proportion, by largest remainder. Whoever has weight has one, at the cost of those
/// with the most; so the sum is what was to be shared out, unless more than so many have weight.
#[must_use]
pub fn apportion(weights: &[u64], places: u64) -> Vec<u32> {
    let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    if total == 0 {
        return vec![0; weights.len()];
    }
    let share = |weight: u64| {
        let exact = u128::from(weight) * u128::from(places);
        (exact / total, exact % total)
    };
    let floor = |weight: u64| u64::try_from(share(weight).0).unwrap_or(places);
    let mut counts: Vec<u64> = weights
        .iter()
        .map(|weight| floor(*weight).max(u64::from(*weight > 0)))
        .collect();
    let given: u64 = counts.iter().sum();
    let mut order: Vec<usize> = (0..weights.len()).filter(|at| weights[*at] > 0).collect();
    order.sort_by_key(|at| Reverse(share(weights[*at]).1));
    let left = usize::try_from(places.saturating_sub(given)).unwrap_or(usize::MAX);
    for at in order.into_iter().take(left) {
        counts[at] += 1;
    }
    let mut most: BinaryHeap<(u64, usize)> = counts.iter().copied().zip(0..).collect();
    for _ in places..given {
        let Some((count, at)) = most.pop().filter(|(count, _)| *count > 1) else {
            break;
        };
        counts[at] = count - 1;
        most.push((count - 1, at));
    }
    counts.into_iter().map(bounded).collect()
}

fn bounded(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

const fn gcd(mut one: u32, mut other: u32) -> u32 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

/// Every endpoint as often as it has places, one's places after the other's.
#[must_use]
pub fn repeated(list: &[Weighted], counts: &[u32]) -> Endpoints {
    let each = list.iter().zip(counts);
    each.flat_map(|((endpoint, _), count)| std::iter::repeat_n(*endpoint, *count as usize))
        .collect()
}

/// Every endpoint as often as it has places, each one's as far apart as they can be: what is drawn in turn
/// does not meet one several times in a row.
#[must_use]
pub fn spread(list: &[Weighted], counts: &[u32]) -> Endpoints {
    turns(counts).into_iter().map(|at| list[at].0).collect()
}

/// Whose turn it is, in one round.
fn turns(counts: &[u32]) -> Vec<usize> {
    // Those that have as many turns have them at even distances, one after the other, and so has each of them.
    let mut alike: BTreeMap<u32, u64> = BTreeMap::new();
    for count in counts {
        *alike.entry(*count).or_insert(0) += 1;
    }
    let due = |done: u32, rank: u64, count: u32| {
        let alike = alike.get(&count).copied().unwrap_or(1);
        let step = 2 * alike * u64::from(done) + 2 * rank + 1;
        (step << 32) / (2 * alike * u64::from(count))
    };
    let mut ranks: BTreeMap<u32, u64> = BTreeMap::new();
    let mut next = BinaryHeap::new();
    for (at, count) in counts.iter().copied().enumerate() {
        let rank = ranks.entry(count).or_insert(0);
        if count > 0 {
            next.push(Reverse((
                due(0, *rank, count),
                Reverse(count),
                at,
                *rank,
                0,
            )));
        }
        *rank += 1;
    }
    let mut turns = Vec::new();
    while let Some(Reverse((_, Reverse(count), at, rank, done))) = next.pop() {
        turns.push(at);
        if done + 1 < count {
            let due = due(done + 1, rank, count);
            next.push(Reverse((due, Reverse(count), at, rank, done + 1)));
        }
    }
    turns
}

/// How many places a table has for each endpoint, at least, before it is as large as tables get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// 16, and 64 in all at least.
    Small,
    /// 128, and 1,024 in all at least.
    Large,
}

/// Places of the largest table, unless there are more than half as many endpoints.
pub const LARGEST_TABLE: usize = 1 << 14;

impl Table {
    /// How many places the table of so many endpoints has: a power of two, so that a change of them
    /// rarely changes it.
    #[must_use]
    pub fn places(self, endpoints: usize) -> usize {
        let (each, least) = match self {
            Self::Small => (16, 64),
            Self::Large => (128, 1_024),
        };
        let wanted = endpoints.saturating_mul(each).next_power_of_two();
        wanted
            .clamp(least, LARGEST_TABLE)
            .max(endpoints.saturating_mul(2).next_power_of_two())
    }
}

/// A table in which an endpoint's places are where its own address has them, so that one more or one
/// less moves few of the others': Maglev hashing (Eisenbud and others, NSDI 2016, section 3.4).
///
/// Every node computes the same from the same endpoints, and two ports of the same pods the same places.
#[must_use]
pub fn table(list: &[Weighted], table: Table) -> Endpoints {
    let mut list: Vec<Weighted> = list
        .iter()
        .filter(|(_, weight)| *weight > 0)
        .copied()
        .collect();
    list.sort_unstable();
    let size = table.places(list.len());
    if list.is_empty() || list.len() == 1 {
        return list.into_iter().map(|(endpoint, _)| endpoint).collect();
    }
    let weights: Vec<u64> = list.iter().map(|(_, weight)| u64::from(*weight)).collect();
    let counts = apportion(&weights, size as u64);
    let mask = size - 1;
    // An odd step passes all places of a table whose size is a power of two.
    let mut walks: Vec<(usize, usize)> = list
        .iter()
        .map(|(endpoint, _)| {
            let [start, step] = hashes(endpoint.address);
            (start & mask, (step | 1) & mask)
        })
        .collect();
    let mut places: Vec<Option<Endpoint>> = vec![None; size];
    // There is a place for each: a walk that found none would not end.
    for at in turns(&counts).into_iter().take(size) {
        let (place, step) = &mut walks[at];
        while places[*place].is_some() {
            *place = (*place + *step) & mask;
        }
        places[*place] = Some(list[at].0);
    }
    places.into_iter().flatten().collect()
}

/// Two numbers that an address is hashed to: FNV-1a over its bytes, twice mixed (`splitmix64`'s finalizer).
/// Nodes of different versions have to agree, so that it is no library's business.
fn hashes(address: IpAddr) -> [usize; 2] {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let hash = bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let mixed = |mut number: u64| {
        number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ number >> 31
    };
    // A table has fewer places than 32 bits have numbers.
    let narrow = |number: u64| usize::try_from(number >> 33).unwrap_or(0);
    [
        narrow(mixed(hash)),
        narrow(mixed(hash ^ 0x9e37_79b9_7f4a_7c15)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(weights: &[u32]) -> Vec<Weighted> {
        let each = (1u8..).zip(weights);
        each.map(|(byte, weight)| (Endpoint::new([10, 244, 0, byte].into(), 80), *weight))
            .collect()
    }

    fn shares(places: &Endpoints) -> BTreeMap<Endpoint, usize> {
        let mut shares = BTreeMap::new();
        for endpoint in places.iter() {
            *shares.entry(*endpoint).or_insert(0) += 1;
        }
        shares
    }

    #[test]
    fn a_weight_is_a_number_of_places_without_what_all_have_in_common() {
        let cases: [(&[u32], &[u32]); 8] = [
            (&[1, 1, 1], &[1, 1, 1]),
            (&[100, 100], &[1, 1]),
            (&[90, 10], &[9, 1]),
            (&[1_000, 1], &[1_000, 1]),
            (&[3, 0, 6], &[1, 0, 2]),
            (&[0, 0], &[0, 0]),
            (&[5], &[1]),
            (&[], &[]),
        ];
        for (weights, expected) in cases {
            assert_eq!(counts(&list(weights)), expected, "{weights:?}");
        }
    }

    #[test]
    fn places_are_drawn_in_turn_as_far_apart_as_they_can_be() {
        let cases: [(&[u32], &[usize]); 5] = [
            (&[1, 1, 1], &[0, 1, 2]),
            (&[2, 1, 1], &[0, 1, 0, 2]),
            (&[3, 1, 1], &[0, 1, 0, 2, 0]),
            (&[4, 2, 1], &[0, 1, 0, 2, 0, 1, 0]),
            (&[2, 0, 2], &[0, 2, 0, 2]),
        ];
        for (counts, expected) in cases {
            assert_eq!(turns(counts), expected, "{counts:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_weights_lists_are_bounded_and_shares_are_what_was_said_but_for_a_place_of_those_with_the_least(
            weights in proptest::collection::vec(prop_oneof![0u32..5, 0u32..2_000, any::<u32>()], 1..200),
        ) {
            let counts = counts(&list(&weights));
            let (places, total): (u64, u64) = (
                counts.iter().map(|count| u64::from(*count)).sum(),
                weights.iter().map(|weight| u64::from(*weight)).sum(),
            );
            prop_assert!(places <= EXACT_PLACES as u64);
            for (count, weight) in counts.iter().zip(&weights) {
                prop_assert_eq!(*count == 0, *weight == 0);
                if total > 0 {
                    let share = f64::from(*count) / places as f64;
                    let wanted = f64::from(*weight) / total as f64;
                    // Those with the least have one place each, at the cost of those with the most.
                    let least = weights.len() as f64 / EXACT_PLACES as f64;
                    let within = 0.002 + if share < wanted { least } else { 0.0 };
                    prop_assert!((share - wanted).abs() < within, "{} {}", share, wanted);
                }
            }
            prop_assert_eq!(turns(&counts).len() as u64, places);
        }
    }

    proptest! {
        #[test]
        fn a_table_has_as_many_places_as_its_size_and_all_who_weigh_something_have_some(
            weights in proptest::collection::vec(prop_oneof![0u32..3, 0u32..300, Just(65_535)], 0..120),
            large in any::<bool>(),
        ) {
            let list = list(&weights);
            let kind = if large { Table::Large } else { Table::Small };
            let places = table(&list, kind);
            let weigh: Vec<Weighted> = list.into_iter().filter(|(_, weight)| *weight > 0).collect();
            let expected = if weigh.len() < 2 { weigh.len() } else { kind.places(weigh.len()) };
            prop_assert_eq!(places.len(), expected);
            prop_assert_eq!(shares(&places).len(), weigh.len());
        }
    }

    #[test]
    fn a_table_is_even_the_same_for_everyone_and_moves_little_when_one_leaves() {
        for (kind, even, moved) in [(Table::Small, 0.05, 0.35), (Table::Large, 0.002, 0.16)] {
            let all = list(&[1; 10]);
            let before = table(&all, kind);
            let mut reversed = all.clone();
            reversed.reverse();
            assert_eq!(table(&reversed, kind), before);
            assert_eq!(before.len(), kind.places(10));
            for share in shares(&before).values() {
                let share = *share as f64 / before.len() as f64;
                assert!((share - 0.1).abs() < even, "{kind:?}: {share}");
            }
            for left in 0..10 {
                let mut fewer = all.clone();
                fewer.remove(left);
                let after = table(&fewer, kind);
                if after.len() != before.len() {
                    continue;
                }
                let others = before.differences(&after).count() as f64 / before.len() as f64;
                assert!(others < moved, "{kind:?}: {others} of all clients move");
            }
        }
    }

    #[test]
    fn a_table_has_a_place_for_everyone_and_weights_count_in_it() {
        for endpoints in [1usize, 2, 3, 64, 5_000] {
            let all: Vec<Weighted> = (0..endpoints as u32)
                .map(|n| (Endpoint::new(std::net::Ipv4Addr::from(n).into(), 80), 1))
                .collect();
            assert_eq!(shares(&table(&all, Table::Small)).len(), endpoints);
        }
        let weighted = table(&list(&[3, 1, 0]), Table::Large);
        let shares: Vec<usize> = shares(&weighted).into_values().collect();
        assert_eq!(shares, [768, 256]);
    }
}
