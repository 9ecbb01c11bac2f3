//! What rules have counted.

use super::uapi::*;
use crate::core::model::{Family, Protocol};
use crate::dataplane::nftables::program::TABLE;
use crate::dataplane::nftables::program::chains::{
    COUNTED_ON_LOOPBACK, NO_ENDPOINTS, ON_LOOPBACK, UNUSED_ADDRESSES, UNUSED_ADDRESSES_OUTPUT,
};
use crate::dataplane::nftables::program::choice::NO_LOCAL_ENDPOINTS;
use crate::dataplane::nftables::program::sources::OUTSIDE_RANGES;
use crate::host::netlink::attributes::{Attributes, find, put_string, string};
use crate::host::netlink::socket::{Socket, SocketError};
use crate::host::netlink::{dump_request, message_type};

/// How many packets to `NodePort`s on loopback have been refused, by protocol, since the table came about.
pub(crate) fn refused_on_loopback(
    socket: &mut Socket,
    family: Family,
) -> Result<Vec<(Protocol, u64)>, SocketError> {
    let mut narrow = Vec::new();
    put_string(&mut narrow, NFTA_RULE_TABLE, TABLE);
    put_string(&mut narrow, NFTA_RULE_CHAIN, ON_LOOPBACK);
    let kind = message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETRULE);
    let request = dump_request(kind, family, &narrow);
    let (counts, _) = socket.dump_once(&request, Vec::new(), |counts, message| {
        let attributes = message.attributes();
        let is_in = |kind, name| find(attributes, kind).and_then(string) == Some(name);
        if is_in(NFTA_RULE_TABLE, TABLE) && is_in(NFTA_RULE_CHAIN, ON_LOOPBACK) {
            counts.push(packets(attributes).unwrap_or_default());
        }
    })?;
    Ok(COUNTED_ON_LOOPBACK.into_iter().zip(counts).collect())
}

/// Why a connection was not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// Its Service has no endpoint that takes connections.
    NoEndpoints,
    /// It has some, and none on this node, where its policy is Local.
    NoLocalEndpoints,
    /// The source is of none of the Service's ranges.
    SourceRanges,
    /// The `ClusterIP` has no such port.
    UndefinedPort,
    /// No Service has the address.
    UnusedAddress,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::NoEndpoints,
        Self::NoLocalEndpoints,
        Self::SourceRanges,
        Self::UndefinedPort,
        Self::UnusedAddress,
    ];

    /// As metrics have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoEndpoints => "no_endpoints",
            Self::NoLocalEndpoints => "no_local_endpoints",
            Self::SourceRanges => "source_ranges",
            Self::UndefinedPort => "undefined_port",
            Self::UnusedAddress => "unused_address",
        }
    }

    /// What a rule of a chain counts, the first, the second.
    fn of(chain: &str, rule: usize) -> Option<Self> {
        match (chain, rule) {
            (NO_ENDPOINTS, _) => Some(Self::NoEndpoints),
            (NO_LOCAL_ENDPOINTS, _) => Some(Self::NoLocalEndpoints),
            (OUTSIDE_RANGES, _) => Some(Self::SourceRanges),
            (UNUSED_ADDRESSES | UNUSED_ADDRESSES_OUTPUT, 0) => Some(Self::UndefinedPort),
            (UNUSED_ADDRESSES | UNUSED_ADDRESSES_OUTPUT, _) => Some(Self::UnusedAddress),
            _ => None,
        }
    }
}

/// How many first packets of connections have been refused, for each reason, since the table was made.
pub(crate) fn refusals(
    socket: &mut Socket,
    family: Family,
) -> Result<[u64; Refusal::ALL.len()], SocketError> {
    let mut narrow = Vec::new();
    put_string(&mut narrow, NFTA_RULE_TABLE, TABLE);
    let kind = message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETRULE);
    let request = dump_request(kind, family, &narrow);
    let start = ([0; Refusal::ALL.len()], String::new(), 0);
    let listed = socket.dump_once(&request, start, |(counts, last, place), message| {
        let attributes = message.attributes();
        let name = |kind| find(attributes, kind).and_then(string);
        let (Some(TABLE), Some(chain)) = (name(NFTA_RULE_TABLE), name(NFTA_RULE_CHAIN)) else {
            return;
        };
        if last != chain {
            (*last, *place) = (chain.to_owned(), 0);
        }
        if let Some(refusal) = Refusal::of(chain, *place) {
            counts[refusal as usize] += packets(attributes).unwrap_or_default();
        }
        *place += 1;
    });
    match listed {
        Ok(((counts, ..), _)) => Ok(counts),
        Err(SocketError::Dump(nix::errno::Errno::ENOENT)) => Ok([0; Refusal::ALL.len()]),
        Err(error) => Err(error),
    }
}

/// What a rule's counter says.
fn packets(rule: &[u8]) -> Option<u64> {
    let expressions = Attributes(find(rule, NFTA_RULE_EXPRESSIONS)?);
    let counter = expressions
        .map(|(_, expression)| expression)
        .find(|expression| find(expression, NFTA_EXPR_NAME).and_then(string) == Some("counter"))?;
    let packets = find(find(counter, NFTA_EXPR_DATA)?, NFTA_COUNTER_PACKETS)?;
    Some(u64::from_be_bytes(packets.try_into().ok()?))
}

/// A rule's description without what has been counted.
pub(super) fn without_counts(description: &str) -> String {
    const BEGIN: &str = "[ counter pkts ";
    let Some((before, counter)) = description.split_once(BEGIN) else {
        return description.to_owned();
    };
    let after = counter.split_once(']').map_or("", |(_, after)| after);
    format!("{before}[ counter ]{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_differ_in_what_they_have_counted_only_are_described_alike() {
        let rule = |counter: &str| format!("[ meta load l4proto => reg 1 ] {counter} [ reject ]");
        let [none, some] = [
            "[ counter pkts 0 bytes 0 ]",
            "[ counter pkts 17 bytes 900 ]",
        ]
        .map(rule);
        assert_eq!(without_counts(&none), without_counts(&some));
        assert_eq!(without_counts(&none), rule("[ counter ]"));
        assert_eq!(without_counts("[ reject ]"), "[ reject ]");
    }
}
