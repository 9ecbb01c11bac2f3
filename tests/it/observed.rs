//! What the commands say that ask a node, and what they do not do: change anything.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{
    CLUSTER_CIDR, Host, LEAVE_CONNTRACK, NODE, Pointsman, Servers, World, by, eventually, get,
    metric, pointsman, said,
};
use crate::objects::{Manifests, service, slice};

fn web() -> Vec<Value> {
    vec![
        service("web", &["10.96.0.10"]).node_port(30080).0,
        slice("web", "TCP", &["10.244.1.11", "10.244.1.12"]),
        service("none", &["10.96.0.20"]).0,
    ]
}

/// The flags of a command that asks no agent, for the node of the tests.
fn without_agent(manifests: &Manifests) -> Vec<&str> {
    vec!["--manifests", manifests.path(), "--hostname-override", NODE]
}

/// A command by itself, on a host: how it ended, and what it printed.
fn command(host: &Host, arguments: &[&str]) -> (Option<i32>, String) {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    host.run(move || said(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn explain_tells_when_and_for_which_change_it_was_programmed_and_how_many_are_connected() {
    let world = World::new();
    let _servers = Servers::tcp(&world.pods, &[8080]);
    let manifests = Manifests::new(web());
    let process = Pointsman::start(&world.node, &["--manifests", manifests.path()]);
    for _ in 0..5 {
        world.pod.connect("10.96.0.10:80").expect("an endpoint");
    }
    let said = process.ask(
        "/v1/explain",
        &[("from", "10.244.1.200"), ("to", "10.96.0.10:80")],
    );
    let route = &said["answer"]["routes"][0];
    assert_eq!(route["liveFlows"], 5, "{said}");
    assert_eq!(route["inEffect"], true);
    assert_eq!(
        route["programmed"]["becauseOf"],
        "the start of this process"
    );
    let mut changed = web();
    changed[1] = slice("web", "TCP", &["10.244.1.11", "10.244.1.13"]);
    manifests.write("objects.json", changed);
    eventually("the change is told", || {
        let said = process.ask("/v1/explain", &[("to", "default/web")]);
        let route = &said["answer"]["routes"][0];
        route["programmed"]["becauseOf"] == "EndpointSlice default/web-IPv4"
            && route["endpoints"][1]["endpoint"] == "10.244.1.13:8080"
    });
    let (code, text) = process.command("history", &[]);
    assert_eq!(code, Some(0));
    assert!(text.contains("EndpointSlice default/web-IPv4"), "{text}");
    let kill = Command::new("kill")
        .args(["-USR1", &process.id().to_string()])
        .status();
    assert!(kill.expect("kill").success());
    process.wait_for("history number=1");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn explain_works_without_an_agent_and_without_rights() {
    let manifests = Manifests::new(web());
    let mut arguments = vec!["explain", "host", "10.96.0.20:80"];
    arguments.extend(without_agent(&manifests));
    arguments.extend(["--", "--cluster-cidr", CLUSTER_CIDR]);
    let program = crate::harness::BINARY.to_str().expect("a path").to_owned();
    let output = Command::new(program)
        .args(&arguments)
        .output()
        .expect("pointsman");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        text.starts_with(
            "default/none:http at 10.96.0.20:80/tcp (ClusterIP), from this node: refused"
        ),
        "{text}"
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn what_cannot_be_asked_is_said_with_what_to_do() {
    let host = Host::new();
    let nobody = ["status", "--socket", "/nowhere/pointsman.sock"];
    let (code, text) = command(&host, &nobody);
    assert_eq!(code, Some(2));
    assert!(
        text.contains("no agent answers at /nowhere/pointsman.sock"),
        "{text}"
    );
    for (arguments, words) in [
        (
            &["explain", "nonsense"][..],
            "is no destination: it is NAMESPACE/SERVICE[:PORT]",
        ),
        (
            &["explain", "somebody", "default/web"],
            "is no source: it is an address, or `host`",
        ),
        (
            &["explain", "10.0.0.1", "[fd00::1]:80"],
            "are not of one IP family",
        ),
        (
            &["top", "--once", "--interval", "0"],
            "--interval is between",
        ),
    ] {
        let (code, text) = command(&host, arguments);
        assert_eq!(code, Some(2), "{arguments:?}");
        assert!(text.contains(words), "{text}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_socket_that_cannot_be_had_keeps_nothing_from_being_served() {
    let world = World::new();
    let _servers = Servers::tcp(&world.pods, &[8080]);
    let manifests = Manifests::new(web());
    for path in ["/proc/nowhere/pointsman.sock", "/dev/null"] {
        let process = Pointsman::start(
            &world.node,
            &["--manifests", manifests.path(), "--socket", path],
        );
        process.wait_for("cannot ask this process");
        assert!(world.pod.connect("10.96.0.10:80").is_ok());
    }
    let without = Pointsman::start(&world.node, &["--manifests", manifests.path(), "--socket="]);
    assert!(!without.log().contains("cannot ask this process"));
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_reader_that_closes_early_is_no_error() {
    let host = Host::new();
    let manifests = Manifests::new(web());
    let process = Pointsman::start(&host, &["--manifests", manifests.path()]);
    let program = crate::harness::BINARY.to_str().expect("a path").to_owned();
    let socket = process.socket();
    let socket = socket.to_str().expect("a path");
    for command in [
        "status",
        "history",
        "explain default/web",
        "top --once --interval 0.05",
    ] {
        let shell = format!("set -o pipefail; {program} {command} --socket {socket} | true");
        let output = Command::new("bash")
            .args(["-c", &shell])
            .output()
            .expect("a shell");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !said.contains("panicked") && !said.contains("cannot write"),
            "{command}: {said}"
        );
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn verify_prints_what_differs_and_changes_nothing() {
    let host = Host::new();
    let manifests = Manifests::new(web());
    let iptables = [
        "--proxy-mode",
        "iptables",
        "--nodeport-addresses",
        "primary",
    ];
    let mode = match by() {
        None => &["--proxy-mode", "nftables"][..],
        Some(_) => &iptables[..],
    };
    let once = [&["--manifests", manifests.path(), "--once"], mode].concat();
    let (code, _, log) = pointsman(&host, &once);
    assert_eq!(code, Some(0), "{log}");
    let cidr = ["--", "--cluster-cidr", CLUSTER_CIDR];
    let verify = [
        &["verify"][..],
        &without_agent(&manifests),
        &cidr,
        &LEAVE_CONNTRACK,
        mode,
    ]
    .concat();
    let (code, text) = command(&host, &verify);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.starts_with("the kernel holds what is wanted"),
        "{text}"
    );
    if by().is_some() {
        host.sh("for tables in iptables iptables-legacy; do \
                 chain=$($tables-save -t nat 2>/dev/null | sed -n 's/^-A \\(PTM[^ ]*\\) .*DNAT.*/\\1/p' | head -1); \
                 test -z \"$chain\" || $tables -w -t nat -F $chain; done; true");
        let (code, text) = command(&host, &verify);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("has other rules"), "{text}");
        return;
    }
    host.sh(
        "nft 'delete element ip pointsman endpoints { 10.96.0.10 . tcp . 80 . c000:1 }' || \
             nft list map ip pointsman endpoints",
    );
    let before = host.ruleset();
    let (code, text) = command(&host, &verify);
    assert_eq!(code, Some(1), "{text}\n{before}");
    let missing = text.lines().any(|line| {
        line.contains("IPv4 default/web: missing: endpoint 10.244.1.12:8080 at 10.96.0.10:80/tcp")
            || line.contains(
                "IPv4 default/web: missing: endpoint 10.244.1.11:8080 at 10.96.0.10:80/tcp",
            )
    });
    assert!(missing, "{text}");
    assert_eq!(host.ruleset(), before, "verify changes nothing");
    host.sh("nft add rule ip pointsman services drop");
    let (code, text) = command(&host, &verify);
    assert_eq!(code, Some(1));
    assert!(text.contains("IPv4 the table is not this program, and will be replaced: chain services has other rules"), "{text}");
    host.sh("nft delete table ip6 pointsman");
    let (_, text) = command(&host, &verify);
    assert!(text.contains("IPv6 there is no table pointsman"), "{text}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn verify_asks_a_running_agent_and_finds_nothing_while_it_programs() {
    let host = Host::new();
    let manifests = Manifests::new(web());
    let process = Pointsman::start(&host, &["--manifests", manifests.path()]);
    for number in 0..5 {
        let address = format!("10.96.1.{}", number + 1);
        let mut objects = web();
        objects.push(service("more", &[&address]).0);
        manifests.write("objects.json", objects);
        let (code, text) = process.command("verify", &[]);
        assert_eq!(code, Some(0), "{text}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn connections_are_counted_exactly_and_counts_survive_syncs_and_restarts() {
    let world = World::new();
    let _servers = [
        Servers::tcp(&world.pods, &[8080]),
        Servers::tcp(&world.peer, &[8080]),
    ];
    let manifests = Manifests::new(web());
    let arguments = [
        "--manifests",
        manifests.path(),
        "--service-metrics",
        "endpoints",
    ];
    let name =
        "pointsman_service_connections_total{namespace=\"default\",port=\"http\",service=\"web\"}";
    let process = Pointsman::start(&world.node, &arguments);
    let connect = |host: &Host, times: usize| {
        for _ in 0..times {
            host.connect("10.96.0.10:80").expect("an endpoint");
        }
    };
    connect(&world.pod, 7);
    // By another destination of the Service, and by somebody else.
    for _ in 0..3 {
        world
            .client
            .connect("192.0.2.1:30080")
            .expect("an endpoint");
    }
    connect(&world.node, 2);
    // One connection is one, however many packets it has.
    assert!((metric(&world.node, name) - 12.0).abs() < 0.1);
    let endpoints: f64 = ["10.244.1.11:8080", "10.244.1.12:8080"]
        .iter()
        .map(|endpoint| {
            let text = get(&world.node, crate::harness::METRICS, "/metrics")
                .expect("metrics")
                .body;
            let line = text.lines().find(|line| {
                line.starts_with("pointsman_endpoint_connections_total{") && line.contains(endpoint)
            });
            let count = line
                .and_then(|line| line.rsplit_once(' '))
                .map(|(_, count)| count);
            count.map_or(0.0, |count| count.parse().expect("a number"))
        })
        .sum();
    assert!((endpoints - 12.0).abs() < 0.1, "{endpoints}");
    // A sync, and a restart.
    let mut changed = web();
    changed[1] = slice("web", "TCP", &["10.244.1.11", "10.244.1.13"]);
    manifests.write("objects.json", changed);
    eventually("the change", || {
        world.node.ruleset().contains("10.244.1.13")
    });
    assert_eq!(process.terminate(), Some(0));
    connect(&world.pod, 1);
    let process = Pointsman::start(&world.node, &arguments);
    assert!((metric(&world.node, name) - 13.0).abs() < 0.1);
    // A Service that is gone is counted no longer.
    manifests.write("objects.json", Vec::new());
    eventually("the Service is gone", || {
        !world.node.ruleset().contains("default/web")
    });
    let text = get(&world.node, crate::harness::METRICS, "/metrics")
        .expect("metrics")
        .body;
    assert!(
        !text.contains("pointsman_service_connections_total{"),
        "{text}"
    );
    assert!(
        !world
            .node
            .sh("nft list table ip pointsman-counts")
            .contains("10.96.0.10")
    );
    // Without the flag nothing is counted.
    assert_eq!(process.terminate(), Some(0));
    let _process = Pointsman::start(&world.node, &["--manifests", manifests.path()]);
    eventually("not a byte in the kernel", || {
        !world
            .node
            .sh("nft list tables")
            .contains("pointsman-counts")
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn top_counts_while_somebody_looks() {
    let world = World::new();
    let _servers = Servers::tcp(&world.pods, &[8080]);
    let manifests = Manifests::new(web());
    let process = Pointsman::start(&world.node, &["--manifests", manifests.path()]);
    assert!(
        !world
            .node
            .sh("nft list tables")
            .contains("pointsman-counts")
    );
    let (code, _) = process.command("top", &["--once", "--interval", "0.05"]);
    assert_eq!(code, Some(0));
    for _ in 0..4 {
        world.pod.connect("10.96.0.10:80").expect("an endpoint");
    }
    let (_, text) = process.command("top", &["--once", "--interval", "0.05", "--output", "json"]);
    let measured: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(
        measured["services"],
        json!([{"service": "default/web:http", "perSecond": 0.0, "total": 4}])
    );
    // What has been counted stays when endpoints are counted too, and somebody who flushes all is not the end of it.
    let (_, text) = process.command(
        "top",
        &[
            "--once",
            "--interval",
            "0.05",
            "--endpoints",
            "--output",
            "json",
        ],
    );
    assert!(text.contains("\"total\": 4"), "{text}");
    if by().is_none() {
        world.node.sh("nft flush ruleset");
        eventually("the rules are back", || {
            world.node.ruleset().contains("default/web")
        });
    } else {
        world.node.sh("nft delete table ip pointsman-counts");
    }
    process.command("top", &["--once", "--interval", "0.05", "--endpoints"]);
    world.node.sh("nft flush table ip pointsman-counts");
    process.command("top", &["--once", "--interval", "0.05", "--endpoints"]);
    world.pod.connect("10.96.0.10:80").expect("an endpoint");
    let (_, text) = process.command("top", &["--once", "--interval", "0.05", "--endpoints"]);
    assert!(
        text.contains("default/web:http") && text.contains("    10.244.1.1"),
        "{text}"
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn refusals_are_counted_by_their_reason() {
    if by().is_some() {
        eprintln!("ignored: iptables mode does not count them");
        return;
    }
    let world = World::new();
    let _servers = Servers::tcp(&world.pods, &[8080]);
    let mut objects = web();
    let local =
        service("local", &["10.96.0.30"]).set("/spec/internalTrafficPolicy", json!("Local"));
    objects.extend([local.0, slice("local", "TCP", &["10.244.1.14"])]);
    let limited = service("limited", &["10.96.0.40"])
        .vips(&["203.0.113.9"])
        .set("/spec/loadBalancerSourceRanges", json!(["198.51.100.0/24"]));
    objects.extend([limited.0, slice("limited", "TCP", &["10.244.1.15"])]);
    let manifests = Manifests::new(objects);
    let process = Pointsman::start(&world.node, &["--manifests", manifests.path()]);
    let cases = [
        ("no_endpoints", "10.96.0.20:80"),
        ("no_local_endpoints", "10.96.0.30:80"),
        ("source_ranges", "203.0.113.9:80"),
        ("undefined_port", "10.96.0.10:81"),
        ("unused_address", "10.96.0.99:80"),
    ];
    let name = |reason| {
        format!("pointsman_refused_connections_total{{ip_family=\"IPv4\",reason=\"{reason}\"}}")
    };
    for (reason, target) in cases {
        let before = metric(&world.node, &name(reason));
        assert!(world.pod.connect(target).is_err(), "{target}");
        let others: f64 = cases
            .iter()
            .map(|(other, _)| metric(&world.node, &name(other)))
            .sum();
        assert!(metric(&world.node, &name(reason)) > before, "{reason}");
        // Nothing else has been counted for it.
        world.pod.connect("10.96.0.10:80").expect("an endpoint");
        let again: f64 = cases
            .iter()
            .map(|(other, _)| metric(&world.node, &name(other)))
            .sum();
        assert!((others - again).abs() < 0.1, "{reason}");
    }
    // They survive a restart.
    let before = metric(&world.node, &name("no_endpoints"));
    assert_eq!(process.terminate(), Some(0));
    let _process = Pointsman::start(&world.node, &["--manifests", manifests.path()]);
    assert!((metric(&world.node, &name("no_endpoints")) - before).abs() < 0.1);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn f1_explain_tells_whom_a_client_comes_back_to_and_for_how_long() {
    if by().is_some() {
        eprintln!("ignored: iptables mode does not tell");
        return;
    }
    let world = World::new();
    let _servers = Servers::tcp(&world.pods, &[8080]);
    let affine = service("web", &["10.96.0.10", "fd00:96::10"])
        .node_port(30080)
        .affinity(600);
    let manifests = Manifests::new(vec![
        affine.0,
        slice("web", "TCP", &["10.244.1.11", "10.244.1.12", "10.244.1.13"]),
        slice(
            "web",
            "TCP",
            &["fd00:244:0:1::11", "fd00:244:0:1::12", "fd00:244:0:1::13"],
        ),
    ]);
    let process = Pointsman::start(&world.node, &["--manifests", manifests.path()]);
    let cases = [
        (&world.pod, "10.244.1.200", "10.96.0.10:80"),
        (&world.client, "192.0.2.2", "192.0.2.1:30080"),
        (&world.pod, "fd00:244:0:1:1::c8", "[fd00:96::10]:80"),
        (&world.client, "2001:db8:2::2", "[2001:db8:2::1]:30080"),
    ];
    for (host, from, to) in cases {
        let without_family = crate::harness::without();
        let is_v6 = from.contains(':');
        if without_family == Some(if is_v6 { "IPv6" } else { "IPv4" }) {
            continue;
        }
        let ask = || process.ask("/v1/explain", &[("from", from), ("to", to)]);
        assert_eq!(ask()["answer"]["routes"][0]["remembered"], Value::Null);
        let seen = host.connect(to).expect("an endpoint");
        let said = ask();
        let remembered = &said["answer"]["routes"][0]["remembered"];
        assert_eq!(remembered["endpoint"], seen.endpoint.to_string(), "{said}");
        let left = remembered["secondsLeft"].as_u64().expect("a time");
        assert!((500..=600).contains(&left), "{said}");
    }
}
