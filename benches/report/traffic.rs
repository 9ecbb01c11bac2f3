//! The data path: what a new connection and an established flow cost through a Service, beside no
//! tables at all and beside a table that only makes conntrack work.
//!
//! Every variant has a node and pods of its own. They take turns, so that all see the same noise, and
//! both ends stay on one processor.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use pointsman::agent::reconciler::Proxy;
use pointsman::dataplane::nftables::counting;
use pointsman::dataplane::{Backend, CountingLevel};
use pointsman::source::convert::Converter;
use serde_json::{Value, json};

use crate::cluster::Shape;
use crate::harness::{NODE, World};
use crate::iptables;
use crate::objects::{node, service, slice};
use crate::output::{Cell, Table, quantiles, quartiles};
use crate::whole::{self, Kernel};

/// Connections to one target, or round trips, before the next has its turn.
const TURN: usize = 100;
/// Datagrams in a turn that are sent without waiting.
const BLAST: usize = 1_000;

/// The tables of this part.
pub struct Tables {
    /// New connections.
    pub connections: Table,
    /// New connections that are counted, or not.
    pub counted: Table,
    /// Flows that are there already.
    pub flows: Table,
}

impl Tables {
    /// Empty ones.
    pub fn new() -> Self {
        Self {
            connections: Table::new(
                "New connections",
                "TCP from a pod to a pod of the same node, one connection after another, turn by turn with all other rows.\n\
                 \"conntrack only\" is one static rule for each target, without choice or masquerading; \"over direct\" is\n\
                 to the same pods without a Service in the same node.",
                &[
                    "node",
                    "target",
                    "times",
                    "median",
                    "quartiles",
                    "p99",
                    "over direct",
                ],
            ),
            counted: Table::new(
                "Counting new connections",
                "TCP through a ClusterIP as above, on one node, on which connections are counted in turns: not at all, by Service, by\n\
                 endpoint; beside it, what a rule costs that only counts, and one that only looks into a set of one element, in a chain\n\
                 of its own. \"over off\" is the difference of the medians.",
                &[
                    "node",
                    "counting",
                    "times",
                    "median",
                    "quartiles",
                    "over off",
                ],
            ),
            flows: Table::new(
                "Established flows",
                "UDP between the same pods over one socket: round trips of a datagram, and datagrams sent without waiting.\n\
                 The ratio is to \"conntrack only\" and the same target.",
                &[
                    "node",
                    "target",
                    "round trips",
                    "median",
                    "quartiles",
                    "ratio",
                    "datagrams a second",
                    "datagrams' ratio",
                ],
            ),
        }
    }
}

/// What stands between the pods.
enum Between {
    /// No tables at all.
    Nothing,
    /// A static rule for each target.
    Conntrack,
    /// pointsman, with so many Services.
    Pointsman(u32),
    /// The same in iptables mode, by a variant.
    Iptables(&'static str, u32),
    /// Another program, with so many Services: it is started in the node's network namespace with
    /// the path of a file of manifests, and prints a line when it has programmed them.
    Another(String, u32),
}

const TARGETS: [(&str, &str); 4] = [
    ("direct", "10.244.1.10:8080"),
    ("ClusterIP", "10.96.0.10:80"),
    ("ClusterIP with affinity", "10.96.0.11:80"),
    ("NodePort", "192.0.2.1:30080"),
];
const FLOW_TARGETS: [(&str, &str); 2] = [
    ("direct", "10.244.1.10:5353"),
    ("ClusterIP", "10.96.0.12:53"),
];

/// The program behind a node.
enum Program {
    None,
    Pointsman(#[allow(dead_code, reason = "it holds the rules")] Box<Kernel>),
    Iptables,
    Another(Child),
}

/// A node to measure, and what was seen.
struct Node {
    name: String,
    world: World,
    program: Program,
    reaches_services: bool,
    connections: Vec<Vec<Duration>>,
    flows: Vec<(Vec<Duration>, Vec<Duration>)>,
    clients: Vec<UdpSocket>,
}

/// Measures nodes with so many Services, each beside its baselines; `another` is a program to
/// measure beside them.
pub fn measure(services: &[u32], turns: usize, another: Option<&str>, tables: &mut Tables) {
    let mut between = vec![Between::Nothing, Between::Conntrack];
    for count in services {
        between.push(Between::Pointsman(*count));
        let variants = iptables::VARIANTS.into_iter();
        let variants = variants.filter(|variant| iptables::has(variant));
        between.extend(variants.map(|variant| Between::Iptables(variant, *count)));
        if let Some(command) = another {
            between.push(Between::Another(command.to_owned(), *count));
        }
    }
    let mut nodes: Vec<Node> = between.into_iter().map(Node::new).collect();
    // The first turn fills the caches, and the clients' places in the map of the affinity.
    for node in &mut nodes {
        node.turn();
        node.forget();
    }
    for _ in 0..turns {
        for node in &mut nodes {
            node.turn();
        }
    }
    report(&nodes, tables);
}

/// What stands before the choice of an endpoint while connections are made.
#[derive(Clone, Copy)]
enum Counting {
    By(CountingLevel),
    /// A rule of nft's own in a chain of its own.
    Rule(&'static str),
}

/// Measures what counting costs: differences between nodes are larger than that.
pub fn measure_counting(services: &[u32], turns: usize, table: &mut Table) {
    const WAYS: [(Counting, &str); 5] = [
        (Counting::By(CountingLevel::Nothing), "off"),
        (Counting::By(CountingLevel::Services), "Services"),
        (Counting::By(CountingLevel::Endpoints), "endpoints"),
        (
            Counting::Rule("counter"),
            "nothing, and one rule that counts",
        ),
        (
            Counting::Rule("ip daddr . meta l4proto . th dport @one"),
            "nothing, and one lookup in a set",
        ),
    ];
    for count in services {
        let node = Node::new(Between::Pointsman(*count));
        let target: SocketAddr = TARGETS[1].1.parse().expect("an address and a port");
        let mut times: [Vec<Duration>; WAYS.len()] = Default::default();
        // The first turn fills the caches.
        for turn in 0..=WAYS.len() * turns {
            let place = turn % WAYS.len();
            let level = match WAYS[place].0 {
                Counting::By(level) => level,
                Counting::Rule(_) => CountingLevel::Nothing,
            };
            node.world
                .node
                .run(move || counting::set_level(level).expect("a table that counts"));
            if let Counting::Rule(rule) = WAYS[place].0 {
                node.world.node.sh(&format!(
                    "nft 'table ip baseline {{ set one {{ typeof ip daddr . meta l4proto . th dport; elements = {{ 10.96.0.10 . tcp . 80 }}; }}; \
                     chain c {{ type nat hook prerouting priority -150; {rule}; }}; }}'"
                ));
            }
            // The first connections make the elements.
            let first = node.world.pod.run(move || connect(target));
            let second = node.world.pod.run(move || connect(target));
            drop(first);
            if turn > 0 {
                times[place].extend(second);
            }
            if matches!(WAYS[place].0, Counting::Rule(_)) {
                node.world.node.sh("nft delete table ip baseline");
            }
        }
        let off = quantiles(times[0].clone()).0.as_secs_f64();
        for ((_, what), times) in WAYS.iter().zip(times) {
            let median = quantiles(times.clone()).0;
            table.row(vec![
                node.name.clone().into(),
                (*what).into(),
                Cell::Count(times.len()),
                precise(median),
                spread(&times),
                Cell::Text(format!("{:+.3} µs", (median.as_secs_f64() - off) * 1e6)),
            ]);
        }
    }
}

/// The middle half of some times.
pub(crate) fn spread(times: &[Duration]) -> Cell {
    let (first, third) = quartiles(times.to_vec());
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    Cell::Text(format!("{:.2} to {:.2} µs", micros(first), micros(third)))
}

fn report(nodes: &[Node], tables: &mut Tables) {
    let median = |times: &[Duration]| quantiles(times.to_vec()).0;
    for node in nodes {
        let direct = median(&node.connections[0]);
        for ((target, _), times) in TARGETS.iter().zip(&node.connections) {
            if times.is_empty() {
                continue;
            }
            let (half, p99) = quantiles(times.clone());
            let over = half.as_secs_f64() - direct.as_secs_f64();
            tables.connections.row(vec![
                node.name.clone().into(),
                (*target).into(),
                Cell::Count(times.len()),
                precise(half),
                spread(times),
                p99.into(),
                Cell::Text(format!("{:+.2} µs", over * 1e6)),
            ]);
        }
    }
    let baseline = &nodes[1].flows;
    for node in nodes {
        for (index, (target, _)) in FLOW_TARGETS.iter().enumerate() {
            let (trips, blasts) = &node.flows[index];
            if trips.is_empty() {
                continue;
            }
            let ratio = |of: &[Duration], to: &[Duration]| {
                Cell::Ratio(median(of).as_secs_f64() / median(to).as_secs_f64())
            };
            tables.flows.row(vec![
                node.name.clone().into(),
                (*target).into(),
                Cell::Count(trips.len()),
                precise(median(trips)),
                spread(trips),
                ratio(trips, &baseline[index].0),
                Cell::Count((BLAST as f64 / median(blasts).as_secs_f64()) as usize),
                ratio(&baseline[index].1, blasts),
            ]);
        }
    }
}

pub(crate) fn precise(time: Duration) -> Cell {
    Cell::Text(format!("{:.2} µs", time.as_secs_f64() * 1e6))
}

impl Node {
    fn new(between: Between) -> Self {
        let world = World::new();
        serve(&world);
        let (name, program) = match between {
            Between::Nothing => ("no tables".to_owned(), Program::None),
            Between::Conntrack => {
                world.node.sh(STATIC);
                ("conntrack only".to_owned(), Program::None)
            }
            Between::Pointsman(services) => {
                let fill = fill(services);
                let kernel = world.node.run(move || loaded(whole::start(), fill));
                let name = format!("pointsman, {services} Services");
                (name, Program::Pointsman(Box::new(kernel)))
            }
            Between::Iptables(variant, services) => {
                let fill = fill(services);
                iptables::hint(&world.node, variant);
                world
                    .node
                    .run(move || drop(loaded(iptables::start(), fill)));
                let name = format!("pointsman, iptables-{variant}, {services} Services");
                (name, Program::Iptables)
            }
            Between::Another(command, services) => {
                let child = start(&world, &command, services);
                let name = format!("the other program, {services} Services");
                (name, Program::Another(child))
            }
        };
        let reaches_services = name != "no tables";
        let clients = world.pod.run(|| {
            FLOW_TARGETS
                .map(|(_, target)| {
                    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
                    let target: SocketAddr = target.parse().expect("an address and a port");
                    socket.connect(target).expect("an address");
                    let patience = Some(Duration::from_secs(5));
                    socket.set_read_timeout(patience).expect("an option");
                    socket
                })
                .into()
        });
        Self {
            name,
            world,
            program,
            reaches_services,
            connections: vec![Vec::new(); TARGETS.len()],
            flows: vec![(Vec::new(), Vec::new()); FLOW_TARGETS.len()],
            clients,
        }
    }

    fn turn(&mut self) {
        let targets = if self.reaches_services {
            TARGETS.len()
        } else {
            1
        };
        for (index, (_, target)) in TARGETS.iter().enumerate().take(targets) {
            let target: SocketAddr = target.parse().expect("an address and a port");
            let seen = self.world.pod.run(move || connect(target));
            self.connections[index].extend(seen);
        }
        let targets = if self.reaches_services {
            FLOW_TARGETS.len()
        } else {
            1
        };
        for (index, client) in self.clients.iter().enumerate().take(targets) {
            let client = client.try_clone().expect("a socket");
            let (trips, blast) = self.world.pod.run(move || flow(&client));
            self.flows[index].0.extend(trips);
            self.flows[index].1.push(blast);
        }
    }

    fn forget(&mut self) {
        self.connections.iter_mut().for_each(Vec::clear);
        for (trips, blasts) in &mut self.flows {
            trips.clear();
            blasts.clear();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Program::Another(child) = &mut self.program {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Keeps a thread on one processor, the same for all: where the scheduler puts the two ends of a flow
/// matters more than anything that stands between them.
fn pin() {
    let mut processors = CpuSet::new();
    processors.set(0).expect("a processor");
    sched_setaffinity(Pid::from_raw(0), &processors).expect("a processor to stay on");
}

/// Pods that take connections, and datagrams: they answer those of one byte.
pub(crate) fn serve(world: &World) {
    world.pods.spawn(|| {
        pin();
        let listener = TcpListener::bind("0.0.0.0:8080").expect("a port");
        for connection in listener.incoming() {
            drop(connection);
        }
    });
    for last in 10..20 {
        world.pods.spawn(move || {
            pin();
            let socket = UdpSocket::bind(format!("10.244.1.{last}:5353")).expect("a port");
            let mut buffer = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if length == 1 {
                    let _ = socket.send_to(&buffer[..1], from);
                }
            }
        });
    }
}

/// What only makes conntrack work, and leads to the pods.
const STATIC: &str = "nft -f - <<'E'
table ip baseline {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        ip daddr 10.96.0.10 tcp dport 80 dnat to 10.244.1.10:8080
        ip daddr 10.96.0.11 tcp dport 80 dnat to 10.244.1.10:8080
        ip daddr 192.0.2.1 tcp dport 30080 dnat to 10.244.1.10:8080
        ip daddr 10.96.0.12 udp dport 53 dnat to 10.244.1.10:5353
    }
}
E";

const fn fill(services: u32) -> Shape {
    Shape {
        services,
        endpoints: 10,
    }
}

/// The objects that the targets are.
fn objects() -> [Value; 7] {
    let pods: Vec<String> = (10..20).map(|last| format!("10.244.1.{last}")).collect();
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    // The program of the benchmark is IPv4's alone.
    let mut this_node = node();
    this_node["status"]["addresses"] = json!([{"type": "InternalIP", "address": "192.0.2.1"}]);
    let mut names = slice("names", "UDP", &pods);
    names["ports"][0]["port"] = json!(5353);
    [
        this_node,
        service("plain", &["10.96.0.10"]).node_port(30080).0,
        slice("plain", "TCP", &pods),
        service("sticky", &["10.96.0.11"]).affinity(600).0,
        slice("sticky", "TCP", &pods),
        service("names", &["10.96.0.12"])
            .set("/spec/ports/0/protocol", json!("UDP"))
            .set("/spec/ports/0/port", json!(53))
            .0,
        names,
    ]
}

fn loaded<B: Backend>(mut proxy: Proxy<B>, fill: Shape) -> Proxy<B> {
    let mut converter = Converter::new(NODE);
    let changes = objects().map(|object| match object["kind"].as_str() {
        Some("Node") => converter.node(&from(object)),
        Some("Service") => converter.service(&from(object)),
        _ => converter.endpoint_slice(&from(object)),
    });
    proxy.take(changes.into_iter().flatten());
    proxy.take(fill.changes().0);
    proxy.sync().expect("a sync");
    proxy
}

pub(crate) fn from<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("an object")
}

/// Starts another program on the node, and waits until it is ready.
fn start(world: &World, command: &str, services: u32) -> Child {
    let file = std::env::temp_dir().join(format!("objects-{services}.jsonl"));
    let all = objects().into_iter().map(|object| object.to_string());
    let lines: Vec<String> = all.chain(fill(services).objects()).collect();
    std::fs::write(&file, lines.join("\n")).expect("a file for the objects");
    let command = command.to_owned();
    world.node.run(move || {
        let mut child = Command::new(command)
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the other program");
        let output = child.stdout.take().expect("a pipe");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("a line");
        assert!(!line.is_empty(), "the other program has ended");
        child
    })
}

/// Connects so many times. Returns how long each connection took.
pub(crate) fn connect(target: SocketAddr) -> Vec<Duration> {
    pin();
    let once = |_| {
        let started = Instant::now();
        let stream = TcpStream::connect(target).expect("a connection");
        let took = started.elapsed();
        // A reset leaves no socket waiting, so that ports do not run out.
        let at_once = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&stream.as_fd(), sockopt::Linger, &at_once).expect("an option");
        took
    };
    (0..TURN).map(once).collect()
}

/// Round trips, and how long it takes to send many datagrams: the way to the other pod's socket is
/// gone before a call returns.
fn flow(client: &UdpSocket) -> (Vec<Duration>, Duration) {
    pin();
    let mut buffer = [0; 64];
    let trips = (0..TURN).map(|_| {
        let started = Instant::now();
        client.send(&[1]).expect("a datagram");
        client.recv(&mut buffer).expect("an answer");
        started.elapsed()
    });
    let trips = trips.collect();
    let started = Instant::now();
    for _ in 0..BLAST {
        client.send(&[1, 2]).expect("a datagram");
    }
    (trips, started.elapsed())
}
