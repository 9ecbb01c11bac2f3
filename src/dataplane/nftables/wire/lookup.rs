//! Reading back the endpoints of many Services: asked for list by list instead of dumped.
//!
//! The kernel dumps a hash table in pieces and walks over all that it has dumped already for each
//! of them (`nft_rhash_walk`): 200,000 elements take seconds, a million well over a minute. The
//! routes say which lists there are, and asking for the places of each takes the same time for
//! each. An element that no route leads to is not seen, and gets no traffic; where the kernel counts
//! a set's elements (`NFTA_SET_COUNT`, since 6.16) it is noticed and the set is dumped after all.
//! Elsewhere it is found when its place is to be filled and the transaction fails.

use super::elements::{self, Listed};
use super::uapi::*;
use crate::core::ir::{Destination, Host};
use crate::core::model::{Endpoint, Family};
use crate::dataplane::nftables::contents::Assembly;
use crate::dataplane::nftables::program::TABLE;
use crate::dataplane::nftables::program::element::Element;
use crate::dataplane::nftables::program::numbers::{BARE_MASK, place};
use crate::dataplane::nftables::program::sets::SetId;
use crate::host::netlink::attributes::{begin_nest, end_nest, put_string};
use crate::host::netlink::socket::{Socket, SocketError};
use crate::host::netlink::{
    NLM_F_ACK, NLM_F_REQUEST, close_message, family_number, message_type, put_headers,
};

/// Up to so many elements a dump is as fast.
const DUMPED: usize = 40_000;
/// More than any cluster has: somebody has written routes that lead to nothing.
const MOST: usize = 1 << 23;
/// Elements asked for at once: the receive buffer has to hold the answers, a message of less than a
/// kilobyte for each, even where it cannot be made larger than the usual 208 KiB.
const AT_ONCE: usize = 128;

/// The elements of a set of endpoints or of ids. `known` has all routes, and for endpoints all ids;
/// `counted` is how many elements the kernel counts, if it does. `None` if the set had better be
/// dumped: it is small, or another one, or holds what is not known of.
pub(super) fn read(
    socket: &mut Socket,
    family: Family,
    set: SetId,
    known: &Assembly,
    counted: Option<u32>,
) -> Result<Option<Vec<Element<'static>>>, SocketError> {
    let ids = match set {
        SetId::Endpoints | SetId::NodePortEndpoints => false,
        SetId::AffinityIds | SetId::AffinityNodePortIds => true,
        _ => return Ok(None),
    };
    let is_mine = |destination: &Destination| {
        let node_port = matches!(destination.host, Host::Node(_));
        node_port == matches!(set, SetId::NodePortEndpoints | SetId::AffinityNodePortIds)
    };
    let places = || {
        known
            .lists(ids)
            .filter(|(destination, ..)| is_mine(destination))
    };
    let of_ids = || known.ids().filter(|(destination, _)| is_mine(destination));
    let expected: usize = places()
        .map(|(.., size)| size.places() as usize)
        .chain(of_ids().map(|(_, ids)| ids.len()))
        .sum();
    if !(DUMPED..MOST).contains(&expected) {
        return Ok(None);
    }
    let mut reader = Reader {
        socket,
        family,
        set,
        // The kernel's answer to a message ends with the first element that is not there. If there
        // can be no more behind it unnoticed, one message may ask for many; otherwise each place
        // has its own.
        in_a_message: if counted.is_some() { AT_ONCE } else { 1 },
        found: Vec::with_capacity(counted.map_or(0, |counted| counted as usize)),
        request: Vec::new(),
        messages: 0,
        asked: 0,
        strange: false,
    };
    let result = (|| {
        for (destination, list, size) in places() {
            let numbers = (0..size.places()).map(|index| place(list, index));
            reader.put_list(destination, numbers)?;
        }
        if ids {
            // What is under a place is under its id without the class, too.
            reader.ask()?;
            let bares: Vec<(Destination, u32)> = reader
                .found
                .iter()
                .filter_map(|element| match element {
                    Element::Id {
                        destination, id, ..
                    } => Some((*destination, id & BARE_MASK)),
                    _ => None,
                })
                .collect();
            for (destination, bare) in bares {
                reader.put_list(destination, std::iter::once(bare))?;
            }
        } else {
            for (destination, ids) in of_ids() {
                let numbers = ids.iter().filter(|(number, _)| !is_place(**number));
                reader.put_list(destination, numbers.map(|(_, id)| *id))?;
            }
        }
        reader.ask()
    })();
    match result {
        // Whatever it is, a dump may do.
        Err(error) if !matches!(error, SocketError::NotPermitted) => {
            tracing::debug!(%family, set = set.name(), %error, "elements cannot be asked for");
            Ok(None)
        }
        Err(error) => Err(error),
        Ok(()) => {
            let found = reader.found.len() as u64;
            let complete = counted.is_none_or(|counted| found == u64::from(counted));
            Ok((complete && !reader.strange).then_some(reader.found))
        }
    }
}

const fn is_place(number: u32) -> bool {
    crate::dataplane::nftables::program::numbers::place_of(number).is_some()
}

struct Reader<'a> {
    socket: &'a mut Socket,
    family: Family,
    set: SetId,
    in_a_message: usize,
    found: Vec<Element<'static>>,
    /// Messages that have not been sent, how many, and how many elements they ask for.
    request: Vec<u8>,
    messages: usize,
    asked: usize,
    /// Something was found that we do not write.
    strange: bool,
}

impl Reader<'_> {
    /// Asks for some numbers of a destination, the last of which may not be there.
    fn put_list(
        &mut self,
        destination: Destination,
        numbers: impl Iterator<Item = u32>,
    ) -> Result<(), SocketError> {
        let mut numbers = numbers.peekable();
        while numbers.peek().is_some() {
            let chunk: Vec<u32> = numbers.by_ref().take(self.in_a_message).collect();
            if self.asked + chunk.len() > AT_ONCE {
                self.ask()?;
            }
            self.put(destination, &chunk);
            // Places are filled from the first one on: a long list ends where one is empty.
            if numbers.peek().is_some() && self.in_a_message > 1 {
                let before = self.found.len();
                self.ask()?;
                if self.found.len() - before < chunk.len() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Adds a message that asks for some elements. The kernel answers up to the first that is not
    /// there.
    fn put(&mut self, destination: Destination, numbers: &[u32]) {
        let start = self.request.len();
        let out = &mut self.request;
        put_headers(
            out,
            message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETSETELEM),
            NLM_F_REQUEST | NLM_F_ACK,
            0,
            family_number(self.family),
            0,
        );
        put_string(out, NFTA_SET_ELEM_LIST_TABLE, TABLE);
        put_string(out, NFTA_SET_ELEM_LIST_SET, self.set.name());
        let elements = begin_nest(out, NFTA_SET_ELEM_LIST_ELEMENTS);
        for number in numbers {
            let element = Element::Endpoint {
                destination,
                number: *number,
                endpoint: Endpoint::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0),
            };
            elements::put_key(out, &element);
        }
        end_nest(out, elements);
        close_message(out, start);
        self.messages += 1;
        self.asked += numbers.len();
    }

    fn ask(&mut self) -> Result<(), SocketError> {
        let Self {
            set,
            family,
            found,
            strange,
            ..
        } = self;
        self.socket.ask(&self.request, self.messages, |message| {
            for attributes in elements::listed(message.attributes()) {
                let listed = Listed::read(attributes);
                match listed.and_then(|listed| listed.element(*set, *family)) {
                    Some(element) => found.push(element.into_owned()),
                    None => *strange = true,
                }
            }
        })?;
        self.request.clear();
        self.messages = 0;
        self.asked = 0;
        Ok(())
    }
}
