//! The endpoints of a slice, packed: most of what a large cluster is made of.
//!
//! An address and a byte of flags each; hints of zones and weights, which most slices do not have, lie beside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Hint, SliceEndpoint, ZoneHints};

/// The endpoints of a slice, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SliceEndpoints {
    packed: Packed,
    /// By place; none at all if no endpoint has zones.
    zones: Option<Box<[Option<ZoneHints>]>>,
    /// By place; none at all if all weigh the same, 1.
    weights: Option<Box<[u32]>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Packed {
    V4(Box<[(Ipv4Addr, Flags)]>),
    /// With IPv4 addresses mapped, if a slice should have both: a slice of real objects has not.
    V6(Box<[(Ipv6Addr, Flags)]>),
}

impl Default for Packed {
    fn default() -> Self {
        Self::V4(Box::default())
    }
}

/// Conditions, place and hint of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flags(u8);

impl Flags {
    const READY: u8 = 1;
    const SERVING: u8 = 1 << 1;
    const TERMINATING: u8 = 1 << 2;
    const LOCAL: u8 = 1 << 3;
    const HINT_ELSEWHERE: u8 = 1 << 4;
    const HINT_HERE: u8 = 1 << 5;

    fn of(endpoint: &SliceEndpoint) -> Self {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let hint = match endpoint.node_hint {
            Hint::None => 0,
            Hint::Elsewhere => Self::HINT_ELSEWHERE,
            Hint::Here => Self::HINT_HERE,
        };
        Self(
            flag(endpoint.ready, Self::READY)
                | flag(endpoint.serving, Self::SERVING)
                | flag(endpoint.terminating, Self::TERMINATING)
                | flag(endpoint.local, Self::LOCAL)
                | hint,
        )
    }

    const fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    fn endpoint(
        self,
        address: IpAddr,
        weight: u32,
        zone_hints: Option<ZoneHints>,
    ) -> SliceEndpoint {
        SliceEndpoint {
            address,
            ready: self.has(Self::READY),
            serving: self.has(Self::SERVING),
            terminating: self.has(Self::TERMINATING),
            local: self.has(Self::LOCAL),
            node_hint: if self.has(Self::HINT_HERE) {
                Hint::Here
            } else if self.has(Self::HINT_ELSEWHERE) {
                Hint::Elsewhere
            } else {
                Hint::None
            },
            weight,
            zone_hints,
        }
    }
}

impl SliceEndpoints {
    /// How many there are.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "nobody asks")]
    pub const fn len(&self) -> usize {
        match &self.packed {
            Packed::V4(list) => list.len(),
            Packed::V6(list) => list.len(),
        }
    }

    /// The endpoint at a place.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<SliceEndpoint> {
        let (address, flags) = match &self.packed {
            Packed::V4(list) => list
                .get(place)
                .map(|(address, flags)| (IpAddr::V4(*address), *flags))?,
            Packed::V6(list) => list
                .get(place)
                .map(|(address, flags)| (IpAddr::V6(*address).to_canonical(), *flags))?,
        };
        let zones = self.zones.as_ref().and_then(|zones| zones.get(place));
        let weight = self.weights.as_ref().and_then(|weights| weights.get(place));
        let weight = weight.copied().unwrap_or(1);
        Some(flags.endpoint(address, weight, zones.cloned().flatten()))
    }

    /// What this list says and another one does not, and the other way round: whatever lies between
    /// the places at which both begin and end alike, without those that are the same in between.
    #[must_use]
    pub fn differences(&self, other: &Self) -> (Vec<SliceEndpoint>, Vec<SliceEndpoint>) {
        let (mine, others) = (self.len(), other.len());
        let shorter = mine.min(others);
        let is_same = |place: usize, its_place: usize| match (&self.packed, &other.packed) {
            _ if self.has_more() || other.has_more() => self.get(place) == other.get(its_place),
            (Packed::V4(mine), Packed::V4(others)) => mine.get(place) == others.get(its_place),
            (Packed::V6(mine), Packed::V6(others)) => mine.get(place) == others.get(its_place),
            _ => self.get(place) == other.get(its_place),
        };
        let begin = (0..shorter)
            .position(|place| !is_same(place, place))
            .unwrap_or(shorter);
        let end = (0..shorter - begin)
            .position(|back| !is_same(mine - 1 - back, others - 1 - back))
            .unwrap_or(shorter - begin);
        let (my_end, its_end) = (mine - end, others - end);
        let differs = |place: &usize| mine != others || !is_same(*place, *place);
        let of = |list: &Self, end: usize| -> Vec<SliceEndpoint> {
            let places = (begin..end).filter(differs);
            places.filter_map(|place| list.get(place)).collect()
        };
        (of(self, my_end), of(other, its_end))
    }

    const fn has_more(&self) -> bool {
        self.zones.is_some() || self.weights.is_some()
    }

    /// Whether one of them weighs more or less than others.
    #[must_use]
    pub const fn has_weights(&self) -> bool {
        self.weights.is_some()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = SliceEndpoint> {
        (0..self.len()).filter_map(|place| self.get(place))
    }
}

impl From<Vec<SliceEndpoint>> for SliceEndpoints {
    fn from(list: Vec<SliceEndpoint>) -> Self {
        let zones = list
            .iter()
            .any(|endpoint| endpoint.zone_hints.is_some())
            .then(|| {
                let zones = list.iter().map(|endpoint| endpoint.zone_hints.clone());
                zones.collect()
            });
        let weights = list
            .iter()
            .any(|endpoint| endpoint.weight != 1)
            .then(|| list.iter().map(|endpoint| endpoint.weight).collect());
        let v4: Option<Box<[(Ipv4Addr, Flags)]>> = list
            .iter()
            .map(|endpoint| match endpoint.address {
                IpAddr::V4(address) => Some((address, Flags::of(endpoint))),
                IpAddr::V6(_) => None,
            })
            .collect();
        let packed = v4.map_or_else(
            || {
                let v6 = list.iter().map(|endpoint| match endpoint.address {
                    IpAddr::V4(address) => (address.to_ipv6_mapped(), Flags::of(endpoint)),
                    IpAddr::V6(address) => (address, Flags::of(endpoint)),
                });
                Packed::V6(v6.collect())
            },
            Packed::V4,
        );
        Self {
            packed,
            zones,
            weights,
        }
    }
}

impl FromIterator<SliceEndpoint> for SliceEndpoints {
    fn from_iter<I: IntoIterator<Item = SliceEndpoint>>(endpoints: I) -> Self {
        Vec::from_iter(endpoints).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_endpoint() -> impl Strategy<Value = SliceEndpoint> {
        let hint = prop_oneof![Just(Hint::None), Just(Hint::Elsewhere), Just(Hint::Here)];
        let zones = proptest::option::of(Just(ZoneHints::new(["a".into()].into())));
        let address = any::<IpAddr>().prop_map(|address| address.to_canonical());
        let weight = prop_oneof![4 => Just(1u32), 1 => 0u32..9];
        (address, any::<[bool; 4]>(), hint, zones, weight).prop_map(
            |(address, [ready, serving, terminating, local], node_hint, zone_hints, weight)| {
                SliceEndpoint {
                    address,
                    ready,
                    serving,
                    terminating,
                    local,
                    node_hint,
                    weight,
                    zone_hints,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn differences_turn_one_list_into_the_other(
            first in proptest::collection::vec(any_endpoint(), 0..20),
            places in proptest::collection::vec((0usize..20, proptest::option::of(any_endpoint())), 0..4),
        ) {
            let mut second = first.clone();
            for (place, endpoint) in places {
                match endpoint {
                    Some(endpoint) => second.insert(place.min(second.len()), endpoint),
                    None if place < second.len() => drop(second.remove(place)),
                    None => {}
                }
            }
            let (gone, come) =
                SliceEndpoints::from(first.clone()).differences(&second.clone().into());
            let mut left = first;
            for endpoint in gone {
                let place = left.iter().position(|other| *other == endpoint);
                prop_assert!(place.is_some());
                left.remove(place.unwrap_or_default());
            }
            left.extend(come);
            let sorted = |mut list: Vec<SliceEndpoint>| {
                list.sort_by_key(|endpoint| format!("{endpoint:?}"));
                list
            };
            prop_assert_eq!(sorted(left), sorted(second));
        }

        #[test]
        fn what_is_packed_comes_out_as_it_was(
            list in proptest::collection::vec(any_endpoint(), 0..20),
        ) {
            let packed = SliceEndpoints::from(list.clone());
            prop_assert_eq!(packed.len(), list.len());
            prop_assert_eq!(packed.iter().collect::<Vec<_>>(), list);
        }
    }
}
