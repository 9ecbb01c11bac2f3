//! Set elements in netlink's encoding: the hot path.
//!
//! The layout of a key follows the registers of the rule that looks it up: each field fills
//! whole 4-byte registers. Addresses and ports are in network byte order, slot numbers in the
//! host's, as `numgen` makes them. Writing is direct; reading is for dumps and forgives nothing:
//! an element that we could not have written is `None`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::uapi::*;
use crate::core::ir::{Destination, Host, List, Shared};
use crate::core::model::{Endpoint, Family, Protocol};
use crate::core::networks;
use crate::dataplane::nftables::program::choice::Verdict;
use crate::dataplane::nftables::program::element::{Comment, Element};
use crate::dataplane::nftables::program::numbers::{self, Shape};
use crate::dataplane::nftables::program::sets::{Data, Field, SetId};
use crate::host::netlink::attributes::{
    Attributes, be_u32, begin_nest, end_nest, find, put_bytes, put_string, put_u32, string,
};

/// The longest key: two IPv6 addresses, a protocol, a port and a number, or another port.
const KEY_MAX: usize = 44;

/// A key under construction.
pub(super) struct Key {
    bytes: [u8; KEY_MAX],
    length: usize,
}

impl Key {
    pub(super) const fn new() -> Self {
        Self {
            bytes: [0; KEY_MAX],
            length: 0,
        }
    }

    fn put(&mut self, value: &[u8]) -> &mut Self {
        let end = self.length + value.len();
        self.bytes[self.length..end].copy_from_slice(value);
        self.length = end.next_multiple_of(4);
        self
    }

    pub(super) fn address(&mut self, address: IpAddr) -> &mut Self {
        match address {
            IpAddr::V4(address) => self.put(&address.octets()),
            IpAddr::V6(address) => self.put(&address.octets()),
        }
    }

    pub(super) fn protocol_port(&mut self, protocol: Protocol, port: u16) -> &mut Self {
        self.put(&[protocol.number()]).put(&port.to_be_bytes())
    }

    pub(super) fn destination(&mut self, destination: &Destination) -> &mut Self {
        if let Host::Address(address) = destination.host {
            self.address(address);
        }
        self.protocol_port(destination.protocol, destination.port)
    }

    pub(super) fn endpoint(&mut self, endpoint: Endpoint) -> &mut Self {
        self.address(endpoint.address)
            .put(&endpoint.port.to_be_bytes())
    }

    fn number(&mut self, number: u32) -> &mut Self {
        self.put(&number.to_ne_bytes())
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Bytes that no single element exceeds: a range's two keys, a verdict with a chain's name and
/// a comment, with their headers.
pub(crate) const ELEMENT_MAX: usize = 512;

/// Appends an element, with its value.
pub(crate) fn put(out: &mut Vec<u8>, element: &Element<'_>) {
    put_with(out, element, true);
}

/// Appends an element to delete: its key alone.
pub(crate) fn put_key(out: &mut Vec<u8>, element: &Element<'_>) {
    put_with(out, element, false);
}

fn put_with(out: &mut Vec<u8>, value: &Element<'_>, with_value: bool) {
    let mut key = Key::new();
    match value {
        Element::Endpoint {
            destination,
            number,
            endpoint,
        } => {
            key.destination(destination).number(*number);
            element(out, key.as_slice(), |out| {
                if with_value {
                    put_endpoint(out, *endpoint);
                }
            });
        }
        Element::Shape {
            destination,
            shape,
            comment,
            ..
        } => {
            key.destination(destination);
            element(out, key.as_slice(), |out| {
                if with_value {
                    put_number(out, shape.number());
                    if let Some(comment) = comment {
                        put_comment(out, &comment.text());
                    }
                }
            });
        }
        Element::Id {
            destination,
            number,
            id,
        } => {
            key.destination(destination).number(*number);
            element(out, key.as_slice(), |out| {
                if with_value {
                    put_number(out, *id);
                }
            });
        }
        Element::NoEndpoints { destination, label } => {
            key.destination(destination);
            element(out, key.as_slice(), |out| {
                if with_value {
                    put_comment(out, label);
                }
            });
        }
        Element::Guarded { destination } => {
            key.destination(destination);
            element(out, key.as_slice(), |_| {});
        }
        Element::AllowedSource {
            destination,
            network,
        } => {
            key.destination(destination)
                .address(network.ip())
                .number(numbers::prefix_length(network.prefix()));
            element(out, key.as_slice(), |_| {});
        }
        Element::Shared(shared) => put_shared(out, *shared),
        Element::Verdict {
            number, verdict, ..
        } => {
            key.number(*number);
            element(out, key.as_slice(), |out| {
                if with_value {
                    put_verdict(out, verdict);
                }
            });
        }
    }
}

fn put_shared(out: &mut Vec<u8>, shared: Shared) {
    let mut key = Key::new();
    match shared {
        Shared::ClusterIp(address) | Shared::NodePortAddress(address) => {
            key.address(address);
            element(out, key.as_slice(), |_| {});
        }
        Shared::Hairpin { protocol, endpoint } => {
            key.address(endpoint.address)
                .address(endpoint.address)
                .protocol_port(protocol, endpoint.port);
            element(out, key.as_slice(), |_| {});
        }
        Shared::ServiceCidr(network) => {
            key.address(network.ip());
            element(out, key.as_slice(), |_| {});
            // A range is two elements: its first address, and the first one beyond it.
            if let Some(beyond) = networks::after(network) {
                let mut end = Key::new();
                end.address(beyond);
                element(out, end.as_slice(), |out| {
                    put_u32(out, NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
                });
            }
        }
    }
}

fn element(out: &mut Vec<u8>, key: &[u8], rest: impl FnOnce(&mut Vec<u8>)) {
    let element = begin_nest(out, NFTA_LIST_ELEM);
    put_value(out, NFTA_SET_ELEM_KEY, key);
    rest(out);
    end_nest(out, element);
}

fn put_value(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let data = begin_nest(out, kind);
    put_bytes(out, NFTA_DATA_VALUE, value);
    end_nest(out, data);
}

fn put_endpoint(out: &mut Vec<u8>, endpoint: Endpoint) {
    let mut data = Key::new();
    data.address(endpoint.address)
        .put(&endpoint.port.to_be_bytes());
    put_value(out, NFTA_SET_ELEM_DATA, data.as_slice());
}

fn put_number(out: &mut Vec<u8>, number: u32) {
    put_value(out, NFTA_SET_ELEM_DATA, &number.to_ne_bytes());
}

fn put_verdict(out: &mut Vec<u8>, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (NF_DROP, None),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
    };
    let data = begin_nest(out, NFTA_SET_ELEM_DATA);
    let nest = begin_nest(out, NFTA_DATA_VERDICT);
    put_u32(out, NFTA_VERDICT_CODE, code.cast_unsigned());
    if let Some(chain) = chain {
        put_string(out, NFTA_VERDICT_CHAIN, chain);
    }
    end_nest(out, nest);
    end_nest(out, data);
}

/// The longest comment, in bytes (`NFTNL_UDATA_COMMENT_MAXLEN` in libnftnl's `udata.h`).
const COMMENT_MAX: usize = 128;

fn put_comment(out: &mut Vec<u8>, text: &str) {
    // Labels are ASCII and of this length at most; what is said behind one may go beyond.
    let text = text.as_bytes();
    let text = text.get(..COMMENT_MAX).unwrap_or(text);
    let mut user_data = Vec::with_capacity(text.len() + 3);
    user_data.push(udata::ELEM_COMMENT);
    user_data.push(u8::try_from(text.len() + 1).unwrap_or(u8::MAX));
    user_data.extend_from_slice(text);
    user_data.push(0);
    put_bytes(out, NFTA_SET_ELEM_USERDATA, &user_data);
}

/// Takes fields off a key or a value.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let value = self.0.get(..N)?.try_into().ok()?;
        self.0 = self.0.get(N.next_multiple_of(4)..)?;
        Some(value)
    }

    pub(super) fn address(&mut self, family: Family) -> Option<IpAddr> {
        Some(match family {
            Family::V4 => Ipv4Addr::from(self.take::<4>()?).into(),
            Family::V6 => Ipv6Addr::from(self.take::<16>()?).into(),
        })
    }

    pub(super) fn protocol(&mut self) -> Option<Protocol> {
        Protocol::from_number(self.take::<1>()?[0])
    }

    pub(super) fn port(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take()?))
    }

    fn destination(&mut self, set: SetId, family: Family) -> Option<Destination> {
        let host = if set.key(family).first() == Some(&Field::Address) {
            Host::Address(self.address(family)?)
        } else {
            Host::Node(family)
        };
        Some(Destination {
            host,
            protocol: self.protocol()?,
            port: self.port()?,
        })
    }

    pub(super) fn number(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take()?))
    }

    pub(super) fn endpoint(&mut self, family: Family) -> Option<Endpoint> {
        Some(Endpoint::new(self.address(family)?, self.port()?))
    }
}

/// Where a verdict that was listed leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ListedVerdict<'a> {
    Drop,
    Jump(&'a str),
    Goto(&'a str),
}

/// An element as listed.
pub(crate) struct Listed<'a> {
    key: &'a [u8],
    data: Option<&'a [u8]>,
    verdict: Option<ListedVerdict<'a>>,
    comment: Option<&'a str>,
    interval_end: bool,
}

impl<'a> Listed<'a> {
    /// Reads the attributes of one element. `None` if it holds what we never write.
    pub(crate) fn read(attributes: &'a [u8]) -> Option<Self> {
        let value = |nested| find(nested, NFTA_DATA_VALUE);
        let mut element = Self {
            key: value(find(attributes, NFTA_SET_ELEM_KEY)?)?,
            data: None,
            verdict: None,
            comment: None,
            interval_end: false,
        };
        if let Some(data) = find(attributes, NFTA_SET_ELEM_DATA) {
            element.data = value(data);
            if let Some(verdict) = find(data, NFTA_DATA_VERDICT) {
                let code = find(verdict, NFTA_VERDICT_CODE).and_then(be_u32)?;
                let chain = find(verdict, NFTA_VERDICT_CHAIN).and_then(string);
                element.verdict = Some(match code.cast_signed() {
                    NFT_JUMP => ListedVerdict::Jump(chain?),
                    NFT_GOTO => ListedVerdict::Goto(chain?),
                    NF_DROP => ListedVerdict::Drop,
                    _ => return None,
                });
            }
        }
        if let Some(flags) = find(attributes, NFTA_SET_ELEM_FLAGS).and_then(be_u32) {
            element.interval_end = flags & NFT_SET_ELEM_INTERVAL_END != 0;
        }
        if let Some(user_data) = find(attributes, NFTA_SET_ELEM_USERDATA) {
            element.comment = Some(comment(user_data)?);
        }
        Some(element)
    }

    /// What it is; `None` if it is not one that we write.
    pub(crate) fn element(&self, set: SetId, family: Family) -> Option<Element<'a>> {
        let mut key = Fields(self.key);
        if set.is_of_the_program() || set.is_dynamic() || set == SetId::ServiceCidrs {
            return None;
        }
        Some(match set.data() {
            Data::Endpoint => Element::Endpoint {
                destination: key.destination(set, family)?,
                number: key.number()?,
                endpoint: Fields(self.data?).endpoint(family)?,
            },
            Data::Number => {
                let destination = key.destination(set, family)?;
                let number = Fields(self.data?).number()?;
                if matches!(set, SetId::AffinityIds | SetId::AffinityNodePortIds) {
                    return Some(Element::Id {
                        destination,
                        number: key.number()?,
                        id: number,
                    });
                }
                let primary = matches!(set, SetId::ServiceIps | SetId::ServiceNodePorts);
                let shape = Shape::from_number(number)?;
                if let Shape::Balance { node_port, .. } = shape
                    && node_port != matches!(destination.host, Host::Node(_))
                {
                    return None;
                }
                Element::Shape {
                    destination,
                    list: if primary {
                        List::Primary
                    } else {
                        List::External
                    },
                    shape,
                    comment: primary.then(|| Comment::from_text(self.comment.unwrap_or_default())),
                }
            }
            Data::Verdict => return None,
            Data::None => match set {
                SetId::NoEndpointsIps | SetId::NoEndpointsNodePorts => Element::NoEndpoints {
                    destination: key.destination(set, family)?,
                    label: self.comment.unwrap_or_default().into(),
                },
                SetId::GuardedIps => Element::Guarded {
                    destination: key.destination(set, family)?,
                },
                SetId::AllowedSources => {
                    let destination = key.destination(set, family)?;
                    let address = key.address(family)?;
                    let length = numbers::length_of(key.number()?)?;
                    let network = IpNetwork::new(address, length).ok()?;
                    let is_whole = network.network() == address;
                    is_whole.then_some(Element::AllowedSource {
                        destination,
                        network,
                    })?
                }
                SetId::ClusterIps => Element::Shared(Shared::ClusterIp(key.address(family)?)),
                SetId::NodePortIps => {
                    Element::Shared(Shared::NodePortAddress(key.address(family)?))
                }
                SetId::Hairpin => {
                    let address = key.address(family)?;
                    let same = key.address(family)? == address;
                    let protocol = key.protocol()?;
                    let endpoint = Endpoint::new(address, key.port()?);
                    same.then_some(Element::Shared(Shared::Hairpin { protocol, endpoint }))?
                }
                _ => return None,
            },
        })
    }

    /// A number and where a verdict map of the program leads from there.
    pub(crate) fn number_verdict(&self) -> Option<(u32, Verdict)> {
        let verdict = match self.verdict? {
            ListedVerdict::Drop => Verdict::Drop,
            ListedVerdict::Jump(chain) => Verdict::Jump(chain.to_owned()),
            ListedVerdict::Goto(chain) => Verdict::Goto(chain.to_owned()),
        };
        Some((Fields(self.key).number()?, verdict))
    }

    /// The address of one end of a range in an interval set, and whether it is the first one
    /// beyond the range.
    pub(crate) fn interval_bound(&self, family: Family) -> Option<(IpAddr, bool)> {
        Some((Fields(self.key).address(family)?, self.interval_end))
    }
}

fn comment(user_data: &[u8]) -> Option<&str> {
    let (kind, length) = (*user_data.first()?, usize::from(*user_data.get(1)?));
    if kind != udata::ELEM_COMMENT {
        return None;
    }
    string(user_data.get(2..2 + length)?)
}

/// The elements in a message that lists them.
pub(crate) fn listed(attributes: &[u8]) -> impl Iterator<Item = &[u8]> {
    Attributes(find(attributes, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or(&[]))
        .filter(|(kind, _)| *kind == NFTA_LIST_ELEM)
        .map(|(_, element)| element)
}

#[cfg(test)]
#[path = "elements_tests.rs"]
mod tests;
