//! What load balancers are told on a Service's health-check port, and conntrack's settings. Numbers
//! at the front of test names are those of `docs/semantics.md`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Host, NODE, Pointsman, World, eventually, pointsman};
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
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn i7_load_balancers_are_told_how_many_ready_endpoints_are_here() {
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
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_i6_health_checks_follow_the_addresses_of_the_node() {
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
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn i8_a_health_check_port_that_is_taken_is_tried_again_at_the_next_sync() {
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
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn i6_a_health_check_listens_everywhere_if_node_ports_are_accepted_everywhere() {
    let world = World::new();
    let half = service("half", &["10.96.0.11"])
        .vips(&["203.0.113.11"])
        .set("/spec/externalTrafficPolicy", json!("Local"))
        .set("/spec/healthCheckNodePort", json!(32001))
        .0;
    let manifests = Manifests::new(vec![
        balanced(),
        half,
        slice_of("web", "TCP", vec![on(NODE, true, "10.244.1.1")]),
    ]);
    let all = "--nodeport-addresses=0.0.0.0/0,::/0";
    let _pointsman = Pointsman::start(&world.node, &["--manifests", manifests.path(), all]);
    let listening = || listening(&world.node);
    // One socket in each family of a Service, and none for the family that one has not.
    let wanted = ["0.0.0.0:32000", "0.0.0.0:32001", "[::]:32000"];
    eventually("one socket for all addresses", || listening() == wanted);
    for address in ["192.0.2.1", "[2001:db8:2::1]", "198.51.100.1"] {
        let answer = ask(&world.client, &format!("{address}:32000"), "GET /");
        let expected = if address.starts_with('[') {
            "503"
        } else {
            "200"
        };
        assert_eq!(status(&answer.expect("an answer")), expected, "{address}");
    }
}

/// Where somebody listens, but for health and metrics of the proxy itself.
fn listening(host: &Host) -> Vec<String> {
    let own = [":10256", ":10249"];
    let listed = host.sh("ss -Hltn");
    let local = |line: &str| line.split_whitespace().nth(3).map(str::to_owned);
    let mut found: Vec<String> = listed
        .lines()
        .filter_map(local)
        .filter(|local| !own.iter().any(|port| local.ends_with(port)))
        .collect();
    found.sort_unstable();
    found
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn i6_no_interface_with_an_accepted_address_means_no_listener() {
    let world = World::new();
    let manifests = Manifests::new(vec![balanced()]);
    let nowhere = "--nodeport-addresses=172.16.0.0/12,2001:db8:99::/64";
    let pointsman = Pointsman::start(&world.node, &["--manifests", manifests.path(), nowhere]);
    // What a first sync brings is there when a second one is.
    manifests.write("more.json", vec![service("other", &["10.96.0.11"]).0]);
    eventually("a second sync", || {
        world.node.ruleset().contains("default/other")
    });
    let none: [&str; 0] = [];
    assert_eq!(listening(&world.node), none, "{}", pointsman.log());
    assert!(!pointsman.log().contains("cannot listen"));
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn i7_an_endpoint_counts_once_however_many_ports_and_slices_have_it() {
    let world = World::new();
    let ports = json!([
        {"name": "http", "protocol": "TCP", "port": 80},
        {"name": "admin", "protocol": "TCP", "port": 81},
    ]);
    let mut web = balanced();
    web["spec"]["ports"] = ports;
    let here = || {
        vec![
            on(NODE, true, "10.244.1.1"),
            on(NODE, true, "10.244.1.2"),
            on(NODE, false, "10.244.1.3"),
        ]
    };
    let mut admin = slice_of("web", "TCP", here());
    admin["metadata"]["name"] = json!("web-admin");
    admin["ports"] = json!([{"name": "admin", "protocol": "TCP", "port": 9090}]);
    admin["endpoints"]
        .as_array_mut()
        .unwrap()
        .push(on(NODE, true, "10.244.1.4"));
    let manifests = Manifests::new(vec![web, slice_of("web", "TCP", here()), admin]);
    let arguments = ["--manifests", manifests.path(), "--healthz-port=0"];
    let _pointsman = Pointsman::start(&world.node, &arguments);
    let mut answer = None;
    eventually("an answer", || {
        answer = ask(&world.client, "192.0.2.1:32000", "GET /");
        answer.is_some()
    });
    let answer = answer.unwrap();
    assert!(
        answer.contains("X-Load-Balancing-Endpoint-Weight: 3\r\n"),
        "{answer}"
    );
    assert!(answer.contains("\"localEndpoints\": 3,"), "{answer}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn i7_an_unhealthy_proxy_takes_no_traffic_though_it_has_endpoints() {
    use pointsman::core::compile::HealthCheck;
    use pointsman::core::model::{ObjectKey, PerFamily};
    use pointsman::serve::health_checks::{Addresses, Table, serve};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    let host = Host::new();
    let healthy = Arc::new(AtomicBool::new(false));
    let is_healthy = {
        let healthy = Arc::clone(&healthy);
        Arc::new(move || healthy.load(Ordering::Relaxed))
    };
    let check = HealthCheck {
        port: 32000,
        local_endpoints: PerFamily {
            v4: Some(2),
            v6: None,
        },
    };
    let (tables, updates) = tokio::sync::watch::channel(Table {
        checks: vec![(ObjectKey::new("default", "web"), check)],
        addresses: PerFamily {
            v4: Addresses::All,
            v6: Addresses::All,
        },
    });
    let server = host.spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(serve(
                updates,
                pointsman::serve::http::Places::Own,
                is_healthy,
                Box::new(|_, _| ()),
            ));
    });
    for (state, code) in [(false, "503"), (true, "200"), (false, "503")] {
        healthy.store(state, Ordering::Relaxed);
        let mut answer = None;
        eventually("an answer", || {
            answer = ask(&host, "127.0.0.1:32000", "GET /");
            answer.is_some()
        });
        let answer = answer.unwrap();
        assert_eq!(status(&answer), code);
        assert!(answer.contains("X-Load-Balancing-Endpoint-Weight: 2\r\n"));
        assert!(answer.ends_with(&format!("\"serviceProxyHealthy\": {state}\n}}")));
    }
    drop(tables);
    server.join().unwrap();
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn i8_a_changed_health_check_port_closes_the_old_one_and_opens_the_new_one() {
    let world = World::new();
    let here = || slice_of("web", "TCP", vec![on(NODE, true, "10.244.1.1")]);
    let manifests = Manifests::new(vec![balanced(), here()]);
    let _pointsman = Pointsman::start(&world.node, &["--manifests", manifests.path()]);
    let answers = |port: u16| ask(&world.client, &format!("192.0.2.1:{port}"), "GET /").is_some();
    eventually("the first port", || answers(32000) && !answers(32001));
    let mut moved = balanced();
    moved["spec"]["healthCheckNodePort"] = json!(32001);
    manifests.write("objects.json", vec![moved, here()]);
    eventually("the other port", || answers(32001) && !answers(32000));
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_i8_without_a_health_server_of_its_own_the_proxy_counts_as_healthy() {
    let world = World::new();
    let manifests = Manifests::new(vec![
        balanced(),
        slice_of("web", "TCP", vec![on(NODE, true, "10.244.1.1")]),
    ]);
    let arguments = ["--manifests", manifests.path(), "--healthz-port=0"];
    let _pointsman = Pointsman::start(&world.node, &arguments);
    let mut answer = None;
    eventually("an answer", || {
        answer = ask(&world.client, "192.0.2.1:32000", "GET /");
        answer.is_some()
    });
    let listed = world.node.sh("ss -Hltn");
    assert!(!listed.contains(":10256"), "no health server: {listed}");
    let answer = answer.unwrap();
    assert_eq!(status(&answer), "200");
    assert!(answer.contains("\"serviceProxyHealthy\": true"), "{answer}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn h6_conntrack_is_set_as_asked_and_only_where_it_differs() {
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

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn h6_nothing_of_the_machine_is_changed_before_there_is_a_cluster() {
    let host = Host::new();
    let setting = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout";
    let before = host.sh(&format!("cat {setting}"));
    let process = Pointsman::launch(
        &host,
        &[
            "--master",
            "http://127.0.0.1:1",
            "--conntrack-udp-timeout=41s",
        ],
    );
    process.wait_for("the watch failed");
    assert_eq!(host.sh(&format!("cat {setting}")), before);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn h6_a_setting_that_cannot_be_made_is_fatal_before_anything_is_programmed() {
    let host = Host::new();
    let manifests = Manifests::new(vec![service("web", &["10.96.0.10"]).0]);
    let (ok, text) = host.try_sh(&format!(
        "unshare -m sh -c 'mount --bind /proc/sys /proc/sys && \
         mount -o remount,bind,ro /proc/sys && exec \
         {} --manifests {} --hostname-override {NODE} --conntrack-max-per-core 0 --conntrack-udp-timeout=41s --once'",
        crate::harness::BINARY.display(),
        manifests.path(),
    ));
    assert!(!ok, "{text}");
    assert!(
        text.contains("cannot set /proc/sys/net/netfilter/nf_conntrack_"),
        "{text}"
    );
    assert_eq!(host.ruleset(), "", "{text}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn h6_a_setting_that_a_process_which_goes_on_may_not_make_is_a_warning() {
    let host = Host::new();
    let manifests = Manifests::new(vec![service("web", &["10.96.0.10"]).0]);
    let read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\" \"$@\"";
    let process = Pointsman::launch_by(
        &["unshare", "-m", "sh", "-c", read_only],
        &host,
        &[
            "--manifests",
            manifests.path(),
            "--conntrack-udp-timeout=41s",
        ],
        &[],
    );
    for said in [
        "cannot set /proc/sys/net/netfilter/nf_conntrack_",
        "init container",
        "synced",
    ] {
        process.wait_for(said);
    }
    assert!(host.ruleset().contains("10.96.0.10"), "{}", process.log());
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn h8_no_sysctl_but_conntracks_is_touched() {
    let host = Host::new();
    let manifests = Manifests::new(vec![service("web", &["10.96.0.10"]).0]);
    let all = || -> std::collections::BTreeSet<String> {
        // The number of connections is no setting.
        let listed = host.sh("sysctl -a --pattern '^net\\.' 2>/dev/null | grep -v conntrack_count");
        listed.lines().map(str::to_owned).collect()
    };
    let before = all();
    assert!(before.len() > 100);
    let (code, _, log) = pointsman(
        &host,
        &[
            "--manifests",
            manifests.path(),
            "--once",
            "--conntrack-tcp-timeout-established=1h",
            "--conntrack-tcp-timeout-close-wait=90s",
            "--conntrack-udp-timeout=40s",
            "--conntrack-udp-timeout-stream=3m",
            "--conntrack-tcp-be-liberal",
        ],
    );
    assert_eq!(code, Some(0), "{log}");
    let after = all();
    let changed: Vec<&str> = after
        .difference(&before)
        .filter_map(|line| {
            line.split(" = ")
                .next()?
                .strip_prefix("net.netfilter.nf_conntrack_")
        })
        .collect();
    assert_eq!(
        changed,
        [
            "tcp_be_liberal",
            "tcp_timeout_close_wait",
            "tcp_timeout_established",
            "udp_timeout",
            "udp_timeout_stream",
        ]
    );
    assert_eq!(
        after.difference(&before).count(),
        changed.len(),
        "and no other"
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn nobody_silences_the_health_port_by_taking_all_the_files_that_are_allowed() {
    let host = Host::new();
    // More listeners than there are places, and clients on all of them that never finish a request.
    let services = (0..200_u16).map(|index| {
        let ip = format!("10.96.1.{index}");
        service(&format!("web-{index}"), &[&ip])
            .vips(&["203.0.113.10"])
            .set("/spec/externalTrafficPolicy", json!("Local"))
            .set("/spec/healthCheckNodePort", json!(32000 + index))
            .0
    });
    let manifests = Manifests::new(services.collect());
    let process = Pointsman::launch_with_few_files(
        &host,
        400,
        &[
            "--manifests",
            manifests.path(),
            "--nodeport-addresses",
            "0.0.0.0/0",
        ],
    );
    process.wait_for("RLIMIT_NOFILE");
    process.wait_for("cannot listen for health checks");
    let open = |port: u16, times: usize| {
        host.run(move || -> Vec<TcpStream> {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            (0..times)
                .filter_map(|_| {
                    let patience = Duration::from_secs(2);
                    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
                    stream.write_all(b"GET / HTTP").ok()?;
                    Some(stream)
                })
                .collect()
        })
    };
    let health = |path: &str| {
        let answer = ask(&host, "127.0.0.1:10256", &format!("GET {path}"));
        answer.map(|answer| status(&answer).to_owned())
    };
    let mut held: Vec<TcpStream> = (32000..32200_u16).flat_map(|port| open(port, 4)).collect();
    held.extend(open(10249, 300));
    assert!(held.len() > 400);
    assert_eq!(health("/livez").as_deref(), Some("200"));
    held.extend(open(10256, 300));
    assert_eq!(health("/livez").as_deref(), Some("200"));
    // A health check is still answered, too.
    let answer = ask(&host, "127.0.0.1:32000", "GET /").expect("an answer");
    assert_eq!(status(&answer), "503");
}
