//! Arithmetic on address ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::core::model::Family;

/// The family of a network.
#[must_use]
pub const fn family(network: IpNetwork) -> Family {
    match network {
        IpNetwork::V4(_) => Family::V4,
        IpNetwork::V6(_) => Family::V6,
    }
}

/// The network with its host bits cleared.
#[must_use]
pub fn canonical(network: IpNetwork) -> IpNetwork {
    // The prefix comes from a valid network of the same family.
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(network)
}

/// The networks without those that lie inside another one, in order.
///
/// Two networks either are disjoint or one holds the other, so nothing else can overlap.
#[must_use]
pub fn merge(networks: impl Iterator<Item = IpNetwork>) -> Vec<IpNetwork> {
    let mut sorted: Vec<IpNetwork> = networks.map(canonical).collect();
    sorted.sort_unstable_by_key(|network| (family(*network), network.ip(), network.prefix()));
    sorted.dedup();
    let mut merged: Vec<IpNetwork> = Vec::with_capacity(sorted.len());
    for network in sorted {
        if !merged
            .last()
            .is_some_and(|last| family(*last) == family(network) && last.contains(network.ip()))
        {
            merged.push(network);
        }
    }
    merged
}

/// Whether networks are as [`merge`] leaves them.
#[must_use]
pub fn is_merged(networks: &[IpNetwork]) -> bool {
    let are_canonical = networks
        .iter()
        .all(|network| *network == canonical(*network));
    let key = |network: &IpNetwork| (family(*network), network.ip());
    are_canonical
        && networks.is_sorted_by(|one, next| {
            key(one) < key(next) && !(family(*one) == family(*next) && one.contains(next.ip()))
        })
}

/// The address after the last one of a network, or `None` at the end of the address space.
#[must_use]
pub fn after(network: IpNetwork) -> Option<IpAddr> {
    match network.broadcast() {
        IpAddr::V4(last) => u32::from(last)
            .checked_add(1)
            .map(|next| Ipv4Addr::from(next).into()),
        IpAddr::V6(last) => u128::from(last)
            .checked_add(1)
            .map(|next| Ipv6Addr::from(next).into()),
    }
}

/// The last address of a network.
#[must_use]
pub fn last(network: IpNetwork) -> IpAddr {
    network.broadcast()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn networks_inside_others_disappear_and_the_rest_is_sorted() {
        let merged = merge(
            [
                "10.1.0.0/16",
                "fd00::/8",
                "10.0.0.0/8",
                "11.0.0.7/32",
                "10.0.0.0/8",
                "fd00:1::5/64",
            ]
            .into_iter()
            .map(net),
        );
        assert_eq!(
            merged,
            [net("10.0.0.0/8"), net("11.0.0.7/32"), net("fd00::/8")]
        );
    }

    #[test]
    fn what_is_merged_is_told_from_what_is_not() {
        let cases: [(&[&str], bool); 7] = [
            (&[], true),
            (&["10.0.0.0/8", "11.0.0.7/32", "fd00::/8"], true),
            (&["11.0.0.7/32", "10.0.0.0/8"], false),
            (&["10.0.0.0/8", "10.0.0.0/8"], false),
            (&["10.0.0.0/8", "10.1.0.0/16"], false),
            (&["10.0.0.0/16", "10.0.0.0/8"], false),
            (&["10.1.2.3/8"], false),
        ];
        for (networks, expected) in cases {
            let list: Vec<IpNetwork> = networks.iter().map(|text| net(text)).collect();
            assert_eq!(is_merged(&list), expected, "{networks:?}");
            assert_eq!(merge(list.iter().copied()) == list, expected);
        }
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(canonical(net("10.1.2.3/16")), net("10.1.0.0/16"));
        assert_eq!(canonical(net("fd00::5/64")), net("fd00::/64"));
    }

    #[test]
    fn the_address_after_a_network_ends_with_the_address_space() {
        assert_eq!(after(net("10.0.0.0/8")), Some("11.0.0.0".parse().unwrap()));
        assert_eq!(after(net("255.0.0.0/8")), None);
        assert_eq!(after(net("ffff::/16")), None);
        assert_eq!(
            last(net("fd00::/127")),
            "fd00::1".parse::<IpAddr>().unwrap()
        );
    }
}
