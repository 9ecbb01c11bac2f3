//! Destinations as strings of digits, four bits each: address, protocol, port. What begins alike is
//! dispatched together.

use std::net::IpAddr;

use crate::core::ir::{Destination, Host};
use crate::core::model::{Family, Protocol};

/// The protocols by their digit.
pub(super) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// What keys are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    /// An address, a protocol and a port.
    Addresses(Family),
    /// A protocol and a port.
    Node,
}

impl Space {
    /// How many digits an address has.
    pub(super) const fn address_length(family: Family) -> usize {
        match family {
            Family::V4 => 8,
            Family::V6 => 32,
        }
    }

    /// How many digits come before the protocol.
    pub(super) const fn before_protocol(self) -> usize {
        match self {
            Self::Addresses(family) => Self::address_length(family),
            Self::Node => 0,
        }
    }
}

/// A destination, an address, or what several begin with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Key(Box<[u8]>);

impl Key {
    pub(super) fn address(address: IpAddr) -> Self {
        let mut nibbles = Vec::with_capacity(32);
        match address {
            IpAddr::V4(v4) => push_bytes(&mut nibbles, &v4.octets()),
            IpAddr::V6(v6) => push_bytes(&mut nibbles, &v6.octets()),
        }
        Self(nibbles.into())
    }

    pub(super) fn of(destination: Destination) -> Self {
        let address = match destination.host {
            Host::Address(address) => Self::address(address).0,
            Host::Node(_) => Box::default(),
        };
        let mut nibbles = Vec::with_capacity(address.len() + 5);
        nibbles.extend_from_slice(&address);
        nibbles.push(match destination.protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
            Protocol::Sctp => 2,
        });
        push_bytes(&mut nibbles, &destination.port.to_be_bytes());
        Self(nibbles.into())
    }

    pub(super) fn from_nibbles(nibbles: Vec<u8>) -> Self {
        Self(nibbles.into())
    }

    pub(super) fn nibbles(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn starts_with(&self, prefix: &Self) -> bool {
        self.0.starts_with(&prefix.0)
    }

    /// What both begin with.
    pub(super) fn common(&self, other: &Self) -> Self {
        let same = self.0.iter().zip(&other.0);
        let length = same.take_while(|(one, another)| one == another).count();
        Self(self.0[..length].into())
    }

    /// The same with one digit more.
    pub(super) fn followed_by(&self, nibble: u8) -> Self {
        let mut nibbles = Vec::with_capacity(self.0.len() + 1);
        nibbles.extend_from_slice(&self.0);
        nibbles.push(nibble);
        Self(nibbles.into())
    }
}

fn push_bytes(nibbles: &mut Vec<u8>, bytes: &[u8]) {
    nibbles.extend(bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]));
}
