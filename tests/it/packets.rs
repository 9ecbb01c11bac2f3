//! Real connections through Services of policy Cluster, in both families. Numbers at the front of
//! test names are those of `docs/semantics.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Failure, Host, NODE, PATIENCE, Pointsman, Seen, Servers, Usurper, World, connect,
    connect_within, datagram, eventually, metric, pointsman, without,
};
use crate::objects::{Manifests, Service, endpoint, node, service, service_cidr, slice_of};

mod affinity;
mod algorithms;
mod choice;
mod ejection;
mod loopback;
mod nat;
mod recovery;
mod rolling;
mod upgrade;

/// The addresses of one family. Those that end in a separator want a number.
struct Net {
    name: &'static str,
    cluster: &'static str,
    public: &'static str,
    /// Pods on the node.
    here: &'static str,
    /// Pods on another node.
    elsewhere: &'static str,
    /// The node, towards the client; also what pods see of masqueraded connections.
    node: &'static str,
    /// The node, towards the other node; also what its pods see of masqueraded connections.
    node_other: &'static str,
    loopback: &'static str,
    /// The pod that is a client.
    pod: &'static str,
    client: &'static str,
}

const V4: Net = Net {
    name: "IPv4",
    cluster: "10.96.0.",
    public: "203.0.113.",
    here: "10.244.1.",
    elsewhere: "10.244.2.",
    node: "192.0.2.1",
    node_other: "198.51.100.1",
    loopback: "127.0.0.1",
    pod: "10.244.1.200",
    client: "192.0.2.2",
};
const V6: Net = Net {
    name: "IPv6",
    cluster: "fd00:96::",
    public: "2001:db8:113::",
    here: "fd00:244:0:1::",
    elsewhere: "fd00:244:0:2::",
    node: "2001:db8:2::1",
    node_other: "2001:db8:51::1",
    loopback: "::1",
    pod: "fd00:244:0:1:1::c8",
    client: "2001:db8:2::2",
};
const BOTH: [Net; 2] = [V4, V6];

/// The families that the node has: one of them may be without.
fn tested() -> impl Iterator<Item = Net> {
    let without = without();
    BOTH.into_iter()
        .filter(move |net| Some(net.name) != without)
}

/// The port of every test's Service that has one.
const NODE_PORT: u16 = 30080;
/// Long enough for an answer over IPv4, if one comes.
const SHORT: Duration = Duration::from_millis(400);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

impl Net {
    fn cluster_ip(&self, number: u8) -> String {
        format!("{}{number}", self.cluster)
    }

    fn public_ip(&self, number: u8) -> String {
        format!("{}{number}", self.public)
    }

    /// A pod on the node by its number; from 100 on, one on the other node.
    fn pod_ip(&self, number: u8) -> String {
        let network = if is_here(number) {
            self.here
        } else {
            self.elsewhere
        };
        format!("{network}{number}")
    }

    fn endpoint(&self, number: u8) -> SocketAddr {
        at(&self.pod_ip(number), 8080)
    }

    fn endpoints(&self, numbers: &[u8]) -> BTreeSet<SocketAddr> {
        numbers.iter().map(|n| self.endpoint(*n)).collect()
    }

    /// Where Service `number` of [`full_service`] is found.
    fn targets(&self, number: u8, node_port: u16) -> [(&'static str, SocketAddr); 4] {
        [
            ("ClusterIP", at(&self.cluster_ip(number), 80)),
            ("external IP", at(&self.public_ip(number), 80)),
            ("VIP", at(&self.public_ip(number + 100), 80)),
            ("NodePort", at(self.node, node_port)),
        ]
    }
}

const fn is_here(pod: u8) -> bool {
    pod < 100
}

fn texts<const N: usize>(texts: &[String; N]) -> [&str; N] {
    std::array::from_fn(|index| texts[index].as_str())
}

/// A dual-stack Service with a `ClusterIP` alone.
fn cluster_service(name: &str, number: u8) -> Service {
    service(name, &texts(&BOTH.map(|net| net.cluster_ip(number))))
}

/// A dual-stack Service with every kind of address.
fn full_service(name: &str, number: u8, node_port: u16) -> Service {
    cluster_service(name, number)
        .node_port(node_port)
        .vips(&texts(&BOTH.map(|net| net.public_ip(number + 100))))
        .external_ips(&texts(&BOTH.map(|net| net.public_ip(number))))
}

/// A Service's slices in both families, of pods by their numbers.
fn slices(service: &str, protocol: &str, pods: &[u8]) -> Vec<Value> {
    slices_at(
        service,
        protocol,
        &BOTH.map(|net| pods.iter().map(|pod| net.pod_ip(*pod)).collect()),
        |address| {
            let there = BOTH.iter().any(|net| address.starts_with(net.elsewhere));
            if there { "node-2" } else { NODE }
        },
    )
}

fn slices_at(
    service: &str,
    protocol: &str,
    addresses: &[Vec<String>; 2],
    node: impl Fn(&str) -> &'static str,
) -> Vec<Value> {
    let slice = |addresses: &Vec<String>| {
        let endpoints = addresses.iter().map(|address| {
            let mut object = endpoint(address);
            object["nodeName"] = json!(node(address));
            object
        });
        slice_of(service, protocol, endpoints.collect())
    };
    addresses.iter().map(slice).collect()
}

fn with(service: Service, slices: Vec<Value>) -> Vec<Value> {
    [vec![service.0], slices].concat()
}

/// A world with pointsman at work in it.
struct Site {
    // First, so that it ends before its namespace does.
    process: Pointsman,
    manifests: Manifests,
    world: World,
}

impl Site {
    /// TCP servers answer on port 8080 of every pod.
    fn new(objects: Vec<Value>, arguments: &[&str]) -> Self {
        let world = World::new();
        for host in [&world.pods, &world.peer] {
            Servers::tcp(host, &[8080]);
        }
        Self::in_world(world, objects, arguments)
    }

    fn in_world(world: World, objects: Vec<Value>, arguments: &[&str]) -> Self {
        let manifests = Manifests::new(objects);
        let process = Pointsman::start(
            &world.node,
            &[&["--manifests", manifests.path(), "-v", "2"], arguments].concat(),
        );
        Self {
            process,
            manifests,
            world,
        }
    }

    /// Makes these the objects, and waits until that is programmed.
    ///
    /// A Service of no other use goes with them. All changes come at once: when its address is
    /// in the rules, and the sync that put it there has ended, everything else is there too.
    fn apply(&self, mut objects: Vec<Value>) {
        static GENERATION: AtomicU16 = AtomicU16::new(0);
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        let number = (200 + generation / 100, 100 + generation % 100);
        let markers = [
            format!("10.96.{}.{}", number.0, number.1),
            format!("fd00:96::a:{}:{}", number.0, number.1),
        ];
        objects.push(service("marker", &[&markers[0], &markers[1]]).0);
        let syncs = || self.process.log().matches("synced").count();
        let before = syncs();
        self.manifests.write("objects.json", objects);
        eventually("the objects are programmed", || {
            let ruleset = self.world.node.ruleset();
            syncs() > before && markers.iter().any(|marker| ruleset.contains(marker))
        });
    }
}

/// How an attempt ends.
type Attempt = Result<Seen, Failure>;

/// Attempts that run side by side, each with what it is for.
#[derive(Default)]
struct Attempts {
    running: Vec<(String, JoinHandle<Option<String>>)>,
}

impl Attempts {
    /// Tries something on a host; `verdict` says what is wrong with the result.
    fn add(
        &mut self,
        name: String,
        host: &Host,
        attempt: impl FnOnce() -> Option<String> + Send + 'static,
    ) {
        self.running.push((name, host.spawn(attempt)));
    }

    /// A connection that has to be refused.
    fn refused(&mut self, name: String, host: &Host, target: SocketAddr) {
        self.add(name, host, move || {
            let result = connect(None, target);
            (result != Err(Failure::Refused)).then(|| format!("not refused: {result:?}"))
        });
    }

    /// A connection that has to be dropped.
    fn dropped(&mut self, name: String, host: &Host, target: SocketAddr) {
        // An ICMPv6 refusal comes with the second SYN, after a second.
        let patience = if target.is_ipv4() {
            SHORT
        } else {
            Duration::from_millis(1300)
        };
        self.add(name, host, move || {
            let result = connect_within(None, target, patience);
            (result != Err(Failure::TimedOut)).then(|| format!("not dropped: {result:?}"))
        });
    }

    /// A connection that has to be served by one of these.
    fn served(&mut self, name: String, host: &Host, target: SocketAddr, by: BTreeSet<SocketAddr>) {
        self.add(name, host, move || {
            let result = connect(None, target);
            let is_good = result.is_ok_and(|seen| by.contains(&seen.endpoint));
            (!is_good).then(|| format!("not served by {by:?}: {result:?}"))
        });
    }

    /// All of them have to be as they should.
    fn check(self) {
        let wrong: Vec<String> = self
            .running
            .into_iter()
            .filter_map(|(name, attempt)| {
                let problem = attempt.join().expect("an attempt")?;
                Some(format!("{name}: {problem}"))
            })
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// The hosts that connections start from.
fn sources(world: &World) -> [(&'static str, &Host); 3] {
    [
        ("pod", &world.pod),
        ("node", &world.node),
        ("client", &world.client),
    ]
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e7_the_choice_of_an_endpoint_is_uniform() {
    const PODS: [u8; 5] = [11, 12, 13, 14, 15];
    // Chi-squared, four degrees of freedom, p = 0.000001.
    const CRITICAL: f64 = 33.377;
    let site = Site::new(
        with(
            full_service("web", 10, NODE_PORT),
            slices("web", "TCP", &PODS),
        ),
        &[],
    );
    let mut runs = Vec::new();
    for net in tested() {
        let cluster_ip = at(&net.cluster_ip(10), 80);
        runs.push((net, &site.world.pod, cluster_ip, 10_000_u32));
    }
    let first = tested().next().expect("a family");
    let node_port = at(first.node, NODE_PORT);
    runs.push((first, &site.world.client, node_port, 3_000));
    let runs: Vec<_> = runs
        .into_iter()
        .map(|(net, host, target, times)| {
            let job = host.spawn(move || {
                let mut reached: BTreeMap<SocketAddr, u32> = BTreeMap::new();
                for _ in 0..times {
                    let seen = connect(None, target).expect("a connection");
                    *reached.entry(seen.endpoint).or_default() += 1;
                }
                reached
            });
            (net, target, times, job)
        })
        .collect();
    for (net, target, times, job) in runs {
        let reached = job.join().expect("connections");
        let among = net.endpoints(&PODS);
        assert!(
            reached.keys().all(|endpoint| among.contains(endpoint)),
            "{target}: {reached:?}"
        );
        let expected = f64::from(times) / 5.0;
        let statistic: f64 = among
            .iter()
            .map(|endpoint| {
                let count = f64::from(reached.get(endpoint).copied().unwrap_or_default());
                (count - expected).powi(2) / expected
            })
            .sum();
        assert!(
            statistic < CRITICAL,
            "{target}: {statistic} for {reached:?}"
        );
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn every_kind_of_address_is_served_by_tcp_and_udp() {
    const PODS: [u8; 2] = [11, 111];
    const TIMES: usize = 12;
    let objects = [
        with(
            full_service("tcp", 10, NODE_PORT),
            slices("tcp", "TCP", &PODS),
        ),
        with(
            full_service("udp", 20, NODE_PORT + 1).udp(),
            slices("udp", "UDP", &PODS),
        ),
    ]
    .concat();
    let site = Site::new(objects, &[]);
    let world = &site.world;
    for (host, pod) in [(&world.pods, 11), (&world.peer, 111)] {
        Servers::udp(host, &BOTH.map(|net| net.endpoint(pod)));
    }
    type Try = fn(Option<IpAddr>, SocketAddr) -> Attempt;
    let protocols: [(&str, u8, u16, Try); 2] = [
        ("TCP", 10, NODE_PORT, connect),
        ("UDP", 20, NODE_PORT + 1, datagram),
    ];
    let mut attempts = Attempts::default();
    for net in tested() {
        for (source, host) in sources(world) {
            for (protocol, number, node_port, attempt) in protocols {
                for (kind, target) in net.targets(number, node_port) {
                    // Pods keep their address towards other pods; nobody else keeps any.
                    let keeps = source == "pod" && kind == "ClusterIP";
                    let seen_at = |pod, node| Seen {
                        endpoint: net.endpoint(pod),
                        source: ip(if keeps { net.pod } else { node }),
                    };
                    let expected = [seen_at(11, net.node), seen_at(111, net.node_other)];
                    let name = format!("{protocol} {} {source} to {kind}", net.name);
                    attempts.add(name, host, move || {
                        (0..TIMES).find_map(|_| {
                            let result = attempt(None, target);
                            let is_good = result.is_ok_and(|seen| expected.contains(&seen));
                            (!is_good).then(|| format!("want one of {expected:?}, got {result:?}"))
                        })
                    });
                }
            }
        }
    }
    attempts.check();
}

/// Clients of the other node's pod range, which keep their addresses towards `ClusterIP`s.
fn clients(net: &Net) -> Vec<IpAddr> {
    (1..=40)
        .map(|n| ip(&format!("{}{n}", net.elsewhere)))
        .collect()
}

/// Connects once from each of these addresses of the other node.
fn reach(world: &World, clients: &[IpAddr], target: SocketAddr) -> Vec<SocketAddr> {
    let clients = clients.to_vec();
    world.peer.run(move || {
        clients
            .into_iter()
            .map(|client| match connect(Some(client), target) {
                Ok(seen) => seen.endpoint,
                Err(failure) => panic!("{client} to {target}: {failure:?}"),
            })
            .collect()
    })
}

/// Where the tests of affinity connect to: the `ClusterIP` and the `NodePort`.
fn affine_targets(net: &Net) -> [SocketAddr; 2] {
    [at(&net.cluster_ip(10), 80), at(net.node, NODE_PORT)]
}

fn affine_service(seconds: u32) -> Service {
    full_service("web", 10, NODE_PORT).affinity(seconds)
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn f1_a_client_with_affinity_keeps_its_endpoint() {
    const PODS: [u8; 3] = [11, 12, 13];
    let other = cluster_service("other", 20).affinity(10800);
    let objects = [
        with(affine_service(10800), slices("web", "TCP", &PODS)),
        with(other, slices("other", "TCP", &PODS)),
        with(
            full_service("udp", 30, NODE_PORT + 1).udp().affinity(10800),
            slices("udp", "UDP", &PODS),
        ),
    ]
    .concat();
    let site = Site::new(objects, &[]);
    for net in tested() {
        Servers::udp(&site.world.pods, &PODS.map(|pod| net.endpoint(pod)));
        for (source, host) in sources(&site.world) {
            for (kind, target) in net.targets(10, NODE_PORT) {
                let reached = host.connect_many(&target.to_string(), 50);
                assert_eq!(reached.len(), 1, "{source} to {kind}: {reached:?}");
            }
            for (kind, target) in net.targets(30, NODE_PORT + 1) {
                let reached: BTreeSet<SocketAddr> = (0..20)
                    .map(|_| host.datagram(&target.to_string()).expect("an answer"))
                    .map(|seen| seen.endpoint)
                    .collect();
                assert_eq!(reached.len(), 1, "{source} to {kind}, UDP: {reached:?}");
            }
        }
        let clients = clients(&net);
        let [cluster_ip, node_port] = affine_targets(&net);
        let other = at(&net.cluster_ip(20), 80);
        let [first, second] = [cluster_ip, other].map(|to| reach(&site.world, &clients, to));
        for (target, known) in [(cluster_ip, &first), (other, &second)] {
            assert_eq!(reach(&site.world, &clients, target), *known, "{target}");
        }
        // By chance these would fail once in 3^40 runs.
        assert_ne!(first, second, "two Services share their memory");
        let landed = reach(&site.world, &clients, node_port);
        for places in [&first, &second, &landed] {
            let places: BTreeSet<_> = places.iter().collect();
            assert!(places.len() > 1, "all clients are sent to {places:?}");
        }
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn f2_affinity_ends_a_while_after_the_last_new_connection() {
    const TIMEOUT: u32 = 8;
    let objects = with(affine_service(TIMEOUT), slices("web", "TCP", &[11, 12, 13]));
    let site = Site::new(objects, &[]);
    let targets: Vec<(Vec<IpAddr>, SocketAddr)> = BOTH
        .iter()
        .flat_map(|net| affine_targets(net).map(|target| (clients(net), target)))
        .collect();
    let round = || -> Vec<Vec<SocketAddr>> {
        targets
            .iter()
            .map(|(clients, target)| reach(&site.world, clients, *target))
            .collect()
    };
    let first = round();
    // Longer than the timeout in all, but never without a connection for so long.
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(round(), first, "a new connection restarts the timer");
    }
    std::thread::sleep(Duration::from_secs(u64::from(TIMEOUT)) + Duration::from_millis(500));
    for ((before, after), (_, target)) in first.iter().zip(round()).zip(&targets) {
        // By chance this would fail once in 3^40 runs.
        assert_ne!(*before, after, "{target}: remembered for too long");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn f3_clients_of_an_endpoint_that_leaves_are_served_by_another_and_the_rest_stay() {
    let site = Site::new(
        with(affine_service(10800), slices("web", "TCP", &[11, 12, 13])),
        &[],
    );
    let mut known = Vec::new();
    for net in tested() {
        for target in affine_targets(&net) {
            let reached = reach(&site.world, &clients(&net), target);
            known.push((net.endpoint(11), clients(&net), target, reached));
        }
    }
    site.apply(with(affine_service(10800), slices("web", "TCP", &[12, 13])));
    for (gone, clients, target, before) in known {
        assert!(before.contains(&gone), "{target}: nobody to be moved");
        let after = reach(&site.world, &clients, target);
        for (client, (before, after)) in clients.iter().zip(before.iter().zip(&after)) {
            assert_ne!(*after, gone, "{client} to {target}");
            assert!(*before == gone || before == after, "{client} to {target}");
        }
        assert_eq!(
            reach(&site.world, &clients, target),
            after,
            "moved clients are remembered again"
        );
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn f3_h2_retries_of_a_hanging_connection_reach_another_and_do_not_bring_back_an_endpoint_that_has_left()
 {
    // Enough for some repeated SYNs, which come once a second at first.
    const HANGING: Duration = Duration::from_secs(20);
    let site = Site::new(
        with(affine_service(10800), slices("web", "TCP", &[11, 12, 13])),
        &[],
    );
    let world = &site.world;
    let mut waiting = Vec::new();
    for net in tested() {
        for target in affine_targets(&net) {
            let gone = net.endpoint(11);
            let reached = reach(world, &clients(&net), target);
            for (client, endpoint) in clients(&net).into_iter().zip(reached) {
                if endpoint == gone {
                    waiting.push((client, target));
                }
            }
        }
    }
    assert!(!waiting.is_empty(), "nobody uses the endpoint");
    // The endpoint dies without a word; its clients are left hanging, and then it is taken away.
    world.pods.sh(&format!(
        "nft 'add table inet dead; add chain inet dead input {{ type filter hook input priority 0; }}
              add rule inet dead input ip daddr {} drop
              add rule inet dead input ip6 daddr {} drop'",
        V4.pod_ip(11),
        V6.pod_ip(11),
    ));
    let hanging: Vec<_> = waiting
        .iter()
        .copied()
        .map(|(client, target)| {
            let attempt = move || connect_within(Some(client), target, HANGING);
            world.peer.spawn(attempt)
        })
        .collect();
    eventually("all clients have sent a SYN", || {
        let sent = world
            .node
            .sh("grep -c SYN_SENT /proc/net/nf_conntrack || true");
        sent.trim()
            .parse()
            .is_ok_and(|sent: usize| sent >= waiting.len())
    });
    site.apply(with(affine_service(10800), slices("web", "TCP", &[12, 13])));
    let gone: Vec<SocketAddr> = tested().map(|net| net.endpoint(11)).collect();
    for hanging in hanging {
        let seen = hanging
            .join()
            .expect("an attempt")
            .expect("another endpoint");
        assert!(!gone.contains(&seen.endpoint), "{seen:?}");
    }
    let attempts: Vec<_> = waiting
        .into_iter()
        .map(|(client, target)| {
            let attempt = world.peer.spawn(move || connect(Some(client), target));
            (client, target, attempt)
        })
        .collect();
    let failed: Vec<_> = attempts
        .into_iter()
        .map(|(client, target, attempt)| (client, target, attempt.join().expect("an attempt")))
        .filter(|(_, _, result)| result.is_err())
        .collect();
    assert!(
        failed.is_empty(),
        "{} are sent to the endpoint that has left, as {:?}",
        failed.len(),
        failed.first()
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn f3_clients_keep_their_endpoints_when_the_timeout_of_affinity_changes() {
    let state = |seconds| with(affine_service(seconds), slices("web", "TCP", &[11, 12, 13]));
    let site = Site::new(state(10800), &[]);
    let round = || -> Vec<Vec<SocketAddr>> {
        let targets = |net| affine_targets(net).map(|to| reach(&site.world, &clients(net), to));
        BOTH.iter().flat_map(targets).collect()
    };
    let before = round();
    site.apply(state(600));
    let after = round();
    let all = || before.iter().flatten().zip(after.iter().flatten());
    let moved = all().filter(|(before, after)| before != after).count();
    assert_eq!(moved, 0, "of {} clients so many have moved", all().count());
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e9_a_pod_reaches_itself_through_its_service() {
    let own = BOTH.map(|net| vec![net.pod.to_owned()]);
    let objects = with(
        full_service("self", 10, NODE_PORT),
        slices_at("self", "TCP", &own, |_| NODE),
    );
    let site = Site::new(objects, &[]);
    Servers::tcp(&site.world.pod, &[8080]);
    for net in tested() {
        for (kind, target) in net.targets(10, NODE_PORT) {
            let expected = Seen {
                endpoint: at(net.pod, 8080),
                source: ip(net.node),
            };
            let seen = site.world.pod.connect(&target.to_string());
            assert_eq!(seen, Ok(expected), "{kind}");
        }
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e1_a_service_without_endpoints_refuses_connections() {
    let objects = vec![
        full_service("tcp", 10, NODE_PORT).0,
        full_service("udp", 20, NODE_PORT + 1).udp().0,
    ];
    let site = Site::new(objects, &[]);
    let mut attempts = Attempts::default();
    for net in tested() {
        for (source, host) in sources(&site.world) {
            for (kind, target) in net.targets(10, NODE_PORT) {
                attempts.refused(format!("TCP {} {source} to {kind}", net.name), host, target);
            }
            for (kind, target) in net.targets(20, NODE_PORT + 1) {
                let name = format!("UDP {} {source} to {kind}", net.name);
                attempts.add(name, host, move || {
                    let result = datagram(None, target);
                    (result != Err(Failure::Refused)).then(|| format!("not refused: {result:?}"))
                });
            }
        }
    }
    attempts.check();
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e15_unused_ports_are_refused_and_unused_addresses_dropped_as_services_come_and_go() {
    #[derive(Clone, Copy)]
    enum Is {
        Served,
        Refused,
        Dropped,
    }
    use Is::{Dropped, Refused, Served};
    let web = || with(cluster_service("web", 10), slices("web", "TCP", &[11]));
    let late = || with(cluster_service("late", 20), slices("late", "TCP", &[12]));
    let site = Site::new(web(), &[]);
    let expect = |cases: [(u8, u16, Is); 4]| {
        let mut attempts = Attempts::default();
        for net in tested() {
            for (source, host) in sources(&site.world) {
                for (number, port, is) in cases {
                    let target = at(&net.cluster_ip(number), port);
                    let name = format!("{source} to {target}");
                    match is {
                        Served => {
                            let by = net.endpoints(&[11, 12]);
                            attempts.served(name, host, target, by);
                        }
                        Refused => attempts.refused(name, host, target),
                        Dropped => attempts.dropped(name, host, target),
                    }
                }
            }
        }
        attempts.check();
    };
    for net in tested() {
        let undefined = site
            .world
            .pod
            .datagram(&at(&net.cluster_ip(10), 80).to_string());
        assert_eq!(undefined, Err(Failure::Refused), "TCP's port by UDP");
    }
    expect([
        (10, 80, Served),
        (10, 81, Refused),
        (20, 80, Dropped),
        (20, 81, Dropped),
    ]);
    site.apply([web(), late()].concat());
    expect([
        (10, 80, Served),
        (10, 81, Refused),
        (20, 80, Served),
        (20, 81, Refused),
    ]);
    site.apply(late());
    expect([
        (10, 80, Dropped),
        (10, 81, Dropped),
        (20, 80, Served),
        (20, 81, Refused),
    ]);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_e11_of_two_services_with_one_external_ip_the_older_is_served_until_it_goes() {
    let shared = BOTH.map(|net| net.public_ip(50));
    let claim = |name: &str, number, created: &str, pod| {
        let service = cluster_service(name, number)
            .external_ips(&texts(&shared))
            .created(created);
        with(service, slices(name, "TCP", &[pod]))
    };
    // Neither its name nor its place makes the older one the first.
    let younger = || claim("a-younger", 10, "2024-05-01T00:00:00Z", 11);
    let older = || claim("b-older", 20, "2024-04-01T00:00:00Z", 12);
    let site = Site::new([younger(), older()].concat(), &[]);
    let expect = |external: u8, cluster_ips: &[(u8, u8)]| {
        let mut attempts = Attempts::default();
        for net in tested() {
            for (source, host) in sources(&site.world) {
                let own = cluster_ips
                    .iter()
                    .map(|(number, pod)| (at(&net.cluster_ip(*number), 80), *pod));
                for (target, pod) in own.chain([(at(&net.public_ip(50), 80), external)]) {
                    for _ in 0..5 {
                        let name = format!("{source} to {target}");
                        attempts.served(name, host, target, net.endpoints(&[pod]));
                    }
                }
            }
        }
        attempts.check();
    };
    expect(12, &[(10, 11), (20, 12)]);
    assert!(site.process.log().contains("a-younger"), "nobody is told");
    site.apply(younger());
    expect(11, &[(10, 11)]);
    site.apply([younger(), older()].concat());
    expect(12, &[(10, 11), (20, 12)]);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn no_connection_fails_while_endpoints_are_replaced() {
    let state = |pod| {
        with(
            full_service("web", 10, NODE_PORT),
            slices("web", "TCP", &[pod]),
        )
    };
    let site = Site::new(state(11), &[]);
    let stop: Arc<AtomicBool> = Arc::default();
    let made: Arc<AtomicUsize> = Arc::default();
    let mut attempts = Attempts::default();
    for net in tested() {
        for (kind, target) in net.targets(10, NODE_PORT) {
            let (stop, made) = (Arc::clone(&stop), Arc::clone(&made));
            let by = net.endpoints(&[11, 12, 111]);
            let name = format!("{} to {kind}", net.name);
            attempts.add(name, &site.world.client, move || {
                while !stop.load(Ordering::Relaxed) {
                    let result = connect(None, target);
                    if !result.is_ok_and(|seen| by.contains(&seen.endpoint)) {
                        return Some(format!("{result:?}"));
                    }
                    made.fetch_add(1, Ordering::Relaxed);
                }
                None
            });
        }
    }
    for pod in [12, 111, 11, 12, 11, 111].into_iter().cycle().take(18) {
        site.apply(state(pod));
        let mut after = Attempts::default();
        for net in tested() {
            for (kind, target) in net.targets(10, NODE_PORT) {
                let name = format!("{} to {kind} after the sync", net.name);
                after.served(name, &site.world.pod, target, net.endpoints(&[pod]));
            }
        }
        after.check();
    }
    stop.store(true, Ordering::Relaxed);
    attempts.check();
    assert!(made.load(Ordering::Relaxed) > 0);
}

/// A server that gives back what it gets, on one connection.
fn echo(host: &Host, address: SocketAddr) {
    let listener = host.run(move || TcpListener::bind(address).expect("a free port"));
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().expect("a connection");
        let mut buffer = [0; 64];
        while let Ok(length @ 1..) = connection.read(&mut buffer) {
            connection.write_all(&buffer[..length]).expect("a client");
        }
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e7_an_open_connection_survives_new_syncs_and_restarts() {
    let world = World::new();
    for net in tested() {
        for pod in 11..=14 {
            echo(&world.pods, net.endpoint(pod));
        }
    }
    // One endpoint for each address, since each takes one connection.
    let objects: Vec<Value> = (0..4)
        .flat_map(|index| {
            let name = format!("s{index}");
            let pod = 11 + index;
            let service = full_service(&name, 10 + index, NODE_PORT + u16::from(index));
            with(service, slices(&name, "TCP", &[pod]))
        })
        .collect();
    let site = Site::in_world(world, objects.clone(), &[]);
    let mut connections = Vec::new();
    for net in tested() {
        for index in 0..4_u8 {
            let targets = net.targets(10 + index, NODE_PORT + u16::from(index));
            let (kind, target) = targets[usize::from(index)];
            let connection = site.world.client.run(move || {
                let connection = TcpStream::connect_timeout(&target, PATIENCE);
                let connection = connection.expect("a connection");
                connection
                    .set_read_timeout(Some(PATIENCE))
                    .expect("a limit");
                connection
            });
            connections.push((format!("{} {kind}", net.name), connection));
        }
    }
    let mut talk = |when: &str| {
        for (name, connection) in &mut connections {
            let mut answer = [0; 4];
            connection.write_all(b"talk").expect("an open connection");
            let result = connection.read_exact(&mut answer);
            assert!(
                result.is_ok() && answer == *b"talk",
                "{name}, {when}: {result:?}"
            );
        }
    };
    talk("at first");
    let args = ["--manifests", site.manifests.path(), "--once"];
    let (code, _, log) = pointsman(&site.world.node, &args);
    assert_eq!(code, Some(0), "{log}");
    talk("after another --once");
    let Site {
        process,
        manifests,
        world,
    } = site;
    assert_eq!(process.terminate(), Some(0));
    talk("after its end");
    // Something to do at the start: the log then says when it is done.
    manifests.write("late.json", vec![cluster_service("late", 50).0]);
    let arguments = ["--manifests", manifests.path(), "-v", "2"];
    let process = Pointsman::start(&world.node, &arguments);
    talk("after a restart");
    let site = Site {
        process,
        manifests,
        world,
    };
    // Even its Service's end is not the end of a connection.
    let of_the_first = |object: &Value| object.to_string().contains("\"s0\"");
    site.apply(objects.into_iter().filter(|o| !of_the_first(o)).collect());
    talk("after changes");
}

/// Who answers at a node port: the endpoint, or the host itself because nothing took it.
fn node_port_answers(site: &Site, host: &Host, address: &str) -> bool {
    let target = at(address, NODE_PORT);
    let seen = host.connect(&target.to_string());
    match seen {
        Ok(Seen { endpoint, .. }) if endpoint == target => false,
        Ok(Seen { endpoint, .. }) if endpoint.port() == 8080 => true,
        other => panic!("{target}: {other:?}\n{}", site.process.log()),
    }
}

/// A Service with a node port on a node with a server of its own at that port.
fn node_port_site(arguments: &[&str]) -> Site {
    let site = Site::new(
        with(
            cluster_service("web", 10).node_port(NODE_PORT),
            slices("web", "TCP", &[11]),
        ),
        arguments,
    );
    Servers::tcp(&site.world.node, &[NODE_PORT]);
    site
}

/// Connects to the node's addresses with each of these arguments: whether node ports are accepted
/// on the primary address, on the other, and on loopback.
fn check_node_ports(cases: &[(&[&str], [bool; 3])]) {
    for (arguments, expected) in cases {
        let site = node_port_site(arguments);
        let world = &site.world;
        for net in tested() {
            let sources: [(&str, &[&Host]); 3] = [
                (net.node, &[&world.client, &world.pod, &world.node]),
                (net.node_other, &[&world.client, &world.pod, &world.node]),
                (net.loopback, &[&world.node]),
            ];
            for ((address, hosts), expected) in sources.into_iter().zip(expected) {
                for host in hosts {
                    assert_eq!(
                        node_port_answers(&site, host, address),
                        *expected,
                        "{arguments:?}, {address}"
                    );
                }
            }
        }
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e12_node_ports_are_accepted_on_the_listed_addresses_and_not_on_loopback_unless_it_is_one() {
    check_node_ports(&[
        (
            &["--nodeport-addresses=0.0.0.0/0,::/0"],
            [true, true, false],
        ),
        (
            &["--nodeport-addresses=198.51.100.0/24,2001:db8:51::/64"],
            [false, true, false],
        ),
        (
            &["--nodeport-addresses=primary,198.51.100.0/24,2001:db8:51::/64"],
            [true, true, false],
        ),
    ]);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e13_node_ports_are_accepted_on_the_primary_addresses_unless_told_otherwise() {
    check_node_ports(&[
        (&[], [true, false, false]),
        (&["--nodeport-addresses=primary"], [true, false, false]),
    ]);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e12_a_family_without_a_list_accepts_node_ports_on_every_address() {
    let site = node_port_site(&["--nodeport-addresses=198.51.100.0/24"]);
    for (address, expected) in [
        (V4.node, false),
        (V4.node_other, true),
        (V6.node, true),
        (V6.node_other, true),
    ] {
        let host = &site.world.client;
        assert_eq!(
            node_port_answers(&site, host, address),
            expected,
            "{address}"
        );
    }
    let host = &site.world.node;
    assert!(!node_port_answers(&site, host, V6.loopback));
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_e13_without_a_known_node_address_node_ports_are_accepted_nowhere_in_that_family() {
    let site = node_port_site(&[]);
    let mut known = node();
    let answers = |address| node_port_answers(&site, &site.world.client, address);
    let addresses = |known: &mut Value, addresses: Value| {
        known["status"]["addresses"] = addresses;
        vec![known.clone(), service_cidr()]
    };
    let rule_for = |net: &Net| {
        let rules = site.world.node.sh("nft list ruleset");
        rules.contains(net.node)
    };
    assert!(rule_for(&V4) && rule_for(&V6));
    site.manifests.write(
        "base.json",
        addresses(
            &mut known,
            json!([{"type": "InternalIP", "address": V4.node}]),
        ),
    );
    eventually("the IPv6 address is gone", || !rule_for(&V6));
    assert!(answers(V4.node));
    assert!(!answers(V6.node) && !answers(V6.node_other));
    site.manifests.write(
        "base.json",
        addresses(
            &mut known,
            json!([{"type": "ExternalIP", "address": V6.node_other}]),
        ),
    );
    eventually("the other IPv6 address is there", || {
        site.world.node.ruleset().contains(V6.node_other)
    });
    assert!(!answers(V4.node) && !answers(V4.node_other));
    assert!(!answers(V6.node) && answers(V6.node_other));
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_e12_node_ports_follow_the_addresses_of_the_node() {
    let late = ["198.51.100.77", "2001:db8:51::77"];
    for list in ["0.0.0.0/0,::/0", "198.51.100.0/24,2001:db8:51::/64"] {
        let site = node_port_site(&["--nodeport-addresses", list]);
        site.world.node.sh(&format!(
            "ip addr add {}/32 dev peer0 && ip addr add {}/128 dev peer0 nodad",
            late[0], late[1]
        ));
        for address in late {
            eventually(&format!("{address} is served, with {list}"), || {
                node_port_answers(&site, &site.world.client, address)
            });
        }
        site.world.node.sh(&format!(
            "ip addr del {}/32 dev peer0 && ip addr del {}/128 dev peer0",
            late[0], late[1]
        ));
        for address in late {
            eventually(&format!("{address} is not known, with {list}"), || {
                !site.world.node.ruleset().contains(address)
            });
        }
    }
}

/// What source ranges do to the client, which is inside most of them, and to others.
struct Ranges {
    ranges: &'static [&'static str],
    /// Whether the client is let in, in each family.
    client: [bool; 2],
    /// Whether others are: the pod, a pod of the other node, and the node itself.
    others: [bool; 2],
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e10_source_ranges_restrict_vips_and_nothing_else() {
    let cases = [
        Ranges {
            ranges: &["192.0.2.2/32", " 2001:db8:2::2/128 "],
            client: [true, true],
            others: [false, false],
        },
        Ranges {
            ranges: &[
                "192.0.2.2/31",
                "192.0.2.2/32",
                "192.0.2.0/28",
                "192.0.2.3/32",
            ],
            client: [true, false],
            others: [false, false],
        },
        Ranges {
            ranges: &["10.9.0.0/16", "fd00:9::/64"],
            client: [false, false],
            others: [false, false],
        },
        Ranges {
            ranges: &["nonsense", "300.0.0.0/8"],
            client: [false, false],
            others: [false, false],
        },
        Ranges {
            ranges: &["nonsense", "2001:db8:2::/64"],
            client: [false, true],
            others: [false, false],
        },
        Ranges {
            ranges: &["0.0.0.0/0", "10.9.0.0/16", "2001:db8:2::2/128"],
            client: [true, true],
            others: [true, false],
        },
        Ranges {
            ranges: &[],
            client: [true, true],
            others: [true, true],
        },
    ];
    let state = |ranges: &[&str], slices: Vec<Value>| {
        let service = full_service("web", 10, NODE_PORT);
        with(
            service.set("/spec/loadBalancerSourceRanges", json!(ranges)),
            slices,
        )
    };
    let backends = || slices("web", "TCP", &[11, 111]);
    let site = Site::new(state(&[], backends()), &[]);
    let world = &site.world;
    let hosts = [
        ("client", &world.client),
        ("pod", &world.pod),
        ("other node", &world.peer),
        // Its addresses towards the other node are in no range.
        ("node", &world.node),
    ];
    for Ranges {
        ranges,
        client,
        others,
    } in cases
    {
        site.apply(state(ranges, backends()));
        let mut attempts = Attempts::default();
        for (family, net) in BOTH.iter().enumerate() {
            for (source, host) in hosts {
                let is_allowed = if source == "client" {
                    client[family]
                } else {
                    others[family]
                };
                for (kind, target) in net.targets(10, NODE_PORT) {
                    let name = format!("{ranges:?}: {source} to {kind} {target}");
                    if kind == "VIP" && !is_allowed {
                        attempts.dropped(name, host, target);
                    } else {
                        attempts.served(name, host, target, net.endpoints(&[11, 111]));
                    }
                }
            }
        }
        attempts.check();
    }
    // The ranges count before the lack of endpoints does.
    site.apply(state(
        &[V4.client, "192.0.2.2/32", "2001:db8:2::2/128"],
        vec![],
    ));
    let mut attempts = Attempts::default();
    for net in tested() {
        let (kind, vip) = net.targets(10, NODE_PORT)[2];
        attempts.refused(format!("client to empty {kind}"), &world.client, vip);
        attempts.dropped(format!("pod to empty {kind}"), &world.pod, vip);
    }
    attempts.check();
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e10_a_node_within_the_source_ranges_reaches_a_vip_that_is_its_own_address() {
    let state = |ranges: &[&str]| {
        let service = full_service("web", 10, NODE_PORT);
        with(
            service.set("/spec/loadBalancerSourceRanges", json!(ranges)),
            slices("web", "TCP", &[11]),
        )
    };
    let without_node = ["192.0.2.2/32", "2001:db8:2::2/128"];
    let with_node = ["192.0.2.0/30", "2001:db8:2::/126"];
    let site = Site::new(state(&without_node), &[]);
    let vips = BOTH.map(|net| net.targets(10, NODE_PORT)[2].1);
    for vip in vips {
        site.world.node.try_sh(&format!(
            "ip addr add {} dev client0 nodad || ip addr add {} dev client0",
            vip.ip(),
            vip.ip()
        ));
    }
    // The node's own packets to one of its addresses come from that address.
    let expect = |within: Duration, expected: fn(SocketAddr) -> Attempt| {
        for vip in vips {
            let attempt = move || connect_within(Some(vip.ip()), vip, within);
            let endpoint = |attempt: Attempt| attempt.map(|seen| seen.endpoint);
            let seen = endpoint(site.world.node.run(attempt));
            assert_eq!(seen, endpoint(expected(vip)), "{vip}");
        }
    };
    expect(SHORT, |_| Err(Failure::TimedOut));
    site.apply(state(&with_node));
    expect(PATIENCE, |vip| {
        let net = if vip.is_ipv4() { V4 } else { V6 };
        Ok(Seen {
            endpoint: net.endpoint(11),
            source: ip(net.node),
        })
    });
}
