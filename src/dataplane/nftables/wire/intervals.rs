//! Networks from the bounds that a set of intervals is listed as.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::core::ir::Shared;
use crate::core::networks;

/// The ranges that the bounds of `service-cidrs` make.
pub(crate) fn service_cidrs(mut bounds: Vec<(IpAddr, bool)>) -> Option<Vec<Shared>> {
    // At one address, the end of a range comes before the start of the next.
    bounds.sort_unstable_by_key(|(address, end)| (*address, !*end));
    let mut ranges = Vec::new();
    let mut start = None;
    for (address, is_end) in bounds {
        match (start, is_end) {
            (None, false) => start = Some(address),
            (Some(first), true) => {
                ranges.push(cidr(first, Some(address))?);
                start = None;
            }
            // nft marks the address space below the first range as not in the set.
            (None, true) if address.is_unspecified() => {}
            _ => return None,
        }
    }
    if let Some(first) = start {
        ranges.push(cidr(first, None)?);
    }
    Some(ranges)
}

fn cidr(first: IpAddr, beyond: Option<IpAddr>) -> Option<Shared> {
    let last = match (first, beyond) {
        (IpAddr::V4(_), None) => Ipv4Addr::BROADCAST.into(),
        (IpAddr::V6(_), None) => Ipv6Addr::from(u128::MAX).into(),
        (_, Some(IpAddr::V4(beyond))) => Ipv4Addr::from(u32::from(beyond).checked_sub(1)?).into(),
        (_, Some(IpAddr::V6(beyond))) => Ipv6Addr::from(u128::from(beyond).checked_sub(1)?).into(),
    };
    Some(Shared::ServiceCidr(network(first, last)?))
}

/// The network from a first to a last address, if they are those of a network.
fn network(first: IpAddr, last: IpAddr) -> Option<IpNetwork> {
    let prefix = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            (u32::from(first) ^ u32::from(last)).leading_zeros()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            (u128::from(first) ^ u128::from(last)).leading_zeros()
        }
        _ => return None,
    };
    let network = IpNetwork::new(first, u8::try_from(prefix).ok()?).ok()?;
    (network.network() == first && networks::last(network) == last).then_some(network)
}
