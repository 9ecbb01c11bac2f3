//! NodePorts on loopback addresses (KEP-6032).

use super::*;

const LOCALHOST: [&str; 2] = ["--nodeport-addresses", "primary,localhost"];

/// A Service with a NodePort, and its endpoints.
fn web(change: impl FnOnce(Service) -> Service, pods: &[u8]) -> Vec<Value> {
    with(
        change(full_service("web", 10, NODE_PORT)),
        slices("web", "TCP", pods),
    )
}

/// Who answers at loopback addresses, in so many connections each.
fn answers(site: &Site, net: &Net, times: usize) -> Vec<Attempt> {
    let target = at(net.loopback, NODE_PORT);
    site.world
        .node
        .run(move || (0..times).map(|_| connect(None, target)).collect())
}

fn until_answers(site: &Site, net: &Net, expected: &BTreeSet<SocketAddr>) {
    eventually("the NodePort is served on loopback", || {
        let all = answers(site, net, 30);
        let seen = all.iter().map(|attempt| attempt.map(|seen| seen.endpoint));
        seen.collect::<Result<BTreeSet<_>, _>>().as_ref() == Ok(expected)
    });
}

fn until_refused(site: &Site, net: &Net) {
    eventually("the NodePort is not served on loopback", || {
        answers(site, net, 1) == [Err(Failure::Refused)]
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e12_node_ports_on_loopback_lead_to_every_endpoint_if_they_are_asked_for() {
    let site = Site::new(web(|service| service, &[11, 12, 113]), &LOCALHOST);
    for net in tested() {
        until_answers(&site, &net, &net.endpoints(&[11, 12, 113]));
        // The node's own address is served by the kernel, as ever.
        let target = at(net.node, NODE_PORT);
        let seen = site.world.client.run(move || connect(None, target));
        assert!(seen.is_ok_and(|seen| net.endpoints(&[11, 12, 113]).contains(&seen.endpoint)));
    }
    let series = "kubeproxy_nftables_localhost_nodeport_listeners{ip_family=\"IPv4\"}";
    assert_eq!(metric(&site.world.node, series), 1.0);
    // An endpoint that has left is not used, and a Service without endpoints refuses.
    site.apply(web(|service| service, &[12]));
    for net in tested() {
        until_answers(&site, &net, &net.endpoints(&[12]));
    }
    site.apply(web(|service| service, &[]));
    for net in tested() {
        until_refused(&site, &net);
    }
    assert_eq!(metric(&site.world.node, series), 0.0);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e12_nothing_is_served_on_loopback_unless_it_is_asked_for() {
    for addresses in ["primary", "all", "0.0.0.0/0,::/0"] {
        let site = Site::new(
            web(|service| service, &[11]),
            &["--nodeport-addresses", addresses],
        );
        for net in tested() {
            assert_eq!(answers(&site, &net, 1), [Err(Failure::Refused)]);
        }
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn node_ports_on_loopback_keep_affinity_and_the_external_policy() {
    let site = Site::new(
        web(|service| service.affinity(600), &[11, 12, 13, 113]),
        &LOCALHOST,
    );
    for net in tested() {
        // The ports are opened when all is programmed.
        eventually("the NodePort is served on loopback", || {
            answers(&site, &net, 1)[0].is_ok()
        });
        let seen = answers(&site, &net, 20);
        let first = seen[0].expect("an answer").endpoint;
        for attempt in &seen {
            assert_eq!(attempt.map(|seen| seen.endpoint), Ok(first));
        }
    }
    let local = |service: Service| service.set("/spec/externalTrafficPolicy", json!("Local"));
    site.apply(web(local, &[11, 12, 113]));
    for net in tested() {
        until_answers(&site, &net, &net.endpoints(&[11, 12]));
    }
    site.apply(web(local, &[113]));
    for net in tested() {
        until_refused(&site, &net);
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn an_endpoint_that_does_not_accept_is_passed_over_on_loopback() {
    // Nobody listens at the second port of the same pods.
    let closed = |pod: u8| {
        let mut slices = slices("web", "TCP", &[pod]);
        for slice in &mut slices {
            slice["ports"][0]["port"] = json!(8081);
            slice["metadata"]["name"] = json!(format!("{}-closed", slice["metadata"]["name"]));
        }
        slices
    };
    let mut objects = web(|service| service, &[11]);
    objects.extend(closed(12));
    let site = Site::new(objects, &LOCALHOST);
    for net in tested() {
        until_answers(&site, &net, &net.endpoints(&[11]));
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e7_connections_on_loopback_stay_when_their_endpoint_leaves_and_when_their_service_goes() {
    let world = World::new();
    // Says a word and waits for the end.
    let listener = world
        .pods
        .run(|| TcpListener::bind("[::]:8080").expect("a port"));
    world.pods.spawn(move || {
        for mut connection in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = connection.write_all(b"!");
                let _ = connection.read(&mut [0]);
            });
        }
    });
    let site = Site::in_world(world, web(|service| service, &[11]), &LOCALHOST);
    for net in tested() {
        let target = at(net.loopback, NODE_PORT);
        let connect = || {
            site.world
                .node
                .run(move || TcpStream::connect_timeout(&target, PATIENCE))
        };
        eventually("somebody listens", || connect().is_ok());
        let mut open = connect().expect("a connection");
        open.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut told = [0; 1];
        open.read_exact(&mut told).expect("a word");
        for objects in [
            web(|service| service, &[12]),
            web(|service| service, &[]),
            Vec::new(),
        ] {
            site.apply(objects);
            open.set_read_timeout(Some(Duration::from_millis(200)))
                .expect("a timeout");
            let word = open.read(&mut told);
            assert!(word.is_err(), "it is open and silent: {word:?}");
        }
        until_refused(&site, &net);
        site.apply(web(|service| service, &[11]));
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_port_that_somebody_has_on_loopback_is_served_when_it_is_free_and_udp_is_refused() {
    let world = World::new();
    for host in [&world.pods, &world.peer] {
        Servers::tcp(host, &[8080]);
    }
    let squatter = world
        .node
        .run(|| TcpListener::bind(("127.0.0.1", NODE_PORT)).expect("a port"));
    let mut objects = web(|service| service, &[11]);
    let udp = service("dns", &["10.96.0.53", "fd00:96::53"]).udp();
    objects.extend(with(udp.node_port(30053), slices("dns", "UDP", &[11])));
    let site = Site::in_world(world, objects, &LOCALHOST);
    site.process.wait_for("cannot serve a NodePort on loopback");
    let failures = "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total{ip_family=\"IPv4\"}";
    assert!(metric(&site.world.node, failures) >= 1.0);
    drop(squatter);
    until_answers(&site, &V4, &V4.endpoints(&[11]));
    for net in tested() {
        let target = at(net.loopback, 30053);
        let seen = site.world.node.run(move || datagram(None, target));
        assert_eq!(seen, Err(Failure::Refused));
    }
    let refused = "kubeproxy_nftables_localhost_nodeport_rejected_packets_total\
                   {ip_family=\"IPv4\",protocol=\"UDP\"}";
    eventually("it is counted", || {
        let text = crate::harness::get(&site.world.node, crate::harness::METRICS, "/metrics");
        text.is_some_and(|text| text.body.contains(refused))
            && metric(&site.world.node, refused) >= 1.0
    });
    // What was counted is no other program.
    assert_eq!(site.process.log().matches("it will be replaced").count(), 0);
}
