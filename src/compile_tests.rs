//! What a Service's destinations do, one table per rule of SEMANTICS.md's sections B and E.

use super::*;
use crate::model::{Affinity, Change, Endpoint, Hint, Protocol, SliceEndpoint, SlicePort};

fn port(name: &str, port: u16, node_port: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port,
        node_port,
    }
}

fn service() -> Service {
    Service {
        created: 1,
        cluster_ips: PerFamily {
            v4: Some("10.96.0.1".parse().unwrap()),
            v6: None,
        },
        external_ips: vec!["198.51.100.7".parse().unwrap()],
        vips: vec!["203.0.113.1".parse().unwrap()],
        source_ranges: PerFamily::default(),
        ports: vec![port("http", 80, 30080)],
        affinity: None,
        internal_local: false,
        external_local: false,
        health_check_node_port: 0,
    }
}

fn key() -> ObjectKey {
    ObjectKey::new("shop", "web")
}

/// A cluster with endpoints 10.244.0.N: `local` ones on this node, `remote` ones elsewhere.
fn cluster(local: &[u8], remote: &[u8], ready: bool) -> State {
    let mut state = State::new(Node {
        addresses: vec!["192.0.2.1".parse().unwrap()],
        ..Node::named("node-1")
    });
    let endpoint = |last: &u8, local: bool| SliceEndpoint {
        address: [10, 244, 0, *last].into(),
        ready,
        serving: ready,
        terminating: false,
        local,
        node_hint: Hint::None,
        zone_hints: None,
    };
    let endpoints = local
        .iter()
        .map(|last| endpoint(last, true))
        .chain(remote.iter().map(|last| endpoint(last, false)))
        .collect();
    let slice = EndpointSlice {
        service: key(),
        family: Family::V4,
        ports: [SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }]
        .into(),
        endpoints,
    };
    let name = ObjectKey::new("shop", "web-abcde");
    state.apply(Change::EndpointSlice(name, Some(Box::new(slice))));
    state
}

/// A compiled Service in short: a line per destination.
fn lines(compiled: &Compiled) -> Vec<String> {
    let list = |list: &[Endpoint]| {
        let bytes: Vec<String> = list
            .iter()
            .map(|endpoint| endpoint.address.to_string().replace("10.244.0.", ""))
            .collect();
        format!("[{}]", bytes.join(" "))
    };
    compiled
        .destinations
        .iter()
        .map(|(destination, forwarding)| {
            let action = match &forwarding.action {
                Action::Reject => "reject".to_owned(),
                Action::Drop => "drop".to_owned(),
                Action::Balance {
                    policy,
                    primary,
                    external,
                    affinity,
                } => {
                    let mut text = format!("{policy:?} {}", list(primary));
                    if let Some(external) = external {
                        text += &format!(" outside {}", list(external));
                    }
                    if let Some(affinity) = affinity {
                        text += &format!(" affinity {affinity}");
                    }
                    text
                }
            };
            let guard = match &forwarding.allowed_sources {
                None => String::new(),
                Some(networks) => {
                    let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
                    format!(" only {}", networks.join(" "))
                }
            };
            format!("{destination} {action}{guard}")
        })
        .collect()
}

#[test]
fn destinations_follow_policy_and_endpoints() {
    type Case = (
        &'static str,
        fn(&mut Service),
        (&'static [u8], &'static [u8]),
        [&'static str; 2],
    );
    // What the ClusterIP does, and what every external destination does.
    let cases: [Case; 9] = [
        (
            "E, policies Cluster",
            |_| {},
            (&[1], &[2]),
            ["ClusterIp [1 2]", "External [1 2]"],
        ),
        (
            "E, iTP Local",
            |s| s.internal_local = true,
            (&[1], &[2]),
            ["ClusterIp [1]", "External [1 2]"],
        ),
        (
            "E, eTP Local",
            |s| s.external_local = true,
            (&[1], &[2]),
            ["ClusterIp [1 2]", "ExternalLocal [1 2] outside [1]"],
        ),
        (
            "E3, both Local",
            |s| {
                s.internal_local = true;
                s.external_local = true;
            },
            (&[1], &[2]),
            ["ClusterIp [1]", "ExternalLocal [1 2] outside [1]"],
        ),
        (
            "E2, iTP Local, none here",
            |s| s.internal_local = true,
            (&[], &[2]),
            ["drop", "External [2]"],
        ),
        (
            "E2, eTP Local, none here",
            |s| s.external_local = true,
            (&[], &[2]),
            ["ClusterIp [2]", "ExternalLocal [2] outside []"],
        ),
        ("E1, none at all", |_| {}, (&[], &[]), ["reject", "reject"]),
        (
            "E1, none at all, Local",
            |s| {
                s.internal_local = true;
                s.external_local = true;
            },
            (&[], &[]),
            ["reject", "reject"],
        ),
        (
            "F, affinity is everywhere",
            |s| {
                s.external_local = true;
                s.affinity = Some(Affinity {
                    timeout_seconds: 60,
                });
            },
            (&[1], &[2]),
            [
                "ClusterIp [1 2] affinity 60",
                "ExternalLocal [1 2] outside [1] affinity 60",
            ],
        ),
    ];
    for (rule, change, (local, remote), [internal, external]) in cases {
        let mut service = service();
        change(&mut service);
        let compiled = compile(&key(), &service, &cluster(local, remote, true));
        assert_eq!(
            lines(&compiled),
            [
                format!("10.96.0.1:80/tcp {internal}"),
                format!("203.0.113.1:80/tcp {external}"),
                format!("198.51.100.7:80/tcp {external}"),
                format!("node(IPv4):30080/tcp {external}"),
            ],
            "{rule}"
        );
    }
}

#[test]
fn endpoints_that_are_not_ready_are_none() {
    let compiled = compile(&key(), &service(), &cluster(&[1], &[2], false));
    assert!(
        lines(&compiled)
            .iter()
            .all(|line| line.ends_with(" reject"))
    );
}

#[test]
fn source_ranges_guard_the_vips_alone() {
    let ranges = |texts: &[&str]| {
        SourceRanges::Only(texts.iter().map(|text| text.parse().unwrap()).collect())
    };
    let cases: [(&str, SourceRanges, &str); 4] = [
        ("no list", SourceRanges::Any, ""),
        (
            "E10: overlaps are merged",
            ranges(&["10.1.0.0/16", "10.0.0.0/8", "172.16.0.0/12"]),
            " only 10.0.0.0/8 172.16.0.0/12",
        ),
        (
            "E10: a range with the node admits the VIPs",
            ranges(&["192.0.2.0/24"]),
            " only 192.0.2.0/24 203.0.113.1/32",
        ),
        (
            "B6 with N: an empty list admits nobody",
            ranges(&[]),
            " only ",
        ),
    ];
    for (rule, ranges, guard) in cases {
        let mut service = service();
        service.source_ranges.v4 = ranges;
        let compiled = compile(&key(), &service, &cluster(&[1], &[], true));
        let lines = lines(&compiled);
        assert_eq!(
            lines[1],
            format!("203.0.113.1:80/tcp External [1]{guard}"),
            "{rule}"
        );
        for line in [&lines[0], &lines[2], &lines[3]] {
            assert!(!line.contains("only"), "{rule}: {line}");
        }
    }
}

#[test]
fn a_family_without_a_cluster_ip_has_nothing() {
    let mut service = service();
    service.external_ips.push("2001:db8::1".parse().unwrap());
    service.vips.push("2001:db8::2".parse().unwrap());
    let compiled = compile(&key(), &service, &cluster(&[1], &[], true));
    assert!(
        compiled
            .destinations
            .iter()
            .all(|(destination, _)| destination.family() == Family::V4),
        "A4"
    );
}

#[test]
fn of_ports_with_one_name_and_protocol_the_last_counts() {
    let mut service = service();
    service.ports = vec![port("http", 80, 0), port("http", 81, 0)];
    let compiled = compile(&key(), &service, &cluster(&[1], &[], true));
    assert_eq!(lines(&compiled)[0], "10.96.0.1:81/tcp ClusterIp [1]", "B1");
}

#[test]
fn a_destination_is_claimed_once_by_a_service() {
    let mut service = service();
    service.external_ips = vec!["203.0.113.1".parse().unwrap(); 2];
    service.ports = vec![port("http", 80, 0), port("again", 80, 0)];
    let compiled = compile(&key(), &service, &cluster(&[1], &[], true));
    assert_eq!(
        lines(&compiled),
        [
            "10.96.0.1:80/tcp ClusterIp [1]",
            "203.0.113.1:80/tcp External [1]"
        ],
        "the first claim stands"
    );
}

#[test]
fn shared_facts_are_the_cluster_ip_and_the_local_endpoints() {
    let compiled = compile(&key(), &service(), &cluster(&[1], &[2], true));
    let endpoint = Endpoint::new("10.244.0.1".parse().unwrap(), 8080);
    assert_eq!(
        compiled.shared,
        [
            Shared::ClusterIp("10.96.0.1".parse().unwrap()),
            Shared::Hairpin {
                protocol: Protocol::Tcp,
                endpoint
            }
        ]
    );
    let mut without_ports = service();
    without_ports.ports.clear();
    let compiled = compile(&key(), &without_ports, &cluster(&[1], &[2], true));
    assert_eq!(compiled.shared, [], "E15: it is not active");
}

#[test]
fn node_ports_are_accepted_where_the_configuration_says() {
    let networks = |texts: &[&str]| {
        NodePortAddresses::Networks(texts.iter().map(|text| text.parse().unwrap()).collect())
    };
    let cases: [(&str, NodePortAddresses, &[&str], [bool; 2]); 7] = [
        (
            "E13: primary",
            NodePortAddresses::Primary,
            &["192.0.2.1"],
            [false, false],
        ),
        ("all", NodePortAddresses::All, &[], [true, true]),
        (
            "E12: an empty list is all",
            networks(&[]),
            &[],
            [true, true],
        ),
        (
            "E12: CIDRs select interfaces' addresses, never loopback",
            networks(&["127.0.0.0/8", "192.0.0.0/2"]),
            &["192.0.2.1", "198.51.100.1"],
            [false, true],
        ),
        (
            "E12: everything is every address, whatever else is listed",
            networks(&["198.51.100.0/24", "0.0.0.0/0"]),
            &[],
            [true, true],
        ),
        (
            "E12: a narrow CIDR",
            networks(&["198.51.100.0/24"]),
            &["198.51.100.1"],
            [false, true],
        ),
        (
            "E12: both families",
            networks(&["198.51.100.0/24", "2001:db8::/32"]),
            &["198.51.100.1", "2001:db8::1"],
            [false, false],
        ),
    ];
    let mut state = cluster(&[], &[], true);
    state.apply(Change::InterfaceAddresses(
        [
            "127.0.0.1",
            "192.0.2.1",
            "198.51.100.1",
            "2001:db8::1",
            "::1",
        ]
        .map(|text| text.parse().unwrap())
        .to_vec(),
    ));
    for (rule, addresses, expected, [all_v4, all_v6]) in cases {
        assert_eq!(addresses.all(Family::V4), all_v4, "{rule}");
        assert_eq!(addresses.all(Family::V6), all_v6, "{rule}");
        let expected: Vec<Shared> = expected
            .iter()
            .map(|text| Shared::NodePortAddress(text.parse().unwrap()))
            .collect();
        let compiled = compile_cluster(&state, &addresses);
        assert_eq!(compiled.shared, expected, "{rule}");
    }
    state.apply(Change::Node(Some(Box::new(Node::named("node-1")))));
    let compiled = compile_cluster(&state, &NodePortAddresses::Primary);
    assert_eq!(
        compiled.shared,
        [],
        "E13 with N: a node without addresses accepts none"
    );
}

#[test]
fn overlapping_service_cidrs_are_one() {
    let mut state = cluster(&[], &[], true);
    for (name, cidr) in [
        ("a", "10.96.0.0/16"),
        ("b", "10.96.0.0/12"),
        ("c", "fd00:96::/112"),
    ] {
        state.apply(Change::ServiceCidr(
            name.into(),
            Some(vec![cidr.parse().unwrap()]),
        ));
    }
    let compiled = compile_cluster(&state, &NodePortAddresses::All);
    assert_eq!(
        compiled.shared,
        ["10.96.0.0/12", "fd00:96::/112"].map(|cidr| Shared::ServiceCidr(cidr.parse().unwrap()))
    );
}

#[test]
fn labels_name_the_service_and_fit_into_a_comment() {
    let long = "x".repeat(63);
    let compiled = compile(
        &ObjectKey::new(long.as_str(), long.as_str()),
        &service(),
        &cluster(&[], &[], true),
    );
    let label = compiled.destinations[0].1.label.as_str();
    assert_eq!(label.len(), crate::ir::LABEL_MAX);
    assert!(label.starts_with(&format!("{long}/{long}")));
    let compiled = compile(&key(), &service(), &cluster(&[], &[], true));
    assert_eq!(compiled.destinations[0].1.label.as_str(), "shop/web:http");
}
