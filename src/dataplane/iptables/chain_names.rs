//! What our chains are called: what a person reads in `iptables-save`, in 28 characters.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sha2::{Digest, Sha256};

use super::key::{Key, Space};
use crate::core::ir::{Destination, Host};
use crate::core::model::{Family, Protocol};

/// The longest name of a chain (`XT_EXTENSION_MAXNAMELEN` in `include/uapi/linux/netfilter/x_tables.h`,
/// without its NUL).
const LONGEST: usize = 28;
/// How many of them are for what a chain is made of parts.
const SUFFIX: usize = 2;

/// What `PREROUTING` and `OUTPUT` of the nat table call.
pub(super) const SERVICES: &str = "POINTSMAN-SERVICES";
/// What `POSTROUTING` calls.
pub(super) const POSTROUTING: &str = "POINTSMAN-POSTROUTING";
/// What `FORWARD` of the filter table calls.
pub(super) const FORWARD: &str = "POINTSMAN-FORWARD";

/// The first bytes of SHA-256, in hexadecimal: nobody who may create a Service finds two that are equal.
pub(super) fn digest(text: &str, length: usize) -> String {
    hexadecimal(&Sha256::digest(text.as_bytes()), length)
}

/// The first so many digits of bytes.
pub(super) fn hexadecimal(bytes: &[u8], length: usize) -> String {
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(hex, "{byte:02x}");
    }
    hex.truncate(length);
    hex
}

fn short(prefix: &str, text: String) -> String {
    if prefix.len() + text.len() + SUFFIX <= LONGEST {
        return format!("{prefix}{text}");
    }
    format!("{prefix}{}", digest(&text, 20))
}

const fn letter(protocol: Protocol) -> char {
    match protocol {
        Protocol::Tcp => 'T',
        Protocol::Udp => 'U',
        Protocol::Sctp => 'S',
    }
}

/// The chain of a destination.
pub(super) fn destination(destination: Destination) -> String {
    let port = format!("{}{}", letter(destination.protocol), destination.port);
    let text = match destination.host {
        Host::Address(address) => format!("{address}-{port}"),
        Host::Node(_) => format!("NODE-{port}"),
    };
    short("PTM-", text)
}

/// A part of a destination's chain: one letter, and a number where there are several.
pub(super) fn part(chain: &str, letter: char, number: Option<usize>) -> String {
    let number = number.map_or_else(String::new, |number| format!("{number:x}"));
    let name = format!("{chain}{letter}{number}");
    if name.len() <= LONGEST {
        return name;
    }
    format!("PTM-{}", digest(&name, LONGEST - 4))
}

/// The chain of what begins alike in a tree.
pub(super) fn group(prefix: &str, space: Space, key: &Key) -> String {
    let text = match space {
        Space::Node => format!("NODE-{}", tail(key.nibbles())),
        Space::Addresses(family) => {
            let length = Space::address_length(family);
            let (address, rest) = key.nibbles().split_at(key.nibbles().len().min(length));
            let text = address_of(family, address);
            if rest.is_empty() {
                format!("{text}_{}", 4 * address.len())
            } else {
                format!("{text}-{}", tail(rest))
            }
        }
    };
    short(prefix, text)
}

/// A protocol, and the first digits of a port.
fn tail(nibbles: &[u8]) -> String {
    let Some((protocol, port)) = nibbles.split_first() else {
        return "_".to_owned();
    };
    let protocol = super::key::PROTOCOLS.get(usize::from(*protocol));
    let mut text: String = protocol.copied().map(letter).into_iter().collect();
    for nibble in port {
        let _ = write!(text, "{nibble:x}");
    }
    text + "_"
}

/// An address of which the last digits may be missing.
pub(super) fn address_of(family: Family, nibbles: &[u8]) -> IpAddr {
    let bits = nibbles
        .iter()
        .fold(0_u128, |bits, nibble| bits << 4 | u128::from(*nibble));
    let missing = Space::address_length(family).saturating_sub(nibbles.len());
    let bits = bits
        .checked_shl(4 * u32::try_from(missing).unwrap_or(0))
        .unwrap_or(0);
    match family {
        Family::V4 => Ipv4Addr::from(u32::try_from(bits).unwrap_or(0)).into(),
        Family::V6 => Ipv6Addr::from(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_by_people_and_never_too_long() {
        let cases = [
            ("10.96.0.10", Protocol::Tcp, 80, "PTM-10.96.0.10-T80"),
            (
                "255.255.255.255",
                Protocol::Sctp,
                65535,
                "PTM-255.255.255.255-S65535",
            ),
            ("fd00:96::10", Protocol::Udp, 53, "PTM-fd00:96::10-U53"),
        ];
        for (address, protocol, port, expected) in cases {
            let to = Destination {
                host: Host::Address(address.parse().unwrap()),
                protocol,
                port,
            };
            assert_eq!(destination(to), expected);
        }
        let long = Destination {
            host: Host::Address("2001:db8:1111:2222:3333:4444:5555:6666".parse().unwrap()),
            protocol: Protocol::Tcp,
            port: 65535,
        };
        let name = destination(long);
        assert!(name.len() + SUFFIX <= LONGEST, "{name}");
        for number in [None, Some(0), Some(15), Some(255), Some(70_000)] {
            assert!(part(&name, 'P', number).len() <= LONGEST);
        }
    }
}
