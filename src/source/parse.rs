//! Addresses and networks as Kubernetes writes them.
//!
//! Kubernetes has always read leading zeros as decimal ("sloppy" parsing in its `netutils`), and
//! objects from old clusters carry them, so they are accepted here too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::core::model::Protocol;

/// Reads an IP address. An IPv4-mapped IPv6 address is the IPv4 address.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        // As nearly all are written.
        return Some(IpAddr::V4(address));
    }
    if !text.contains(':') {
        return ipv4(text).map(IpAddr::V4);
    }
    let parsed: Ipv6Addr = match text.rfind(':') {
        Some(colon) if text[colon + 1..].contains('.') => {
            let (head, tail) = text.split_at(colon + 1);
            format!("{head}{}", ipv4(tail)?).parse().ok()?
        }
        _ => text.parse().ok()?,
    };
    Some(
        parsed
            .to_ipv4_mapped()
            .map_or(IpAddr::V6(parsed), IpAddr::V4),
    )
}

fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?)?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

fn decimal(text: &str) -> Option<u8> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    match text.trim_start_matches('0') {
        "" => Some(0),
        digits => digits.parse().ok(),
    }
}

/// Reads a network; host bits are cleared.
pub(super) fn network(text: &str) -> Option<IpNetwork> {
    let (address_text, prefix) = text.split_once('/')?;
    let address = address(address_text)?;
    let network = IpNetwork::new(address, decimal(prefix)?).ok()?;
    Some(crate::core::networks::canonical(network))
}

pub(super) fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

pub(super) fn port_number(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b3_addresses_may_have_leading_zeros_which_are_decimal() {
        let cases = [
            ("172.30.0.41", Some("172.30.0.41")),
            ("172.30.0.041", Some("172.30.0.41")),
            ("000.1.2.3", Some("0.1.2.3")),
            ("fd00::1", Some("fd00::1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("64:ff9b::10.0.0.01", Some("64:ff9b::a00:1")),
            ("10.0.0", None),
            ("10.0.0.0.1", None),
            ("10.0.0.256", None),
            ("10.0.0.+1", None),
            ("10.0..1", None),
            ("", None),
            ("None", None),
            ("fe80::1%eth0", None),
            ("[fd00::1]", None),
            (" 10.0.0.1", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(address(text), expected, "{text:?}");
        }
    }

    #[test]
    fn b3_networks_may_have_leading_zeros_which_are_decimal_and_lose_their_host_bits() {
        let cases = [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("10.1.2.3/08", Some("10.0.0.0/8")),
            ("172.030.0.0/025", Some("172.30.0.0/25")),
            ("fd00::1/64", Some("fd00::/64")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("10.0.0.0/33", None),
            ("10.0.0.0", None),
            ("10.0.0.0/-1", None),
            ("10.0.0.0/", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(network(text), expected, "{text:?}");
        }
    }
}
