//! The endpoints of a slice, packed: most of what a large cluster is made of.
//!
//! An address and a byte of flags each; hints of zones, which most slices do not have, lie beside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Hint, SliceEndpoint, ZoneHints};

/// The endpoints of a slice, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SliceEndpoints {
    packed: Packed,
    /// By place; none at all if no endpoint has zones.
    zones: Option<Box<[Option<ZoneHints>]>>,
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

    fn endpoint(self, address: IpAddr, zone_hints: Option<ZoneHints>) -> SliceEndpoint {
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
            zone_hints,
        }
    }
}

impl SliceEndpoints {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        match &self.packed {
            Packed::V4(list) => list.len(),
            Packed::V6(list) => list.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
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
        Some(flags.endpoint(address, zones.cloned().flatten()))
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
        Self { packed, zones }
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
        (address, any::<[bool; 4]>(), hint, zones).prop_map(
            |(address, [ready, serving, terminating, local], node_hint, zone_hints)| {
                SliceEndpoint {
                    address,
                    ready,
                    serving,
                    terminating,
                    local,
                    node_hint,
                    zone_hints,
                }
            },
        )
    }

    proptest! {
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
