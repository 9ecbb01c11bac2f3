//! Services in, model and warnings out. Numbers at the front of test names are those of the
//! project's `docs/semantics.md`.

use super::*;
use serde_json::{Value, json};

#[path = "convert_slice_tests.rs"]
mod slices;

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

fn assert_skipped(cases: &[(&str, Value, Value)]) {
    for (what, spec, more) in cases {
        let (service, warnings) = convert_service(spec.clone(), more.clone());
        assert_eq!(service, None, "{what}");
        assert_eq!(warnings, Vec::<String>::new(), "{what}");
    }
}

#[test]
fn a1_a_service_of_another_proxy_is_skipped() {
    let label = |value: &str| json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": value}}});
    assert_skipped(&[
        ("a name", json!({}), label("other")),
        ("the label alone decides", json!({}), label("")),
    ]);
    let (service, _) = convert_service(
        json!({}),
        json!({"metadata": {"labels": {"app.kubernetes.io/name": "web"}}}),
    );
    assert!(service.is_some(), "other labels do not matter");
}

#[test]
fn a1_a_headless_service_is_skipped() {
    assert_skipped(&[("headless", json!({"clusterIP": "None"}), json!({}))]);
}

#[test]
fn a4_a_service_without_a_cluster_ip_is_skipped() {
    assert_skipped(&[
        ("not one yet", json!({"clusterIP": ""}), json!({})),
        ("not even the field", json!({"clusterIP": null}), json!({})),
        ("none ever", json!({"clusterIP": "None"}), json!({})),
        (
            "whatever else it has",
            json!({"clusterIP": "", "type": "LoadBalancer", "externalIPs": ["198.51.100.7"]}),
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}}),
        ),
    ]);
}

#[test]
fn a4_a_service_of_type_external_name_is_skipped_even_with_a_cluster_ip() {
    assert_skipped(&[("", json!({"type": "ExternalName"}), json!({}))]);
}

fn assert_cluster_ips(cases: &[(&str, Value, [Option<&str>; 2])]) {
    for (what, spec, [v4, v6]) in cases {
        let (service, warnings) = convert_service(spec.clone(), json!({}));
        let found = service.unwrap().cluster_ips;
        assert_eq!((found.v4, found.v6), (v4.map(ip), v6.map(ip)), "{what}");
        assert_eq!(warnings, Vec::<String>::new(), "{what}");
    }
}

#[test]
fn b2_cluster_ips_pair_with_families_by_position() {
    assert_cluster_ips(&[
        (
            "in this order",
            json!({"clusterIPs": ["10.96.0.2", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"]}),
            [Some("10.96.0.2"), Some("fd00::1")],
        ),
        (
            "and in the other",
            json!({"clusterIPs": ["fd00::1", "10.96.0.2"], "ipFamilies": ["IPv6", "IPv4"]}),
            [Some("10.96.0.2"), Some("fd00::1")],
        ),
        (
            "an address without a family does not count",
            json!({"clusterIPs": ["10.96.0.2", "fd00::1"], "ipFamilies": ["IPv4"]}),
            [Some("10.96.0.2"), None],
        ),
        (
            "a family without an address has none",
            json!({"clusterIPs": ["10.96.0.2"], "ipFamilies": ["IPv4", "IPv6"]}),
            [Some("10.96.0.2"), None],
        ),
    ]);
}

#[test]
fn b2_without_families_the_cluster_ip_counts_in_its_own() {
    assert_cluster_ips(&[
        ("IPv4", json!({}), [Some("10.96.0.1"), None]),
        (
            "IPv6",
            json!({"clusterIP": "fd00::1"}),
            [None, Some("fd00::1")],
        ),
        (
            "the list is not looked at",
            json!({"clusterIPs": ["10.96.0.1", "fd00::1"]}),
            [Some("10.96.0.1"), None],
        ),
    ]);
}

#[test]
fn b3_leading_zeros_are_decimal_wherever_an_address_or_range_is_read() {
    let (service, warnings) = convert_service(
        json!({
            "clusterIP": "172.30.0.041",
            "externalIPs": ["198.051.100.007"],
            "loadBalancerSourceRanges": ["172.030.0.0/025"],
        }),
        json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.001"}]}}}),
    );
    let service = service.unwrap();
    assert_eq!(service.cluster_ips.v4, Some(ip("172.30.0.41")));
    assert_eq!(service.external_ips, [ip("198.51.100.7")]);
    assert_eq!(service.vips, [ip("203.0.113.1")]);
    assert_eq!(service.source_ranges.v4, only(&["172.30.0.0/25"]));
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn b4_external_ips_that_cannot_be_read_are_left_out_blank_ones_without_a_word() {
    let (service, warnings) = convert_service(
        json!({"externalIPs": ["198.51.100.7", " ", "", "fd00::7", "garbage", "198.51.100.8"]}),
        json!({}),
    );
    assert_eq!(
        service.unwrap().external_ips,
        [ip("198.51.100.7"), ip("fd00::7"), ip("198.51.100.8")]
    );
    assert_eq!(
        warnings,
        ["Service shop/web: spec.externalIPs[4]: \"garbage\" is not an IP address; it is left out"]
    );
}

#[test]
fn b5_load_balancer_addresses_of_mode_vip_count_whatever_the_type() {
    for kind in ["LoadBalancer", "NodePort", "ClusterIP"] {
        let (service, warnings) = convert_service(
            json!({"type": kind}),
            json!({"status": {"loadBalancer": {"ingress": [
                {"ip": "203.0.113.1"},
                {"ip": "203.0.113.2", "ipMode": "VIP"},
                {"ip": "203.0.113.3", "ipMode": "Proxy"},
                {"ip": "203.0.113.4", "ipMode": "Unheard-of"},
                {"hostname": "lb.example"},
                {"ip": ""},
                {"ip": "nonsense"},
                {"ip": "2001:db8::1"},
            ]}}}),
        );
        let expected = ["203.0.113.1", "203.0.113.2", "2001:db8::1"].map(ip);
        assert_eq!(service.unwrap().vips, expected, "{kind}");
        assert_eq!(
            warnings,
            [
                "Service shop/web: status.loadBalancer.ingress[6].ip: \"nonsense\" is not an IP address; it is left out",
            ]
        );
    }
}

fn only(texts: &[&str]) -> SourceRanges {
    SourceRanges::Only(texts.iter().map(|text| text.parse().unwrap()).collect())
}

/// The source ranges of a Service with VIPs of both families, and the warnings.
fn ranges(list: Value) -> (PerFamily<SourceRanges>, Vec<String>) {
    let (service, warnings) = convert_service(
        json!({"loadBalancerSourceRanges": list}),
        json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"ip": "2001:db8::1"}]}}}),
    );
    (service.unwrap().source_ranges, warnings)
}

#[test]
fn b6_source_ranges_are_trimmed_filtered_by_family_and_rid_of_bad_entries() {
    let cases = [
        (
            "trimmed",
            json!([" 10.0.0.0/8 ", "\tfd00::/8\n"]),
            only(&["10.0.0.0/8"]),
            only(&["fd00::/8"]),
            0,
        ),
        (
            "bad ones dropped",
            json!(["10.0.0.0/8", "nonsense", "10.0.0.0/33", "fd00::/8"]),
            only(&["10.0.0.0/8"]),
            only(&["fd00::/8"]),
            2,
        ),
        (
            "each in its family",
            json!(["fd00::/8", "10.0.0.0/8", "2001:db8::/32", "11.0.0.0/8"]),
            only(&["10.0.0.0/8", "11.0.0.0/8"]),
            only(&["2001:db8::/32", "fd00::/8"]),
            0,
        ),
        (
            "those inside others dropped",
            json!(["10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/8"]),
            only(&["10.0.0.0/8"]),
            only(&[]),
            1,
        ),
    ];
    for (what, list, v4, v6, warnings) in cases {
        let (found, warned) = ranges(list);
        assert_eq!(found, PerFamily { v4, v6 }, "{what}");
        assert_eq!(warned.len(), warnings, "{what}: {warned:?}");
    }
}

#[test]
fn b6_a_vip_is_open_without_a_list_and_in_a_family_whose_list_holds_everything() {
    let any = SourceRanges::Any;
    let cases = [
        ("no list", json!([]), any.clone(), any.clone()),
        ("an absent one", Value::Null, any.clone(), any.clone()),
        (
            "all of IPv4",
            json!(["10.0.0.0/8", "0.0.0.0/0", "fd00::/8"]),
            any.clone(),
            only(&["fd00::/8"]),
        ),
        (
            "all of IPv6",
            json!(["10.0.0.0/8", "::/0"]),
            only(&["10.0.0.0/8"]),
            any.clone(),
        ),
    ];
    for (what, list, v4, v6) in cases {
        let (found, warned) = ranges(list);
        assert_eq!(found, PerFamily { v4, v6 }, "{what}");
        assert_eq!(warned, Vec::<String>::new(), "{what}");
    }
}

#[test]
fn b6_the_annotation_for_source_ranges_is_not_read() {
    let annotation = json!({"metadata": {"annotations": {
        "service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8"
    }}});
    let (service, _) = convert_service(json!({}), annotation);
    assert_eq!(service.unwrap().source_ranges, PerFamily::default());
}

#[test]
fn n_b6_a_list_of_source_ranges_without_a_valid_entry_of_a_family_admits_nobody_there() {
    let nobody = only(&[]);
    let cases = [
        (
            "all invalid",
            json!(["nonsense"]),
            nobody.clone(),
            nobody.clone(),
            2,
        ),
        ("blank", json!([" "]), nobody.clone(), nobody.clone(), 2),
        (
            "all of IPv4",
            json!(["10.0.0.0/8"]),
            only(&["10.0.0.0/8"]),
            nobody.clone(),
            1,
        ),
        (
            "all of IPv6, a bad one besides",
            json!(["fd00::/8", "10.0.0.0"]),
            nobody.clone(),
            only(&["fd00::/8"]),
            1,
        ),
    ];
    for (what, list, v4, v6, families) in cases {
        let (found, warned) = ranges(list);
        assert_eq!(found, PerFamily { v4, v6 }, "{what}");
        let of_families: Vec<_> = warned
            .iter()
            .filter(|text| text.ends_with("load-balancer addresses admit nobody"))
            .collect();
        assert_eq!(of_families.len(), families, "{what}: {warned:?}");
        let names_it =
            |text: &String| text.starts_with("Service shop/web: spec.loadBalancerSourceRanges");
        assert!(warned.iter().all(names_it), "{what}: {warned:?}");
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
fn b7_a_node_port_counts_whatever_the_type() {
    for kind in ["ClusterIP", "NodePort", "LoadBalancer"] {
        let (service, _) = convert_service(
            json!({"type": kind, "ports": [{"port": 80, "nodePort": 30080}, {"port": 81, "nodePort": 0}]}),
            json!({}),
        );
        let ports = service.unwrap().ports;
        let node_ports: Vec<u16> = ports.iter().map(|port| port.node_port).collect();
        assert_eq!(node_ports, [30080, 0], "{kind}");
    }
}

#[test]
fn b8_affinity_is_by_client_ip_or_none_and_has_a_timeout_whatever_the_object_says() {
    let timeout = |seconds: Value| json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}});
    let cases = [
        ("none", json!({}), None, 0),
        ("None", json!({"sessionAffinity": "None"}), None, 0),
        ("given", timeout(json!(60)), Some(60), 0),
        (
            "nil is the default",
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
fn b9_external_policy_local_counts_where_the_type_or_external_ips_give_it_a_meaning() {
    let cases = [
        ("LoadBalancer", "Local", json!([]), true),
        ("NodePort", "Local", json!([]), true),
        ("ClusterIP", "Local", json!(["198.51.100.1"]), true),
        ("ClusterIP", "Local", json!([]), false),
        ("LoadBalancer", "Cluster", json!([]), false),
        ("LoadBalancer", "", json!([]), false),
    ];
    for (kind, policy, ips, expected) in cases {
        let spec = json!({"type": kind, "externalTrafficPolicy": policy, "externalIPs": ips});
        let (service, _) = convert_service(spec.clone(), json!({}));
        assert_eq!(service.unwrap().external_local, expected, "{spec}");
    }
}

#[test]
fn b9_internal_policy_is_local_only_if_it_says_so() {
    for (policy, expected) in [
        (json!("Local"), true),
        (json!("Cluster"), false),
        (Value::Null, false),
    ] {
        let (service, _) = convert_service(json!({"internalTrafficPolicy": policy}), json!({}));
        assert_eq!(service.unwrap().internal_local, expected, "{policy}");
    }
}

#[test]
fn b10_a_health_check_port_counts_for_a_load_balancer_with_external_policy_local_alone() {
    let cases = [
        ("LoadBalancer", "Local", json!(32000), 32000),
        ("LoadBalancer", "Local", json!(0), 0),
        ("LoadBalancer", "Local", Value::Null, 0),
        ("LoadBalancer", "Cluster", json!(32000), 0),
        ("NodePort", "Local", json!(32000), 0),
        ("ClusterIP", "Local", json!(32000), 0),
    ];
    for (kind, policy, port, expected) in cases {
        let spec = json!({
            "type": kind,
            "externalTrafficPolicy": policy,
            "externalIPs": ["198.51.100.1"],
            "healthCheckNodePort": port,
        });
        let (service, _) = convert_service(spec.clone(), json!({}));
        let found = service.unwrap().health_check_node_port;
        assert_eq!(found, expected, "{spec}");
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

#[test]
fn b10_a_local_load_balancer_without_a_health_check_port_is_reported() {
    for port in [json!(0), Value::Null] {
        let spec = json!({
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": port,
        });
        let (service, warnings) = convert_service(spec.clone(), json!({}));
        assert_eq!(service.unwrap().health_check_node_port, 0, "{spec}");
        assert_eq!(warnings.len(), 1, "{spec}: {warnings:?}");
        assert!(
            warnings[0].starts_with("Service shop/web: spec.healthCheckNodePort"),
            "{warnings:?}"
        );
    }
}

#[test]
fn b2_the_first_family_has_no_cluster_ip_either_without_its_place_in_the_list() {
    assert_cluster_ips(&[(
        "",
        json!({"clusterIP": "10.96.0.1", "clusterIPs": [], "ipFamilies": ["IPv4"]}),
        [None, None],
    )]);
}
