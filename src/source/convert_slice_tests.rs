//! `EndpointSlice`s, Nodes and `ServiceCIDR`s in, model and warnings out. Numbers at the front of
//! test names are those of `docs/semantics.md`.

use super::*;
use crate::core::model::{EndpointSlice, Hint, Protocol, SliceEndpoint, ZoneHints};

fn convert_slice(over: Value) -> (Option<EndpointSlice>, Vec<String>) {
    let mut object = json!({
        "metadata": {
            "name": "web-1",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.0.0.1"]}],
    });
    merge(&mut object, &over);
    let mut converter = Converter::new("node-1");
    let object: objects::EndpointSlice = serde_json::from_value(object).unwrap();
    let slice = match converter.endpoint_slice(&object) {
        Some(Change::EndpointSlice(_, slice)) => slice.map(|slice| *slice),
        other => panic!("not a slice: {other:?}"),
    };
    (slice, texts(&mut converter))
}

fn assert_skipped(cases: &[(&str, Value, usize)]) {
    for (what, over, warnings) in cases {
        let (slice, warned) = convert_slice(over.clone());
        assert_eq!(slice, None, "{what}");
        assert_eq!(warned.len(), *warnings, "{what}: {warned:?}");
    }
}

#[test]
fn a2_a_slice_of_a_headless_service_is_skipped() {
    let label =
        |value: &str| json!({"metadata": {"labels": {"service.kubernetes.io/headless": value}}});
    assert_skipped(&[("empty", label(""), 0), ("not empty", label("x"), 0)]);
}

#[test]
fn a5_a_slice_without_the_name_of_its_service_is_skipped() {
    assert_skipped(&[
        ("no labels", json!({"metadata": {"labels": null}}), 0),
        (
            "an empty name",
            json!({"metadata": {"labels": {"kubernetes.io/service-name": ""}}}),
            0,
        ),
    ]);
}

#[test]
fn a5_a_slice_without_a_name_or_namespace_is_skipped_with_a_warning() {
    for metadata in [
        json!({"namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}),
        json!({"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}),
    ] {
        let object = json!({"metadata": metadata, "addressType": "IPv4"});
        let mut converter = Converter::new("node-1");
        let slice: objects::EndpointSlice = serde_json::from_value(object).unwrap();
        assert!(converter.endpoint_slice(&slice).is_none(), "{metadata}");
        assert_eq!(texts(&mut converter).len(), 1, "{metadata}");
    }
}

#[test]
fn a5_a_slice_of_names_is_skipped_and_one_of_an_unknown_kind_too_with_a_warning() {
    assert_skipped(&[
        ("FQDN", json!({"addressType": "FQDN"}), 0),
        ("unknown", json!({"addressType": "IPX"}), 1),
        ("absent", json!({"addressType": ""}), 1),
    ]);
}

fn endpoints(list: Value) -> (Vec<SliceEndpoint>, Vec<String>) {
    let (slice, warnings) = convert_slice(json!({"endpoints": list}));
    (slice.unwrap().endpoints.iter().collect(), warnings)
}

#[test]
fn c1_a_slice_port_without_a_number_is_ignored() {
    let (slice, warnings) = convert_slice(json!({"ports": [
        {"name": "none"},
        {"name": "null", "port": null},
        {"name": "zero", "port": 0},
        {"name": "good", "port": 1, "protocol": "UDP"},
    ]}));
    let slice = slice.unwrap();
    let names: Vec<&str> = slice.ports.iter().map(|port| &*port.name).collect();
    assert_eq!(names, ["good"]);
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn slice_ports_that_make_no_sense_are_left_out_with_a_warning() {
    let (slice, warnings) = convert_slice(json!({"ports": [
        {"name": "large", "port": 70000},
        {"name": "odd", "port": 2, "protocol": "ICMP"},
        {"name": "good", "port": 1},
    ]}));
    let slice = slice.unwrap();
    let names: Vec<&str> = slice.ports.iter().map(|port| &*port.name).collect();
    assert_eq!(names, ["good"]);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
}

#[test]
fn c1_a_slice_port_without_a_name_is_ignored() {
    let (slice, _) = convert_slice(json!({"ports": [{"port": 1}, {"name": "", "port": 2}]}));
    let numbers: Vec<u16> = slice.unwrap().ports.iter().map(|port| port.port).collect();
    assert_eq!(numbers, [2]);
}

#[test]
fn c1_a_slice_port_without_a_protocol_is_tcp() {
    let (slice, _) = convert_slice(json!({"ports": [
        {"name": "a", "port": 1},
        {"name": "b", "port": 1, "protocol": "SCTP"},
    ]}));
    let ports = slice.unwrap().ports;
    let protocols: Vec<Protocol> = ports.iter().map(|port| port.protocol).collect();
    assert_eq!(protocols, [Protocol::Tcp, Protocol::Sctp]);
}

#[test]
fn c2_an_endpoint_counts_by_its_first_address_and_not_at_all_without_one() {
    let (found, warnings) = endpoints(json!([
        {"addresses": ["10.0.0.1", "10.0.0.2"]},
        {"addresses": []},
        {"addresses": null},
        {"addresses": ["10.0.0.3"]},
    ]));
    let addresses: Vec<IpAddr> = found.iter().map(|endpoint| endpoint.address).collect();
    assert_eq!(addresses, [ip("10.0.0.1"), ip("10.0.0.3")]);
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn an_address_of_the_wrong_kind_is_left_out_with_a_warning() {
    let (found, warnings) = endpoints(json!([
        {"addresses": ["10.0.0.1"]},
        {"addresses": ["fd00::1"]},
        {"addresses": ["garbage"]},
    ]));
    assert_eq!(found.len(), 1);
    assert_eq!(
        warnings,
        [
            "EndpointSlice shop/web-1: endpoints[1].addresses[0]: \"fd00::1\" is not an IPv4 address, as addressType says; the endpoint is left out",
            "EndpointSlice shop/web-1: endpoints[2].addresses[0]: \"garbage\" is not an IP address; the endpoint is left out",
        ]
    );
}

#[test]
fn c3_an_endpoint_is_ready_serving_and_not_terminating_unless_it_says_otherwise() {
    let cases = [
        (Value::Null, (true, true, false)),
        (json!({}), (true, true, false)),
        (
            json!({"ready": null, "serving": null, "terminating": null}),
            (true, true, false),
        ),
        (json!({"ready": false}), (false, true, false)),
        (json!({"serving": false}), (true, false, false)),
        (
            json!({"ready": false, "terminating": true}),
            (false, true, true),
        ),
    ];
    for (conditions, expected) in cases {
        let (found, _) = endpoints(json!([{"addresses": ["10.0.0.1"], "conditions": conditions}]));
        let SliceEndpoint {
            ready,
            serving,
            terminating,
            ..
        } = found[0];
        assert_eq!((ready, serving, terminating), expected, "{conditions}");
    }
}

#[test]
fn c4_an_endpoint_is_local_if_its_node_name_is_exactly_ours() {
    for (name, expected) in [
        (json!("node-1"), true),
        (json!("Node-1"), false),
        (json!("node-1.example"), false),
        (json!("node"), false),
        (json!(""), false),
        (Value::Null, false),
    ] {
        let (found, _) = endpoints(json!([{"addresses": ["10.0.0.1"], "nodeName": name}]));
        assert_eq!(found[0].local, expected, "{name}");
    }
}

#[test]
fn c5_hints_are_sets_of_nodes_and_zones_and_empty_ones_are_none() {
    let zones = |names: &[&str]| {
        let names = names.iter().map(|name| Name::from(*name));
        Some(ZoneHints::new(names.collect()))
    };
    type Zones = Option<ZoneHints>;
    let cases: [(Value, Hint, Zones); 7] = [
        (Value::Null, Hint::None, None),
        (json!({"forNodes": [], "forZones": []}), Hint::None, None),
        (
            json!({"forZones": [{"name": "a"}, {"name": "b"}]}),
            Hint::None,
            zones(&["a", "b"]),
        ),
        (
            json!({"forZones": [{"name": "c"}]}),
            Hint::None,
            zones(&["c"]),
        ),
        (
            json!({"forNodes": [{"name": "node-2"}, {"name": "node-1"}], "forZones": []}),
            Hint::Here,
            None,
        ),
        (
            json!({"forNodes": [{"name": "node-2"}]}),
            Hint::Elsewhere,
            None,
        ),
        (
            json!({"forNodes": [{"name": "node-1"}], "forZones": [{"name": "a"}]}),
            Hint::Here,
            zones(&["a"]),
        ),
    ];
    for (hints, node, zones) in cases {
        let (found, _) = endpoints(json!([{"addresses": ["10.0.0.1"], "hints": hints}]));
        let found = (found[0].node_hint, found[0].zone_hints.clone());
        assert_eq!(found, (node, zones), "{hints}");
    }
}

fn node_object() -> objects::Node {
    serde_json::from_value(json!({
        "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [
            {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "Hostname", "address": "node-1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "nonsense"},
            {"type": "InternalIP", "address": "192.0.2.2"},
            {"type": "ExternalIP", "address": "2001:db8::1"},
        ]},
    }))
    .unwrap()
}

#[test]
fn a3_every_node_but_ours_is_passed_over() {
    assert!(Converter::new("node-1").node(&node_object()).is_some());
    assert!(Converter::new("node-2").node(&node_object()).is_none());
    assert!(Converter::new("Node-1").node(&node_object()).is_none());
}

#[test]
fn e16_a_nodes_address_is_its_first_internal_one_in_each_family_else_the_first_external_one() {
    let mut converter = Converter::new("node-1");
    let Some(Change::Node(Some(node))) = converter.node(&node_object()) else {
        panic!("our node");
    };
    assert_eq!(
        node.addresses,
        ["192.0.2.1", "192.0.2.2", "203.0.113.1", "2001:db8::1"].map(ip)
    );
    let PerFamily { v4, v6 } = node.primary_addresses();
    assert_eq!((v4, v6), (Some(ip("192.0.2.1")), Some(ip("2001:db8::1"))));
    assert_eq!(node.zone.as_deref(), Some("a"));
    assert_eq!(texts(&mut converter).len(), 1, "for the one that is none");
}

#[test]
fn a3_a_service_cidr_counts_whether_it_is_ready_or_not() {
    for status in [json!("True"), json!("False"), Value::Null] {
        let object: objects::ServiceCidr = serde_json::from_value(json!({
            "metadata": {"name": "more", "labels": {"any": "label"}},
            "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]},
            "status": {"conditions": [{"type": "Ready", "status": status}]},
        }))
        .unwrap();
        let Some(Change::ServiceCidr(name, Some(cidrs))) =
            Converter::new("node-1").service_cidr(&object)
        else {
            panic!("a ServiceCIDR");
        };
        let expected = ["10.96.0.0/16", "fd00:96::/112"].map(|text| text.parse().unwrap());
        assert_eq!((name.as_str(), cidrs), ("more", expected.to_vec()));
    }
}
