//! The data path: what a new connection through a Service costs over a direct one.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use pointsman::source::convert::Converter;
use serde_json::{Value, json};

use crate::cluster::Shape;
use crate::harness::{NODE, World};
use crate::objects::{node, service, slice};
use crate::output::{Cell, Table, quantiles};
use crate::whole::{self, Kernel};

/// Connections to one target before the next has its turn: all see the same noise.
const TURN: usize = 100;

/// An empty table.
pub fn table() -> Table {
    Table::new(
        "Data path",
        "New TCP connections from a pod to a pod of the same node, one after another, turn by turn with direct ones.",
        &[
            "Services",
            "target",
            "connections",
            "a second",
            "median",
            "p99",
            "over direct",
            "ratio",
        ],
    )
}

const TARGETS: [(&str, &str); 4] = [
    ("direct", "10.244.1.10:8080"),
    ("ClusterIP", "10.96.0.10:80"),
    ("ClusterIP with affinity", "10.96.0.11:80"),
    ("NodePort", "192.0.2.1:30080"),
];

/// Measures the data path of a node with so many Services, with so many connections each.
pub fn measure(services: u32, connections: usize, table: &mut Table) {
    let world = World::new();
    world.pods.spawn(|| {
        let listener = TcpListener::bind("0.0.0.0:8080").expect("a port");
        for connection in listener.incoming() {
            drop(connection);
        }
    });
    let fill = Shape {
        services,
        endpoints: 10,
    };
    let proxy = world.node.run(move || load(fill));
    // The first ones fill the caches, and the client's place in the map of the affinity.
    let run = |times| world.pod.run(move || connect(times));
    run(TURN);
    let seen = run(connections);
    drop(proxy);
    let (direct, _) = quantiles(seen[0].clone());
    for ((name, _), times) in TARGETS.into_iter().zip(seen) {
        let count = times.len();
        let sum: Duration = times.iter().sum();
        let (median, p99) = quantiles(times);
        table.row(vec![
            Cell::Count(services as usize),
            name.into(),
            Cell::Count(count),
            Cell::Count((count as f64 / sum.as_secs_f64()) as usize),
            median.into(),
            p99.into(),
            median.saturating_sub(direct).into(),
            Cell::Ratio(median.as_secs_f64() / direct.as_secs_f64()),
        ]);
    }
}

fn load(fill: Shape) -> Kernel {
    let pods: Vec<String> = (10..20).map(|last| format!("10.244.1.{last}")).collect();
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    // The program of the benchmark is IPv4's alone.
    let mut this_node = node();
    this_node["status"]["addresses"] = json!([{"type": "InternalIP", "address": "192.0.2.1"}]);
    let objects: [Value; 5] = [
        this_node,
        service("plain", &["10.96.0.10"]).node_port(30080).0,
        slice("plain", "TCP", &pods),
        service("sticky", &["10.96.0.11"]).affinity(600).0,
        slice("sticky", "TCP", &pods),
    ];
    let mut converter = Converter::new(NODE);
    let [node, plain, plain_slice, sticky, sticky_slice] = objects;
    let changes = [
        converter.node(&from(node)),
        converter.service(&from(plain)),
        converter.endpoint_slice(&from(plain_slice)),
        converter.service(&from(sticky)),
        converter.endpoint_slice(&from(sticky_slice)),
    ];
    let mut proxy = whole::start();
    proxy.take(changes.into_iter().flatten());
    proxy.take(fill.changes().0);
    proxy.sync().expect("a sync");
    proxy
}

fn from<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("an object")
}

/// Connects to each target so many times. Returns how long each connection took.
fn connect(times: usize) -> Vec<Vec<Duration>> {
    let targets: Vec<SocketAddr> = TARGETS
        .iter()
        .map(|(_, target)| target.parse().expect("an address and a port"))
        .collect();
    let mut seen = vec![Vec::with_capacity(times); targets.len()];
    for _ in 0..times / TURN {
        for (target, seen) in targets.iter().zip(&mut seen) {
            for _ in 0..TURN {
                let started = Instant::now();
                let stream = TcpStream::connect(target).expect("a connection");
                seen.push(started.elapsed());
                // A reset leaves no socket waiting, so that ports do not run out.
                let at_once = nix::libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(&stream.as_fd(), sockopt::Linger, &at_once).expect("an option");
            }
        }
    }
    seen
}
