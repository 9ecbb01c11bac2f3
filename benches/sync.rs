//! What a sync costs at scale, stage by stage, beside the kernel's own share of it.
//!
//! `cargo bench --bench sync [SERVICES [ENDPOINTS]]`, as root: makes a network namespace for
//! itself, loads a cluster of SERVICES (20,000) with ENDPOINTS (10) each, then makes single
//! changes and times each from the event in hand to the committed transaction. The kernel's
//! share is the one `sendmsg` that carries the transaction's bytes; everything else is ours.

#![allow(
    missing_docs,
    clippy::expect_used,
    reason = "a benchmark ends where it fails"
)]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use pointsman::backend::nftables::{Nftables, ProgramConfig};
use pointsman::compile::NodePortAddresses;
use pointsman::model::{
    Change, EndpointSlice, Family, Hint, Name, Node, ObjectKey, PerFamily, Protocol, Service,
    ServicePort, SliceEndpoint, SlicePort, SourceRanges,
};
use pointsman::proxy::{Desired, Proxy, Synced};

/// Changes of each kind that are timed.
const CHANGES: u32 = 500;

fn main() {
    // Cargo passes flags of its own.
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<u32>().ok());
    let cluster = Cluster {
        services: numbers.next().unwrap_or(20_000).max(2),
        endpoints: numbers.next().unwrap_or(10).max(2),
        port_name: "http".into(),
    };
    unshare(CloneFlags::CLONE_NEWNET).expect("root, to make a network namespace");
    println!(
        "{} Services x {} endpoints, IPv4, one ClusterIP each",
        cluster.services, cluster.endpoints
    );
    let mut proxy = cluster.start();
    cluster.load(&mut proxy);
    println!(
        "\n{:<28}{:>6}{:>8}{:>12}{:>12}{:>12}{:>12}{:>8}",
        "change", "ops", "bytes", "median", "p99", "kernel med.", "kernel p99", "ratio"
    );
    let last = cluster.endpoints;
    cluster.time(&mut proxy, "endpoint replaced", |round| {
        // The odd rounds put back what the even ones took.
        let replaced = if round % 2 == 0 { last } else { 0 };
        (1..last).chain([replaced]).collect()
    });
    cluster.time(&mut proxy, "endpoint removed, added back", |round| {
        let count = if round % 2 == 0 { last - 1 } else { last };
        (0..count).collect()
    });
    cluster.time_services(&mut proxy);
}

/// A cluster in which everything is the same but the addresses.
struct Cluster {
    services: u32,
    endpoints: u32,
    port_name: Name,
}

type Kernel = Proxy<Nftables>;

impl Cluster {
    fn start(&self) -> Kernel {
        let backend = Nftables::connect(ProgramConfig {
            families: vec![Family::V4],
            ..ProgramConfig::default()
        })
        .expect("nftables");
        let desired = Desired::new(Node::named("node-1"), NodePortAddresses::Primary);
        Proxy::start(desired, backend).expect("an empty kernel")
    }

    fn load(&self, proxy: &mut Kernel) {
        let started = Instant::now();
        let changes: Vec<Change> = (0..self.services)
            .flat_map(|index| {
                let slice = self.slice(index, 0..self.endpoints);
                [self.service(index), slice]
            })
            .collect();
        let made = started.elapsed();
        proxy.take(changes);
        let started = Instant::now();
        let synced = proxy.sync().expect("a sync");
        let whole = started.elapsed();
        let applied = synced.applied;
        println!(
            "first sync: {} operations, {} bytes in {} messages",
            applied.operations, applied.bytes, applied.messages
        );
        println!(
            "  compile and diff {:?}, encode {:?}, kernel {:?}, whole {:?}: {:.2} x the kernel (model made in {made:?})",
            synced.computing,
            applied.encoding,
            applied.kernel,
            whole,
            whole.as_secs_f64() / applied.kernel.as_secs_f64(),
        );
    }

    fn key(index: u32) -> ObjectKey {
        ObjectKey::new("default", format!("svc-{index}"))
    }

    fn service(&self, index: u32) -> Change {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + index);
        let service = Service {
            created: 1,
            cluster_ips: PerFamily {
                v4: Some(address.into()),
                v6: None,
            },
            external_ips: Vec::new(),
            vips: Vec::new(),
            source_ranges: PerFamily::from_fn(|_| SourceRanges::Any),
            ports: vec![ServicePort {
                name: self.port_name.clone(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: 0,
            }],
            affinity: None,
            internal_local: false,
            external_local: false,
            health_check_node_port: 0,
        };
        Change::Service(Self::key(index), Some(Box::new(service)))
    }

    fn slice(&self, service: u32, endpoints: impl IntoIterator<Item = u32>) -> Change {
        let base = u32::from(Ipv4Addr::new(11, 0, 0, 0)) + service * (self.endpoints + 1);
        let slice = EndpointSlice {
            service: Self::key(service),
            family: Family::V4,
            ports: [SlicePort {
                name: self.port_name.clone(),
                protocol: Protocol::Tcp,
                port: 8080,
            }]
            .into(),
            endpoints: endpoints
                .into_iter()
                .map(|index| SliceEndpoint {
                    address: Ipv4Addr::from(base + index).into(),
                    ready: true,
                    serving: true,
                    terminating: false,
                    local: false,
                    node_hint: Hint::None,
                    zone_hints: None,
                })
                .collect(),
        };
        let key = ObjectKey::new("default", format!("svc-{service}-1"));
        Change::EndpointSlice(key, Some(Box::new(slice)))
    }

    /// Which Service a round changes: far apart, and the same for two rounds.
    fn victim(&self, round: u32) -> u32 {
        (round / 2).wrapping_mul(7919) % self.services
    }

    fn time(&self, proxy: &mut Kernel, what: &str, endpoints: impl Fn(u32) -> Vec<u32>) {
        let samples = (0..CHANGES)
            .map(|round| {
                let change = self.slice(self.victim(round), endpoints(round));
                timed(proxy, change)
            })
            .collect();
        report(what, samples);
    }

    fn time_services(&self, proxy: &mut Kernel) {
        let samples = (0..CHANGES)
            .map(|round| {
                let index = self.victim(round);
                let change = if round % 2 == 0 {
                    Change::Service(Self::key(index), None)
                } else {
                    self.service(index)
                };
                timed(proxy, change)
            })
            .collect();
        report("Service removed, added back", samples);
    }
}

fn timed(proxy: &mut Kernel, change: Change) -> (Duration, Synced) {
    let started = Instant::now();
    proxy.take([change]);
    let synced = proxy.sync().expect("a sync");
    (started.elapsed(), synced)
}

fn report(what: &str, samples: Vec<(Duration, Synced)>) {
    let most_operations = samples
        .iter()
        .map(|(_, synced)| synced.applied.operations)
        .max()
        .unwrap_or_default();
    let most_bytes = samples
        .iter()
        .map(|(_, synced)| synced.applied.bytes)
        .max()
        .unwrap_or_default();
    let (whole, kernel): (Vec<Duration>, Vec<Duration>) = samples
        .into_iter()
        .map(|(whole, synced)| (whole, synced.applied.kernel))
        .unzip();
    let (median, p99) = quantiles(whole);
    let (kernel_median, kernel_p99) = quantiles(kernel);
    println!(
        "{what:<28}{most_operations:>6}{most_bytes:>8}{:>12}{:>12}{:>12}{:>12}{:>7.2}x",
        format!("{median:.1?}"),
        format!("{p99:.1?}"),
        format!("{kernel_median:.1?}"),
        format!("{kernel_p99:.1?}"),
        median.as_secs_f64() / kernel_median.as_secs_f64(),
    );
}

fn quantiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    let at = |part: usize| {
        let index = (times.len() * part / 100).min(times.len().saturating_sub(1));
        times.get(index).copied().unwrap_or_default()
    };
    (at(50), at(99))
}
