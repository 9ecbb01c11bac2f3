//! From objects as the API has them to what the Services' destinations do: what no single step
//! on the way can show. Numbers at the front of test names are those of the project's semantics
//! document.

use std::collections::BTreeSet;

use pointsman::core::compile::{NodePortAddresses, compile_cluster, compile_known};
use pointsman::core::ir::{Action, Shared};
use pointsman::core::model::{Change, Dirty, Node, ObjectKey, State};
use pointsman::source::convert::Converter;
use serde_json::{Value, json};

use crate::harness::NODE;
use crate::objects::{Service, endpoint, node, service, service_cidr, slice, slice_of};

/// A cluster as this node sees it.
struct Cluster {
    converter: Converter,
    state: State,
}

impl Cluster {
    fn of(objects: &[&Value]) -> Self {
        let mut cluster = Self {
            converter: Converter::new(NODE),
            state: State::new(Node::named(NODE)),
        };
        for object in objects {
            cluster.put(object);
        }
        cluster.state.take_dirty();
        cluster
    }

    /// Takes in an object as it is now.
    fn put(&mut self, object: &Value) {
        fn read<T: serde::de::DeserializeOwned>(object: &Value) -> T {
            serde_json::from_value(object.clone()).unwrap()
        }
        let change = match object["kind"].as_str().unwrap() {
            "Service" => self.converter.service(&read(object)),
            "EndpointSlice" => self.converter.endpoint_slice(&read(object)),
            "Node" => self.converter.node(&read(object)),
            "ServiceCIDR" => self.converter.service_cidr(&read(object)),
            kind => panic!("{kind}"),
        };
        self.state.apply(change.expect("an object of use"));
    }

    /// The names of the Services that changes have touched since the last call.
    fn touched(&mut self) -> BTreeSet<String> {
        let dirty = self.state.take_dirty();
        dirty
            .into_iter()
            .map(|Dirty { owner, .. }| {
                let key = owner.service().and_then(|id| self.state.name(id));
                let name = key.map(|key| key.name.to_string());
                name.unwrap_or_else(|| "the cluster".to_owned())
            })
            .collect()
    }

    /// What the destinations of a Service in namespace `default` do, each in a line. None if
    /// there is no such Service.
    fn destinations(&mut self, name: &str) -> Vec<String> {
        let key = ObjectKey::new("default", name);
        // Every Service is touched by the node, and so has its number among the touched.
        self.put(&json!({"kind": "Node", "metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": "b"}}}));
        self.put(&node());
        let ids = self.state.take_dirty();
        let found = ids.into_iter().find_map(|Dirty { owner, .. }| {
            let known = self.state.service(owner.service()?)?;
            (*known.key == key).then(|| compile_known(known, self.state.node()))
        });
        let destinations = found.into_iter().flat_map(|compiled| compiled.destinations);
        destinations
            .map(|(destination, forwarding)| match &forwarding.action {
                Action::Balance { primary, .. } => {
                    let endpoints: Vec<String> = primary.iter().map(ToString::to_string).collect();
                    format!("{destination} to {}", endpoints.join(" "))
                }
                action => format!("{destination} {action:?}"),
            })
            .collect()
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

const NOBODY: [&str; 0] = [];

fn web() -> Service {
    service("web", &["10.96.0.1"])
}

fn of_another_proxy() -> Service {
    web().set(
        "/metadata/labels",
        json!({"service.kubernetes.io/service-proxy-name": "other"}),
    )
}

#[test]
fn a1_a_service_that_is_given_to_another_proxy_goes_and_one_that_is_given_back_returns() {
    let served = ["10.96.0.1:80/tcp to 10.244.1.1:8080"];
    let mut cluster = Cluster::of(&[&web().0, &slice("web", "TCP", &["10.244.1.1"])]);
    assert_eq!(cluster.destinations("web"), served);
    cluster.put(&of_another_proxy().0);
    assert_eq!(cluster.touched(), names(&["web"]));
    assert_eq!(cluster.destinations("web"), NOBODY);
    cluster.put(&web().0);
    assert_eq!(cluster.touched(), names(&["web"]));
    assert_eq!(cluster.destinations("web"), served);
}

#[test]
fn a2_slices_of_another_proxys_service_are_harmless() {
    let slices = slice("web", "TCP", &["10.244.1.1"]);
    let mut cluster = Cluster::of(&[&of_another_proxy().0, &slices]);
    assert_eq!(cluster.destinations("web"), NOBODY);
    assert_eq!(cluster.state.service_count(), 0);
}

#[test]
fn a3_all_service_cidrs_count_and_no_node_but_ours() {
    let mut more = service_cidr();
    more["metadata"]["name"] = json!("more");
    more["spec"]["cidrs"] = json!(["10.98.0.0/16"]);
    more["status"] = json!({"conditions": [{"type": "Ready", "status": "False"}]});
    let cluster = Cluster::of(&[&service_cidr(), &more]);
    let compiled = compile_cluster(&cluster.state, &NodePortAddresses::All);
    let expected = ["10.96.0.0/16", "10.98.0.0/16", "fd00:96::/112"];
    let expected = expected.map(|cidr| Shared::ServiceCidr(cidr.parse().unwrap()));
    assert_eq!(*compiled.shared, expected);

    let mut other = node();
    other["metadata"]["name"] = json!("node-2");
    let mut converter = Converter::new(NODE);
    let other = serde_json::from_value(other).unwrap();
    assert!(converter.node(&other).is_none());
}

#[test]
fn a4_a_service_in_one_family_has_none_of_the_others_external_addresses() {
    let half = web()
        .vips(&["203.0.113.1", "2001:db8:113::1"])
        .external_ips(&["203.0.113.2", "2001:db8:113::2"])
        .set("/spec/ports/0/nodePort", json!(30080));
    let mut cluster = Cluster::of(&[
        &half.0,
        &slice("web", "TCP", &["10.244.1.1"]),
        &slice("web", "TCP", &["fd00:244:0:1::1"]),
    ]);
    assert_eq!(
        cluster.destinations("web"),
        [
            "10.96.0.1:80/tcp to 10.244.1.1:8080",
            "203.0.113.1:80/tcp to 10.244.1.1:8080",
            "203.0.113.2:80/tcp to 10.244.1.1:8080",
            "node(IPv4):30080/tcp to 10.244.1.1:8080",
        ]
    );
}

#[test]
fn a5_each_family_takes_the_endpoints_of_its_own_slices() {
    let mut names = slice("web", "TCP", &["10.244.1.9"]);
    names["metadata"]["name"] = json!("web-names");
    names["addressType"] = json!("FQDN");
    let mut cluster = Cluster::of(&[
        &service("web", &["10.96.0.1", "fd00:96::1"]).0,
        &slice("web", "TCP", &["10.244.1.1"]),
        &slice("web", "TCP", &["fd00:244:0:1::1"]),
        &names,
    ]);
    assert_eq!(
        cluster.destinations("web"),
        [
            "10.96.0.1:80/tcp to 10.244.1.1:8080",
            "[fd00:96::1]:80/tcp to [fd00:244:0:1::1]:8080",
        ]
    );
}

#[test]
fn n_a6_a_relabelled_slice_takes_its_endpoints_to_its_new_service_at_once() {
    let mut moving = slice("web", "TCP", &["10.244.1.1"]);
    let mut cluster = Cluster::of(&[&web().0, &service("api", &["10.96.0.2"]).0, &moving]);
    assert_eq!(
        cluster.destinations("web"),
        ["10.96.0.1:80/tcp to 10.244.1.1:8080"]
    );
    assert_eq!(cluster.destinations("api"), ["10.96.0.2:80/tcp Reject"]);
    moving["metadata"]["labels"]["kubernetes.io/service-name"] = json!("api");
    cluster.put(&moving);
    assert_eq!(cluster.touched(), names(&["api", "web"]));
    assert_eq!(cluster.destinations("web"), ["10.96.0.1:80/tcp Reject"]);
    assert_eq!(
        cluster.destinations("api"),
        ["10.96.0.2:80/tcp to 10.244.1.1:8080"]
    );
    moving["metadata"]["labels"] = json!({});
    cluster.put(&moving);
    assert_eq!(cluster.touched(), names(&["api"]), "or to nobody");
    assert_eq!(cluster.destinations("api"), ["10.96.0.2:80/tcp Reject"]);
}

#[test]
fn a7_an_object_that_comes_again_without_a_change_that_matters_touches_no_service() {
    let slices = slice("web", "TCP", &["10.244.1.1"]);
    let mut cluster = Cluster::of(&[&web().0, &slices, &node()]);
    cluster.put(&web().0);
    cluster.put(&slices);
    cluster.put(&node());
    assert_eq!(cluster.touched(), BTreeSet::new(), "delivered again");
    let with_notes = |mut object: Value| {
        object["metadata"]["resourceVersion"] = json!("77");
        object["metadata"]["annotations"] = json!({"note": "a change of no interest"});
        object
    };
    cluster.put(&with_notes(
        web().set("/spec/selector", json!({"app": "x"})).0,
    ));
    cluster.put(&with_notes(slices.clone()));
    cluster.put(&with_notes(node()));
    assert_eq!(cluster.touched(), BTreeSet::new(), "changed elsewhere");
    cluster.put(&web().set("/spec/ports/0/port", json!(81)).0);
    assert_eq!(cluster.touched(), names(&["web"]));
}

#[test]
fn b1_every_port_is_served_in_every_family() {
    let ports = json!([
        {"name": "http", "port": 80, "protocol": "TCP"},
        {"name": "http", "port": 80, "protocol": "UDP"},
        {"name": "admin", "port": 81, "protocol": "TCP"},
    ]);
    let both = service("web", &["10.96.0.1", "fd00:96::1"]).set("/spec/ports", ports);
    let mut cluster = Cluster::of(&[
        &both.0,
        &slice("web", "TCP", &["10.244.1.1"]),
        &slice("web", "TCP", &["fd00:244:0:1::1"]),
    ]);
    assert_eq!(
        cluster.destinations("web"),
        [
            "10.96.0.1:80/tcp to 10.244.1.1:8080",
            "10.96.0.1:80/udp Reject",
            "10.96.0.1:81/tcp Reject",
            "[fd00:96::1]:80/tcp to [fd00:244:0:1::1]:8080",
            "[fd00:96::1]:80/udp Reject",
            "[fd00:96::1]:81/tcp Reject",
        ]
    );
}

/// Endpoints in several zones, told by `zone` and not by hints.
fn in_zones() -> Value {
    let endpoints = [("10.244.1.1", "a"), ("10.244.2.1", "b")].map(|(address, zone)| {
        let mut endpoint = endpoint(address);
        endpoint["zone"] = json!(zone);
        endpoint
    });
    slice_of("web", "TCP", endpoints.to_vec())
}

#[test]
fn b12_topology_comes_from_the_hints_of_slices_and_from_nothing_in_the_service() {
    let asking = [
        web(),
        web().set("/spec/trafficDistribution", json!("PreferClose")),
        web().set("/spec/trafficDistribution", json!("PreferSameNode")),
        web().set(
            "/metadata/annotations",
            json!({
                "service.kubernetes.io/topology-mode": "Auto",
                "service.kubernetes.io/topology-aware-hints": "auto",
            }),
        ),
    ];
    for asking in asking {
        let mut cluster = Cluster::of(&[&asking.0, &in_zones()]);
        assert_eq!(
            cluster.destinations("web"),
            ["10.96.0.1:80/tcp to 10.244.1.1:8080 10.244.2.1:8080"],
            "{}",
            asking.0
        );
    }
    let mut hinted = in_zones();
    for (index, zone) in ["a", "b"].into_iter().enumerate() {
        hinted["endpoints"][index]["hints"] = json!({"forZones": [{"name": zone}]});
    }
    let mut cluster = Cluster::of(&[&web().0, &hinted]);
    assert_eq!(
        cluster.destinations("web"),
        ["10.96.0.1:80/tcp to 10.244.1.1:8080"]
    );
}

#[test]
fn c1_a_target_port_does_not_matter() {
    for target in [json!(9999), json!("http"), json!("other"), Value::Null] {
        let service = web().set("/spec/ports/0/targetPort", target.clone());
        let mut cluster = Cluster::of(&[&service.0, &slice("web", "TCP", &["10.244.1.1"])]);
        assert_eq!(
            cluster.destinations("web"),
            ["10.96.0.1:80/tcp to 10.244.1.1:8080"],
            "{target}"
        );
    }
}

#[test]
fn c3_addresses_that_are_published_before_they_are_ready_come_as_ready_ones() {
    // What the controller writes for such a Service: `ready`, whatever the pod says.
    let early = web().set("/spec/publishNotReadyAddresses", json!(true));
    let mut pod = endpoint("10.244.1.1");
    pod["conditions"] = json!({"ready": true, "serving": false, "terminating": false});
    let mut cluster = Cluster::of(&[&early.0, &slice_of("web", "TCP", vec![pod.clone()])]);
    let served = ["10.96.0.1:80/tcp to 10.244.1.1:8080"];
    assert_eq!(cluster.destinations("web"), served);
    pod["conditions"]["ready"] = json!(false);
    cluster.put(&slice_of("web", "TCP", vec![pod]));
    assert_eq!(cluster.destinations("web"), ["10.96.0.1:80/tcp Reject"]);
}

#[test]
fn n_g10_a_changed_service_cidr_is_work_for_the_next_sync() {
    let mut cluster = Cluster::of(&[&service_cidr()]);
    let mut wider = service_cidr();
    wider["spec"]["cidrs"] = json!(["10.96.0.0/12"]);
    cluster.put(&wider);
    assert_eq!(cluster.touched(), names(&["the cluster"]));
    cluster
        .state
        .apply(Change::ServiceCidr("kubernetes".into(), None));
    assert_eq!(cluster.touched(), names(&["the cluster"]), "or gone");
}
