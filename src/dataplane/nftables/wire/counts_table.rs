//! A table of its own that counts connections: sets that an element enters with its first connection, and a
//! counter in each.
//!
//! It sees the first packet of each connection where it leaves for an endpoint, after everything that might have
//! dropped it, and knows from conntrack what the client had connected to. Taking it away leaves nothing.

use super::elements::{Fields, Key};
use super::uapi::*;
use crate::core::ir::{Destination, Host};
use crate::core::model::{Endpoint, Family};
use crate::host::netlink::attributes::{
    Attributes, begin_nest, end_nest, find, put_bytes, put_string, put_u32, string,
};
use crate::host::netlink::socket::{Socket, SocketError};
use crate::host::netlink::{
    NLM_F_REQUEST, close_message, dump_request, family_number, message_type, put_headers,
};

/// The table.
pub(crate) const COUNTS: &str = "pointsman-counts";
/// By destination.
pub(crate) const CONNECTIONS: &str = "connections";
/// By destination and endpoint.
pub(crate) const ENDPOINT_CONNECTIONS: &str = "endpoint-connections";

/// Elements of a set: whoever comes when it is full is not counted.
const MOST: u32 = 1 << 18;
/// Before all that translate sources, wherever they stand: the kernel asks nobody after the first that does. A chain of
/// type nat stands behind conntrack, which is at -200.
const PRIORITY: i32 = -199;
/// `NF_INET_LOCAL_IN`, for endpoints of this host, and `NF_INET_POST_ROUTING`, for all others.
const HOOKS: [(u32, &str); 2] = [(1, "input"), (4, "postrouting")];
const ACCEPT: u32 = 1;
/// `NLM_F_CREATE`, and `NLM_F_APPEND`: rules come after those that are there.
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// `NFT_CT_STATUS`, `NFT_CT_PROTO_DST`, `NFT_CT_DST_IP`, `NFT_CT_DST_IP6`.
mod ct {
    pub(super) const STATUS: u32 = 2;
    pub(super) const PROTO_DST: u32 = 12;
    pub(super) const DST_IP: u32 = 20;
    pub(super) const DST_IP6: u32 = 22;
}
/// `IPS_DST_NAT`.
const DST_NAT: u32 = 1 << 5;
/// `NFT_REG32_00`, the first of the small registers.
const REGISTER: u32 = 8;

/// Of which length the key's parts are.
const fn address_length(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

/// Messages that make the table, in order; each has to get its number.
pub(crate) fn table(family: Family) -> Vec<Vec<u8>> {
    let table = message(NFT_MSG_NEWTABLE, family, 0, |out| {
        put_string(out, NFTA_TABLE_NAME, COUNTS);
    });
    let chains = HOOKS.map(|(hook, name)| chain(family, name, hook));
    [vec![table], chains.into()].concat()
}

/// Messages that make one of the sets, and the rules that fill it.
pub(crate) fn counting_in(family: Family, set_name: &str) -> Vec<Vec<u8>> {
    let endpoints = set_name == ENDPOINT_CONNECTIONS;
    let id = 1 + u32::from(endpoints);
    let mut messages = vec![set(family, set_name, id, endpoints)];
    messages.extend(rules(family, set_name));
    messages
}

/// Messages that make the rules that fill a set.
pub(crate) fn rules(family: Family, set: &str) -> Vec<Vec<u8>> {
    let endpoints = set == ENDPOINT_CONNECTIONS;
    HOOKS
        .map(|(_, chain)| rule(family, chain, set, endpoints))
        .into()
}

/// The names of the chains.
pub(crate) fn chains() -> [&'static str; 2] {
    HOOKS.map(|(_, name)| name)
}

/// A message that takes a set away, whose rules are gone.
pub(crate) fn without(family: Family, set: &str) -> Vec<u8> {
    message(NFT_MSG_DELSET, family, 0, |out| {
        put_string(out, NFTA_SET_TABLE, COUNTS);
        put_string(out, NFTA_SET_NAME, set);
    })
}

/// How many rules there are.
pub(crate) fn rule_count(socket: &mut Socket, family: Family) -> Result<usize, SocketError> {
    let mut narrow = Vec::new();
    put_string(&mut narrow, NFTA_RULE_TABLE, COUNTS);
    let kind = message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETRULE);
    let request = dump_request(kind, family, &narrow);
    let (count, _) = socket.dump_once(&request, 0, |count, message| {
        let table = find(message.attributes(), NFTA_RULE_TABLE).and_then(string);
        *count += usize::from(table == Some(COUNTS));
    })?;
    Ok(count)
}

fn message(kind: u16, family: Family, flags: u16, put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    put_headers(
        &mut out,
        message_type(NFNL_SUBSYS_NFTABLES, kind),
        NLM_F_REQUEST | CREATE | flags,
        0,
        family_number(family),
        0,
    );
    put(&mut out);
    close_message(&mut out, 0);
    out
}

fn nest(out: &mut Vec<u8>, kind: u16, put: impl FnOnce(&mut Vec<u8>)) {
    let start = begin_nest(out, kind);
    put(out);
    end_nest(out, start);
}

fn expression(out: &mut Vec<u8>, kind: u16, name: &str, put: impl FnOnce(&mut Vec<u8>)) {
    nest(out, kind, |out| {
        put_string(out, NFTA_EXPR_NAME, name);
        nest(out, NFTA_EXPR_DATA, put);
    });
}

fn set(family: Family, name: &str, id: u32, endpoints: bool) -> Vec<u8> {
    let address = match family {
        Family::V4 => datatype::IPV4_ADDR,
        Family::V6 => datatype::IPV6_ADDR,
    };
    let mut types = vec![address, datatype::INET_PROTOCOL, datatype::INET_SERVICE];
    let mut length = address_length(family) + 8;
    if endpoints {
        types.extend([address, datatype::INET_SERVICE]);
        length += address_length(family) + 4;
    }
    let key = types
        .into_iter()
        .fold(0, |key, part| (key << datatype::CONCAT_BITS) | part);
    message(NFT_MSG_NEWSET, family, 0, |out| {
        put_string(out, NFTA_SET_TABLE, COUNTS);
        put_string(out, NFTA_SET_NAME, name);
        put_u32(out, NFTA_SET_FLAGS, NFT_SET_EVAL);
        put_u32(out, NFTA_SET_KEY_TYPE, key);
        put_u32(out, NFTA_SET_KEY_LEN, u32::try_from(length).unwrap_or(0));
        put_u32(out, NFTA_SET_ID, id);
        nest(out, NFTA_SET_DESC, |out| {
            put_u32(out, NFTA_SET_DESC_SIZE, MOST);
        });
        expression(out, NFTA_SET_EXPR, "counter", |_| ());
    })
}

fn chain(family: Family, name: &str, hook: u32) -> Vec<u8> {
    message(NFT_MSG_NEWCHAIN, family, 0, |out| {
        put_string(out, NFTA_CHAIN_TABLE, COUNTS);
        put_string(out, NFTA_CHAIN_NAME, name);
        nest(out, NFTA_CHAIN_HOOK, |out| {
            put_u32(out, NFTA_HOOK_HOOKNUM, hook);
            put_u32(out, NFTA_HOOK_PRIORITY, PRIORITY.cast_unsigned());
        });
        put_u32(out, NFTA_CHAIN_POLICY, ACCEPT);
        put_string(out, NFTA_CHAIN_TYPE, "nat");
    })
}

/// `ct status dnat update @connections { ct original ip daddr . meta l4proto . ct original proto-dst counter }`, and
/// the translated address and port after it.
fn rule(family: Family, chain: &str, set: &str, endpoints: bool) -> Vec<u8> {
    message(NFT_MSG_NEWRULE, family, APPEND, |out| {
        put_string(out, NFTA_RULE_TABLE, COUNTS);
        put_string(out, NFTA_RULE_CHAIN, chain);
        nest(out, NFTA_RULE_EXPRESSIONS, |out| {
            let load = |out: &mut Vec<u8>, name: &str, register: u32, key: u32, original: bool| {
                expression(out, NFTA_LIST_ELEM, name, |out| {
                    put_u32(out, NFTA_LOAD_DREG, register);
                    put_u32(out, NFTA_LOAD_KEY, key);
                    if original {
                        put_bytes(out, NFTA_CT_DIRECTION, &[IP_CT_DIR_ORIGINAL]);
                    }
                });
            };
            let payload =
                |out: &mut Vec<u8>, register: u32, (base, offset, length): (u32, u32, u32)| {
                    expression(out, NFTA_LIST_ELEM, "payload", |out| {
                        put_u32(out, NFTA_PAYLOAD_DREG, register);
                        put_u32(out, NFTA_PAYLOAD_BASE, base);
                        put_u32(out, NFTA_PAYLOAD_OFFSET, offset);
                        put_u32(out, NFTA_PAYLOAD_LEN, length);
                    });
                };
            let value = |out: &mut Vec<u8>, kind: u16, value: u32| {
                nest(out, kind, |out| {
                    put_bytes(out, NFTA_DATA_VALUE, &value.to_ne_bytes());
                });
            };
            load(out, "ct", REGISTER, ct::STATUS, false);
            expression(out, NFTA_LIST_ELEM, "bitwise", |out| {
                put_u32(out, NFTA_BITWISE_SREG, REGISTER);
                put_u32(out, NFTA_BITWISE_DREG, REGISTER);
                put_u32(out, NFTA_BITWISE_LEN, 4);
                value(out, NFTA_BITWISE_MASK, DST_NAT);
                value(out, NFTA_BITWISE_XOR, 0);
            });
            expression(out, NFTA_LIST_ELEM, "cmp", |out| {
                put_u32(out, NFTA_CMP_SREG, REGISTER);
                put_u32(out, NFTA_CMP_OP, NFT_CMP_NEQ);
                value(out, NFTA_CMP_DATA, 0);
            });
            let (address, words) = match family {
                Family::V4 => (ct::DST_IP, 1),
                Family::V6 => (ct::DST_IP6, 4),
            };
            load(out, "ct", REGISTER, address, true);
            load(out, "meta", REGISTER + words, NFT_META_L4PROTO, false);
            load(out, "ct", REGISTER + words + 1, ct::PROTO_DST, true);
            if endpoints {
                // Where the destination is in the network header, and in the transport header.
                let daddr = match family {
                    Family::V4 => (NETWORK_HEADER, 16, 4),
                    Family::V6 => (NETWORK_HEADER, 24, 16),
                };
                payload(out, REGISTER + words + 2, daddr);
                payload(out, REGISTER + words + 2 + words, (TRANSPORT_HEADER, 2, 2));
            }
            expression(out, NFTA_LIST_ELEM, "dynset", |out| {
                put_string(out, NFTA_DYNSET_SET_NAME, set);
                put_u32(out, NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE);
                put_u32(out, NFTA_DYNSET_SREG_KEY, REGISTER);
                expression(out, NFTA_DYNSET_EXPR, "counter", |_| ());
            });
        });
    })
}

/// The sets of the table, if it is there.
pub(crate) fn sets(socket: &mut Socket, family: Family) -> Result<Vec<String>, SocketError> {
    let mut narrow = Vec::new();
    put_string(&mut narrow, NFTA_SET_TABLE, COUNTS);
    let kind = message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETSET);
    let request = dump_request(kind, family, &narrow);
    let listed = socket.dump_once(&request, Vec::new(), |names, message| {
        let attributes = message.attributes();
        if find(attributes, NFTA_SET_TABLE).and_then(string) == Some(COUNTS) {
            let name = find(attributes, NFTA_SET_NAME).and_then(string);
            names.extend(name.map(str::to_owned));
        }
    });
    match listed {
        Ok((names, _)) => Ok(names),
        Err(SocketError::Dump(nix::errno::Errno::ENOENT)) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// What one element has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// What was connected to.
    pub destination: Destination,
    /// Where to, if that is counted.
    pub endpoint: Option<Endpoint>,
    /// How many connections began.
    pub connections: u64,
}

/// Reads a set.
pub(crate) fn read(
    socket: &mut Socket,
    family: Family,
    set: &str,
) -> Result<Vec<Counted>, SocketError> {
    let mut narrow = Vec::new();
    put_string(&mut narrow, NFTA_SET_ELEM_LIST_TABLE, COUNTS);
    put_string(&mut narrow, NFTA_SET_ELEM_LIST_SET, set);
    let kind = message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETSETELEM);
    let request = dump_request(kind, family, &narrow);
    let (counted, _) = socket.dump_once(&request, Vec::new(), |counted, message| {
        let elements = find(message.attributes(), NFTA_SET_ELEM_LIST_ELEMENTS);
        let elements = elements.into_iter().flat_map(Attributes);
        counted.extend(elements.filter_map(|(_, element)| element_of(family, element)));
    })?;
    Ok(counted)
}

fn element_of(family: Family, element: &[u8]) -> Option<Counted> {
    let key = find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
    let counter = find(find(element, NFTA_SET_ELEM_EXPR)?, NFTA_EXPR_DATA)?;
    let packets = find(counter, NFTA_COUNTER_PACKETS)?;
    let mut fields = Fields(key);
    let destination = Destination {
        host: Host::Address(fields.address(family)?),
        protocol: fields.protocol()?,
        port: fields.port()?,
    };
    Some(Counted {
        destination,
        endpoint: fields.endpoint(family),
        connections: u64::from_be_bytes(packets.try_into().ok()?),
    })
}

/// A message that takes elements away.
pub(crate) fn removal(family: Family, set: &str, gone: &[Counted]) -> Vec<u8> {
    message(NFT_MSG_DELSETELEM, family, 0, |out| {
        put_string(out, NFTA_SET_ELEM_LIST_TABLE, COUNTS);
        put_string(out, NFTA_SET_ELEM_LIST_SET, set);
        nest(out, NFTA_SET_ELEM_LIST_ELEMENTS, |out| {
            for counted in gone {
                let mut key = Key::new();
                key.destination(&counted.destination);
                if let Some(endpoint) = counted.endpoint {
                    key.endpoint(endpoint);
                }
                nest(out, NFTA_LIST_ELEM, |out| {
                    nest(out, NFTA_SET_ELEM_KEY, |out| {
                        put_bytes(out, NFTA_DATA_VALUE, key.as_slice());
                    });
                });
            }
        });
    })
}
