//! SEMANTICS.md section D as tables: what the endpoints are, and which are selected.

use super::*;
use crate::model::{ObjectKey, SlicePort};

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
        zone_hints: (!zones.is_empty()).then(|| zones.into()),
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
    select(slices.iter(), Family::V4, "http", Protocol::Tcp, uses, node)
}

fn last_bytes(list: &[Endpoint]) -> Vec<u8> {
    list.iter()
        .map(|endpoint| match endpoint.address {
            std::net::IpAddr::V4(address) => address.octets()[3],
            std::net::IpAddr::V6(_) => unreachable!("all are IPv4"),
        })
        .collect()
}

const BOTH: Uses = Uses {
    cluster: true,
    local: true,
};
const CLUSTER: Uses = Uses {
    cluster: true,
    local: false,
};
const LOCAL: Uses = Uses {
    cluster: false,
    local: true,
};

struct Case {
    rule: &'static str,
    endpoints: &'static [&'static str],
    uses: Uses,
    cluster: &'static [u8],
    local: &'static [u8],
    on_this_node: &'static [u8],
    has_any: bool,
}

#[test]
fn endpoints_are_selected_by_conditions_and_locality() {
    let cases = [
        Case {
            rule: "D1: no endpoints, nothing",
            endpoints: &[],
            uses: BOTH,
            cluster: &[],
            local: &[],
            on_this_node: &[],
            has_any: false,
        },
        Case {
            rule: "D3: ready ones",
            endpoints: &["1 RS", "2", "3 RS"],
            uses: CLUSTER,
            cluster: &[1, 3],
            local: &[],
            on_this_node: &[],
            has_any: true,
        },
        Case {
            rule: "D3: serving and terminating if none is ready",
            endpoints: &["1 ST", "2 S", "3 T", "4"],
            uses: CLUSTER,
            cluster: &[1],
            local: &[],
            on_this_node: &[],
            has_any: true,
        },
        Case {
            rule: "D8: serving alone is never enough",
            endpoints: &["1 S", "2 T"],
            uses: BOTH,
            cluster: &[],
            local: &[],
            on_this_node: &[],
            has_any: false,
        },
        Case {
            rule: "D4: without a use for them there are no local ones, but it is known who is here",
            endpoints: &["1 RSL", "2 RS"],
            uses: CLUSTER,
            cluster: &[1, 2],
            local: &[],
            on_this_node: &[1],
            has_any: true,
        },
        Case {
            rule: "D6: local ready ones",
            endpoints: &["1 RSL", "2 RS", "3 STL"],
            uses: BOTH,
            cluster: &[1, 2],
            local: &[1],
            on_this_node: &[1],
            has_any: true,
        },
        Case {
            rule: "D6: the local fallback does not depend on the cluster's",
            endpoints: &["1 STL", "2 RS", "3 SL"],
            uses: BOTH,
            cluster: &[2],
            local: &[1],
            on_this_node: &[1],
            has_any: true,
        },
        Case {
            rule: "D5: some elsewhere, none here",
            endpoints: &["1 RS"],
            uses: LOCAL,
            cluster: &[],
            local: &[],
            on_this_node: &[],
            has_any: true,
        },
        Case {
            rule: "D5: a terminating one elsewhere counts too",
            endpoints: &["1 ST"],
            uses: LOCAL,
            cluster: &[],
            local: &[],
            on_this_node: &[],
            has_any: true,
        },
        Case {
            rule: "D7: only local ones are reachable if nothing uses the cluster's",
            endpoints: &["1 RSL", "2 RS"],
            uses: LOCAL,
            cluster: &[],
            local: &[1],
            on_this_node: &[1],
            has_any: true,
        },
    ];
    for case in cases {
        let selection = run(&[slice(case.endpoints)], case.uses, &node());
        assert_eq!(
            last_bytes(&selection.cluster),
            case.cluster,
            "{}",
            case.rule
        );
        assert_eq!(last_bytes(&selection.local), case.local, "{}", case.rule);
        assert_eq!(
            last_bytes(&selection.on_this_node),
            case.on_this_node,
            "{}",
            case.rule
        );
        assert_eq!(selection.has_any, case.has_any, "{}", case.rule);
    }
}

#[test]
fn hints_count_only_if_all_have_them_and_one_is_for_us() {
    let cases: [(&str, &[&str], Option<&str>, &[u8]); 11] = [
        (
            "all hinted to zones",
            &["1 RSz", "2 RSZ"],
            Some("here"),
            &[1],
        ),
        (
            "one without a hint",
            &["1 RSz", "2 RS"],
            Some("here"),
            &[1, 2],
        ),
        ("no zone label", &["1 RSz", "2 RSZ"], None, &[1, 2]),
        (
            "no hint for our zone",
            &["1 RSZ", "2 RSZ"],
            Some("here"),
            &[1, 2],
        ),
        (
            "several zones in one hint",
            &["1 RSzZ", "2 RSZ"],
            Some("here"),
            &[1],
        ),
        (
            "all hinted to nodes",
            &["1 RSn", "2 RSN"],
            Some("here"),
            &[1],
        ),
        (
            "node hints for others alone",
            &["1 RSN", "2 RSN"],
            Some("here"),
            &[1, 2],
        ),
        (
            "node hints go before zone hints",
            &["1 RSnZ", "2 RSNz"],
            Some("here"),
            &[1],
        ),
        (
            "zone hints count if no node hint is for us",
            &["1 RSNz", "2 RSNZ"],
            Some("here"),
            &[1],
        ),
        (
            "only ready ones are asked",
            &["1 RSz", "2 ST", "3 RSZ"],
            Some("here"),
            &[1],
        ),
        (
            "the fallback ignores hints",
            &["1 STz", "2 STZ"],
            Some("here"),
            &[1, 2],
        ),
    ];
    for (rule, endpoints, zone, expected) in cases {
        let node = Node {
            zone: zone.map(Name::from),
            ..node()
        };
        let selection = run(&[slice(endpoints)], CLUSTER, &node);
        assert_eq!(last_bytes(&selection.cluster), expected, "D2: {rule}");
    }
}

#[test]
fn local_endpoints_ignore_hints() {
    let selection = run(&[slice(&["1 RSLZ", "2 RSz"])], BOTH, &node());
    assert_eq!(last_bytes(&selection.local), [1]);
    assert_eq!(last_bytes(&selection.cluster), [2]);
}

#[test]
fn of_duplicates_the_one_that_is_not_terminating_counts_whatever_the_order() {
    let terminating = slice(&["1 ST"]);
    let ready = slice(&["1 RSL"]);
    for slices in [
        [terminating.clone(), ready.clone()],
        [ready.clone(), terminating.clone()],
    ] {
        let selection = run(&slices, BOTH, &node());
        assert_eq!(last_bytes(&selection.cluster), [1]);
        assert_eq!(last_bytes(&selection.local), [1]);
    }
}

#[test]
fn a_port_is_matched_by_name_and_protocol_and_family() {
    let slices = [slice(&["1 RS"])];
    let select = |family, name, protocol| {
        select(slices.iter(), family, name, protocol, CLUSTER, &node()).has_any
    };
    assert!(select(Family::V4, "http", Protocol::Tcp));
    assert!(!select(Family::V4, "https", Protocol::Tcp));
    assert!(!select(Family::V4, "", Protocol::Tcp));
    assert!(!select(Family::V4, "http", Protocol::Udp));
    assert!(!select(Family::V6, "http", Protocol::Tcp));
}

#[test]
fn a_name_with_two_numbers_gives_each_endpoint_twice() {
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
