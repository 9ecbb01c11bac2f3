//! What a Service's destinations do. Numbers at the front of test names are those of the
//! project's `docs/semantics.md`.

use super::*;
use crate::core::model::{
    Affinity, Change, Endpoint, Hint, Protocol, SliceEndpoint, SlicePort, State,
};

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
        algorithm: crate::core::model::Algorithm::Random,
        ejects: false,
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
        weight: 1,
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

/// Compiles a Service with the slices that a cluster has for it.
fn compile(key: &ObjectKey, service: &Service, state: &State) -> Compiled {
    let slices: Vec<&EndpointSlice> = state.slices(key).collect();
    super::compile(key, service, &slices, None, state.node())
}

/// A compiled Service in short: a line per destination.
fn lines(compiled: &Compiled) -> Vec<String> {
    let list = |list: &Endpoints| {
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
                    draw,
                    affinity,
                } => {
                    let mut text = format!("{policy:?} {}", list(primary));
                    if let Some(external) = external {
                        text += &format!(" outside {}", list(external));
                    }
                    if *draw != Draw::Random {
                        text += &format!(" {}", draw.words());
                    }
                    if let Some(affinity) = affinity {
                        text += &format!(" affinity {affinity}");
                    }
                    text
                }
            };
            let guard = match &forwarding.sources {
                Sources::Any | Sources::Prepared(_) => String::new(),
                Sources::Only(networks) => {
                    let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
                    format!(" only {}", networks.join(" "))
                }
            };
            format!("{destination} {action}{guard}")
        })
        .collect()
}

/// A change to the Service, its endpoints here and elsewhere, and what its `ClusterIP` and every
/// external destination then do.
type Case = (
    fn(&mut Service),
    (&'static [u8], &'static [u8]),
    [&'static str; 2],
);

fn internal(service: &mut Service) {
    service.internal_local = true;
}

fn external(service: &mut Service) {
    service.external_local = true;
}

fn both(service: &mut Service) {
    internal(service);
    external(service);
}

fn check(cases: &[Case]) {
    for (change, (local, remote), [internal, external]) in cases {
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
        );
    }
}

#[test]
fn e1_without_endpoints_anywhere_every_destination_is_refused() {
    check(&[
        (|_| {}, (&[], &[]), ["reject", "reject"]),
        (both, (&[], &[]), ["reject", "reject"]),
    ]);
}

#[test]
fn e2_without_endpoints_here_a_local_policy_drops_what_it_is_for() {
    check(&[
        (internal, (&[], &[2]), ["drop", "External [2]"]),
        (
            external,
            (&[], &[2]),
            ["ClusterIp [2]", "ExternalLocal [2] outside []"],
        ),
    ]);
}

#[test]
fn e3_the_internal_policy_is_for_the_cluster_ip_and_the_external_one_for_the_rest() {
    check(&[
        (|_| {}, (&[1], &[2]), ["ClusterIp [1 2]", "External [1 2]"]),
        (internal, (&[1], &[2]), ["ClusterIp [1]", "External [1 2]"]),
        (
            external,
            (&[1], &[2]),
            ["ClusterIp [1 2]", "ExternalLocal [1 2] outside [1]"],
        ),
        (
            both,
            (&[1], &[2]),
            ["ClusterIp [1]", "ExternalLocal [1 2] outside [1]"],
        ),
    ]);
}

#[test]
fn f1_affinity_is_for_every_destination_and_policy() {
    let sticky = |service: &mut Service| {
        external(service);
        service.affinity = Some(Affinity {
            timeout_seconds: 60,
        });
    };
    check(&[(
        sticky,
        (&[1], &[2]),
        [
            "ClusterIp [1 2] affinity 60",
            "ExternalLocal [1 2] outside [1] affinity 60",
        ],
    )]);
}

#[test]
fn b11_node_ports_vips_and_external_ips_of_a_family_make_a_service_externally_accessible() {
    let bare = || Service {
        external_ips: Vec::new(),
        vips: Vec::new(),
        ..service()
    };
    let v4: IpAddr = "203.0.113.1".parse().unwrap();
    let v6: IpAddr = "2001:db8::1".parse().unwrap();
    let with = |vips: &[IpAddr], external_ips: &[IpAddr]| Service {
        vips: vips.to_vec(),
        external_ips: external_ips.to_vec(),
        ..service()
    };
    let cases = [
        ("nothing", bare(), 0, [false, false]),
        ("a node port", bare(), 30080, [true, true]),
        ("a VIP", with(&[v4], &[]), 0, [true, false]),
        ("a VIP", with(&[v6], &[]), 0, [false, true]),
        ("an external IP", with(&[], &[v4]), 0, [true, false]),
        ("both", with(&[v4], &[v6]), 0, [true, true]),
    ];
    for (what, service, node_port, expected) in cases {
        let port = port("http", 80, node_port);
        let found = Family::BOTH.map(|family| service.externally_accessible(family, &port));
        assert_eq!(found, expected, "{what}");
    }
}

/// Endpoint 1 is here and only the fallback of the local list; endpoint 2 is elsewhere and ready.
#[test]
fn b11_local_endpoints_are_of_use_to_a_local_policy_that_has_destinations_and_to_no_other() {
    fn unreachable(service: &mut Service) {
        service.vips.clear();
        service.external_ips.clear();
        service.ports[0].node_port = 0;
    }
    let cases: [(&str, fn(&mut Service), bool); 5] = [
        ("policies Cluster", |_| {}, false),
        ("iTP Local", internal, true),
        ("eTP Local", external, true),
        (
            "eTP Local, with nothing external",
            |service| {
                external(service);
                unreachable(service);
            },
            false,
        ),
        (
            "iTP Local, with nothing external",
            |service| {
                internal(service);
                unreachable(service);
            },
            true,
        ),
    ];
    for (what, change, expected) in cases {
        let mut state = cluster(&[], &[2], true);
        let mut slice = state.slices(&key()).next().unwrap().clone();
        let leaving = SliceEndpoint {
            address: [10, 244, 0, 1].into(),
            ready: false,
            serving: true,
            terminating: true,
            local: true,
            node_hint: Hint::None,
            weight: 1,
            zone_hints: None,
        };
        slice.endpoints = slice.endpoints.iter().chain([leaving]).collect();
        let name = ObjectKey::new("shop", "web-abcde");
        state.apply(Change::EndpointSlice(name, Some(Box::new(slice))));
        let mut service = service();
        change(&mut service);
        let compiled = compile(&key(), &service, &state);
        let is_reachable = compiled
            .shared
            .iter()
            .any(|shared| matches!(shared, Shared::Hairpin { .. }));
        assert_eq!(is_reachable, expected, "{what}");
    }
}

#[test]
fn e1_endpoints_that_are_not_ready_are_none() {
    let compiled = compile(&key(), &service(), &cluster(&[1], &[2], false));
    assert!(
        lines(&compiled)
            .iter()
            .all(|line| line.ends_with(" reject"))
    );
}

#[test]
fn e10_source_ranges_are_merged_admit_vips_with_the_node_and_guard_vips_alone() {
    let ranges = |texts: &[&str]| {
        SourceRanges::Only(texts.iter().map(|text| text.parse().unwrap()).collect())
    };
    let cases: [(&str, SourceRanges, &str); 4] = [
        ("no list", SourceRanges::Any, ""),
        (
            "overlaps are merged",
            ranges(&["10.1.0.0/16", "10.0.0.0/8", "172.16.0.0/12"]),
            " only 10.0.0.0/8 172.16.0.0/12",
        ),
        (
            "a range with the node admits the VIPs",
            ranges(&["192.0.2.0/24"]),
            " only 192.0.2.0/24 203.0.113.1/32",
        ),
        (
            "a list without a valid range admits nobody",
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
fn a4_a_family_without_a_cluster_ip_has_no_external_ips_vips_or_node_ports_either() {
    let mut service = service();
    service.external_ips.push("2001:db8::1".parse().unwrap());
    service.vips.push("2001:db8::2".parse().unwrap());
    let compiled = compile(&key(), &service, &cluster(&[1], &[], true));
    assert!(
        compiled
            .destinations
            .iter()
            .all(|(destination, _)| destination.family() == Family::V4)
    );
    assert_eq!(
        compiled.destinations.len(),
        4,
        "the other family is complete"
    );
}

#[test]
fn b1_of_ports_with_one_name_and_protocol_the_last_counts() {
    let mut service = service();
    service.ports = vec![port("http", 80, 0), port("http", 81, 0)];
    let compiled = compile(&key(), &service, &cluster(&[1], &[], true));
    assert_eq!(lines(&compiled)[0], "10.96.0.1:81/tcp ClusterIp [1]");
    assert_eq!(lines(&compiled).len(), 3);
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
fn what_ports_addresses_and_endpoints_multiply_to_is_bounded_and_what_is_left_out_is_counted() {
    let state = cluster(&[], &(1..=250).collect::<Vec<u8>>(), true);
    let address = |index: u32| std::net::Ipv4Addr::from(0xc633_0000 + index).into();
    let mut large = service();
    large.vips = Vec::new();
    for (affinity, each) in [(None, 252), (Some(60), 752)] {
        large.affinity = affinity.map(|timeout_seconds| Affinity { timeout_seconds });
        // With the ClusterIP and the NodePort.
        let room = MOST_ELEMENTS / each - 2;
        for (external_ips, left_out) in [(room, 0), (room + 5, 5)] {
            large.external_ips = (0..u32::try_from(external_ips).unwrap())
                .map(address)
                .collect();
            let compiled = compile(&key(), &large, &state);
            assert_eq!(compiled.left_out, left_out);
            assert_eq!(compiled.destinations.len(), room + 2);
        }
    }
}

#[test]
fn ports_whose_endpoints_are_too_many_are_left_out_before_anything_is_worked_out_for_them() {
    let mut state = cluster(&[], &(1..=250).collect::<Vec<u8>>(), true);
    let mut large = service();
    large.external_ips = vec!["198.51.100.1".parse().unwrap()];
    let count = 6_000_u16;
    let name = |port: u16| Name::from(format!("port-{port}"));
    large.ports = (1..=count)
        .map(|number| port(&name(number), number, 0))
        .collect();
    let known = state.slices(&key()).next().unwrap().clone();
    let ports = (1..=count).map(|port| SlicePort {
        name: name(port),
        protocol: Protocol::Tcp,
        port,
    });
    let slice = EndpointSlice {
        ports: ports.collect::<Vec<_>>().into(),
        ..known
    };
    let slice_name = ObjectKey::new("shop", "web-0");
    state.apply(Change::EndpointSlice(slice_name, Some(Box::new(slice))));
    let compiled = compile(&key(), &large, &state);
    assert!(compiled.destinations.len() < 3 * MOST_ELEMENTS / 250);
    let claimed = u32::from(count) * 3;
    let compiled_ones = u32::try_from(compiled.destinations.len()).unwrap();
    assert_eq!(compiled.left_out + compiled_ones, claimed);
}

#[test]
fn e9_e15_a_service_states_its_endpoints_here_and_if_it_has_ports_its_cluster_ip() {
    let compiled = compile(&key(), &service(), &cluster(&[1], &[2], true));
    let endpoint = Endpoint::new("10.244.0.1".parse().unwrap(), 8080);
    assert_eq!(
        *compiled.shared,
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
    assert_eq!(*compiled.shared, [], "it is not active");
}

fn networks(texts: &[&str]) -> NodePortAddresses {
    NodePortAddresses::Networks(texts.iter().map(|text| text.parse().unwrap()).collect())
}

/// A node with an address on each of two interfaces in IPv4, one in IPv6, and a loopback.
fn node_with_interfaces() -> State {
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
    state
}

/// What accepts `NodePort`s, the addresses that this makes, and the families where all do.
fn check_node_ports(cases: &[(&str, NodePortAddresses, &[&str], [bool; 2])]) {
    let state = node_with_interfaces();
    for (what, addresses, expected, all) in cases {
        let found = Family::BOTH.map(|family| addresses.all(family));
        assert_eq!(found, *all, "{what}");
        let expected: Vec<Shared> = expected
            .iter()
            .map(|text| Shared::NodePortAddress(text.parse().unwrap()))
            .collect();
        let compiled = compile_cluster(&state, addresses);
        assert_eq!(*compiled.shared, *expected, "{what}");
    }
}

#[test]
fn e12_node_ports_are_accepted_on_listed_addresses_of_interfaces_and_on_all_without_a_list() {
    check_node_ports(&[
        ("all", NodePortAddresses::All, &[], [true, true]),
        ("an empty list is all", networks(&[]), &[], [true, true]),
        (
            "CIDRs select interfaces' addresses, never loopback",
            networks(&["127.0.0.0/8", "192.0.0.0/2"]),
            &["192.0.2.1", "198.51.100.1"],
            [false, true],
        ),
        (
            "everything is every address, whatever else is listed",
            networks(&["198.51.100.0/24", "0.0.0.0/0"]),
            &[],
            [true, true],
        ),
        (
            "a narrow CIDR",
            networks(&["198.51.100.0/24"]),
            &["198.51.100.1"],
            [false, true],
        ),
        (
            "one that no interface is in",
            networks(&["10.0.0.0/8"]),
            &[],
            [false, true],
        ),
        (
            "both families",
            networks(&["198.51.100.0/24", "2001:db8::/32"]),
            &["198.51.100.1", "2001:db8::1"],
            [false, false],
        ),
    ]);
}

#[test]
fn e13_primary_is_the_nodes_own_address_whatever_its_interfaces_have() {
    check_node_ports(&[(
        "primary",
        NodePortAddresses::Primary,
        &["192.0.2.1"],
        [false, false],
    )]);
}

#[test]
fn n_e13_primary_is_nobody_in_a_family_without_a_node_address() {
    let mut state = node_with_interfaces();
    let addresses = |state: &State| compile_cluster(state, &NodePortAddresses::Primary).shared;
    assert_eq!(addresses(&state).len(), 1, "of two families one has some");
    state.apply(Change::Node(Some(Box::new(Node::named("node-1")))));
    assert_eq!(*addresses(&state), []);
    assert!(!NodePortAddresses::Primary.all(Family::V4));
    assert!(!NodePortAddresses::Primary.all(Family::V6));
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
        *compiled.shared,
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
    assert_eq!(label.len(), crate::core::ir::LABEL_MAX);
    assert!(label.starts_with(&format!("{long}/xxx")));
    let compiled = compile(&key(), &service(), &cluster(&[], &[], true));
    assert_eq!(compiled.destinations[0].1.label.as_str(), "shop/web:http");
}
