//! What load balancers are told on a Service's health-check port, and conntrack's settings. Numbers
//! at the front of test names are those of the project's semantics document.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Host, NODE, Pointsman, World, eventually, have_root, pointsman};
use crate::objects::{Manifests, endpoint, service, slice_of};

/// Sends a request and returns the whole answer, or `None` if nobody listens.
fn ask(host: &Host, address: &str, request: &str) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    host.run(move || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })
}

fn balanced() -> Value {
    service("web", &["10.96.0.10", "fd00:96::10"])
        .vips(&["203.0.113.10", "2001:db8:113::10"])
        .set("/spec/externalTrafficPolicy", json!("Local"))
        .set("/spec/healthCheckNodePort", json!(32000))
        .0
}

fn on(node: &str, ready: bool, address: &str) -> Value {
    let mut endpoint = endpoint(address);
    endpoint["nodeName"] = json!(node);
    endpoint["conditions"]["ready"] = json!(ready);
    endpoint["conditions"]["terminating"] = json!(!ready);
    endpoint
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap()
}

#[test]
fn i7_load_balancers_are_told_how_many_ready_endpoints_are_here() {
    if !have_root("i7_load_balancers_are_told_how_many_ready_endpoints_are_here") {
        return;
    }
    let world = World::new();
    let manifests = Manifests::new(vec![
        balanced(),
        slice_of(
            "web",
            "TCP",
            vec![
                on(NODE, true, "10.244.1.1"),
                on(NODE, true, "10.244.1.1"),
                on(NODE, false, "10.244.1.2"),
                on("node-2", true, "10.244.2.1"),
            ],
        ),
        slice_of("web", "TCP", vec![on("node-2", true, "fd00:244:0:2::1")]),
    ]);
    let _pointsman = Pointsman::start(&world.node, &["--manifests", manifests.path()]);
    let answers = |address: &str| {
        let mut answer = None;
        eventually(&format!("{address} answers"), || {
            answer = ask(&world.client, address, "GET /");
            answer.is_some()
        });
        answer.unwrap()
    };
    let answer = answers("192.0.2.1:32000");
    assert_eq!(status(&answer), "200");
    for header in [
        "Content-Type: application/json\r\n",
        "X-Content-Type-Options: nosniff\r\n",
        "X-Load-Balancing-Endpoint-Weight: 1\r\n",
    ] {
        assert!(answer.contains(header), "{answer}");
    }
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(
        body,
        "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\
         \t\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": true\n}"
    );
    let answer = answers("[2001:db8:2::1]:32000");
    assert_eq!(status(&answer), "503", "no endpoint of that family is here");
    assert!(answer.contains("X-Load-Balancing-Endpoint-Weight: 0\r\n"));
    let other = ask(&world.client, "192.0.2.1:32000", "POST /any/path").unwrap();
    assert_eq!(status(&other), "200", "any path and method");
    assert_eq!(
        ask(&world.peer, "198.51.100.1:32000", "GET /"),
        None,
        "only where NodePorts are accepted"
    );

    manifests.write(
        "objects.json",
        vec![
            balanced(),
            slice_of("web", "TCP", vec![on(NODE, false, "10.244.1.2")]),
        ],
    );
    eventually(
        "the count follows, without the fallback to terminating ones",
        || status(&answers("192.0.2.1:32000")) == "503",
    );
    manifests.write("objects.json", Vec::new());
    eventually("nobody listens any more", || {
        ask(&world.client, "192.0.2.1:32000", "GET /").is_none()
    });
}

#[test]
fn n_i6_health_checks_follow_the_addresses_of_the_node() {
    if !have_root("n_i6_health_checks_follow_the_addresses_of_the_node") {
        return;
    }
    let world = World::new();
    let manifests = Manifests::new(vec![
        balanced(),
        slice_of("web", "TCP", vec![on(NODE, true, "10.244.1.1")]),
    ]);
    let list = "198.51.100.0/24,2001:db8:51::/64";
    let _pointsman = Pointsman::start(
        &world.node,
        &[
            "--manifests",
            manifests.path(),
            "--nodeport-addresses",
            list,
        ],
    );
    eventually("an address that is there", || {
        ask(&world.peer, "198.51.100.1:32000", "GET /").is_some()
    });
    assert_eq!(ask(&world.client, "192.0.2.1:32000", "GET /"), None);
    world.node.sh("ip addr add 198.51.100.77/32 dev peer0");
    eventually("an address that came later", || {
        ask(&world.peer, "198.51.100.77:32000", "GET /").is_some()
    });
}

#[test]
fn i8_a_health_check_port_that_is_taken_is_tried_again_at_the_next_sync() {
    if !have_root("i8_a_health_check_port_that_is_taken_is_tried_again_at_the_next_sync") {
        return;
    }
    let world = World::new();
    let taken = world
        .node
        .run(|| std::net::TcpListener::bind("192.0.2.1:32000").unwrap());
    let manifests = Manifests::new(vec![
        balanced(),
        slice_of("web", "TCP", vec![on(NODE, true, "10.244.1.1")]),
    ]);
    let pointsman = Pointsman::start(&world.node, &["--manifests", manifests.path()]);
    pointsman.wait_for("cannot listen for health checks");
    drop(taken);
    manifests.write("more.json", vec![service("other", &["10.96.0.11"]).0]);
    eventually("it listens after the next sync", || {
        ask(&world.client, "192.0.2.1:32000", "GET /").is_some()
    });
}

#[test]
fn h6_conntrack_is_set_as_asked_and_only_where_it_differs() {
    if !have_root("h6_conntrack_is_set_as_asked_and_only_where_it_differs") {
        return;
    }
    let host = Host::new();
    let manifests = Manifests::new(Vec::new());
    let read = |name: &str| {
        host.sh(&format!("cat /proc/sys/net/netfilter/nf_conntrack_{name}"))
            .trim()
            .to_owned()
    };
    let before = (read("max"), read("udp_timeout"), read("udp_timeout_stream"));
    let run = |flags: &[&str]| {
        let mut arguments = vec!["--manifests", manifests.path(), "--once"];
        arguments.extend(flags);
        let (code, _, log) = pointsman(&host, &arguments);
        assert_eq!(code, Some(0), "{log}");
        log
    };
    run(&[]);
    assert_eq!(
        read("tcp_timeout_established"),
        "86400",
        "kube-proxy's default"
    );
    assert_eq!(read("tcp_timeout_close_wait"), "3600");
    assert_eq!(read("tcp_be_liberal"), "0");
    assert_eq!(
        (read("max"), read("udp_timeout"), read("udp_timeout_stream")),
        before,
        "0 leaves them alone"
    );
    let log = run(&[]);
    assert!(!log.contains("setting a sysctl"), "{log}");
    run(&[
        "--conntrack-tcp-timeout-established=1h30m",
        "--conntrack-tcp-timeout-close-wait=90s",
        "--conntrack-udp-timeout=40s",
        "--conntrack-udp-timeout-stream=2m",
        "--conntrack-tcp-be-liberal",
    ]);
    let names = [
        "tcp_timeout_established",
        "tcp_timeout_close_wait",
        "udp_timeout",
        "udp_timeout_stream",
        "tcp_be_liberal",
    ];
    assert_eq!(names.map(read), ["5400", "90", "40", "120", "1"]);
}
