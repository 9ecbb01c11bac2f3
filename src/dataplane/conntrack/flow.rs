//! conntrack's messages: asking for flows, reading one, ending one.
//!
//! Source: `include/uapi/linux/netfilter/nfnetlink_conntrack.h`, and `ctnetlink_alloc_filter`
//! in `net/netfilter/nf_conntrack_netlink.c` (kernel 5.8 and newer; by status 5.18, before which it is
//! ignored) for what can be filtered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::core::ir::{Destination, Host};
use crate::core::model::{Endpoint, Family, Protocol};
use crate::host::netlink::attributes::{begin_nest, end_nest, find, put_bytes, put_u32};
#[cfg(feature = "internals")]
use crate::host::netlink::socket::messages;
use crate::host::netlink::{
    NLM_F_ACK, NLM_F_REQUEST, close_message, dump_request, dump_request_of, family_number,
    message_type, put_headers,
};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_STATUS_MASK: u16 = 26;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_SCTP: u16 = 3;
/// Of either protocol.
const CTA_PROTOINFO_STATE: u16 = 1;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// Which parts of the original tuple a filter compares (`CTA_FILTER_F_*`, kernel-internal
/// numbers that the interface fixes).
const FILTER_IP_DST: u32 = 1 << 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;

/// `IPS_SEEN_REPLY` and `IPS_DST_NAT` of `include/uapi/linux/netfilter/nf_conntrack_common.h`.
const SEEN_REPLY: u32 = 1 << 1;
const DST_NAT: u32 = 1 << 5;
/// `NFPROTO_UNSPEC` of `include/uapi/linux/netfilter.h`.
const BOTH_FAMILIES: u8 = 0;

/// States by protocol, of `nf_conntrack_tcp.h` and `nf_conntrack_sctp.h` there. `SYN_SENT` and `COOKIE_WAIT`:
/// nothing has been seen but what begins a connection.
const BEGINNING: [(u16, u8); 2] = [(CTA_PROTOINFO_TCP, 1), (CTA_PROTOINFO_SCTP, 2)];
/// `TIME_WAIT` and `CLOSE`; of SCTP `CLOSED` and `SHUTDOWN_ACK_SENT`.
const ENDED: [(u16, u8); 4] = [
    (CTA_PROTOINFO_TCP, 7),
    (CTA_PROTOINFO_TCP, 8),
    (CTA_PROTOINFO_SCTP, 1),
    (CTA_PROTOINFO_SCTP, 7),
];

/// Which flows are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filter {
    pub(super) family: Family,
    pub(super) protocol: Protocol,
    /// Those to one destination; of IPv6, to its port.
    pub(super) only: Option<Destination>,
    /// Those that were never answered; an older kernel hands out the others too.
    pub(super) unanswered: bool,
}

/// A request for flows.
pub(super) fn request(filter: Filter) -> Vec<u8> {
    let Filter {
        family,
        protocol,
        only,
        unanswered,
    } = filter;
    let mut flags = FILTER_PROTO_NUM;
    let mut attributes = Vec::new();
    let tuple = begin_nest(&mut attributes, CTA_TUPLE_ORIG);
    // Not by an IPv6 address: the kernel takes what is equal for what differs there (5.8 to 6.18 at least).
    if let Some(Destination {
        host: Host::Address(IpAddr::V4(address)),
        ..
    }) = only
    {
        flags |= FILTER_IP_DST;
        let ip = begin_nest(&mut attributes, CTA_TUPLE_IP);
        put_bytes(&mut attributes, CTA_IP_V4_DST, &address.octets());
        end_nest(&mut attributes, ip);
    }
    let proto = begin_nest(&mut attributes, CTA_TUPLE_PROTO);
    put_bytes(&mut attributes, CTA_PROTO_NUM, &[protocol.number()]);
    if let Some(destination) = only {
        flags |= FILTER_PROTO_DST_PORT;
        let port = destination.port.to_be_bytes();
        put_bytes(&mut attributes, CTA_PROTO_DST_PORT, &port);
    }
    end_nest(&mut attributes, proto);
    end_nest(&mut attributes, tuple);
    let filter = begin_nest(&mut attributes, CTA_FILTER);
    put_bytes(&mut attributes, CTA_FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
    end_nest(&mut attributes, filter);
    if unanswered {
        put_u32(&mut attributes, CTA_STATUS, 0);
        put_u32(&mut attributes, CTA_STATUS_MASK, SEEN_REPLY);
    }
    let kind = message_type(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET);
    dump_request(kind, family, &attributes)
}

/// A request for the flows of both families whose destination was translated, or for those of them that were
/// never answered. An older kernel hands out others too.
pub(super) fn request_translated(unanswered: bool) -> Vec<u8> {
    let mask = if unanswered {
        DST_NAT | SEEN_REPLY
    } else {
        DST_NAT
    };
    let mut attributes = Vec::new();
    put_u32(&mut attributes, CTA_STATUS, DST_NAT);
    put_u32(&mut attributes, CTA_STATUS_MASK, mask);
    let kind = message_type(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET);
    dump_request_of(kind, BOTH_FAMILIES, &attributes)
}

/// A flow as listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Who began it.
    pub source: Endpoint,
    /// Where its first packet went.
    pub destination: Endpoint,
    /// Who answers: the endpoint that it was translated to, or the destination itself.
    pub answers: Endpoint,
    /// Whether it ever did.
    pub answered: bool,
    /// Whether nothing has been seen of it but what begins a connection; not of UDP.
    pub begins: bool,
    /// Whether it goes on: what has ended is remembered for a while.
    pub lives: bool,
}

impl Flow {
    /// Reads a listed flow; `None` unless it is one of a protocol that Services have, and whole.
    pub(super) fn read(attributes: &[u8], family: Family) -> Option<Self> {
        let original = find(attributes, CTA_TUPLE_ORIG)?;
        let reply = find(attributes, CTA_TUPLE_REPLY)?;
        let protocol = find(find(original, CTA_TUPLE_PROTO)?, CTA_PROTO_NUM)?;
        let status = find(attributes, CTA_STATUS)?;
        let status = u32::from_be_bytes(status.try_into().ok()?);
        let (source, destination) = match family {
            Family::V4 => (CTA_IP_V4_SRC, CTA_IP_V4_DST),
            Family::V6 => (CTA_IP_V6_SRC, CTA_IP_V6_DST),
        };
        Some(Self {
            protocol: Protocol::from_number(*protocol.first()?)?,
            answered: status & SEEN_REPLY != 0,
            begins: is_in(attributes, &BEGINNING),
            lives: !is_in(attributes, &ENDED),
            source: end(original, source, CTA_PROTO_SRC_PORT)?,
            destination: end(original, destination, CTA_PROTO_DST_PORT)?,
            answers: end(reply, source, CTA_PROTO_SRC_PORT)?,
        })
    }
}

fn is_in(attributes: &[u8], states: &[(u16, u8)]) -> bool {
    let is_in = |protocol, state| {
        let info = find(find(attributes, CTA_PROTOINFO)?, protocol)?;
        Some(find(info, CTA_PROTOINFO_STATE)? == [state])
    };
    let mut states = states.iter();
    states.any(|(protocol, state)| is_in(*protocol, *state) == Some(true))
}

fn end(tuple: &[u8], address: u16, port: u16) -> Option<Endpoint> {
    let address = find(find(tuple, CTA_TUPLE_IP)?, address)?;
    let address = match *address {
        [a, b, c, d] => Ipv4Addr::new(a, b, c, d).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into(),
    };
    let port = find(find(tuple, CTA_TUPLE_PROTO)?, port)?;
    Some(Endpoint::new(
        address,
        u16::from_be_bytes(port.try_into().ok()?),
    ))
}

/// The flows of a listing that can be read, each with the request to end it.
#[cfg(feature = "internals")]
pub fn listed(listing: &[u8], family: Family) -> impl Iterator<Item = (Flow, Vec<u8>)> {
    messages(listing).filter_map(move |message| {
        let flow = Flow::read(message.attributes(), family)?;
        Some((flow, delete(message.attributes(), family)))
    })
}

/// A request to end a listed flow: this very one, by its tuple and its number.
pub(super) fn delete(attributes: &[u8], family: Family) -> Vec<u8> {
    let mut request = Vec::new();
    put_headers(
        &mut request,
        message_type(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE),
        NLM_F_REQUEST | NLM_F_ACK,
        0,
        family_number(family),
        0,
    );
    for kind in [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE] {
        if let Some(value) = find(attributes, kind) {
            const NESTED: u16 = 1 << 15;
            let nested = if kind == CTA_TUPLE_ORIG { NESTED } else { 0 };
            put_bytes(&mut request, kind | nested, value);
        }
    }
    close_message(&mut request, 0);
    request
}
