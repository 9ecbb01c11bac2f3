//! Flows through conntrack: a UDP client that never stops sending follows its Service's endpoints, whoever
//! began when there were no rules is served, and nobody else's flows are touched. Numbers at the front of test names are those of
//! `docs/semantics.md`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{
    Failure, Host, Pointsman, Seen, Servers, World, connect_within, eventually, metric, without,
};
use crate::objects::{Manifests, endpoint, service, slice, slice_of};

/// A proxy that has looked through the flows once: what it is told at the start makes it do so.
fn start(world: &World, manifests: &Manifests) -> Pointsman {
    let process = Pointsman::start(&world.node, &["--manifests", manifests.path()]);
    eventually("the first look through the flows", || {
        // IPv6 comes last.
        let looked =
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv6\"}";
        metric(&world.node, looked) >= 1.0
    });
    process
}

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
    web: &'static str,
    cluster_ip: &'static str,
    node: &'static str,
    vip: &'static str,
    one: &'static str,
    two: &'static str,
}

const NETS: [Net; 2] = [
    Net {
        family: "ipv4",
        web: "10.96.0.80",
        cluster_ip: "10.96.0.53",
        node: "192.0.2.1",
        vip: "203.0.113.53",
        one: "10.244.1.1",
        two: "10.244.1.2",
    },
    Net {
        family: "ipv6",
        web: "fd00:96::80",
        cluster_ip: "fd00:96::53",
        node: "2001:db8:2::1",
        vip: "2001:db8:113::53",
        one: "fd00:244:0:1::1",
        two: "fd00:244:0:1::2",
    },
];

/// The families that the node has, with their indices: one of them may be without.
fn tested() -> impl Iterator<Item = (usize, &'static Net)> {
    let without = without().map(str::to_lowercase);
    NETS.iter()
        .enumerate()
        .filter(move |(_, net)| Some(net.family) != without.as_deref())
}

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
    for (_, net) in tested() {
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
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn h1_n_h4_a_sender_that_never_stops_follows_the_endpoints_of_its_service() {
    let world = World::new();
    let servers: Vec<SocketAddr> = NETS
        .iter()
        .flat_map(|net| [at(net.one, 8080), at(net.two, 8080)])
        .map(|address| address.parse().unwrap())
        .collect();
    let _servers = Servers::udp(&world.pods, &servers);
    let manifests = Manifests::new(with(&[|net| net.one]));
    let _pointsman = start(&world, &manifests);
    let senders: Vec<(&Net, Sender)> = tested()
        .flat_map(|(_, net)| {
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
    for (_, net) in tested() {
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
    // An answer may have been under way.
    std::thread::sleep(Duration::from_millis(200));
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
    for (_, net) in tested() {
        eventually("no flow is left to a Service that is gone", || {
            udp_flows(&world.node, net.family, &format!("-r {}", net.one)) == 0
        });
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_h4_h5_flows_of_others_and_of_other_protocols_are_left_alone() {
    let world = World::new();
    let net = &NETS[0];
    let manifests = Manifests::new(with(&[|net| net.one]));
    let _pointsman = start(&world, &manifests);
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

/// Tells conntrack of a UDP flow that a pod has begun, and who answers it.
fn insert(node: &Host, port: u16, to: (&str, u16), answered_by: (&str, u16)) {
    let client = if to.0.contains(':') {
        "fd00:244:0:1:1::c8"
    } else {
        "10.244.1.200"
    };
    node.sh(&format!(
        "conntrack -I -p udp -s {client} -d {} --sport {port} --dport {} -r {} -q {client} \
         --reply-port-src {} --reply-port-dst {port} -t 600",
        to.0, to.1, answered_by.0, answered_by.1
    ));
}

/// The client's ports of the UDP flows that there are.
fn client_ports(node: &Host) -> BTreeSet<u16> {
    ["ipv4", "ipv6"]
        .iter()
        .flat_map(|family| {
            let listed = node.sh(&format!(
                "conntrack -L -f {family} -p udp 2>/dev/null || true"
            ));
            let ports: Vec<u16> = listed
                .lines()
                .filter_map(|line| line.split("sport=").nth(1)?.split(' ').next()?.parse().ok())
                .collect();
            ports
        })
        .collect()
}

/// A Service of every kind of address.
fn everywhere() -> Value {
    service("dns", &NETS.each_ref().map(|net| net.cluster_ip))
        .udp()
        .vips(&NETS.each_ref().map(|net| net.vip))
        .external_ips(&EXTERNAL)
        .set("/spec/ports/0/nodePort", 30053.into())
        .0
}

const EXTERNAL: [&str; 2] = ["203.0.113.54", "2001:db8:113::54"];

/// What a flow to a family's Service can be to.
fn destinations(index: usize) -> [(&'static str, u16); 4] {
    let net = &NETS[index];
    [
        (net.cluster_ip, 80),
        (net.vip, 80),
        (EXTERNAL[index], 80),
        (net.node, 30053),
    ]
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn h2_flows_to_endpoints_that_still_serve_are_left_alone_wherever_and_however_they_stand() {
    let world = World::new();
    let standing = |address: &str, node: &str, [ready, serving, terminating]: [bool; 3]| {
        let mut endpoint = endpoint(address);
        endpoint["nodeName"] = node.into();
        endpoint["conditions"] = serde_json::json!({
            "ready": ready, "serving": serving, "terminating": terminating,
        });
        endpoint
    };
    let objects = |first: bool| {
        // Of these only the first is used for new connections to the ClusterIP.
        let mut local = dns();
        local["spec"]["internalTrafficPolicy"] = "Local".into();
        let mut endpoints = vec![
            standing("10.244.1.11", crate::harness::NODE, [true, true, false]),
            standing("10.244.2.12", "node-2", [true, true, false]),
            standing("10.244.2.13", "node-2", [false, true, true]),
            standing("10.244.2.14", "node-2", [false, true, false]),
            standing("10.244.2.15", "node-2", [false, false, true]),
            standing("10.244.2.16", "node-2", [false, false, false]),
        ];
        if first {
            endpoints.push(standing("10.244.1.17", "node-2", [true, true, false]));
        }
        vec![local, slice_of("dns", "UDP", endpoints)]
    };
    let manifests = Manifests::new(objects(true));
    let _pointsman = start(&world, &manifests);
    for last in 11..=17_u16 {
        let network = if last == 11 || last == 17 { 1 } else { 2 };
        let endpoint = format!("10.244.{network}.{last}");
        insert(
            &world.node,
            last,
            (NETS[0].cluster_ip, 80),
            (&endpoint, 8080),
        );
    }
    // The last one leaves.
    manifests.write("objects.json", objects(false));
    eventually("the flows to those that do not serve are gone", || {
        let left = client_ports(&world.node);
        [15, 16, 17].iter().all(|port| !left.contains(port))
    });
    assert_eq!(client_ports(&world.node), (11..=14).collect());
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn h3_flows_to_every_kind_of_address_end_when_those_who_answer_have_left() {
    let world = World::new();
    let objects = |pick: fn(&Net) -> &'static str| {
        let mut objects = vec![everywhere()];
        objects.extend(NETS.iter().map(|net| slice("dns", "UDP", &[pick(net)])));
        objects
    };
    let manifests = Manifests::new(objects(|net| net.one));
    let _pointsman = start(&world, &manifests);
    let mut stale = BTreeSet::new();
    let mut well = BTreeSet::new();
    for (index, net) in tested() {
        for (offset, to) in (0..).step_by(10).zip(destinations(index)) {
            let port = 1000 + 100 * u16::try_from(index).unwrap() + offset;
            insert(&world.node, port, to, (net.one, 8080));
            insert(&world.node, port + 1, to, (net.two, 8080));
            insert(&world.node, port + 2, to, (net.two, 9090));
            // Nobody had translated it.
            insert(&world.node, port + 3, to, to);
            stale.extend([port, port + 2, port + 3]);
            well.insert(port + 1);
        }
    }
    assert!(client_ports(&world.node).is_superset(&stale));
    manifests.write("objects.json", objects(|net| net.two));
    eventually("no stale flow is left", || {
        client_ports(&world.node).is_disjoint(&stale)
    });
    assert_eq!(client_ports(&world.node), well);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn h1_an_endpoint_that_comes_ends_the_flows_that_go_to_none_of_the_list() {
    let world = World::new();
    let objects = |last: Option<&str>| {
        let mut objects = vec![everywhere()];
        for (_, net) in tested() {
            let more = last.map(|last| format!("{}{last}", net.one));
            let addresses = [Some(net.one), more.as_deref()];
            let addresses: Vec<&str> = addresses.into_iter().flatten().collect();
            objects.push(slice("dns", "UDP", &addresses));
        }
        objects
    };
    let manifests = Manifests::new(objects(None));
    let _pointsman = start(&world, &manifests);
    let (mut stale, mut well) = (BTreeSet::new(), BTreeSet::new());
    for (index, net) in tested() {
        for (offset, to) in (0..).step_by(10).zip(destinations(index)) {
            let port = 1000 + 100 * u16::try_from(index).unwrap() + offset;
            insert(&world.node, port, to, (net.one, 8080));
            // Nobody knows how it came about.
            insert(&world.node, port + 1, to, (net.two, 8080));
            well.insert(port);
            stale.insert(port + 1);
        }
    }
    manifests.write("objects.json", objects(Some("9")));
    eventually("no flow is left that goes elsewhere", || {
        client_ports(&world.node).is_disjoint(&stale)
    });
    assert_eq!(client_ports(&world.node), well);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_h4_flows_of_services_that_lose_their_endpoints_or_go_are_ended_and_no_strangers() {
    let served = || {
        let mut objects = vec![everywhere()];
        objects.extend(NETS.iter().map(|net| slice("dns", "UDP", &[net.one])));
        objects
    };
    for (what, end) in [
        ("no endpoints", vec![everywhere()]),
        ("no Service", Vec::new()),
        ("slices without a Service", served().split_off(1)),
    ] {
        let world = World::new();
        let manifests = Manifests::new(served());
        let _pointsman = start(&world, &manifests);
        let mut stale = BTreeSet::new();
        let mut strangers = BTreeSet::new();
        for (index, net) in tested() {
            let base = 1000 + 100 * u16::try_from(index).unwrap();
            for (port, to) in (base..).zip(destinations(index)) {
                insert(&world.node, port, to, (net.one, 8080));
                stale.insert(port);
            }
            // The node port's number at a remote host, and at an address of the node that
            // accepts no node ports.
            let remote = ["198.51.100.2", "2001:db8:51::2"][index];
            let other = ["198.51.100.1", "2001:db8:51::1"][index];
            for (port, address) in (base + 50..).zip([remote, other]) {
                insert(&world.node, port, (address, 30053), (address, 30053));
                strangers.insert(port);
            }
        }
        manifests.write("objects.json", end);
        eventually(&format!("no stale flow is left, with {what}"), || {
            client_ports(&world.node).is_disjoint(&stale)
        });
        assert_eq!(client_ports(&world.node), strangers, "{what}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_h5_the_kernel_hands_out_the_flows_that_matter_and_not_its_whole_table() {
    use pointsman::core::diff::StaleFlows;
    use pointsman::core::ir::{Destination, Host as At};
    use pointsman::core::model::{Family, PerFamily, Protocol};
    use pointsman::dataplane::conntrack::{Cleaned, Work, clean};

    // conntrack is at work in a namespace that has a rule which asks for it.
    let host = Host::new();
    host.sh("nft 'add table inet t; add chain inet t c { type filter hook output priority 0; }; add rule inet t c ct state new'");
    let work = |addresses: &[String], protocol| Work {
        destinations: addresses
            .iter()
            .map(|address| StaleFlows {
                destination: Destination {
                    host: At::Address(address.parse().unwrap()),
                    protocol,
                    port: 80,
                },
                keep: Default::default(),
                gone: Vec::new(),
            })
            .collect(),
        node_addresses: Vec::new(),
    };
    let clean = |work: Work| host.run(move || clean(&work).expect("conntrack"));
    // A kernel compares no IPv6 address as it should, but ports.
    for (net, other, port) in [(&NETS[0], "10.96.9.9", 80), (&NETS[1], "fd00:96::99", 81)] {
        for client in 1..=40 {
            insert(&host, client, (other, port), (net.two, 8080));
        }
        for client in 101..=103 {
            insert(&host, client, (net.cluster_ip, 80), (net.one, 8080));
        }
        for client in 1..=40 {
            host.sh(&format!(
                "conntrack -I -p tcp -s {0} -d {1} --sport {client} --dport 80 --state ESTABLISHED -t 600 \
                 -u SEEN_REPLY",
                net.two, net.web
            ));
        }
        let of_family = |cleaned: PerFamily<Cleaned>| {
            let cleaned = cleaned.get(Family::of(net.one.parse().unwrap()));
            (cleaned.seen, cleaned.ended)
        };
        // For a few destinations it picks out theirs.
        let few = work(&[net.cluster_ip.to_owned()], Protocol::Udp);
        assert_eq!(of_family(clean(few)), (3, 3));
        // Of TCP none that was answered is handed out, by a kernel that can tell (5.18 and newer).
        let of_tcp = work(&[net.web.to_owned()], Protocol::Tcp);
        assert_eq!(of_family(clean(of_tcp)).1, 0);
        // For many, all of the protocol, once.
        let prefix = net.cluster_ip.strip_suffix("53").unwrap();
        let many: Vec<String> = (1..=20).map(|last| format!("{prefix}{last}")).collect();
        assert_eq!(of_family(clean(work(&many, Protocol::Udp))), (40, 0));
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_h1_flows_that_began_while_somebody_had_taken_the_rules_away_are_served_once_they_are_back() {
    for command in [
        "nft flush ruleset",
        "nft add table ip pointsman '{ flags dormant; }'; nft add table ip6 pointsman '{ flags dormant; }'",
    ] {
        let world = World::new();
        let servers: Vec<SocketAddr> = tested()
            .map(|(_, net)| at(net.one, 8080).parse().unwrap())
            .collect();
        let _udp = Servers::udp(&world.pods, &servers);
        let _tcp = Servers::tcp(&world.pods, &[8080]);
        let mut objects = with(&[|net| net.one]);
        objects.extend(web());
        let manifests = Manifests::new(objects);
        let process = start(&world, &manifests);
        let signal = |name: &str| {
            world.node.sh(&format!("kill -{name} {}", process.id()));
        };
        signal("STOP");
        world.node.sh(command);
        follow_connections(&world);
        let connections = begin_connections(&world);
        let senders: Vec<(&Net, Sender)> = tested()
            .map(|(_, net)| (net, Sender::start(&world.pod, &at(net.cluster_ip, 80))))
            .collect();
        eventually("the senders have flows", || {
            tested().all(|(_, net)| {
                let filter = format!("-p udp --orig-dst {}", net.cluster_ip);
                udp_flows(&world.node, net.family, &filter) > 0
            })
        });
        let since = Instant::now();
        signal("CONT");
        for (net, sender) in &senders {
            eventually(&format!("{} after {command}", net.family), || {
                sender.is_answered_by(&at(net.one, 8080), since)
            });
        }
        for (net, connection) in connections {
            let seen = connection.join().unwrap();
            let endpoint = seen.map(|seen| seen.endpoint.to_string());
            assert_eq!(endpoint, Ok(at(net.one, 8080)), "after {command}");
        }
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn h2_connections_that_began_before_the_first_sync_are_served_after_it() {
    let world = World::new();
    let _servers = Servers::tcp(&world.pods, &[8080]);
    follow_connections(&world);
    let connections = begin_connections(&world);
    let manifests = Manifests::new(web());
    let _process = start(&world, &manifests);
    for (net, connection) in connections {
        let seen = connection.join().unwrap();
        let endpoint = seen.map(|seen| seen.endpoint.to_string());
        assert_eq!(endpoint, Ok(at(net.one, 8080)));
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn h2_what_is_sent_again_is_not_refused_before_its_flow_of_the_time_without_rules_is_ended() {
    let world = World::new();
    let _servers = Servers::tcp(&world.pods, &[8080]);
    follow_connections(&world);
    world.node.sh(
        "nft add chain inet theirs sent '{ type filter hook prerouting priority -400; }'
         nft add rule inet theirs sent iifname pod0 tcp flags syn counter",
    );
    let attempts = || {
        let listed = world.node.sh("nft list chain inet theirs sent");
        let mut words = listed
            .split_whitespace()
            .skip_while(|word| *word != "packets");
        words.nth(1).unwrap().parse::<u64>().unwrap()
    };
    // The flow can be there before the connection, since that can have no other port.
    world
        .pod
        .sh("sysctl -qw net.ipv4.ip_local_port_range='40000 40000'");
    let manifests = Manifests::new(web());
    let process = start(&world, &manifests);
    for (net, of_pod) in [(&NETS[0], "10.244.1.200"), (&NETS[1], "fd00:244:0:1:1::c8")] {
        if tested().all(|(_, tested)| tested.family != net.family) {
            continue;
        }
        let flow = format!("-p tcp -s {of_pod} -d {} --sport 40000 --dport 80", net.web);
        world.node.sh(&format!(
            "conntrack -I {flow} -r {0} -q {of_pod} --reply-port-src 80 --reply-port-dst 40000 --dst-nat {0} \
             --state SYN_SENT -t 600",
            net.web
        ));
        let before = attempts();
        let target = at(net.web, 80).parse().unwrap();
        let connection = world
            .pod
            .spawn(move || connect_within(None, target, Duration::from_secs(30)));
        eventually("it was sent again", || {
            connection.is_finished() || attempts() >= before + 2
        });
        world
            .node
            .sh(&format!("conntrack -D {flow} 2>/dev/null || true"));
        let seen = connection.join().unwrap();
        let endpoint = seen.map(|seen| seen.endpoint.to_string());
        assert_eq!(endpoint, Ok(at(net.one, 8080)), "{}", process.log());
    }
}

/// A Service of TCP and its endpoints.
fn web() -> Vec<Value> {
    let mut objects = vec![service("web", &NETS.each_ref().map(|net| net.web)).0];
    let slices = tested().map(|(_, net)| slice("web", "TCP", &[net.one]));
    objects.extend(slices);
    objects
}

/// Somebody else's rules, without which the kernel would follow no connections while ours are not there;
/// and nobody who answers what leaves the node untranslated.
fn follow_connections(world: &World) {
    world.node.sh("nft add table inet theirs
         nft add chain inet theirs forward '{ type filter hook forward priority 0; }'
         nft add rule inet theirs forward ct state established accept");
    world.client.sh("nft add table inet silence
         nft add chain inet silence prerouting '{ type filter hook prerouting priority 0; }'
         nft add rule inet silence prerouting tcp flags syn drop");
}

type Connection = JoinHandle<Result<Seen, Failure>>;

/// Connections to a Service that nobody translates, which go on trying.
fn begin_connections(world: &World) -> Vec<(&'static Net, Connection)> {
    let begin = |net: &Net| {
        let target = at(net.web, 80).parse().unwrap();
        let connect = move || connect_within(None, target, Duration::from_secs(30));
        world.pod.spawn(connect)
    };
    let mut begun: Vec<(&Net, Connection)> = tested().map(|(_, net)| (net, begin(net))).collect();
    eventually("the connections have entries without an answer", || {
        begun.iter_mut().all(|(net, connection)| {
            let listed = world.node.sh(&format!(
                "conntrack -L -f {} -p tcp --orig-dst {} --state SYN_SENT 2>/dev/null || true",
                net.family, net.web
            ));
            // One that has ended has found no way yet: the next may.
            if connection.is_finished() {
                *connection = begin(net);
                return false;
            }
            listed.contains("[UNREPLIED]")
        })
    });
    begun
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn h2_who_waits_for_an_endpoint_that_leaves_reaches_another_with_its_next_attempt() {
    let world = World::new();
    let _servers = Servers::tcp(&world.pods, &[8080]);
    let to = |endpoint: fn(&Net) -> &'static str| {
        let mut objects = vec![service("web", &NETS.each_ref().map(|net| net.web)).0];
        objects.extend(tested().map(|(_, net)| slice("web", "TCP", &[endpoint(net)])));
        objects
    };
    let manifests = Manifests::new(to(|net| net.one));
    let process = start(&world, &manifests);
    // A connection that stands, and those that the endpoint does not answer any more.
    let hold = |net: &Net| {
        let target: SocketAddr = at(net.web, 80).parse().unwrap();
        world
            .pod
            .run(move || std::net::TcpStream::connect_timeout(&target, Duration::from_secs(5)))
    };
    let held: Vec<_> = tested()
        .map(|(_, net)| (net, hold(net).expect("an endpoint")))
        .collect();
    world.pods.sh("nft 'table inet silence { chain input { type filter hook prerouting priority -300; tcp flags syn drop; }; }'");
    let connections = begin_connections(&world);
    // At once: what is sent again in between would be answered.
    world.pods.sh(&(tested().fold(
        "nft 'delete table inet silence; table inet silence { chain input { type filter hook prerouting priority -300; "
            .to_owned(),
        |all, (_, net)| {
            let family = if net.one.contains(':') { "ip6" } else { "ip" };
            format!("{all}{family} daddr {} tcp flags syn drop; ", net.one)
        },
    ) + "}; }'"));
    manifests.write("objects.json", to(|net| net.two));
    for (net, connection) in connections {
        let seen = connection.join().unwrap();
        let endpoint = seen.map(|seen| seen.endpoint.to_string());
        assert_eq!(endpoint, Ok(at(net.two, 8080)), "{}", process.log());
    }
    // What is established is left alone.
    for (net, _) in &held {
        let flows = world.node.sh(&format!(
            "conntrack -L -f {} -p tcp --orig-dst {} 2>/dev/null",
            net.family, net.web
        ));
        assert!(flows.contains(&format!("src={} ", net.one)), "{flows}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn h1_e12_an_address_that_comes_back_has_no_flows_to_endpoints_that_have_left_meanwhile() {
    for accepted in ["192.0.2.0/24,2001:db8:2::/64", "0.0.0.0/0,::/0"] {
        let world = World::new();
        let manifests = Manifests::new(with(&[|net| net.one]));
        let process = Pointsman::start(
            &world.node,
            &[
                "--manifests",
                manifests.path(),
                "--nodeport-addresses",
                accepted,
                "-v",
                "2",
            ],
        );
        let floating = ["192.0.2.5/24", "2001:db8:2::5/64"];
        let addresses = |what: &str| {
            for (index, _) in tested() {
                let nodad = if index == 1 && what == "add" {
                    "nodad"
                } else {
                    ""
                };
                let address = floating[index];
                world
                    .node
                    .sh(&format!("ip addr {what} {address} dev client0 {nodad}"));
            }
        };
        let synced = |what: &str, change: &dyn Fn()| {
            let before = process.log().matches("synced").count();
            change();
            if accepted.starts_with("192") || what == "endpoints" {
                eventually(&format!("a sync after {what}"), || {
                    process.log().matches("synced").count() > before
                });
            }
        };
        synced("it has come", &|| addresses("add"));
        let mut stale = BTreeSet::new();
        for (index, net) in tested() {
            let port = 1000 + u16::try_from(index).unwrap();
            let address = floating[index].split('/').next().unwrap();
            insert(&world.node, port, (address, 30053), (net.one, 8080));
            stale.insert(port);
        }
        synced("it has gone", &|| addresses("del"));
        // In which its flows are nobody's of ours.
        std::thread::sleep(Duration::from_secs(1));
        synced("endpoints", &|| {
            manifests.write("objects.json", with(&[|net| net.two]));
        });
        std::thread::sleep(Duration::from_secs(1));
        assert!(client_ports(&world.node).is_superset(&stale), "{accepted}");
        addresses("add");
        eventually(&format!("no stale flow is left, {accepted}"), || {
            client_ports(&world.node).is_disjoint(&stale)
        });
    }
}
