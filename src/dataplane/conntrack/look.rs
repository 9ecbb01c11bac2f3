//! A look at the connections of some Service ports: how many there are, and which have no answer.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use rustc_hash::FxHashMap;

use super::flow::{self, Flow};
use crate::core::ir::{Destination, Host};
use crate::core::model::{Endpoint, Family, Protocol};
use crate::core::observe::ejection::Waiting;
use crate::host::netlink::SocketError;
use crate::host::netlink::socket::Socket;

/// Connections without an answer that are told of one Service port, and of one endpoint; further ones say nothing
/// new.
const MOST_WAITING: usize = 16_384;
const MOST_OF_ENDPOINT: usize = 32;

/// Which connections are looked at.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The Service ports that clients connect to, by a number of the caller's.
    pub destinations: Arc<FxHashMap<Destination, usize>>,
    /// The node's addresses that accept `NodePort`s.
    pub node_addresses: BTreeSet<IpAddr>,
    /// All of them, and not just those without an answer: the kernel hands out every connection of
    /// the node then.
    pub all: bool,
}

/// What is seen of one Service port.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// TCP connections without an answer.
    pub waiting: Vec<Waiting>,
    /// How many of those there are of each endpoint.
    told: FxHashMap<Endpoint, usize>,
    /// Connections that are under way, by endpoint, if all were looked at.
    pub live: FxHashMap<Endpoint, u64>,
    /// Endpoints that have answered someone, if all were looked at.
    pub answered: BTreeSet<Endpoint>,
}

/// Looks at connections. Returns what is seen of each Service port, and how much of a processor's time it took.
///
/// # Errors
///
/// If conntrack cannot be asked.
pub fn look(wanted: &Wanted) -> Result<(FxHashMap<usize, Seen>, Duration), SocketError> {
    let began = spent();
    // Of other protocols only numbers are of use.
    let any = wanted.all
        || wanted
            .destinations
            .keys()
            .any(|to| to.protocol == Protocol::Tcp);
    if !any {
        return Ok((FxHashMap::default(), spent().saturating_sub(began)));
    }
    // One walk for both families: it takes as long as the table is large, whatever is in it. A listing that was
    // disturbed is as good, since it is a sample.
    let (seen, _) = Socket::open()?.dump_once(
        &flow::request_translated(!wanted.all),
        FxHashMap::<usize, Seen>::default(),
        |seen, message| {
            if let Some(family) = message.family()
                && let Some(flow) = Flow::read(message.attributes(), family)
                && let Some(of) = wanted.of(&flow)
            {
                note(seen.entry(of).or_default(), &flow, wanted.all);
            }
        },
    )?;
    Ok((seen, spent().saturating_sub(began)))
}

/// The time that this thread has had of a processor, the kernel's work for it included.
fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

impl Wanted {
    fn of(&self, flow: &Flow) -> Option<usize> {
        let Endpoint { address, port } = flow.destination;
        let at = |host| Destination {
            host,
            protocol: flow.protocol,
            port,
        };
        let of = self.destinations.get(&at(Host::Address(address)));
        let of = of.or_else(|| {
            let is_here = self.node_addresses.contains(&address);
            let node_port = at(Host::Node(Family::of(address)));
            is_here.then(|| self.destinations.get(&node_port)).flatten()
        });
        of.copied().filter(|_| flow.answers != flow.destination)
    }
}

fn note(seen: &mut Seen, flow: &Flow, all: bool) {
    if flow.begins && !flow.answered {
        let told = seen.told.entry(flow.answers).or_insert(0);
        *told += 1;
        if *told <= MOST_OF_ENDPOINT && seen.waiting.len() < MOST_WAITING {
            seen.waiting.push(Waiting {
                client: flow.source,
                endpoint: flow.answers,
            });
        }
    } else if all && flow.answered {
        seen.answered.insert(flow.answers);
    }
    if all && flow.lives {
        *seen.live.entry(flow.answers).or_insert(0) += 1;
    }
}
