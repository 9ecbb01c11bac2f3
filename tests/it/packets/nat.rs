//! What happens to packets on the way, beyond where they end up.

use super::*;

/// The number that a named counter of the spying table has come to.
fn count(node: &Host, counter: &str) -> u32 {
    let listed = node.sh(&format!("nft list counter inet spy {counter}"));
    let number = listed
        .split_whitespace()
        .skip_while(|word| *word != "packets")
        .nth(1);
    number.and_then(|n| n.parse().ok()).expect("a counter")
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e8_masquerading_is_asked_for_by_one_bit_of_the_mark_which_is_cleared_when_it_is_done() {
    let site = Site::new(
        with(
            full_service("web", 10, NODE_PORT),
            slices("web", "TCP", &[11]),
        ),
        &[],
    );
    let world = &site.world;
    // Bit 3 is somebody else's.
    world.node.sh("nft -f - <<'END'
        table inet spy {
            counter asked { }
            counter left { }
            counter kept { }
            chain first {
                type filter hook prerouting priority -150;
                ct state new meta mark set meta mark or 0x8
            }
            chain middle {
                type filter hook forward priority 10;
                ct state new meta mark and 0x4000 == 0x4000 counter name asked
            }
            chain last {
                type filter hook postrouting priority 110;
                ct state new meta mark and 0x4000 == 0x4000 counter name left
                ct state new meta mark and 0x8 == 0x8 counter name kept
            }
        }
END");
    let mut masqueraded = 0;
    for net in tested() {
        for (_, target) in net.targets(10, NODE_PORT) {
            let seen = world
                .client
                .connect(&target.to_string())
                .expect("an answer");
            assert_eq!(seen.source, ip(net.node), "{target}");
            masqueraded += 1;
        }
    }
    assert!(count(&world.node, "asked") >= masqueraded);
    assert_eq!(count(&world.node, "left"), 0);
    assert!(count(&world.node, "kept") >= masqueraded);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e8_mark_and_priority_are_set_back_even_where_somebody_else_masquerades_everything() {
    let site = Site::new(
        with(
            full_service("web", 10, NODE_PORT),
            slices("web", "TCP", &[11]),
        ),
        &[],
    );
    let world = &site.world;
    // As a CNI plugin does, and a little before.
    world.node.sh("nft -f - <<'END'
        table inet spy {
            counter translated { }
            counter marked { }
            counter prioritised { }
            chain early {
                type nat hook postrouting priority 99;
                ct state new masquerade
            }
            chain cni {
                type nat hook postrouting priority srcnat;
                ct state new masquerade
            }
            chain last {
                type filter hook postrouting priority 300;
                ct state new ct status dnat counter name translated
                ct state new meta mark and 0x4000 == 0x4000 counter name marked
                ct state new ct status dnat meta priority != none counter name prioritised
            }
        }
END");
    let mut connections = 0;
    for net in tested() {
        for (_, target) in net.targets(10, NODE_PORT) {
            let seen = world
                .client
                .connect(&target.to_string())
                .expect("an answer");
            assert_eq!(seen.source, ip(net.node), "{target}");
            connections += 1;
        }
    }
    assert!(count(&world.node, "translated") >= connections);
    assert_eq!(count(&world.node, "marked"), 0);
    assert_eq!(count(&world.node, "prioritised"), 0);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e8_masqueraded_connections_come_from_random_ports() {
    const TIMES: usize = 10;
    let world = World::new();
    for net in tested() {
        let address = net.endpoint(11);
        let listener = world
            .pods
            .run(move || TcpListener::bind(address).expect("a free port"));
        std::thread::spawn(move || {
            while let Ok((mut connection, peer)) = listener.accept() {
                let _ = connection.write_all(peer.to_string().as_bytes());
            }
        });
    }
    let objects = with(
        full_service("web", 10, NODE_PORT),
        slices("web", "TCP", &[11]),
    );
    let site = Site::in_world(world, objects, &[]);
    // Says which port the client has, and what the server sees.
    let attempt = |target: SocketAddr| -> (u16, SocketAddr) {
        let mut connection = TcpStream::connect_timeout(&target, PATIENCE).expect("a connection");
        connection
            .set_read_timeout(Some(PATIENCE))
            .expect("a limit");
        let mut text = String::new();
        connection.read_to_string(&mut text).expect("an answer");
        let own = connection.local_addr().expect("an address");
        (own.port(), text.parse().expect("an address"))
    };
    for net in tested() {
        let (_, vip) = net.targets(10, NODE_PORT)[2];
        let kept = (0..TIMES)
            .map(|_| site.world.client.run(move || attempt(vip)))
            .filter(|(own, seen)| {
                assert_eq!(seen.ip(), ip(net.node));
                *own == seen.port()
            })
            .count();
        // By chance one of them may.
        assert!(kept <= 1, "{kept} of {TIMES} keep their port");
        let cluster_ip = at(&net.cluster_ip(10), 80);
        let (own, seen) = site.world.pod.run(move || attempt(cluster_ip));
        assert_eq!(seen, at(net.pod, own), "not masqueraded, nothing changes");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e11_an_address_of_a_service_goes_before_a_node_port() {
    let by_address = || {
        let service = cluster_service("by-address", 20)
            .external_ips(&BOTH.map(|net| net.node))
            .set("/spec/ports/0/port", json!(NODE_PORT));
        with(service, slices("by-address", "TCP", &[12]))
    };
    let by_port = || {
        // Older, which decides nothing here.
        let service = cluster_service("by-port", 10)
            .node_port(NODE_PORT)
            .created("2020-01-01T00:00:00Z");
        with(service, slices("by-port", "TCP", &[11]))
    };
    let site = Site::new([by_port(), by_address()].concat(), &[]);
    let expect = |pod: u8| {
        let mut attempts = Attempts::default();
        for net in tested() {
            for (source, host) in sources(&site.world) {
                let target = at(net.node, NODE_PORT);
                let name = format!("{source} to {target}");
                attempts.served(name, host, target, net.endpoints(&[pod]));
            }
        }
        attempts.check();
    };
    expect(12);
    site.apply(by_port());
    expect(11);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e15_any_packet_to_a_cluster_ip_is_refused_and_to_an_unused_address_dropped() {
    let objects = with(cluster_service("web", 10), slices("web", "TCP", &[11]));
    let site = Site::new(objects, &[]);
    for host in [&site.world.pod, &site.world.client] {
        for net in tested() {
            let ping = |number: u8| {
                let address = net.cluster_ip(number);
                let (answered, text) = host.try_sh(&format!("ping -n -c 1 -W 1 {address}"));
                assert!(!answered, "{text}");
                text.to_lowercase()
            };
            let used = ping(10);
            assert!(used.contains("port unreachable"), "{used}");
            let unused = ping(20);
            assert!(!unused.contains("unreachable"), "{unused}");
            assert!(unused.contains("100% packet loss"), "{unused}");
        }
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e17_source_ranges_and_refusals_are_for_new_connections_alone() {
    let world = World::new();
    for net in tested() {
        echo(&world.pods, net.endpoint(11));
        echo(&world.pods, net.endpoint(12));
    }
    let service = || full_service("web", 10, NODE_PORT);
    let other = || cluster_service("other", 20);
    let objects = [
        with(service(), slices("web", "TCP", &[11])),
        with(other(), slices("other", "TCP", &[12])),
    ];
    let site = Site::in_world(world, objects.concat(), &[]);
    let mut connections = Vec::new();
    for net in tested() {
        let (_, vip) = net.targets(10, NODE_PORT)[2];
        for target in [vip, at(&net.cluster_ip(20), 80)] {
            let connection = site.world.client.run(move || {
                let connection =
                    TcpStream::connect_timeout(&target, PATIENCE).expect("a connection");
                let limit = connection.set_read_timeout(Some(PATIENCE));
                limit.expect("a limit");
                connection
            });
            connections.push((target, connection));
        }
    }
    let closed = service().set(
        "/spec/loadBalancerSourceRanges",
        json!(["10.9.0.0/16", "fd00:9::/64"]),
    );
    site.apply(vec![closed.0, other().0]);
    let mut attempts = Attempts::default();
    for (target, connection) in &mut connections {
        let name = format!("a new connection to {target}");
        if target.port() == 80
            && BOTH
                .iter()
                .any(|net| *target == at(&net.cluster_ip(20), 80))
        {
            attempts.refused(name, &site.world.client, *target);
        } else {
            attempts.dropped(name, &site.world.client, *target);
        }
        let mut answer = [0; 4];
        connection.write_all(b"talk").expect("an open connection");
        let result = connection.read_exact(&mut answer);
        assert!(result.is_ok() && answer == *b"talk", "{target}: {result:?}");
    }
    attempts.check();
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e11_a_connection_is_judged_by_the_destination_that_it_came_with() {
    if without() == Some("IPv4") {
        return;
    }
    // A load balancer's address that is the node's, in front of a server that listens there.
    let of_node = service("of-node", &["10.96.0.30"])
        .vips(&["192.0.2.1"])
        .set("/spec/ports/0/port", json!(8443))
        .set("/spec/loadBalancerSourceRanges", json!(["192.0.2.2/32"]));
    let on_node = |service: &str, port: u16| {
        let mut slice = slice_of(service, "TCP", vec![endpoint("192.0.2.1")]);
        slice["ports"][0]["port"] = json!(port);
        slice
    };
    // A server that listens where another Service's NodePort has no endpoints.
    let hidden = service("hidden", &["10.96.0.31"]).0;
    let empty = service("empty", &["10.96.0.32"]).node_port(NODE_PORT).0;
    let objects = vec![
        of_node.0,
        on_node("of-node", 8443),
        hidden,
        on_node("hidden", NODE_PORT),
        empty,
    ];
    let site = Site::new(objects, &[]);
    Servers::tcp(&site.world.node, &[8443, NODE_PORT]);
    let World {
        pod, client, peer, ..
    } = &site.world;
    let server = |port| -> BTreeSet<SocketAddr> { [at("192.0.2.1", port)].into() };
    let mut attempts = Attempts::default();
    for (name, host, target, port) in [
        ("allowed", client, "192.0.2.1:8443", 8443),
        ("by its ClusterIP", pod, "10.96.0.30:8443", 8443),
        (
            "of an endpoint that is a NodePort",
            pod,
            "10.96.0.31:80",
            NODE_PORT,
        ),
    ] {
        attempts.served(name.to_owned(), host, target.parse().unwrap(), server(port));
    }
    attempts.check();
    let refused = |host: &Host, target: &str| {
        let target: SocketAddr = target.parse().unwrap();
        host.run(move || connect_within(None, target, Duration::from_millis(700)))
    };
    assert_eq!(refused(peer, "192.0.2.1:8443"), Err(Failure::TimedOut));
    let to_port = format!("192.0.2.1:{NODE_PORT}");
    assert_eq!(refused(client, &to_port), Err(Failure::Refused));
}
