//! Which map remembers a destination's clients.
//!
//! A timeout has several maps, and a destination has one of them. To forget clients the kernel has
//! to dump the map that they are in, which takes time in the square of its size: with sixteen maps
//! a search takes a 256th.

use std::fmt;
use std::net::IpAddr;

use crate::ir::{Destination, Host};

/// Maps for each timeout.
pub(crate) const PARTS: u8 = 16;

/// One of the maps that remember clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ClientMap {
    /// Seconds after a client's last new connection at which it is forgotten.
    pub(crate) timeout_seconds: u32,
    /// Which of the timeout's maps it is.
    part: u8,
}

impl ClientMap {
    /// The map of a destination's clients.
    pub(crate) fn of(destination: &Destination, timeout_seconds: u32) -> Self {
        Self {
            timeout_seconds,
            part: part(destination),
        }
    }

    /// All maps of the same timeout.
    pub(crate) fn all_of_timeout(self) -> impl Iterator<Item = Self> {
        (0..PARTS).map(move |part| Self { part, ..self })
    }

    /// The timeout, if this is the map of the destination's clients.
    pub(crate) fn timeout_of(self, destination: &Destination) -> Option<u32> {
        (self.part == part(destination)).then_some(self.timeout_seconds)
    }

    /// The map with this name, as [`fmt::Display`] gives it.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let (timeout, part) = name.split_once('-')?;
        let map = Self {
            timeout_seconds: timeout.parse().ok()?,
            part: part.parse().ok().filter(|part| *part < PARTS)?,
        };
        // One name for each: no leading zeros, no signs.
        (map.to_string() == name).then_some(map)
    }
}

impl fmt::Display for ClientMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.timeout_seconds, self.part)
    }
}

/// The same for ever: chains in the kernel are named after it (FNV-1a, folded).
fn part(destination: &Destination) -> u8 {
    const BASIS: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    let address = match destination.host {
        Host::Address(IpAddr::V4(address)) => u128::from(u32::from(address)),
        Host::Address(IpAddr::V6(address)) => u128::from(address),
        Host::Node(_) => 0,
    };
    let hash = address
        .to_be_bytes()
        .into_iter()
        .chain([destination.protocol.number()])
        .chain(destination.port.to_be_bytes())
        .fold(BASIS, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(PRIME)
        });
    let folded = hash ^ (hash >> 16);
    // The remainder is smaller than PARTS, which is a byte.
    u8::try_from((folded ^ (folded >> 8)) % u32::from(PARTS)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, Protocol};

    #[test]
    fn destinations_spread_over_all_maps_and_keep_theirs() {
        let destination = |index: u16| Destination {
            host: Host::Address([10, 96, (index >> 8) as u8, index as u8].into()),
            protocol: Protocol::Tcp,
            port: 80,
        };
        let mut counts = [0; PARTS as usize];
        for index in 0..1600 {
            let map = ClientMap::of(&destination(index), 60);
            assert_eq!(map.timeout_of(&destination(index)), Some(60));
            assert_eq!(ClientMap::from_name(&map.to_string()), Some(map));
            counts[usize::from(map.part)] += 1;
        }
        assert!(
            counts.iter().all(|count| (50..200).contains(count)),
            "{counts:?}"
        );
        let node_port = Destination {
            host: Host::Node(Family::V6),
            protocol: Protocol::Udp,
            port: 30053,
        };
        let names = [destination(1), destination(2), node_port];
        let names = names.map(|destination| ClientMap::of(&destination, 10_800).to_string());
        assert_eq!(
            names,
            ["10800-6", "10800-0", "10800-4"],
            "as in kernels that run now"
        );
        for name in ["10800", "10800-16", "10800-01", "-1", "1-", "+1-1"] {
            assert_eq!(ClientMap::from_name(name), None, "{name}");
        }
    }
}
