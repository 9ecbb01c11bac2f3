//! What is said of a connection. Numbers at the front of test names are those of `docs/semantics.md`; that
//! packets do what is said is checked in `tests/it/explained.rs`.

use std::net::IpAddr;

use super::asked::Outcome;
use super::*;
use crate::core::compile::{self, NodePortAddresses};
use crate::core::diff::Engine;
use crate::core::model::{
    Affinity, Change, EndpointSlice, Family, Hint, LocalDetector, Name, Node, ObjectKey, Owner,
    PerFamily, Protocol, Service, ServicePort, SliceEndpoint, SlicePort, SourceRanges, State,
    ZoneHints,
};

const CLUSTER_IP: &str = "10.96.0.10";
const VIP: &str = "192.0.2.10";
const POD: &str = "10.244.1.9";
const OUTSIDE: &str = "198.51.100.9";
const NODE: &str = "192.0.2.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(text: &str) -> ObjectKey {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectKey::new(namespace, name)
}

/// One port 80 named http at a `ClusterIP`, a VIP and a `NodePort`.
fn service() -> Service {
    Service {
        created: 1,
        cluster_ips: PerFamily {
            v4: Some(ip(CLUSTER_IP)),
            v6: None,
        },
        external_ips: Vec::new(),
        vips: vec![ip(VIP)],
        source_ranges: PerFamily::default(),
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 30080,
        }],
        affinity: None,
        algorithm: crate::core::model::Algorithm::Random,
        ejects: false,
        internal_local: false,
        external_local: false,
        health_check_node_port: 0,
    }
}

/// `last byte` and flags: `R`eady, `S`erving, `T`erminating, `L`ocal, `z` hinted to our zone, `Z` to another.
fn slice(of: &str, port: &str, endpoints: &[&str]) -> EndpointSlice {
    let endpoint = |text: &&str| {
        let (last, flags) = text.split_once(' ').unwrap_or((text, ""));
        let has = |flag: char| flags.contains(flag);
        let zones: Vec<Name> = [('z', "here"), ('Z', "there")]
            .into_iter()
            .filter(|(flag, _)| has(*flag))
            .map(|(_, zone)| zone.into())
            .collect();
        SliceEndpoint {
            address: [10, 244, 1, last.parse().unwrap()].into(),
            ready: has('R'),
            serving: has('R') || has('S'),
            terminating: has('T'),
            local: has('L'),
            node_hint: Hint::None,
            weight: 1,
            zone_hints: (!zones.is_empty()).then(|| ZoneHints::new(zones.into())),
        }
    };
    EndpointSlice {
        service: name(of),
        family: Family::V4,
        ports: [SlicePort {
            name: port.into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }]
        .into(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

/// A cluster with everything compiled and nothing programmed.
struct Cluster {
    state: State,
    engine: Engine,
    node_ports: NodePortAddresses,
    left_out: std::collections::BTreeMap<crate::core::model::ServiceId, u32>,
    detector: PerFamily<LocalDetector>,
    masquerade_all: bool,
}

impl Cluster {
    fn new(services: &[(&str, Service)], slices: &[EndpointSlice]) -> Self {
        let mut state = State::new(Node {
            zone: Some("here".into()),
            addresses: vec![ip(NODE)],
            ..Node::named("node-1")
        });
        state.apply(Change::InterfaceAddresses(vec![ip(NODE), ip("127.0.0.1")]));
        state.apply(Change::ServiceCidr(
            "kubernetes".to_owned(),
            Some(vec!["10.96.0.0/16".parse().unwrap()]),
        ));
        for (key, service) in services {
            state.apply(Change::Service(name(key), Some(Box::new(service.clone()))));
        }
        for (number, slice) in slices.iter().enumerate() {
            let key = ObjectKey::new(
                slice.service.namespace.clone(),
                format!("{}-{number}", slice.service.name),
            );
            state.apply(Change::EndpointSlice(key, Some(Box::new(slice.clone()))));
        }
        let mut cluster = Self {
            state,
            engine: Engine::default(),
            node_ports: NodePortAddresses::Primary,
            left_out: std::collections::BTreeMap::new(),
            detector: PerFamily {
                v4: LocalDetector::Network("10.244.0.0/16".parse().unwrap()),
                v6: LocalDetector::None,
            },
            masquerade_all: false,
        };
        cluster.compile();
        cluster
    }

    fn compile(&mut self) {
        for dirty in self.state.take_dirty() {
            let compiled = match dirty.owner {
                Owner::Cluster => Some(compile::compile_cluster(&self.state, &self.node_ports)),
                Owner::Service(id) => {
                    let known = self.state.service(id);
                    known.map(|known| compile::compile_known(known, self.state.node()))
                }
            };
            self.engine.update(dirty.owner, compiled);
        }
    }

    fn explain(&self, from: &str, to: To) -> Explanation {
        let from = match from {
            "" => From::Anyone,
            "host" => From::Host,
            address => From::Address(ip(address)),
        };
        let surroundings = Surroundings {
            state: &self.state,
            engine: &self.engine,
            programs: false,
            node_ports: &self.node_ports,
            left_out: &self.left_out,
            detector: &self.detector,
            masquerade_all: self.masquerade_all,
        };
        surroundings.explain(&Question { from, to })
    }

    fn at(&self, from: &str, address: &str, port: u16) -> Explanation {
        let to = To::Address {
            address: ip(address),
            port,
            protocol: None,
        };
        self.explain(from, to)
    }

    fn of(&self, from: &str, service: &str, port: Option<&str>) -> Explanation {
        let to = To::Service {
            service: name(service),
            port: port.map(str::to_owned),
            protocol: None,
        };
        self.explain(from, to)
    }
}

fn with(service: Service, endpoints: &[&str]) -> Cluster {
    Cluster::new(
        &[("shop/web", service)],
        &[slice("shop/web", "http", endpoints)],
    )
}

fn says(explanation: &Explanation, words: &str) {
    let headline = &explanation.headline;
    assert!(
        headline.contains(words),
        "{headline:?} does not say {words:?}"
    );
}

#[test]
fn e1_every_row_of_the_table_is_said() {
    let local = |internal, external| Service {
        algorithm: crate::core::model::Algorithm::Random,
        ejects: false,
        internal_local: internal,
        external_local: external,
        ..service()
    };
    let endpoints = ["1 RL", "2 R"];
    // Destination, policies, and for a pod, the node and someone outside: how many endpoints, and whether masqueraded.
    let rows = [
        (
            CLUSTER_IP,
            80,
            local(false, true),
            [(2, false), (2, true), (2, true)],
        ),
        (
            CLUSTER_IP,
            80,
            local(true, false),
            [(1, false), (1, true), (1, true)],
        ),
        (
            VIP,
            80,
            local(true, false),
            [(2, true), (2, true), (2, true)],
        ),
        (
            NODE,
            30080,
            local(true, false),
            [(2, true), (2, true), (2, true)],
        ),
        (
            VIP,
            80,
            local(false, true),
            [(2, false), (2, true), (1, false)],
        ),
        (
            NODE,
            30080,
            local(false, true),
            [(2, false), (2, true), (1, false)],
        ),
    ];
    for (address, port, service, expected) in rows {
        let cluster = with(service, &endpoints);
        for (from, (count, masqueraded)) in [POD, "host", OUTSIDE].into_iter().zip(expected) {
            let explanation = cluster.at(from, address, port);
            let route = &explanation.routes[0];
            assert_eq!(route.outcome, Outcome::Connects);
            let used = route.endpoints.iter().filter(|line| line.used).count();
            assert_eq!(
                (used, route.masqueraded),
                (count, masqueraded),
                "{from} to {address}: {}",
                explanation.headline
            );
            says(
                &explanation,
                if count == 1 {
                    "goes to 10.244.1.1:8080"
                } else {
                    "one of 2 endpoints"
                },
            );
            assert_eq!(explanation.headline.contains("masqueraded"), masqueraded);
        }
    }
}

#[test]
fn e1_without_endpoints_everybody_is_refused_and_the_reason_is_the_first_thing_said() {
    let cases: [(&[&str], &str); 4] = [
        (&["1 ", "2 "], "no endpoint is ready (2 are not ready)"),
        (
            &["1 T"],
            "no endpoint is ready (1 is terminating and serves no longer)",
        ),
        (
            &["1 ", "2 T"],
            "(1 is not ready and 1 is terminating and serves no longer)",
        ),
        (&[], "it has no endpoints"),
    ];
    for (endpoints, words) in cases {
        let cluster = with(service(), endpoints);
        for from in [POD, "host", OUTSIDE, ""] {
            let explanation = cluster.of(from, "shop/web", None);
            assert_eq!(explanation.outcome(), Outcome::Refused);
            says(&explanation, words);
        }
    }
    let without = Cluster::new(&[("shop/web", service())], &[]);
    says(&without.of("", "shop/web", None), "it has no EndpointSlice");
}

#[test]
fn c1_a_port_that_matches_no_slice_is_told_with_what_the_slices_have() {
    let cluster = Cluster::new(
        &[("shop/web", service())],
        &[slice("shop/web", "web", &["1 R"])],
    );
    let explanation = cluster.of("", "shop/web", None);
    assert_eq!(explanation.outcome(), Outcome::Refused);
    says(
        &explanation,
        "no EndpointSlice has a port named \"http\" (tcp): they have \"web\" (tcp)",
    );
    let route = &explanation.routes[0];
    assert!(
        route.endpoints[0]
            .why
            .contains("has no port named \"http\""),
        "{route:?}"
    );
}

#[test]
fn a_slice_that_is_labelled_for_another_service_is_named() {
    let cluster = Cluster::new(
        &[("shop/web", service())],
        &[slice("shop/wbe", "http", &["1 R"])],
    );
    let mut state = cluster;
    let key = ObjectKey::new("shop", "web-abc");
    let stray = slice("shop/other", "http", &["1 R"]);
    state
        .state
        .apply(Change::EndpointSlice(key, Some(Box::new(stray))));
    let explanation = state.of("", "shop/web", None);
    assert_eq!(
        explanation.notes,
        ["EndpointSlice web-abc is labelled for other"]
    );
}

#[test]
fn e2_local_without_a_local_endpoint_is_dropped_and_says_which_policy() {
    let external = with(
        Service {
            external_local: true,
            ..service()
        },
        &["1 R", "2 R"],
    );
    let explanation = external.at(OUTSIDE, VIP, 80);
    assert_eq!(explanation.outcome(), Outcome::Dropped);
    says(
        &explanation,
        "externalTrafficPolicy is Local, and no endpoint is on this node (2 endpoints that serve are elsewhere)",
    );
    assert_eq!(external.at(POD, VIP, 80).outcome(), Outcome::Connects);
    let internal = with(
        Service {
            internal_local: true,
            ..service()
        },
        &["1 R"],
    );
    let explanation = internal.at(POD, CLUSTER_IP, 80);
    assert_eq!(explanation.outcome(), Outcome::Dropped);
    says(&explanation, "internalTrafficPolicy is Local");
}

#[test]
fn e10_who_is_outside_the_ranges_is_told_which_they_are() {
    let ranges: Vec<ipnetwork::IpNetwork> = vec!["203.0.113.0/24".parse().unwrap()];
    let limited = Service {
        source_ranges: PerFamily {
            v4: SourceRanges::Only(ranges.into()),
            v6: SourceRanges::Any,
        },
        ..service()
    };
    let cluster = with(limited, &["1 R"]);
    let refused = cluster.at(OUTSIDE, VIP, 80);
    assert_eq!(refused.outcome(), Outcome::Dropped);
    says(
        &refused,
        "spec.loadBalancerSourceRanges admits 203.0.113.0/24",
    );
    assert_eq!(
        cluster.at("203.0.113.7", VIP, 80).outcome(),
        Outcome::Connects
    );
    assert_eq!(
        cluster.at(OUTSIDE, CLUSTER_IP, 80).outcome(),
        Outcome::Connects
    );
    assert_eq!(
        cluster.at(OUTSIDE, NODE, 30080).outcome(),
        Outcome::Connects
    );
    says(&cluster.at("", VIP, 80), "only from 203.0.113.0/24");
}

#[test]
fn d2_hints_that_are_not_followed_are_told_with_the_reason() {
    let cases: [(&[&str], &str); 4] = [
        (
            &["1 Rz", "2 RZ"],
            "only those that are hinted to zone here count",
        ),
        (
            &["1 Rz", "2 R"],
            "topology hints are not followed, because 1 of 2 ready endpoints have none",
        ),
        (
            &["1 RZ", "2 RZ"],
            "topology hints are not followed, because no ready endpoint is hinted to zone here",
        ),
        (
            &["1 R", "2 R"],
            "goes to one of 2 endpoints, each as likely; masqueraded",
        ),
    ];
    for (endpoints, words) in cases {
        says(
            &with(service(), endpoints).at(OUTSIDE, CLUSTER_IP, 80),
            words,
        );
    }
    let mut homeless = with(service(), &["1 Rz"]);
    homeless.state.apply(Change::Node(Some(Box::new(Node {
        addresses: vec![ip(NODE)],
        ..Node::named("node-1")
    }))));
    homeless.compile();
    says(
        &homeless.at(POD, CLUSTER_IP, 80),
        "because this node has no zone",
    );
    let elsewhere = with(service(), &["1 Rz", "2 RZ"]).at(POD, CLUSTER_IP, 80);
    let line = &elsewhere.routes[0].endpoints[1];
    assert_eq!(
        (line.used, line.why.as_str()),
        (false, "is hinted to zone there, and this node's is here")
    );
}

#[test]
fn d4_where_only_terminating_endpoints_are_left_that_is_said() {
    let cluster = with(service(), &["1 ST", "2 "]);
    says(
        &cluster.at(POD, CLUSTER_IP, 80),
        "goes to 10.244.1.1:8080, the only endpoint that takes them; all of them are terminating, and none is ready",
    );
    let spare = with(service(), &["1 ST", "2 R"]).at(POD, CLUSTER_IP, 80);
    assert_eq!(
        spare.routes[0].endpoints[1].why,
        "is terminating, and serves only where none is ready"
    );
}

#[test]
fn an_address_that_two_claim_is_told_to_both() {
    let claims = |created, cluster_ip: &str| Service {
        created,
        cluster_ips: PerFamily {
            v4: Some(ip(cluster_ip)),
            v6: None,
        },
        external_ips: vec![ip("203.0.113.5")],
        vips: Vec::new(),
        ..service()
    };
    let cluster = Cluster::new(
        &[
            ("shop/new", claims(2, "10.96.0.2")),
            ("shop/old", claims(1, "10.96.0.1")),
        ],
        &[
            slice("shop/new", "http", &["1 R"]),
            slice("shop/old", "http", &["2 R"]),
        ],
    );
    let loser = cluster.of("", "shop/new", None);
    says(
        &loser,
        "shop/new does not get them: shop/old claims the same and is older; the connection goes to 10.244.1.2:8080",
    );
    let winner = cluster.at(OUTSIDE, "203.0.113.5", 80);
    says(&winner, "shop/new claims it too, and gets nothing");
    assert_eq!(winner.routes[0].waiting, ["shop/new"]);
}

#[test]
fn e15_what_nobody_has_is_told_with_what_is_near() {
    let cluster = with(service(), &["1 R"]);
    let undefined = cluster.at(POD, CLUSTER_IP, 81);
    says(
        &undefined,
        "refused: the address is a ClusterIP, and its Service has no such port",
    );
    assert_eq!(
        undefined.notes,
        ["at this address: 10.96.0.10:80/tcp (shop/web)"]
    );
    says(
        &cluster.at(POD, "10.96.5.5", 80),
        "dropped: no Service has the address, which is of ServiceCIDR 10.96.0.0/16",
    );
    says(
        &cluster.at(POD, "10.244.1.1", 8080),
        "left alone: no Service has it; it is an endpoint of shop/web, and reached directly",
    );
    says(
        &cluster.at(POD, "8.8.8.8", 53),
        "left alone: no Service has it",
    );
    says(
        &cluster.at("host", "127.0.0.1", 30080),
        "none of the addresses that accept them (192.0.2.1; nodePortAddresses)",
    );
    let node_port = To::NodePort {
        port: 30081,
        protocol: None,
    };
    let near = cluster.explain("", node_port);
    assert_eq!(near.notes, ["near: node(IPv4):30080/tcp (shop/web)"]);
    let misspelt = cluster.of("", "shop/wbe", None);
    says(&misspelt, "there is no such Service");
    assert_eq!(misspelt.notes, ["near: shop/web"]);
    let elsewhere = cluster.of("", "default/web", None);
    assert_eq!(elsewhere.notes, ["near: shop/web"]);
    let port = cluster.of("", "shop/web", Some("https"));
    says(&port, "shop/web has no port https");
    assert_eq!(port.notes, ["its ports: 80/tcp (http)"]);
    let family = cluster.of("fd00::1", "shop/web", None);
    says(&family, "has no IPv6 addresses, only IPv4");
}

#[test]
fn e9_an_endpoint_that_may_reach_itself_is_told_so() {
    let cluster = with(service(), &["1 RL", "9 RL"]);
    says(
        &cluster.at("10.244.1.9", CLUSTER_IP, 80),
        "masqueraded if it goes to itself",
    );
}

#[test]
fn e4_e5_masquerading_follows_the_configuration() {
    let mut cluster = with(service(), &["1 R"]);
    cluster.masquerade_all = true;
    assert!(cluster.at(POD, CLUSTER_IP, 80).routes[0].masqueraded);
    cluster.masquerade_all = false;
    cluster.detector = PerFamily::default();
    for from in [POD, "host", OUTSIDE] {
        assert!(
            !cluster.at(from, CLUSTER_IP, 80).routes[0].masqueraded,
            "{from}"
        );
    }
}

#[test]
fn f1_affinity_is_said_with_its_time() {
    let affine = Service {
        affinity: Some(Affinity {
            timeout_seconds: 10_800,
        }),
        ..service()
    };
    says(
        &with(affine, &["1 R"]).at(POD, CLUSTER_IP, 80),
        "it comes back to the same for 3 h",
    );
}

#[test]
fn a_service_of_many_endpoints_is_told_in_part() {
    let many: Vec<String> = (0..250).map(|last| format!("{last} R")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let explanation = with(service(), &many).at(POD, CLUSTER_IP, 80);
    says(&explanation, "one of 250 endpoints");
    let route = &explanation.routes[0];
    assert_eq!((route.endpoints.len(), route.more_endpoints), (200, 50));
}

#[test]
fn e10_the_node_itself_is_held_to_ranges_and_nobody_gets_past_none() {
    let ranges = |v4| Service {
        source_ranges: PerFamily {
            v4,
            v6: SourceRanges::Any,
        },
        ..service()
    };
    let some: Vec<ipnetwork::IpNetwork> = vec!["203.0.113.0/24".parse().unwrap()];
    let cluster = with(ranges(SourceRanges::Only(some.into())), &["1 R"]);
    assert_eq!(cluster.at("host", VIP, 80).outcome(), Outcome::Dropped);
    let nobody = with(ranges(SourceRanges::Only(Vec::new().into())), &["1 R"]);
    for from in ["", "host", OUTSIDE] {
        let explanation = nobody.at(from, VIP, 80);
        assert_eq!(explanation.outcome(), Outcome::Dropped, "{from}");
        says(&explanation, "admits nobody");
    }
    // Refusing comes after admitting.
    let some: Vec<ipnetwork::IpNetwork> = vec!["203.0.113.0/24".parse().unwrap()];
    let empty = with(ranges(SourceRanges::Only(some.into())), &[]);
    assert_eq!(empty.at(OUTSIDE, VIP, 80).outcome(), Outcome::Dropped);
}

#[test]
fn e11_a_node_port_that_another_has_at_the_nodes_address_is_told_so() {
    let external = Service {
        created: 9,
        cluster_ips: PerFamily {
            v4: Some(ip("10.96.0.77")),
            v6: None,
        },
        external_ips: vec![ip(NODE)],
        vips: Vec::new(),
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 30080,
            node_port: 0,
        }],
        ..service()
    };
    let cluster = Cluster::new(
        &[("shop/web", service()), ("shop/other", external)],
        &[
            slice("shop/web", "http", &["1 R"]),
            slice("shop/other", "http", &["2 R"]),
        ],
    );
    let node_port = To::NodePort {
        port: 30080,
        protocol: None,
    };
    let explanation = cluster.explain(OUTSIDE, node_port);
    says(
        &explanation,
        "does not get here: shop/other has 192.0.2.1 with this port",
    );
    assert_eq!(explanation.routes[0].node_addresses, [""; 0].map(ip));
}

#[test]
fn an_endpoint_at_the_nodes_own_address_is_not_masqueraded() {
    let mut slice = slice("shop/web", "http", &[]);
    slice.endpoints = [SliceEndpoint {
        address: ip(NODE),
        ready: true,
        serving: true,
        terminating: false,
        local: true,
        node_hint: Hint::None,
        weight: 1,
        zone_hints: None,
    }]
    .into_iter()
    .collect();
    let cluster = Cluster::new(&[("shop/web", service())], &[slice]);
    let explanation = cluster.at(OUTSIDE, CLUSTER_IP, 80);
    let route = &explanation.routes[0];
    assert!(!route.masqueraded, "{route:?}");
    assert!(route.endpoints[0].why.contains("this node's own address"));
}

#[test]
fn one_that_is_not_on_this_node_would_not_reach_itself() {
    let cluster = with(service(), &["9 R", "1 R"]);
    says(
        &cluster.at(POD, CLUSTER_IP, 80),
        "it would not reach itself, because the EndpointSlice does not say that it is on this node",
    );
}

#[test]
fn a_service_that_is_too_large_is_told_with_what_is_left_out() {
    let mut cluster = with(service(), &["1 R"]);
    let id = cluster.state.id_of(&name("shop/web")).unwrap();
    cluster.left_out.insert(id, 2);
    says(
        &cluster.of("", "shop/web", None),
        "shop/web is too large, and 2 of its destinations are left out; ",
    );
    let mut cluster = Cluster::new(&[("shop/web", service())], &[]);
    let id = cluster.state.id_of(&name("shop/web")).unwrap();
    cluster.left_out.insert(id, 2);
    // The engine has nothing of it.
    cluster.engine.update(Owner::Service(id), None);
    says(
        &cluster.at(OUTSIDE, VIP, 80),
        "shop/web claims the address and is too large",
    );
}
