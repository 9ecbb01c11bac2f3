//! Reading back the endpoints of many Services: asked for list by list instead of dumped.
//!
//! The kernel dumps a hash table in pieces and walks over all that it has dumped already for each
//! of them (`nft_rhash_walk`): 200,000 elements take seconds, a million well over a minute. The
//! routes say which lists there are, and asking for the places of each takes the same time for
//! each. An element that no route leads to is not seen, and gets no traffic; where the kernel counts
//! a set's elements (`NFTA_SET_COUNT`, since 6.16) it is noticed and the set is dumped after all.
//! Elsewhere it is found when its place is to be filled and the transaction fails.

use super::elements::{self, Element};
use super::uapi::*;
use crate::backend::nftables::program::TABLE;
use crate::backend::nftables::sets::SetId;
use crate::ir::{Destination, Entry, List, Route};
use crate::model::{Endpoint, Family};
use crate::netlink::attributes::{begin_nest, end_nest, put_string};
use crate::netlink::socket::{Socket, SocketError};
use crate::netlink::{
    NLM_F_ACK, NLM_F_REQUEST, close_message, family_number, message_type, put_headers,
};

/// Up to so many places a dump is as fast.
const DUMPED: u64 = 40_000;
/// Places asked for at once: the receive buffer has to hold the answers, a message of less than a
/// kilobyte for each, even where it cannot be made larger than the usual 208 KiB.
const AT_ONCE: u32 = 128;

/// One of a destination's lists, and how many places it has.
#[derive(Clone, Copy)]
struct Places {
    destination: Destination,
    list: List,
    places: u32,
}

impl Places {
    /// The list that an entry leads to, if it does.
    fn of(entry: &Entry) -> Option<Self> {
        let (destination, list, route) = match entry {
            Entry::Route {
                destination, route, ..
            } => (*destination, List::Primary, route),
            Entry::ExternalRoute { destination, route } => (*destination, List::External, route),
            _ => return None,
        };
        let Route::Balance { places, .. } = *route else {
            return None;
        };
        Some(Self {
            destination,
            list,
            places,
        })
    }

    /// What is at a place, but for the endpoint.
    const fn slot(self, index: u32) -> Entry {
        Entry::Slot {
            destination: self.destination,
            list: self.list,
            index,
            endpoint: Endpoint::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0),
        }
    }
}

/// The entries of a set of endpoints. `routes` has all entries of the sets that lead to it,
/// `counted` is how many elements the kernel counts, if it does. `None` if the set had better be
/// dumped: it is small, or holds what the routes do not tell.
pub(super) fn read(
    socket: &mut Socket,
    family: Family,
    set: SetId,
    routes: &[Entry],
    counted: Option<u32>,
) -> Result<Option<Vec<Entry>>, SocketError> {
    let lists = || {
        routes
            .iter()
            .filter_map(Places::of)
            .filter(|list| SetId::of(&list.slot(0)) == set)
    };
    let places: u64 = lists().map(|list| u64::from(list.places)).sum();
    if places <= DUMPED {
        return Ok(None);
    }
    match read_lists(socket, family, set, lists(), counted) {
        // Whatever it is, a dump may do.
        Err(error) if !matches!(error, SocketError::NotPermitted) => {
            tracing::debug!(%family, set = set.name(), %error, "places cannot be asked for");
            Ok(None)
        }
        result => result,
    }
}

fn read_lists(
    socket: &mut Socket,
    family: Family,
    set: SetId,
    lists: impl Iterator<Item = Places>,
    counted: Option<u32>,
) -> Result<Option<Vec<Entry>>, SocketError> {
    // The kernel's answer to a message ends with the first place that is empty. If there can be
    // no more behind it unnoticed, one message may ask for many; otherwise each place has its own.
    let in_a_message = if counted.is_some() { AT_ONCE } else { 1 };
    let mut reader = Reader {
        socket,
        family,
        set,
        found: Vec::with_capacity(counted.map_or(0, |counted| counted as usize)),
        request: Vec::new(),
        messages: 0,
        asked: 0,
        strange: false,
    };
    for list in lists {
        let mut first = 0;
        while first < list.places {
            let count = (list.places - first).min(in_a_message);
            if reader.asked + count > AT_ONCE {
                reader.ask()?;
            }
            reader.put(list, first, count);
            first += count;
            // Places are filled from the first one on: a long list ends where one is empty.
            if first < list.places && counted.is_some() {
                let before = reader.found.len();
                reader.ask()?;
                if reader.found.len() - before < count as usize {
                    break;
                }
            }
        }
    }
    reader.ask()?;
    let complete = counted.is_none_or(|counted| reader.found.len() as u64 == u64::from(counted));
    Ok((complete && !reader.strange).then_some(reader.found))
}

struct Reader<'a> {
    socket: &'a mut Socket,
    family: Family,
    set: SetId,
    found: Vec<Entry>,
    /// Messages that have not been sent, how many, and how many places they ask for.
    request: Vec<u8>,
    messages: usize,
    asked: u32,
    /// Something was found that we do not write.
    strange: bool,
}

impl Reader<'_> {
    /// Adds a message that asks for some of a list's places. The kernel answers up to the first
    /// that is empty.
    fn put(&mut self, list: Places, first: u32, count: u32) {
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
        put_string(out, NFTA_SET_ELEM_LIST_SET, &self.set.name());
        let elements = begin_nest(out, NFTA_SET_ELEM_LIST_ELEMENTS);
        for index in first..first + count {
            elements::put_entry_key(out, &list.slot(index));
        }
        end_nest(out, elements);
        close_message(out, start);
        self.messages += 1;
        self.asked += count;
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
                let element = Element::read(attributes);
                match element.and_then(|element| element.entry(*set, *family)) {
                    Some(entry) => found.push(entry),
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
