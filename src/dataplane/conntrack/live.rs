//! How many flows there are to a destination, and where they go.

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use super::flow::{self, Filter, Flow};
use crate::core::ir::{Destination, Host};
use crate::core::model::Endpoint;
use crate::host::netlink::SocketError;
use crate::host::netlink::socket::Socket;

/// Counts the flows to a destination by the endpoint that answers. Of a `NodePort`, flows to these addresses
/// count.
///
/// # Errors
///
/// If conntrack cannot be asked.
pub fn live(
    destination: Destination,
    node_addresses: &[IpAddr],
) -> Result<FxHashMap<Endpoint, u64>, SocketError> {
    let filter = Filter {
        family: destination.family(),
        protocol: destination.protocol,
        only: Some(destination),
        unanswered: false,
    };
    let is_asked = |flow: &Flow| {
        let to = flow.destination;
        to.port == destination.port
            && flow.protocol == destination.protocol
            && match destination.host {
                Host::Address(address) => to.address == address,
                Host::Node(_) => node_addresses.contains(&to.address),
            }
    };
    let request = flow::request(filter);
    let (counts, _) = Socket::open()?.dump_once(
        &request,
        FxHashMap::default(),
        |counts: &mut FxHashMap<Endpoint, u64>, message| {
            if let Some(flow) = Flow::read(message.attributes(), filter.family)
                && is_asked(&flow)
            {
                *counts.entry(flow.answers).or_default() += 1;
            }
        },
    )?;
    Ok(counts)
}
