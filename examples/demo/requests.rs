//! Requests through Services: some of each, or without end until they are stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cluster::{Destination, Service, Via};
use crate::harness::{self, Failure, Host, Seen, World};
use crate::http;

/// Where requests come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Pod,
    Node,
    Outside,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Pod => "pod",
            Self::Node => "node",
            Self::Outside => "outside",
        })
    }
}

impl Origin {
    /// Who has a route to such an address.
    pub const fn all(via: Via) -> &'static [Self] {
        match via {
            Via::ClusterIp => &[Self::Pod, Self::Node],
            Via::NodePort | Via::LoadBalancer | Via::ExternalIp => &[Self::Outside],
        }
    }

    pub const fn host(self, world: &World) -> &Host {
        match self {
            Self::Pod => &world.pod,
            Self::Node => &world.node,
            Self::Outside => &world.client,
        }
    }

    /// The addresses that a server may see: a pod's own, and else the node's, so that answers
    /// come back through the node.
    pub fn sources(self) -> BTreeSet<IpAddr> {
        let addresses: &[&str] = match self {
            Self::Pod => &["10.244.1.200", "fd00:244:0:1:1::c8"],
            Self::Node | Self::Outside => &[
                "192.0.2.1",
                "2001:db8:2::1",
                "198.51.100.1",
                "2001:db8:51::1",
            ],
        };
        addresses
            .iter()
            .map(|address| address.parse().expect("an address"))
            .collect()
    }
}

/// One request: HTTP, or a datagram for Services of UDP.
fn request(is_udp: bool, target: SocketAddr) -> Result<Seen, Failure> {
    if is_udp {
        harness::datagram(None, target)
    } else {
        http::get(target)
    }
}

/// What became of some requests.
#[derive(Debug, Default)]
pub struct Answers {
    pub reached: BTreeMap<SocketAddr, usize>,
    pub sources: BTreeSet<IpAddr>,
    pub failures: Vec<Failure>,
}

/// Sends requests to a destination one after another.
pub fn send(
    world: &World,
    service: &Service,
    destination: Destination,
    from: Origin,
    times: usize,
) -> Answers {
    let is_udp = service.is_udp;
    from.host(world).run(move || {
        let mut answers = Answers::default();
        for _ in 0..times {
            match request(is_udp, destination.address) {
                Ok(seen) => {
                    *answers.reached.entry(seen.endpoint).or_default() += 1;
                    answers.sources.insert(seen.source);
                }
                Err(failure) => answers.failures.push(failure),
            }
        }
        answers
    })
}

/// A request that was sent at some time.
#[derive(Debug)]
pub struct Timed {
    pub started: Instant,
    pub answer: Result<Seen, Failure>,
}

/// Clients that send requests until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Timed>>>,
}

impl Load {
    /// Starts a client of each kind.
    pub fn start(world: &World, clients: &[(Origin, SocketAddr)]) -> Self {
        let stop: Arc<AtomicBool> = Arc::default();
        let clients = clients
            .iter()
            .map(|&(from, target)| {
                let stop = Arc::clone(&stop);
                from.host(world).spawn(move || {
                    let mut sent = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let started = Instant::now();
                        let answer = http::get(target);
                        sent.push(Timed { started, answer });
                        // Leaves the clients ports to choose from.
                        thread::sleep(Duration::from_millis(1));
                    }
                    sent
                })
            })
            .collect();
        Self { stop, clients }
    }

    /// Stops them all. Returns every request that they sent.
    pub fn stop(self) -> Vec<Timed> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients
            .into_iter()
            .flat_map(|client| client.join().expect("a client"))
            .collect()
    }
}
