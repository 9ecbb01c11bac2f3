//! UDP flows through conntrack: a client that never stops sending follows its Service's
//! endpoints, and nobody else's flows are touched. Numbers at the front of test names are those of
//! the project's semantics document.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Host, Pointsman, Servers, World, eventually, have_root};
use crate::objects::{Manifests, service, slice};

/// A UDP client that sends from one port all the time, and notes who answered last and when.
struct Sender {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    answers: Arc<std::sync::Mutex<Vec<(SocketAddr, Instant)>>>,
}

impl Sender {
    fn start(host: &Host, target: &str) -> Self {
        let target: SocketAddr = target.parse().unwrap();
        let stop: Arc<AtomicBool> = Arc::default();
        let answers: Arc<std::sync::Mutex<Vec<(SocketAddr, Instant)>>> = Arc::default();
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&answers));
        let thread = host.spawn(move || {
            let any: IpAddr = if target.is_ipv4() {
                [0, 0, 0, 0].into()
            } else {
                [0u16; 8].into()
            };
            let socket = UdpSocket::bind((any, 0)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(5)))
                .unwrap();
            let mut buffer = [0; 128];
            while !stopped.load(Ordering::Relaxed) {
                // A refusal shows up as an error of the next call; it goes on all the same.
                let _ = socket.send_to(b"?", target);
                if let Ok((length, _)) = socket.recv_from(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    let endpoint = text.split(' ').next().unwrap().parse().unwrap();
                    noted.lock().unwrap().push((endpoint, Instant::now()));
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
            answers,
        }
    }

    fn is_answered_by(&self, endpoint: &str, since: Instant) -> bool {
        let endpoint: SocketAddr = endpoint.parse().unwrap();
        let answers = self.answers.lock().unwrap();
        answers
            .last()
            .is_some_and(|(last, at)| *last == endpoint && *at > since)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Net {
    family: &'static str,
    cluster_ip: &'static str,
    node: &'static str,
    vip: &'static str,
    one: &'static str,
    two: &'static str,
}

const NETS: [Net; 2] = [
    Net {
        family: "ipv4",
        cluster_ip: "10.96.0.53",
        node: "192.0.2.1",
        vip: "203.0.113.53",
        one: "10.244.1.1",
        two: "10.244.1.2",
    },
    Net {
        family: "ipv6",
        cluster_ip: "fd00:96::53",
        node: "2001:db8:2::1",
        vip: "2001:db8:113::53",
        one: "fd00:244:0:1::1",
        two: "fd00:244:0:1::2",
    },
];

fn at(address: &str, port: u16) -> String {
    SocketAddr::new(address.parse().unwrap(), port).to_string()
}

fn dns() -> Value {
    service("dns", &NETS.each_ref().map(|net| net.cluster_ip))
        .udp()
        .vips(&NETS.each_ref().map(|net| net.vip))
        .set("/spec/ports/0/nodePort", 30053.into())
        .0
}

fn with(endpoints: &[fn(&Net) -> &'static str]) -> Vec<Value> {
    let mut objects = vec![dns()];
    for net in &NETS {
        let addresses: Vec<&str> = endpoints.iter().map(|pick| pick(net)).collect();
        if !addresses.is_empty() {
            objects.push(slice("dns", "UDP", &addresses));
        }
    }
    objects
}

fn udp_flows(host: &Host, family: &str, filter: &str) -> usize {
    let listed = host.sh(&format!(
        "conntrack -L -f {family} -p udp {filter} 2>/dev/null || true"
    ));
    listed.lines().filter(|line| line.contains("udp")).count()
}

#[test]
fn h1_n_h4_a_sender_that_never_stops_follows_the_endpoints_of_its_service() {
    if !have_root("h1_n_h4_a_sender_that_never_stops_follows_the_endpoints_of_its_service") {
        return;
    }
    let world = World::new();
    let servers: Vec<SocketAddr> = NETS
        .iter()
        .flat_map(|net| [at(net.one, 8080), at(net.two, 8080)])
        .map(|address| address.parse().unwrap())
        .collect();
    let _servers = Servers::udp(&world.pods, &servers);
    let manifests = Manifests::new(with(&[|net| net.one]));
    let _pointsman = Pointsman::start(&world.node, &["--manifests", manifests.path()]);
    let senders: Vec<(&Net, Sender)> = NETS
        .iter()
        .flat_map(|net| {
            [
                (net, Sender::start(&world.pod, &at(net.cluster_ip, 80))),
                (net, Sender::start(&world.node, &at(net.cluster_ip, 80))),
                (net, Sender::start(&world.client, &at(net.vip, 80))),
                (net, Sender::start(&world.client, &at(net.node, 30053))),
            ]
        })
        .collect();
    let all_answered_by = |pick: fn(&Net) -> &'static str, what: &str| {
        let since = Instant::now();
        for (index, (net, sender)) in senders.iter().enumerate() {
            eventually(&format!("sender {index}, {what}"), || {
                sender.is_answered_by(&at(pick(net), 8080), since)
            });
        }
    };
    all_answered_by(|net| net.one, "before anything happens");

    manifests.write("objects.json", with(&[|net| net.two]));
    all_answered_by(|net| net.two, "after the endpoint was replaced");

    manifests.write("objects.json", with(&[]));
    for net in &NETS {
        eventually("no flow is left to a Service without endpoints", || {
            udp_flows(&world.node, net.family, &format!("-d {}", net.cluster_ip)) == 0
                && udp_flows(&world.node, net.family, &format!("-d {}", net.vip)) == 0
                && udp_flows(
                    &world.node,
                    net.family,
                    &format!("-d {} --dport 30053", net.node),
                ) == 0
        });
    }
    let since = Instant::now();
    std::thread::sleep(Duration::from_millis(200));
    for (net, sender) in &senders {
        for endpoint in [net.one, net.two] {
            assert!(
                !sender.is_answered_by(&at(endpoint, 8080), since),
                "to nobody"
            );
        }
    }

    manifests.write("objects.json", with(&[|net| net.one]));
    all_answered_by(|net| net.one, "after the first endpoint came back");

    manifests.write("objects.json", Vec::new());
    for net in &NETS {
        eventually("no flow is left to a Service that is gone", || {
            udp_flows(&world.node, net.family, &format!("-r {}", net.one)) == 0
        });
    }
}

#[test]
fn n_h4_h5_flows_of_others_and_of_other_protocols_are_left_alone() {
    if !have_root("n_h4_h5_flows_of_others_and_of_other_protocols_are_left_alone") {
        return;
    }
    let world = World::new();
    let net = &NETS[0];
    let manifests = Manifests::new(with(&[|net| net.one]));
    let _pointsman = Pointsman::start(&world.node, &["--manifests", manifests.path()]);
    // A TCP flow to the Service's address and port, a UDP flow to a remote host on the node
    // port's number, another port of the Service's address, and one that is well.
    let foreign = [
        format!(
            "-p tcp -s 10.244.1.200 -d {} --sport 1 --dport 80 -r 10.244.1.77 -q 10.244.1.200 --reply-port-src 8080 --reply-port-dst 1 --state ESTABLISHED",
            net.cluster_ip
        ),
        "-p udp -s 10.244.1.200 -d 203.0.113.99 --sport 2 --dport 30053".to_owned(),
        format!(
            "-p udp -s 10.244.1.200 -d {} --sport 3 --dport 81",
            net.cluster_ip
        ),
        format!(
            "-p udp -s 10.244.1.200 -d {} --sport 4 --dport 80 -r {} -q 10.244.1.200 --reply-port-src 8080 --reply-port-dst 4",
            net.cluster_ip, net.two
        ),
    ];
    for flow in &foreign {
        world.node.sh(&format!("conntrack -I {flow} -t 600"));
    }
    let stale = format!(
        "-p udp -s 10.244.1.200 -d {} --sport 5 --dport 80 -r {} -q 10.244.1.200 --reply-port-src 8080 --reply-port-dst 5",
        net.cluster_ip, net.one
    );
    world.node.sh(&format!("conntrack -I {stale} -t 600"));
    manifests.write("objects.json", with(&[|net| net.two]));
    eventually("the stale flow is gone", || {
        udp_flows(&world.node, "ipv4", "--sport 5") == 0
    });
    let listed = world.node.sh("conntrack -L 2>/dev/null");
    for port in 1..=4 {
        assert!(
            listed.contains(&format!("sport={port} ")),
            "flow {port} is still there:\n{listed}"
        );
    }
}
