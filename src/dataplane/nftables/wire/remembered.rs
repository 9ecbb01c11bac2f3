//! Whom a client comes back to: the three lookups of a chain that remembers, done by hand.

use std::net::IpAddr;

use super::elements::{self, Fields, Key};
use super::uapi::*;
use crate::core::ir::{Destination, Host};
use crate::core::model::{Endpoint, Family, Protocol};
use crate::dataplane::nftables::program::TABLE;
use crate::dataplane::nftables::program::element::Element;
use crate::dataplane::nftables::program::numbers::BARE_MASK;
use crate::dataplane::nftables::program::sets::SetId;
use crate::host::netlink::attributes::{begin_nest, end_nest, find, put_bytes, put_string};
use crate::host::netlink::socket::{Socket, SocketError};
use crate::host::netlink::{
    NLM_F_ACK, NLM_F_REQUEST, close_message, family_number, message_type, put_headers,
};

/// An endpoint, and for how many milliseconds more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// For how much longer, in milliseconds.
    pub left_ms: u64,
}

/// Looks a client up that connects to a destination at an address, which of a `NodePort` is one of the node's.
pub(crate) fn remembered(
    socket: &mut Socket,
    client: IpAddr,
    destination: Destination,
    at: IpAddr,
) -> Result<Option<Memory>, SocketError> {
    let family = destination.family();
    let (ids, endpoints) = match destination.host {
        Host::Address(_) => (SetId::AffinityIds, SetId::Endpoints),
        Host::Node(_) => (SetId::AffinityNodePortIds, SetId::NodePortEndpoints),
    };
    let key = client_key(client, at, destination.protocol, destination.port);
    let put_client = |out: &mut Vec<u8>| {
        let element = begin_nest(out, NFTA_LIST_ELEM);
        let nested = begin_nest(out, NFTA_SET_ELEM_KEY);
        put_bytes(out, NFTA_DATA_VALUE, &key);
        end_nest(out, nested);
        end_nest(out, element);
    };
    let number = |found: &Found| Fields(&found.data).number();
    let Some(known) = get(socket, family, SetId::Affinity, put_client)? else {
        return Ok(None);
    };
    let Some(id) = number(&known) else {
        return Ok(None);
    };
    let put_number = |number| {
        move |out: &mut Vec<u8>| {
            let endpoint = Endpoint::new(at, 0);
            let element = Element::Endpoint {
                destination,
                number,
                endpoint,
            };
            elements::put_key(out, &element);
        }
    };
    let held = get(socket, family, ids, put_number(id & BARE_MASK))?;
    let Some(id) = held.as_ref().and_then(number) else {
        return Ok(None);
    };
    let found = get(socket, family, endpoints, put_number(id))?;
    let endpoint = found.and_then(|found| Fields(&found.data).endpoint(family));
    Ok(endpoint.map(|endpoint| Memory {
        endpoint,
        left_ms: known.left_ms.unwrap_or(0),
    }))
}

struct Found {
    data: Vec<u8>,
    left_ms: Option<u64>,
}

fn get(
    socket: &mut Socket,
    family: Family,
    set: SetId,
    put: impl FnOnce(&mut Vec<u8>),
) -> Result<Option<Found>, SocketError> {
    let mut request = Vec::new();
    put_headers(
        &mut request,
        message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETSETELEM),
        NLM_F_REQUEST | NLM_F_ACK,
        0,
        family_number(family),
        0,
    );
    put_string(&mut request, NFTA_SET_ELEM_LIST_TABLE, TABLE);
    put_string(&mut request, NFTA_SET_ELEM_LIST_SET, set.name());
    let nested = begin_nest(&mut request, NFTA_SET_ELEM_LIST_ELEMENTS);
    put(&mut request);
    end_nest(&mut request, nested);
    close_message(&mut request, 0);
    let mut found = None;
    socket.ask(&request, 1, |message| {
        for attributes in elements::listed(message.attributes()) {
            let data =
                find(attributes, NFTA_SET_ELEM_DATA).and_then(|data| find(data, NFTA_DATA_VALUE));
            let left = find(attributes, NFTA_SET_ELEM_EXPIRATION);
            found = data.map(|data| Found {
                data: data.to_vec(),
                left_ms: left.and_then(|left| Some(u64::from_be_bytes(left.try_into().ok()?))),
            });
        }
    })?;
    Ok(found)
}

/// The key under which a client is remembered: in IPv6, two hashes of it.
fn client_key(client: IpAddr, at: IpAddr, protocol: Protocol, port: u16) -> Vec<u8> {
    let mut key = Key::new();
    key.address(client)
        .address(at)
        .protocol_port(protocol, port);
    let plain = key.as_slice();
    if client.is_ipv4() {
        return plain.to_vec();
    }
    [1, 2]
        .iter()
        .flat_map(|seed| scaled(jhash(plain, *seed)).to_ne_bytes())
        .collect()
}

/// `reciprocal_scale` by the modulus of the program's hashes.
fn scaled(hash: u32) -> u32 {
    // A product of two u32 shifted by 32 bits fits.
    u32::try_from((u64::from(hash) * u64::from(u32::MAX)) >> 32).unwrap_or(0)
}

/// `jhash` of `include/linux/jhash.h`.
#[allow(clippy::many_single_char_names, reason = "the names are the kernel's")]
fn jhash(key: &[u8], initval: u32) -> u32 {
    let length = u32::try_from(key.len()).unwrap_or(0);
    let start = 0xdead_beef_u32.wrapping_add(length).wrapping_add(initval);
    let (mut a, mut b, mut c) = (start, start, start);
    let word = |bytes: &[u8]| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        u32::from_ne_bytes(word)
    };
    let mut rest = key;
    while rest.len() > 12 {
        a = a.wrapping_add(word(&rest[..4]));
        b = b.wrapping_add(word(&rest[4..8]));
        c = c.wrapping_add(word(&rest[8..12]));
        for [x, y, z] in [[4, 6, 8], [16, 19, 4]] {
            a = a.wrapping_sub(c) ^ c.rotate_left(x);
            c = c.wrapping_add(b);
            b = b.wrapping_sub(a) ^ a.rotate_left(y);
            a = a.wrapping_add(c);
            c = c.wrapping_sub(b) ^ b.rotate_left(z);
            b = b.wrapping_add(a);
        }
        rest = &rest[12..];
    }
    let mut words = rest.chunks(4).map(word);
    a = a.wrapping_add(words.next().unwrap_or(0));
    b = b.wrapping_add(words.next().unwrap_or(0));
    c = c.wrapping_add(words.next().unwrap_or(0));
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}
