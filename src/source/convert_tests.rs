//! SEMANTICS.md sections A, B and C: objects in, model and warnings out.

use super::*;
use serde_json::{Value, json};

fn convert_service(spec: Value, more: Value) -> (Option<Service>, Vec<String>) {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "shop", "creationTimestamp": "2024-01-02T03:04:05Z"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]},
    });
    merge(&mut object, &json!({ "spec": spec }));
    merge(&mut object, &more);
    let mut converter = Converter::new("node-1");
    let object: objects::Service = serde_json::from_value(object).unwrap();
    let service = match converter.service(&object) {
        Some(Change::Service(_, service)) => service.map(|service| *service),
        other => panic!("not a Service: {other:?}"),
    };
    (service, texts(&mut converter))
}

fn texts(converter: &mut Converter) -> Vec<String> {
    converter
        .take_warnings()
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// Lays one object over another.
fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn services_that_are_not_for_a_proxy_are_as_good_as_gone() {
    let cases = [
        ("A4: headless", json!({"clusterIP": "None"}), json!({})),
        ("A4: no address yet", json!({"clusterIP": ""}), json!({})),
        (
            "A4: ExternalName, even with an address",
            json!({"type": "ExternalName"}),
            json!({}),
        ),
        (
            "A1: another proxy's",
            json!({}),
            json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "x"}}}),
        ),
    ];
    for (rule, spec, more) in cases {
        let (service, warnings) = convert_service(spec, more);
        assert_eq!(service, None, "{rule}");
        assert_eq!(warnings, Vec::<String>::new(), "{rule}");
    }
}

#[test]
fn cluster_ips_pair_with_families() {
    let cases = [
        (
            "B2: without families, clusterIP",
            json!({}),
            (Some("10.96.0.1"), None),
        ),
        (
            "B2: by position",
            json!({"clusterIPs": ["fd00::1", "10.96.0.2"], "ipFamilies": ["IPv6", "IPv4"]}),
            (Some("10.96.0.2"), Some("fd00::1")),
        ),
        (
            "B2: a missing index is none",
            json!({"clusterIPs": ["10.96.0.2"], "ipFamilies": ["IPv4", "IPv6"]}),
            (Some("10.96.0.2"), None),
        ),
        (
            "B3: leading zeros are decimal",
            json!({"clusterIP": "172.30.0.041"}),
            (Some("172.30.0.41"), None),
        ),
    ];
    for (rule, spec, (v4, v6)) in cases {
        let (service, warnings) = convert_service(spec, json!({}));
        let found = service.unwrap().cluster_ips;
        assert_eq!((found.v4, found.v6), (v4.map(ip), v6.map(ip)), "{rule}");
        assert_eq!(warnings, Vec::<String>::new(), "{rule}");
    }
}

#[test]
fn external_addresses_are_read_leniently() {
    let (service, warnings) = convert_service(
        json!({"externalIPs": ["198.51.100.007", " ", "fd00::7", "garbage"]}),
        json!({"status": {"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"},
            {"ip": "203.0.113.2", "ipMode": "VIP"},
            {"ip": "203.0.113.3", "ipMode": "Proxy"},
            {"hostname": "lb.example"},
            {"ip": ""},
            {"ip": "nonsense"},
        ]}}}),
    );
    let service = service.unwrap();
    assert_eq!(
        service.external_ips,
        [ip("198.51.100.7"), ip("fd00::7")],
        "B4"
    );
    assert_eq!(service.vips, [ip("203.0.113.1"), ip("203.0.113.2")], "B5");
    assert_eq!(
        warnings,
        [
            "Service shop/web: status.loadBalancer.ingress[5].ip: \"nonsense\" is not an IP address; it is left out",
            "Service shop/web: spec.externalIPs[3]: \"garbage\" is not an IP address; it is left out",
        ]
    );
}

#[test]
fn source_ranges_never_open_more_than_was_asked() {
    let any = SourceRanges::Any;
    let only = |texts: &[&str]| {
        SourceRanges::Only(texts.iter().map(|text| text.parse().unwrap()).collect())
    };
    let cases = [
        ("B6: no list", json!([]), any.clone(), any.clone(), 0),
        (
            "B6: trimmed",
            json!([" 10.0.0.0/8 ", "fd00::/8"]),
            only(&["10.0.0.0/8"]),
            only(&["fd00::/8"]),
            0,
        ),
        (
            "B3: zeros",
            json!(["172.030.0.0/025", "fd00::/8"]),
            only(&["172.30.0.0/25"]),
            only(&["fd00::/8"]),
            0,
        ),
        (
            "B6: all of it",
            json!(["10.0.0.0/8", "0.0.0.0/0", "fd00::/8"]),
            any.clone(),
            only(&["fd00::/8"]),
            0,
        ),
        (
            "N: all invalid admits nobody",
            json!(["nonsense"]),
            only(&[]),
            only(&[]),
            3,
        ),
        (
            "N: the other family's list admits nobody",
            json!(["10.0.0.0/8"]),
            only(&["10.0.0.0/8"]),
            only(&[]),
            1,
        ),
    ];
    for (rule, ranges, v4, v6, warnings) in cases {
        let (service, warned) = convert_service(
            json!({"loadBalancerSourceRanges": ranges}),
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"ip": "2001:db8::1"}]}}}),
        );
        assert_eq!(
            service.unwrap().source_ranges,
            PerFamily { v4, v6 },
            "{rule}"
        );
        assert_eq!(warned.len(), warnings, "{rule}: {warned:?}");
        assert!(
            warned
                .iter()
                .all(|text| text.starts_with("Service shop/web: spec.loadBalancerSourceRanges"))
        );
    }
}

#[test]
fn wrong_ports_are_left_out_by_name_and_the_rest_stays() {
    let (service, warnings) = convert_service(
        json!({"ports": [
            {"name": "zero", "port": 0},
            {"name": "large", "port": 65536},
            {"name": "negative", "port": -1},
            {"name": "odd", "port": 80, "protocol": "DCCP"},
            {"name": "none"},
            {"name": "node", "port": 81, "nodePort": 99999},
            {"name": "good", "port": 82, "nodePort": 30082, "protocol": "SCTP"},
            {"name": "same", "port": 82, "protocol": "SCTP"},
        ]}),
        json!({}),
    );
    let ports: Vec<(String, u16, u16)> = service
        .unwrap()
        .ports
        .iter()
        .map(|port| (port.name.to_string(), port.port, port.node_port))
        .collect();
    assert_eq!(
        ports,
        [
            ("node".to_owned(), 81, 0),
            ("good".to_owned(), 82, 30082),
            ("same".to_owned(), 82, 0)
        ]
    );
    let fields: Vec<&str> = warnings
        .iter()
        .map(|text| text.split(": ").nth(1).unwrap())
        .collect();
    assert_eq!(
        fields,
        [
            "spec.ports[0].port",
            "spec.ports[1].port",
            "spec.ports[2].port",
            "spec.ports[3].protocol",
            "spec.ports[4].port",
            "spec.ports[5].nodePort",
            "spec.ports[7].port",
        ]
    );
}

#[test]
fn affinity_has_a_timeout_whatever_the_object_says() {
    let timeout = |seconds: Value| json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}});
    let cases = [
        ("B8: none", json!({}), None, 0),
        ("B8: None", json!({"sessionAffinity": "None"}), None, 0),
        ("B8: given", timeout(json!(60)), Some(60), 0),
        (
            "B8: nil is the default",
            json!({"sessionAffinity": "ClientIP"}),
            Some(10_800),
            0,
        ),
        (
            "nonsense is the default, with a warning",
            timeout(json!(0)),
            Some(10_800),
            1,
        ),
        ("so is a negative one", timeout(json!(-5)), Some(10_800), 1),
        (
            "an unknown kind is none, with a warning",
            json!({"sessionAffinity": "Cookie"}),
            None,
            1,
        ),
    ];
    for (rule, spec, expected, warnings) in cases {
        let (service, warned) = convert_service(spec, json!({}));
        let found = service
            .unwrap()
            .affinity
            .map(|affinity| affinity.timeout_seconds);
        assert_eq!(found, expected, "{rule}");
        assert_eq!(warned.len(), warnings, "{rule}: {warned:?}");
    }
}

#[test]
fn external_policy_local_has_a_meaning_for_some_types() {
    let local = |kind: &str, ips: Value| json!({"type": kind, "externalTrafficPolicy": "Local", "externalIPs": ips, "healthCheckNodePort": 32000});
    let cases = [
        (local("LoadBalancer", json!([])), true, 32000),
        (local("NodePort", json!([])), true, 0),
        (local("ClusterIP", json!(["198.51.100.1"])), true, 0),
        (local("ClusterIP", json!([])), false, 0),
        (
            json!({"type": "LoadBalancer", "healthCheckNodePort": 32000}),
            false,
            0,
        ),
    ];
    for (spec, external_local, health_check) in cases {
        let (service, _) = convert_service(spec.clone(), json!({}));
        let service = service.unwrap();
        assert_eq!(service.external_local, external_local, "B9: {spec}");
        assert_eq!(service.health_check_node_port, health_check, "B10: {spec}");
    }
}

#[test]
fn an_unknown_policy_is_taken_as_the_narrower_one() {
    let (service, warnings) = convert_service(
        json!({"internalTrafficPolicy": "Nearby", "type": "NodePort", "externalTrafficPolicy": "Nearby"}),
        json!({}),
    );
    let service = service.unwrap();
    assert!(service.internal_local && service.external_local);
    assert_eq!(warnings.len(), 2);
}

#[test]
fn a_service_is_as_old_as_its_timestamp_or_the_youngest() {
    let created = |value: Value| {
        let (service, warnings) =
            convert_service(json!({}), json!({"metadata": {"creationTimestamp": value}}));
        (service.unwrap().created, warnings.len())
    };
    assert_eq!(created(json!("1970-01-01T00:01:00Z")), (60, 0));
    assert_eq!(created(Value::Null), (i64::MAX, 0));
    assert_eq!(created(json!("yesterday")), (i64::MAX, 1));
}

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

#[test]
fn slices_that_no_service_can_use_are_as_good_as_gone() {
    let cases = [
        ("A5: no label", json!({"metadata": {"labels": null}}), 0),
        (
            "A5: empty label",
            json!({"metadata": {"labels": {"kubernetes.io/service-name": ""}}}),
            0,
        ),
        (
            "A2: headless",
            json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}}}),
            0,
        ),
        ("A5: FQDN", json!({"addressType": "FQDN"}), 0),
        (
            "A5: an unknown type is worth a word",
            json!({"addressType": "IPX"}),
            1,
        ),
    ];
    for (rule, over, warnings) in cases {
        let (slice, warned) = convert_slice(over);
        assert_eq!(slice, None, "{rule}");
        assert_eq!(warned.len(), warnings, "{rule}");
    }
}

#[test]
fn endpoints_take_their_conditions_place_and_hints() {
    let (slice, warnings) = convert_slice(json!({"endpoints": [
        {"addresses": ["10.0.0.1", "10.0.0.2"]},
        {"addresses": []},
        {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": null, "terminating": true}},
        {"addresses": ["10.0.0.4"], "nodeName": "node-1", "hints": {"forZones": [{"name": "a"}, {"name": "b"}]}},
        {"addresses": ["10.0.0.5"], "nodeName": "Node-1", "hints": {"forNodes": [{"name": "node-1"}], "forZones": []}},
        {"addresses": ["10.0.0.6"], "hints": {"forNodes": [{"name": "node-2"}]}},
        {"addresses": ["fd00::1"]},
        {"addresses": ["garbage"]},
    ]}));
    let endpoints = slice.unwrap().endpoints;
    let short: Vec<_> = endpoints
        .iter()
        .map(|e| {
            (
                e.address.to_string(),
                (e.ready, e.serving, e.terminating, e.local),
                e.node_hint,
                e.zone_hints.as_ref().map_or(0, |zones| zones.len()),
            )
        })
        .collect();
    let plain = (true, true, false, false);
    assert_eq!(
        short,
        [
            ("10.0.0.1".to_owned(), plain, Hint::None, 0),
            (
                "10.0.0.3".to_owned(),
                (false, true, true, false),
                Hint::None,
                0
            ),
            (
                "10.0.0.4".to_owned(),
                (true, true, false, true),
                Hint::None,
                2
            ),
            ("10.0.0.5".to_owned(), plain, Hint::Here, 0),
            ("10.0.0.6".to_owned(), plain, Hint::Elsewhere, 0),
        ]
    );
    assert_eq!(
        warnings,
        [
            "EndpointSlice shop/web-1: endpoints[6].addresses[0]: \"fd00::1\" is not an IPv4 address, as addressType says; the endpoint is left out",
            "EndpointSlice shop/web-1: endpoints[7].addresses[0]: \"garbage\" is not an IP address; the endpoint is left out",
        ]
    );
}

#[test]
fn slice_ports_without_a_number_match_nothing() {
    let (slice, warnings) = convert_slice(json!({"ports": [
        {"name": "none"},
        {"name": "zero", "port": 0},
        {"port": 1},
        {"name": "large", "port": 70000},
        {"name": "odd", "port": 2, "protocol": "ICMP"},
    ]}));
    let ports = slice.unwrap().ports;
    let names: Vec<&str> = ports.iter().map(|port| &*port.name).collect();
    assert_eq!(names, [""], "C1");
    assert_eq!(warnings.len(), 2);
}

#[test]
fn a_node_gives_its_zone_and_addresses_internal_ones_first() {
    let mut converter = Converter::new("node-1");
    let object: objects::Node = serde_json::from_value(json!({
        "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [
            {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "Hostname", "address": "node-1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "nonsense"},
        ]},
    }))
    .unwrap();
    let Some(Change::Node(Some(node))) = converter.node(&object) else {
        panic!("our node");
    };
    assert_eq!(node.addresses, [ip("192.0.2.1"), ip("203.0.113.1")], "E16");
    assert_eq!(node.zone.as_deref(), Some("a"));
    assert_eq!(texts(&mut converter).len(), 1);
    let mut other = Converter::new("node-2");
    assert!(other.node(&object).is_none(), "A3: another node is nobody");
}
