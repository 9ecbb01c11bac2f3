//! The program itself beside an API server: memory, a steady rate of changes, and what an hour of
//! them leaves behind.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};
use serde_json::Value;

use crate::api_server::{ApiServer, Kind};
use crate::cluster::Shape;
use crate::harness::{CLUSTER_CIDR, Host, Pointsman};
use crate::objects::{node, service_cidr};
use crate::output::{Cell, Table, quantiles};

/// Changes a second, and how long for.
const RATE: u32 = 200;
/// An hour of ten changes a second.
const HOUR: u32 = 36_000;

/// The tables of this part.
pub struct Tables {
    /// Memory.
    pub memory: Table,
    /// A steady rate.
    pub steady: Table,
}

impl Tables {
    /// Empty ones.
    pub fn new() -> Self {
        Self {
            memory: Table::new(
                "Memory and start",
                "The program beside an API server: from its start to its first sync, and what it takes up. \"for each endpoint\"\n\
                 is what it has beyond an empty cluster's; churn is 36,000 endpoints replaced, an hour of ten a second, as fast as\n\
                 they are taken.",
                &[
                    "cluster",
                    "JSON",
                    "synced after",
                    "resident",
                    "peak",
                    "for each endpoint",
                    "churn took",
                    "resident then",
                    "peak then",
                    "after a restart",
                    "peak",
                ],
            ),
            steady: Table::new(
                "Steady churn",
                "Endpoints replaced at a steady rate through the API server: from the server's change to the kernel's\n\
                 announcement that it is committed; CPU is the program's, all of it.",
                &[
                    "cluster", "rate", "changes", "median", "p99", "longest", "CPU",
                ],
            ),
        }
    }
}

/// How much there is to do.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Seconds of the steady rate; 0 for none.
    pub seconds: u32,
    /// Whether to go through an hour's churn.
    pub churn: bool,
}

/// Measures one cluster. Returns its resident size; `empty` is that of an empty cluster.
pub fn measure(
    shape: Shape,
    name: &str,
    empty: usize,
    effort: Effort,
    tables: &mut Tables,
) -> usize {
    let host = Host::new();
    let mut json = 0;
    let mut objects = vec![node(), service_cidr()];
    for text in shape.objects() {
        json += text.len();
        objects.push(serde_json::from_str::<Value>(&text).expect("JSON"));
    }
    let server = ApiServer::start(&host, objects);
    let kubeconfig = server.kubeconfig();
    let kubeconfig = kubeconfig.to_str().expect("a path").to_owned();
    let launch = || {
        let flags = ["--kubeconfig", &kubeconfig, "--cluster-cidr", CLUSTER_CIDR];
        let started = Instant::now();
        let process = Pointsman::launch_with(&host, &flags, &[image_environment()]);
        while !process.log().contains("synced") {
            assert!(
                started.elapsed() < Duration::from_secs(120),
                "{}",
                process.log()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        (process, started.elapsed())
    };
    let (process, synced) = launch();
    let first = Memory::of(&process);
    let announced = Announcements::listen(&host);
    let mut rounds = Rounds {
        shape,
        server: &server,
        announced: &announced,
    };
    if effort.seconds > 0 {
        rounds.steady(&process, name, effort.seconds, &mut tables.steady);
    }
    let churn = effort.churn.then(|| {
        let took = rounds.churn();
        (took, Memory::of(&process))
    });
    process.terminate();
    let (process, _) = launch();
    let again = Memory::of(&process);
    let endpoints = shape.all_endpoints() as usize;
    tables.memory.row(vec![
        name.into(),
        Cell::Bytes(json),
        synced.into(),
        Cell::Bytes(first.resident),
        Cell::Bytes(first.peak),
        first
            .resident
            .saturating_sub(empty)
            .checked_div(endpoints)
            .map_or(Cell::None, Cell::Bytes),
        churn.as_ref().map(|(took, _)| *took).into(),
        churn
            .as_ref()
            .map_or(Cell::None, |(_, memory)| Cell::Bytes(memory.resident)),
        churn
            .as_ref()
            .map_or(Cell::None, |(_, memory)| Cell::Bytes(memory.peak)),
        Cell::Bytes(again.resident),
        Cell::Bytes(again.peak),
    ]);
    first.resident
}

/// The environment that the image gives the program.
fn image_environment() -> (&'static str, &'static str) {
    let lines = include_str!("../../Dockerfile").lines();
    lines
        .filter_map(|line| line.strip_prefix("ENV ")?.split_once('='))
        .next()
        .expect("the image's environment")
}

/// What a process takes up, in bytes.
struct Memory {
    resident: usize,
    peak: usize,
}

impl Memory {
    fn of(process: &Pointsman) -> Self {
        // What the first sync needed and the next ones do not is given back in a quiet moment.
        std::thread::sleep(Duration::from_secs(2));
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()));
        let status = status.expect("a living process");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
            kilobytes
                .and_then(|number| number.parse::<usize>().ok())
                .expect("a size")
                * 1024
        };
        Self {
            resident: field("VmRSS:"),
            peak: field("VmHWM:"),
        }
    }
}

/// The CPU time of a process.
fn cpu(process: &Pointsman) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id()));
    let stat = stat.expect("a living process");
    // After the name, which may hold spaces: utime and stime are the 14th and 15th field.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks = after.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

struct Rounds<'a> {
    shape: Shape,
    server: &'a ApiServer,
    announced: &'a Announcements,
}

impl Rounds<'_> {
    /// Replaces the first endpoint of a Service by one of those in reserve.
    fn object(&self, service: u32, reserve: u32) -> Value {
        let all = self.shape.endpoints;
        let endpoints = (1..all).chain([all + reserve % all]);
        let text = self.shape.slice(service, 0, endpoints);
        serde_json::from_str(&text).expect("JSON")
    }

    fn steady(&mut self, process: &Pointsman, name: &str, seconds: u32, table: &mut Table) {
        let changes = RATE * seconds;
        let objects: Vec<Value> = (0..changes)
            .map(|change| self.object(change % self.shape.services, change / self.shape.services))
            .collect();
        self.server.wait_for_watch(Kind::Slices);
        let before = cpu(process);
        let started = Instant::now();
        for (change, object) in (0..changes).zip(objects) {
            let due = started + Duration::from_secs(1) * change / RATE;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let address = self.address(change);
            self.announced.expect(address);
            self.server.put(object);
        }
        let latencies = self.announced.wait(changes as usize);
        let spent = cpu(process) - before;
        let longest = latencies.iter().max().copied().unwrap_or_default();
        let (median, p99) = quantiles(latencies);
        table.row(vec![
            name.into(),
            format!("{RATE} a second").into(),
            Cell::Count(changes as usize),
            median.into(),
            p99.into(),
            longest.into(),
            Cell::Share(spent.as_secs_f64() / started.elapsed().as_secs_f64()),
        ]);
    }

    /// The address that a change of the steady rate brings.
    fn address(&self, change: u32) -> Ipv4Addr {
        let (service, reserve) = (change % self.shape.services, change / self.shape.services);
        let all = self.shape.endpoints;
        self.shape.endpoint(service, all + reserve % all)
    }

    fn churn(&mut self) -> Duration {
        let started = Instant::now();
        for change in 0..HOUR {
            // None but the last is waited for: where it was before does not matter.
            self.server.put(self.object(
                change % self.shape.services,
                1 + change / self.shape.services,
            ));
        }
        let last = self.shape.endpoint(0, self.shape.endpoints * 2 - 1);
        self.announced.expect(last);
        let all = self.shape.endpoints;
        let text = self.shape.slice(0, 0, (1..all).chain([all * 2 - 1]));
        self.server.put(serde_json::from_str(&text).expect("JSON"));
        self.announced.wait(1);
        started.elapsed()
    }
}

/// What the kernel announces of transactions.
struct Announcements {
    expected: Arc<Mutex<HashMap<[u8; 4], Instant>>>,
    seen: Receiver<Duration>,
}

/// `NFNLGRP_NFTABLES`, as a bit of a netlink address's groups.
const GROUP: u32 = 1 << 6;

impl Announcements {
    fn listen(host: &Host) -> Self {
        let expected: Arc<Mutex<HashMap<[u8; 4], Instant>>> = Arc::default();
        let (sender, seen) = channel();
        let (ready, started) = channel();
        let shared = Arc::clone(&expected);
        host.spawn(move || {
            let fd = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkNetFilter,
            )
            .expect("a netlink socket");
            setsockopt(&fd, sockopt::RcvBufForce, &(64 << 20)).expect("a receive buffer");
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUP)).expect("the group");
            ready.send(()).expect("a maker");
            let mut buffer = vec![0; 1 << 20];
            while let Ok(length) = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                if !note(&buffer[..length], &shared, &sender) {
                    return;
                }
            }
        });
        started.recv().expect("a listener");
        Self { expected, seen }
    }

    /// An endpoint is about to come.
    fn expect(&self, address: Ipv4Addr) {
        let mut expected = self.expected.lock().expect("the list");
        expected.insert(address.octets(), Instant::now());
    }

    /// Waits for so many of those expected. Returns how long each took.
    fn wait(&self, count: usize) -> Vec<Duration> {
        let patience = Duration::from_secs(60);
        (0..count)
            .map(|_| {
                self.seen
                    .recv_timeout(patience)
                    .expect("a change within a minute")
            })
            .collect()
    }
}

/// Looks for the addresses that are expected. Attributes are aligned, and so are the addresses.
fn note(
    message: &[u8],
    expected: &Mutex<HashMap<[u8; 4], Instant>>,
    seen: &Sender<Duration>,
) -> bool {
    let now = Instant::now();
    let mut expected = expected.lock().expect("the list");
    if expected.is_empty() {
        return true;
    }
    for word in message.as_chunks::<4>().0 {
        if let Some(began) = expected.remove(word)
            && seen.send(now.saturating_duration_since(began)).is_err()
        {
            return false;
        }
    }
    true
}
