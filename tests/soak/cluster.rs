//! What is in the cluster: Services that stay up, and others that chance makes.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::dice::Dice;
use crate::harness::NODE;
use crate::objects::{Service, endpoint, node, service, service_cidr, slice_of};
use crate::traffic::Plan;

/// How many Services there may be beside those that stay.
pub const OTHERS: usize = 40;
/// The most endpoints of one of them, in each family.
const MOST: usize = 300;
/// Who answers for the Services that stay; the last numbers of addresses of pods on the node.
const PODS: [u8; 4] = [1, 2, 3, 4];

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address and a port")
}

/// The Services that stay, their slices, the node and the ranges of Services.
pub fn steady() -> Vec<Value> {
    let ports = json!([
        {"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080},
        {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053},
    ]);
    let all = |name: &str, number: u8| {
        service(
            name,
            &[&format!("10.96.0.{number}"), &format!("fd00:96::{number}")],
        )
        .set("/spec/ports", ports.clone())
    };
    let remembering = all("steady-affinity", 11).affinity(30);
    let local = all("steady-local", 12)
        .vips(&["203.0.113.12", "2001:db8:113::12"])
        .set("/spec/externalTrafficPolicy", json!("Local"));
    let ranges = [
        "192.0.2.0/24",
        "198.51.100.0/24",
        "10.244.0.0/16",
        "2001:db8::/32",
        "fd00:244::/56",
    ];
    let limited = all("steady-limited", 13)
        .vips(&["203.0.113.13", "2001:db8:113::13"])
        .set("/spec/loadBalancerSourceRanges", json!(ranges));
    let mut objects = vec![node(), service_cidr()];
    // Node ports are the first one's.
    objects.push(
        all("steady", 10)
            .external_ips(&["203.0.113.10"])
            .set("/spec/type", json!("NodePort"))
            .0,
    );
    for mut other in [remembering, local, limited] {
        for port in other.0["spec"]["ports"].as_array_mut().expect("ports") {
            port.as_object_mut().expect("a port").remove("nodePort");
        }
        objects.push(other.0);
    }
    for name in [
        "steady",
        "steady-affinity",
        "steady-local",
        "steady-limited",
    ] {
        for prefix in ["10.244.1.", "fd00:244:0:1::"] {
            let local = |pod: &u8| {
                let mut endpoint = endpoint(&format!("{prefix}{pod}"));
                endpoint["nodeName"] = json!(NODE);
                endpoint
            };
            let mut slice = slice_of(name, "TCP", PODS.iter().map(local).collect());
            slice["ports"] = json!([
                {"name": "http", "protocol": "TCP", "port": 8080},
                {"name": "dns", "protocol": "UDP", "port": 8053},
            ]);
            objects.push(slice);
        }
    }
    objects
}

/// The addresses that answer datagrams for them.
pub fn udp_endpoints() -> Vec<SocketAddr> {
    let of = |pod| {
        [
            at(&format!("10.244.1.{pod}:8053")),
            at(&format!("[fd00:244:0:1::{pod}]:8053")),
        ]
    };
    PODS.into_iter().flat_map(of).collect()
}

/// How clients reach them.
pub fn plan() -> Plan {
    let of = |addresses: &[&str], port: u16| {
        let target = |address: &&str| SocketAddr::new(address.parse().expect("an address"), port);
        addresses.iter().map(target).collect::<Vec<_>>()
    };
    let own = ["10.96.0.10", "fd00:96::10"];
    let more = [
        "10.96.0.11",
        "fd00:96::11",
        "203.0.113.10",
        "203.0.113.12",
        "2001:db8:113::12",
        "203.0.113.13",
        "2001:db8:113::13",
    ];
    let node = ["192.0.2.1", "2001:db8:2::1"];
    let endpoint = |pod| {
        [
            at(&format!("10.244.1.{pod}:8080")),
            at(&format!("[fd00:244:0:1::{pod}]:8080")),
        ]
    };
    Plan {
        short: [of(&own, 80), of(&more, 80), of(&node, 30080)].concat(),
        long: [of(&own, 80), of(&node, 30080)].concat(),
        udp: [of(&own, 53), of(&node, 30053)].concat(),
        endpoints: PODS.into_iter().flat_map(endpoint).collect(),
    }
}

/// The name of one of the others.
pub fn name(number: usize) -> String {
    format!("other-{number}")
}

/// A Service of any kind. It is younger than those that stay, and gets nothing of theirs.
pub fn any_service(dice: &mut Dice, number: usize) -> Value {
    let v4 = format!("10.96.1.{number}");
    let v6 = format!("fd00:96::1{number:03}");
    let both = [v4.as_str(), v6.as_str()];
    let families: &[&str] = match dice.below(4) {
        0 => &both[..1],
        1 => &both[1..],
        _ => &both,
    };
    let mut made = service(&name(number), families).created("2025-01-01T00:00:00Z");
    let protocol = dice.pick(&["TCP", "TCP", "UDP", "SCTP"]);
    let port = dice.pick(&[80, 80, 443, 53]);
    made = made
        .set("/spec/ports/0/protocol", json!(protocol))
        .set("/spec/ports/0/port", json!(port));
    let [vip, external] = [100, 150].map(|first| format!("203.0.113.{}", first + number));
    match dice.below(4) {
        0 => made = made.node_port(port_of(31_000, number)),
        1 => made = balanced(dice, made, number, &vip),
        2 => made = made.external_ips(&[&external]),
        _ => {}
    }
    if dice.percent(30) {
        made = made.affinity(dice.pick(&[5, 60, 10_800]));
    }
    for policy in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        if dice.percent(25) {
            made = made.set(&format!("/spec/{policy}"), json!("Local"));
        }
    }
    if dice.percent(15) {
        made = contested(dice, made);
    }
    if dice.percent(15) {
        made = broken(dice, made);
    }
    made.0
}

fn port_of(first: u16, number: usize) -> u16 {
    first + u16::try_from(number).expect("a small number")
}

fn balanced(dice: &mut Dice, made: Service, number: usize, vip: &str) -> Service {
    let v6 = format!("2001:db8:113::1{number:03}");
    let mut made = made.node_port(port_of(31_000, number)).vips(&[vip, &v6]);
    if dice.percent(40) {
        made = made
            .set("/spec/externalTrafficPolicy", json!("Local"))
            .set("/spec/healthCheckNodePort", json!(port_of(32_000, number)));
    }
    if dice.percent(40) {
        let ranges: Vec<String> = (0..=dice.below(30))
            .map(|n| format!("10.{n}.0.0/{}", dice.pick(&[16, 20, 24])))
            .collect();
        made = made.set("/spec/loadBalancerSourceRanges", json!(ranges));
    }
    made
}

/// Claims what an older Service has, or another of the same age.
fn contested(dice: &mut Dice, made: Service) -> Service {
    match dice.below(4) {
        0 => made.external_ips(&["203.0.113.10"]),
        1 => made.vips(&["203.0.113.12", "203.0.113.199"]),
        2 => made.external_ips(&["203.0.113.200"]),
        _ => made.node_port(30080),
    }
}

/// Says something that cannot be used.
fn broken(dice: &mut Dice, made: Service) -> Service {
    match dice.below(6) {
        0 => made.set("/spec/ports/0/port", json!(70_000)),
        1 => made.set("/spec/ports/0/protocol", json!("PIGEON")),
        2 => made.set("/spec/clusterIPs", json!(["10.96.0.999"])),
        3 => made.set("/spec/loadBalancerSourceRanges", json!(["10.0.0.0/99"])),
        4 => made.set(
            "/spec/externalIPs",
            json!(["nowhere", "0.0.0.0", "127.0.0.1"]),
        ),
        _ => made.set("/spec/ports", json!([])),
    }
}

/// The slices of one of the others, with so many endpoints as chance will have.
pub fn any_slices(dice: &mut Dice, number: usize, protocol: &str) -> Vec<Value> {
    let count = match dice.below(10) {
        0 => 0,
        1 => MOST,
        2 => dice.below(MOST),
        _ => dice.below(12),
    };
    let mut slices = Vec::new();
    for v6 in [false, true] {
        for (part, first) in (0..count).step_by(100).enumerate() {
            let endpoints = (first..count.min(first + 100)).map(|n| any_endpoint(dice, n, v6));
            let mut slice = slice_of(&name(number), protocol, endpoints.collect());
            let named = format!(
                "{}-{part}",
                slice["metadata"]["name"].as_str().expect("a name")
            );
            slice["metadata"]["name"] = json!(named);
            slices.push(slice);
        }
    }
    slices
}

fn any_endpoint(dice: &mut Dice, number: usize, v6: bool) -> Value {
    let (third, last) = (5 + number / 250, 1 + number % 250);
    let mut made = endpoint(&if v6 {
        format!("fd00:244:0:{third}::{last}")
    } else {
        format!("10.244.{third}.{last}")
    });
    made["nodeName"] = json!(dice.pick(&[NODE, "node-2", "node-3"]));
    if dice.percent(10) {
        made["conditions"] =
            json!({"ready": false, "serving": dice.percent(50), "terminating": true});
    }
    if dice.percent(2) {
        made["addresses"] = json!(["not an address"]);
    }
    if dice.percent(20) {
        made["hints"] = json!({"forZones": [{"name": dice.pick(&["a", "b"])}]});
    }
    made
}

/// The node with another zone, other addresses, or a taint.
pub fn any_node(dice: &mut Dice) -> Value {
    let mut made = node();
    made["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(dice.pick(&["a", "b", ""]));
    if dice.percent(50) {
        let more = json!({"type": "ExternalIP", "address": dice.pick(&["203.0.113.77", "junk"])});
        made["status"]["addresses"]
            .as_array_mut()
            .expect("addresses")
            .push(more);
    }
    made
}

/// Ranges of Services beside the first.
pub fn any_cidr(dice: &mut Dice) -> Value {
    let mut made = service_cidr();
    made["metadata"]["name"] = json!("more");
    made["spec"]["cidrs"] = json!([
        dice.pick(&["10.97.0.0/16", "10.97.128.0/17", "10.300.0.0/16"]),
        "fd00:97::/112"
    ]);
    made
}
