//! What the endpoints are, and which are selected. Numbers at the front of test names are those
//! of `docs/semantics.md`.

use super::*;
use crate::core::model::{ObjectKey, SlicePort, ZoneHints};

/// `name`, conditions (`R`eady, `S`erving, `T`erminating), `L`ocal, hints (`n` this node, `N`
/// another node, `z` this zone, `Z` another zone).
fn endpoint(description: &str) -> SliceEndpoint {
    let (last, flags) = description.split_once(' ').unwrap_or((description, ""));
    let has = |flag: char| flags.contains(flag);
    let zones: Vec<Name> = [('z', "here"), ('Z', "elsewhere")]
        .into_iter()
        .filter(|(flag, _)| has(*flag))
        .map(|(_, zone)| zone.into())
        .collect();
    SliceEndpoint {
        address: [10, 0, 0, last.parse().unwrap()].into(),
        ready: has('R'),
        serving: has('S'),
        terminating: has('T'),
        local: has('L'),
        node_hint: if has('n') {
            Hint::Here
        } else if has('N') {
            Hint::Elsewhere
        } else {
            Hint::None
        },
        weight: 1,
        zone_hints: (!zones.is_empty()).then(|| ZoneHints::new(zones.into())),
    }
}

fn slice(endpoints: &[&str]) -> EndpointSlice {
    EndpointSlice {
        service: ObjectKey::new("default", "web"),
        family: Family::V4,
        ports: [SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }]
        .into(),
        endpoints: endpoints.iter().map(|text| endpoint(text)).collect(),
    }
}

fn node() -> Node {
    Node {
        zone: Some("here".into()),
        ..Node::named("node-1")
    }
}

fn run(slices: &[EndpointSlice], uses: Uses, node: &Node) -> Selection {
    let of_port = |slice| serving(slice, Family::V4, "http", Protocol::Tcp);
    select(slices.iter().flat_map(of_port), uses, node)
}

fn last_bytes<'a>(list: impl IntoIterator<Item = &'a Endpoint>) -> Vec<u8> {
    list.into_iter()
        .map(|endpoint| match endpoint.address {
            std::net::IpAddr::V4(address) => address.octets()[3],
            std::net::IpAddr::V6(_) => unreachable!("all are IPv4"),
        })
        .collect()
}

const BOTH: Uses = Uses {
    cluster: true,
    local: true,
    flows: true,
};
const CLUSTER: Uses = Uses {
    cluster: true,
    local: false,
    flows: true,
};
const LOCAL: Uses = Uses {
    cluster: false,
    local: true,
    flows: true,
};

/// What is selected: from the cluster, on this node, those of both that are here, and whether
/// there is any to be had at all.
type Expected = (&'static [u8], &'static [u8], &'static [u8], bool);

fn check(cases: &[(&'static [&'static str], Uses, Expected)]) {
    for (endpoints, uses, (cluster, local, on_this_node, has_any)) in cases {
        let found = run(&[slice(endpoints)], *uses, &node());
        assert_eq!(last_bytes(&found.cluster), *cluster, "{endpoints:?}");
        assert_eq!(last_bytes(&found.local), *local, "{endpoints:?}");
        assert_eq!(
            last_bytes(&found.on_this_node),
            *on_this_node,
            "{endpoints:?}"
        );
        assert_eq!(found.has_any, *has_any, "{endpoints:?}");
    }
}

#[test]
fn d1_without_endpoints_there_is_nothing_to_use() {
    for uses in [BOTH, CLUSTER, LOCAL] {
        check(&[(&[], uses, (&[], &[], &[], false))]);
    }
}

#[test]
fn d3_ready_endpoints_anywhere_are_used() {
    check(&[
        (&["1 RS", "2", "3 RS"], CLUSTER, (&[1, 3], &[], &[], true)),
        (&["1 R", "2 ST"], CLUSTER, (&[1], &[], &[], true)),
    ]);
}

#[test]
fn d3_serving_terminating_endpoints_are_used_when_none_is_ready_whatever_their_hints() {
    check(&[
        (
            &["1 ST", "2 S", "3 T", "4"],
            CLUSTER,
            (&[1], &[], &[], true),
        ),
        (&["1 STZ", "2 STz"], CLUSTER, (&[1, 2], &[], &[], true)),
    ]);
}

#[test]
fn d4_without_a_use_for_local_endpoints_those_of_the_cluster_are_all_that_is_reachable() {
    check(&[(
        &["1 RSL", "2 RS", "3 STL"],
        CLUSTER,
        (&[1, 2], &[], &[1], true),
    )]);
}

#[test]
fn d5_an_endpoint_that_could_be_used_elsewhere_is_one_though_none_is_here() {
    check(&[
        (&["1 RS"], LOCAL, (&[], &[], &[], true)),
        (&["1 ST"], LOCAL, (&[], &[], &[], true)),
        (&["1 S", "2 T"], LOCAL, (&[], &[], &[], false)),
    ]);
}

#[test]
fn d6_local_endpoints_are_the_ready_ones_here_else_the_serving_terminating_ones_here() {
    check(&[
        (
            &["1 RSL", "2 RS", "3 STL"],
            BOTH,
            (&[1, 2], &[1], &[1], true),
        ),
        (&["1 STL", "2 ST", "3 SL"], LOCAL, (&[], &[1], &[1], true)),
    ]);
}

#[test]
fn d6_the_fallback_to_terminating_endpoints_here_does_not_depend_on_ready_ones_elsewhere() {
    check(&[(&["1 STL", "2 RS", "3 SL"], BOTH, (&[2], &[1], &[1], true))]);
}

#[test]
fn d7_reachable_are_the_local_endpoints_and_with_a_use_for_them_those_of_the_cluster_too() {
    check(&[
        (&["1 RSL", "2 RS"], LOCAL, (&[], &[1], &[1], true)),
        (&["1 RSL", "2 RS"], BOTH, (&[1, 2], &[1], &[1], true)),
        // One of each list that the other does not have.
        (&["1 STL", "2 RSLz"], CLUSTER, (&[2], &[], &[2], true)),
        (&["1 STL", "2 RS"], BOTH, (&[2], &[1], &[1], true)),
    ]);
}

#[test]
fn d8_serving_without_being_ready_or_terminating_is_never_enough() {
    for uses in [BOTH, CLUSTER, LOCAL] {
        check(&[
            (&["1 S", "2 SL"], uses, (&[], &[], &[], false)),
            (&["1 T", "2 TL"], uses, (&[], &[], &[], false)),
        ]);
    }
}

/// What is selected from anywhere, on a node in zone `here` or in none.
fn check_hints(cases: &[(&str, &[&str], Option<&str>, &[u8])]) {
    for (what, endpoints, zone, expected) in cases {
        let node = Node {
            zone: zone.map(Name::from),
            ..node()
        };
        let selection = run(&[slice(endpoints)], CLUSTER, &node);
        assert_eq!(last_bytes(&selection.cluster), *expected, "{what}");
    }
}

#[test]
fn d2a_node_hints_count_if_all_ready_endpoints_have_one_and_one_names_this_node() {
    let here = Some("here");
    check_hints(&[
        ("all hinted", &["1 RSn", "2 RSN"], here, &[1]),
        ("a node without a zone", &["1 RSn", "2 RSN"], None, &[1]),
        ("one without a hint", &["1 RSn", "2 RS"], here, &[1, 2]),
        ("others alone are named", &["1 RSN", "2 RSN"], here, &[1, 2]),
        ("before zone hints", &["1 RSnZ", "2 RSNz"], here, &[1]),
    ]);
}

#[test]
fn d2b_zone_hints_count_if_all_ready_endpoints_have_one_and_one_names_this_zone() {
    let here = Some("here");
    check_hints(&[
        ("all hinted", &["1 RSz", "2 RSZ"], here, &[1]),
        ("several in a hint", &["1 RSzZ", "2 RSZ"], here, &[1]),
        ("node hints for others", &["1 RSNz", "2 RSNZ"], here, &[1]),
    ]);
}

#[test]
fn d2c_one_endpoint_without_a_hint_or_none_for_us_or_no_zone_of_ours_disables_hints() {
    let here = Some("here");
    check_hints(&[
        ("one without a hint", &["1 RSz", "2 RS"], here, &[1, 2]),
        ("none for our zone", &["1 RSZ", "2 RSZ"], here, &[1, 2]),
        ("no zone label", &["1 RSz", "2 RSZ"], None, &[1, 2]),
    ]);
}

#[test]
fn d2_only_ready_endpoints_are_asked_for_hints_and_without_one_there_is_no_mode() {
    let here = Some("here");
    check_hints(&[
        ("ready ones", &["1 RSz", "2 ST", "3 RSZ"], here, &[1]),
        ("none is ready", &["1 STz", "2 STZ"], here, &[1, 2]),
        ("nor to nodes", &["1 STn", "2 STN"], here, &[1, 2]),
    ]);
}

#[test]
fn d6_local_endpoints_ignore_hints() {
    let selection = run(&[slice(&["1 RSLZ", "2 RSz"])], BOTH, &node());
    assert_eq!(last_bytes(&selection.local), [1]);
    assert_eq!(last_bytes(&selection.cluster), [2]);
}

/// Both orders of two slices with one address: what is selected is the same.
fn check_duplicates(one: &str, other: &str, cluster: &[u8], local: &[u8]) {
    let (one, other) = (slice(&[one]), slice(&[other]));
    for slices in [[one.clone(), other.clone()], [other, one]] {
        let selection = run(&slices, BOTH, &node());
        assert_eq!(last_bytes(&selection.cluster), cluster);
        assert_eq!(last_bytes(&selection.local), local);
    }
}

#[test]
fn c6_of_duplicates_the_one_that_is_not_terminating_counts_whatever_the_order() {
    check_duplicates("1 ST", "1 RSL", &[1], &[1]);
    check_duplicates("1 STL", "1 RS", &[1], &[]);
    // Neither takes the other's place where nothing but terminating ones are.
    check_duplicates("1 ST", "1 ST", &[1], &[]);
}

#[test]
fn c6_an_endpoint_is_one_address_with_one_port() {
    let mut other_port = slice(&["1 RS"]);
    other_port.ports = [SlicePort {
        port: 9090,
        ..other_port.ports[0].clone()
    }]
    .into();
    let selection = run(&[slice(&["1 RS", "1 RS"]), other_port], BOTH, &node());
    let found: Vec<String> = selection.cluster.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["10.0.0.1:8080", "10.0.0.1:9090"]);
}

#[test]
fn c7_endpoints_come_in_one_order_whatever_that_of_the_slices() {
    let slices = [slice(&["2 RS", "30 RS"]), slice(&["9 RS", "1 RS"])];
    let mut reversed = slices.clone();
    reversed.reverse();
    let [one, other] = [slices, reversed].map(|slices| run(&slices, BOTH, &node()));
    assert_eq!(one, other);
    assert_eq!(one.cluster.len(), 4);
}

#[test]
fn c1_a_slice_port_serves_the_service_port_of_its_very_name_protocol_and_family() {
    let slices = [slice(&["1 RS"])];
    let has_any = |family, name, protocol| {
        let slices = slices.iter();
        let of_port = slices.flat_map(|slice| serving(slice, family, name, protocol));
        select(of_port, CLUSTER, &node()).has_any
    };
    assert!(has_any(Family::V4, "http", Protocol::Tcp));
    assert!(!has_any(Family::V4, "https", Protocol::Tcp));
    assert!(!has_any(Family::V4, "HTTP", Protocol::Tcp));
    assert!(!has_any(Family::V4, "", Protocol::Tcp));
    assert!(!has_any(Family::V4, "http", Protocol::Udp));
    assert!(!has_any(Family::V6, "http", Protocol::Tcp));
}

#[test]
fn c1_each_port_of_a_slice_makes_an_endpoint_of_each_address() {
    let mut slice = slice(&["1 RS"]);
    slice.ports = [8080, 9090]
        .into_iter()
        .map(|port| SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port,
        })
        .collect();
    let selection = run(&[slice], CLUSTER, &node());
    let ports: Vec<u16> = selection
        .cluster
        .iter()
        .map(|endpoint| endpoint.port)
        .collect();
    assert_eq!(ports, [8080, 9090]);
}

proptest::proptest! {
    #[test]
    fn what_is_said_of_an_endpoint_is_what_is_selected(
        flags in proptest::collection::vec("[RSTLnNzZ]{0,5}", 0..12),
        has_zone in proptest::bool::ANY,
    ) {
        let texts: Vec<String> = flags.iter().enumerate().map(|(last, flags)| format!("{last} {flags}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let slices = [slice(&texts)];
        let node = if has_zone { node() } else { Node::named("node-1") };
        let selection = run(&slices, BOTH, &node);
        let of_port = |slice| serving(slice, Family::V4, "http", Protocol::Tcp);
        let (judged, _) = judge(slices.iter().flat_map(of_port), &node);
        let used = |standing: fn(&Judged) -> &Standing| -> Vec<Endpoint> {
            let used = judged.iter().filter(|one| standing(one).is_used());
            used.map(|one| one.endpoint).collect()
        };
        let cluster: Vec<Endpoint> = selection.cluster.iter().copied().collect();
        let local: Vec<Endpoint> = selection.local.iter().copied().collect();
        proptest::prop_assert_eq!(used(|one| &one.anywhere), cluster);
        proptest::prop_assert_eq!(used(|one| &one.here), local);
    }
}
