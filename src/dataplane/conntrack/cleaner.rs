//! Looking through flows, off the sync loop.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use nix::errno::Errno;
use rustc_hash::{FxBuildHasher, FxHashSet};

use super::flow::{self, Filter, Flow};
use crate::core::diff::StaleFlows;
use crate::core::ir::{Destination, Host};
use crate::core::model::{Endpoint, Endpoints, Family, PerFamily, Protocol};
use crate::host::netlink::SocketError;
use crate::host::netlink::socket::{Refusal, Socket};

/// What to look through.
#[derive(Debug, Clone, Default)]
pub struct Work {
    /// The destinations, and where their flows may go.
    pub destinations: Vec<StaleFlows>,
    /// The node's addresses that accept `NodePort`s: a flow to a port of another address is
    /// somebody else's.
    pub node_addresses: Vec<IpAddr>,
}

/// How many flows were ended, of how many that were looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Flows that the kernel handed out.
    pub seen: usize,
    /// Flows that were ended.
    pub ended: usize,
    /// How long it took.
    pub took: Duration,
}

/// From this many destinations on, the table is walked once for all of them. Below, the kernel
/// walks it for each and hands out nothing but its flows.
const MANY: usize = 4;

/// Ends the stale flows among those to some destinations.
///
/// # Errors
///
/// If the kernel cannot be asked. Some flows may have been ended; call it again.
pub fn clean(work: &Work) -> Result<PerFamily<Cleaned>, SocketError> {
    let mut all = PerFamily::<Cleaned>::default();
    for family in Family::BOTH {
        let started = Instant::now();
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            Wanted::new(work, family, protocol).end(all.get_mut(family))?;
        }
        all.get_mut(family).took = started.elapsed();
    }
    Ok(all)
}

/// What is looked for in one family and protocol.
struct Wanted<'a> {
    family: Family,
    protocol: Protocol,
    keep: HashMap<Destination, &'a Endpoints, FxBuildHasher>,
    /// The same as sets, of destinations that have flows: of most there are none.
    sets: HashMap<Destination, FxHashSet<&'a Endpoint>, FxBuildHasher>,
    /// Who has left, of TCP and SCTP.
    gone: HashMap<Destination, FxHashSet<Endpoint>, FxBuildHasher>,
    node_addresses: FxHashSet<IpAddr>,
}

impl<'a> Wanted<'a> {
    fn new(work: &'a Work, family: Family, protocol: Protocol) -> Self {
        let of_family = work.destinations.iter().filter(|stale| {
            stale.destination.family() == family && stale.destination.protocol == protocol
        });
        let mut gone: HashMap<Destination, FxHashSet<Endpoint>, FxBuildHasher> = HashMap::default();
        for stale in of_family.clone().filter(|stale| !stale.gone.is_empty()) {
            let known = gone.entry(stale.destination).or_default();
            known.extend(stale.gone.iter().copied());
        }
        Self {
            gone,
            family,
            protocol,
            // Of two entries for one destination the later one is right.
            keep: of_family
                .map(|stale| (stale.destination, &stale.keep))
                .collect(),
            sets: HashMap::default(),
            node_addresses: work.node_addresses.iter().copied().collect(),
        }
    }

    /// Ends what is stale.
    fn end(mut self, cleaned: &mut Cleaned) -> Result<(), SocketError> {
        if self.keep.is_empty() {
            return Ok(());
        }
        let mut listing = Socket::open()?;
        let mut ending = Socket::open()?;
        let requests = if self.keep.len() < MANY {
            self.keep.keys().copied().map(Some).collect()
        } else {
            vec![None]
        };
        for only in requests {
            let mut failed = None;
            let filter = Filter {
                family: self.family,
                protocol: self.protocol,
                only,
                unanswered: self.protocol != Protocol::Udp,
            };
            listing.dump(
                &flow::request(filter),
                || (),
                |(), message| {
                    let attributes = message.attributes();
                    let Some(flow) = Flow::read(attributes, self.family) else {
                        return;
                    };
                    cleaned.seen += 1;
                    if failed.is_some() || !self.is_stale(&flow) {
                        return;
                    }
                    match delete(&mut ending, &flow::delete(attributes, self.family)) {
                        Ok(()) => cleaned.ended += 1,
                        Err(error) => failed = Some(error),
                    }
                },
            )?;
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(())
    }

    fn is_stale(&mut self, flow: &Flow) -> bool {
        let to = |host| Destination {
            host,
            protocol: flow.protocol,
            port: flow.destination.port,
        };
        let address = flow.destination.address;
        let at = to(Host::Address(address));
        let is_ours = self.node_addresses.contains(&address);
        let node_port = is_ours.then(|| to(Host::Node(Family::of(address))));
        let of = [Some(at), node_port].into_iter().flatten();
        let Some(of) = of.into_iter().find(|to| self.keep.contains_key(to)) else {
            return false;
        };
        match flow.protocol {
            Protocol::Udp => self.keep.get(&of).copied().is_some_and(|keep| {
                let set = self.sets.entry(of);
                !set.or_insert_with(|| keep.iter().collect())
                    .contains(&flow.answers)
            }),
            // One in progress of which answers take another way would be translated from now on.
            Protocol::Tcp | Protocol::Sctp => {
                let gone = self.gone.get(&of);
                let goes_nowhere = flow.answers == flow.destination
                    || gone.is_some_and(|gone| gone.contains(&flow.answers));
                goes_nowhere && !flow.answered && flow.begins
            }
        }
    }
}

/// Ends one flow; it may have ended by itself meanwhile.
fn delete(socket: &mut Socket, request: &[u8]) -> Result<(), SocketError> {
    let refusals = socket.transact(request, 0)?;
    let refused = |refusal: &Refusal| refusal.errno != Errno::ENOENT;
    let refusal = refusals.into_iter().find(refused);
    refusal.map_or(Ok(()), |refusal| Err(SocketError::Dump(refusal.errno)))
}

/// Looks through flows in a thread of its own, one batch after the other. What fails is tried
/// again until it succeeds.
#[derive(Debug, Clone)]
pub struct Cleaner {
    work: Sender<Work>,
}

/// The pause after the first failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest pause between retries.
const LAST_RETRY: Duration = Duration::from_secs(30);

impl Cleaner {
    /// Starts the thread, which tells what it has `done`. It ends when the last handle is dropped
    /// and the work is done.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn start(
        done: impl Fn(Family, Cleaned) + Send + 'static,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (work, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name("conntrack".to_owned())
            .spawn(move || work_off(&inbox, &done))?;
        Ok((Self { work }, thread))
    }

    /// Adds work.
    pub fn clean(&self, work: Work) {
        if !work.destinations.is_empty() {
            // The thread lives as long as this handle.
            let _ = self.work.send(work);
        }
    }
}

/// For how long flows to endpoints that have left are let be after flows have been looked through: so many times as
/// long as that took, and no shorter than this; others, once as long. A client that waits tries again after a second.
const REST: u32 = 4;
const SHORTEST_REST: Duration = Duration::from_millis(100);
/// For so long a flow to an endpoint that has left may still be answered: an answer that is under way is not to meet
/// a flow that has just been ended. Whoever waits for longer tries again after a second.
const UNDER_WAY: Duration = Duration::from_millis(200);
/// How many endpoints of a destination are remembered to have left.
const MOST_GONE: usize = 100_000;

/// Work that is still to be done: per destination, what was said last.
#[derive(Default)]
struct Queue {
    keep: HashMap<Destination, (Endpoints, BTreeSet<Endpoint>), FxBuildHasher>,
    node_addresses: Vec<IpAddr>,
}

impl Queue {
    fn add(&mut self, work: Work) {
        self.node_addresses = work.node_addresses;
        for stale in work.destinations {
            let (keep, gone) = self.keep.entry(stale.destination).or_default();
            *keep = stale.keep;
            gone.extend(stale.gone);
            while gone.len() > MOST_GONE {
                gone.pop_first();
            }
        }
    }

    fn into_work(self) -> Work {
        let flows = self.keep.into_iter();
        let flows = flows.map(|(destination, (keep, gone))| StaleFlows {
            destination,
            keep,
            gone: gone.into_iter().collect(),
        });
        Work {
            destinations: flows.collect(),
            node_addresses: self.node_addresses,
        }
    }
}

/// What work waits for.
#[derive(Debug, Clone, Copy)]
enum Pause {
    /// A failure, until a time.
    Failed(Instant),
    /// What was done a moment ago, until a time; what cannot wait, as a connection that would be refused, until one
    /// that is sooner.
    Rest { soon: Instant, until: Instant },
    /// The same, and something cannot wait.
    Soon(Instant),
}

/// Takes in work until its pause is over, or what there is at once; with nothing to do, waits for some. Returns
/// whether there will be no more.
fn take_in(inbox: &Receiver<Work>, queue: &mut Queue, pause: Pause) -> bool {
    let mut pause = pause;
    loop {
        let next = match pause {
            _ if queue.keep.is_empty() => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Pause::Failed(until) | Pause::Rest { until, .. } | Pause::Soon(until) => {
                inbox.recv_timeout(until.saturating_duration_since(Instant::now()))
            }
        };
        match next {
            Ok(work) => {
                let cannot_wait = work.destinations.iter().any(|stale| stale.gone.is_empty());
                pause = match pause {
                    Pause::Failed(until) => Pause::Failed(until),
                    Pause::Rest { soon, .. } | Pause::Soon(soon) if cannot_wait => {
                        Pause::Soon(soon)
                    }
                    Pause::Rest { soon, until } if queue.keep.is_empty() => Pause::Rest {
                        soon,
                        until: until.max(Instant::now() + UNDER_WAY),
                    },
                    Pause::Rest { .. } | Pause::Soon(_) => pause,
                };
                queue.add(work);
            }
            Err(RecvTimeoutError::Timeout) => return false,
            Err(RecvTimeoutError::Disconnected) => return true,
        }
    }
}

fn work_off(inbox: &Receiver<Work>, done: &impl Fn(Family, Cleaned)) {
    let pauses = ExponentialBuilder::new()
        .with_min_delay(FIRST_RETRY)
        .with_max_delay(LAST_RETRY)
        .without_max_times();
    let mut queue = Queue::default();
    let mut retries = pauses.build();
    let now = Instant::now();
    // Work that comes does not shorten the pause after a failure.
    let mut pause = Pause::Rest {
        soon: now,
        until: now,
    };
    loop {
        // What is left then gets one more try.
        let ended = take_in(inbox, &mut queue, pause);
        if queue.keep.is_empty() {
            return;
        }
        let work = std::mem::take(&mut queue).into_work();
        match clean(&work) {
            Ok(cleaned) => {
                for (family, cleaned) in cleaned.iter() {
                    done(family, *cleaned);
                    if cleaned.ended > 0 {
                        tracing::info!(
                            destinations = work.destinations.len(),
                            ended = cleaned.ended,
                            seen = cleaned.seen,
                            took = ?cleaned.took,
                            "stale {family} flows ended",
                        );
                    }
                }
                retries = pauses.build();
                // Endpoints may leave hundreds of times a second, and the table have a million flows.
                let took: Duration = cleaned.iter().map(|(_, cleaned)| cleaned.took).sum();
                let now = Instant::now();
                pause = Pause::Rest {
                    soon: now + took,
                    until: now + (took * REST).max(SHORTEST_REST),
                };
            }
            Err(error) => {
                // What comes meanwhile is added to it.
                queue.add(work);
                let retry = retries.next().unwrap_or(LAST_RETRY);
                tracing::warn!(%error, ?retry, "cannot look for stale flows; trying again");
                pause = Pause::Failed(Instant::now() + retry);
            }
        }
        if ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::Endpoint;

    fn endpoint(text: &str) -> Endpoint {
        let address: std::net::SocketAddr = text.parse().unwrap();
        Endpoint::new(address.ip(), address.port())
    }

    #[test]
    fn h3_n_h4_only_flows_to_our_own_destinations_that_go_astray_are_stale() {
        let to = |host, port| Destination {
            host,
            protocol: Protocol::Udp,
            port,
        };
        let keep: Endpoints = vec![endpoint("10.244.1.1:53"), endpoint("10.244.1.2:53")].into();
        let work = Work {
            destinations: vec![
                StaleFlows {
                    destination: to(Host::Address([10, 96, 0, 10].into()), 53),
                    keep: Endpoints::clone(&keep),
                    gone: Vec::new(),
                },
                StaleFlows {
                    destination: to(Host::Node(Family::V4), 30053),
                    keep,
                    gone: Vec::new(),
                },
            ],
            node_addresses: vec![[192, 0, 2, 1].into()],
        };
        let mut wanted = Wanted::new(&work, Family::V4, Protocol::Udp);
        let cases = [
            (
                "to an endpoint that serves",
                "10.96.0.10:53",
                "10.244.1.2:53",
                false,
            ),
            ("to one that left", "10.96.0.10:53", "10.244.1.3:53", true),
            (
                "to another port of an endpoint",
                "10.96.0.10:53",
                "10.244.1.1:54",
                true,
            ),
            ("to nobody", "10.96.0.10:53", "10.96.0.10:53", true),
            (
                "another port of the address",
                "10.96.0.10:54",
                "10.244.1.3:53",
                false,
            ),
            ("another address", "10.96.0.11:53", "10.244.1.3:53", false),
            (
                "NodePort, to one that serves",
                "192.0.2.1:30053",
                "10.244.1.1:53",
                false,
            ),
            (
                "NodePort, to one that left",
                "192.0.2.1:30053",
                "10.244.1.3:53",
                true,
            ),
            (
                "the same port of a remote host",
                "203.0.113.9:30053",
                "203.0.113.9:30053",
                false,
            ),
        ];
        for (what, destination, answers, expected) in cases {
            let flow = Flow {
                protocol: Protocol::Udp,
                destination: endpoint(destination),
                answers: endpoint(answers),
                source: endpoint("192.0.2.9:40000"),
                lives: true,
                answered: true,
                begins: false,
            };
            assert_eq!(wanted.is_stale(&flow), expected, "{what}");
        }
    }

    #[test]
    fn h2_of_tcp_and_sctp_only_what_nobody_translated_or_answered_is_stale() {
        let (served, other, answers) = ("10.96.0.10:80", "10.96.0.11:80", "10.244.1.1:8080");
        let left = "10.244.1.9:8080";
        let cases = [
            (
                "translated, not answered",
                served,
                answers,
                (false, true),
                false,
            ),
            ("translated", served, answers, (true, false), false),
            ("to itself, answered", served, served, (true, false), false),
            ("to itself, beginning", served, served, (false, true), true),
            (
                "answers take another way",
                served,
                served,
                (false, false),
                false,
            ),
            ("to another destination", other, other, (false, true), false),
            (
                "to one that left, beginning",
                served,
                left,
                (false, true),
                true,
            ),
            (
                "to one that left, answered",
                served,
                left,
                (true, false),
                false,
            ),
            (
                "to one that left, established",
                served,
                left,
                (false, false),
                false,
            ),
        ];
        for protocol in [Protocol::Tcp, Protocol::Sctp] {
            let work = Work {
                destinations: vec![StaleFlows {
                    destination: Destination {
                        host: Host::Address([10, 96, 0, 10].into()),
                        protocol,
                        port: 80,
                    },
                    keep: Endpoints::default(),
                    gone: vec![endpoint("10.244.1.9:8080")],
                }],
                node_addresses: Vec::new(),
            };
            let mut wanted = Wanted::new(&work, Family::V4, protocol);
            for (what, destination, answers, (answered, begins), expected) in cases {
                let flow = Flow {
                    protocol,
                    destination: endpoint(destination),
                    answers: endpoint(answers),
                    source: endpoint("192.0.2.9:40000"),
                    lives: true,
                    answered,
                    begins,
                };
                assert_eq!(wanted.is_stale(&flow), expected, "{protocol} {what}");
            }
        }
    }
}
