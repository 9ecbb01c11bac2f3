//! Services that are wide in ways that no honest one is: what they cost grows as they do, and not
//! faster, and stops growing where the bounds are.

use std::net::Ipv4Addr;

use ipnetwork::{IpNetwork, Ipv4Network};
use pointsman::agent::reconciler::{Desired, Proxy};
use pointsman::core::compile::NodePortAddresses;
use pointsman::core::model::{
    Affinity, Change, EndpointSlice, Family, Hint, Node, ObjectKey, PerFamily, Protocol, Service,
    ServicePort, SliceEndpoint, SlicePort, SourceRanges,
};
use pointsman::dataplane::Options;
use pointsman::dataplane::nftables::Encoder;

use crate::large::Encoding;

/// A shape, by its name, of a size: at first of this, then of four times as much.
type Shape = (&'static str, u32, fn(u32) -> Vec<Change>);

/// What is written at once; then one endpoint is replaced.
pub const SHAPES: [Shape; 7] = [
    ("ports of more than 128 endpoints", 125, |size| {
        wide(size, 150, |_| ())
    }),
    (
        "ports that no slice serves, with a health check",
        500,
        |size| {
            wide(size, 10, |service| {
                service.health_check_node_port = 30_000;
                for port in &mut service.ports {
                    port.protocol = Protocol::Udp;
                }
            })
        },
    ),
    ("ports of a VIP with as many source ranges", 500, |size| {
        wide(size, 1, |service| {
            service.vips = vec![Ipv4Addr::new(203, 0, 113, 1).into()];
            service.source_ranges.v4 = ranges(size);
        })
    }),
    ("slices that all say the same address", 500, |size| {
        let mut changes = wide(1, 1, |_| ());
        changes.extend((0..size / 50).map(|part| slice(part, 1, vec![7; 200])));
        changes
    }),
    ("slices of a port, changed at once", 500, |size| {
        let mut changes = wide(1, 200, |_| ());
        changes.extend((0..size).map(|part| slice(part + 1, 1, vec![part + 1_000])));
        changes
    }),
    ("external IPs that are all the same", 500, |size| {
        wide(10, 1, |service| {
            let same = Ipv4Addr::new(203, 0, 113, 1).into();
            service.external_ips = vec![same; size as usize];
        })
    }),
    ("endpoints that are remembered", 500, |size| {
        let mut changes = wide(1, 1, |service| {
            service.affinity = Some(Affinity {
                timeout_seconds: 60,
            });
        });
        let addresses = 0..size;
        changes.push(slice(1, 1, addresses.collect()));
        changes
    }),
];

/// Loads a shape and replaces an endpoint.
pub fn load(shape: &str, size: u32) {
    let of_name = SHAPES.iter().find(|(name, ..)| *name == shape);
    let (_, _, make) = of_name.expect("one of the shapes");
    let encoder = Encoder::new(Options {
        families: vec![Family::V4],
        ..Options::default()
    });
    let desired = Desired::new(Node::named("node-1"), NodePortAddresses::Primary);
    let mut proxy = Proxy::start(desired, Encoding(encoder)).expect("it has no kernel to ask");
    // With a slice of its own, so that all others come as changes.
    proxy.take(wide(1, 200, |_| ()));
    proxy.sync().expect("a sync");
    proxy.take(make(size));
    proxy.sync().expect("a sync");
    proxy.take([slice(0, 1, vec![9_999])]);
    proxy.sync().expect("a sync");
}

fn key() -> ObjectKey {
    ObjectKey::new("tenant", "wide")
}

/// A Service of so many ports, and a slice of so many endpoints that serves them.
fn wide(ports: u32, endpoints: u32, change: impl Fn(&mut Service)) -> Vec<Change> {
    let port = |number: u32| ServicePort {
        name: format!("port-{number}").into(),
        protocol: Protocol::Tcp,
        port: u16::try_from(number).expect("a port"),
        node_port: 0,
    };
    let mut service = Service {
        created: 0,
        cluster_ips: PerFamily {
            v4: Some(Ipv4Addr::new(10, 96, 0, 10).into()),
            v6: None,
        },
        external_ips: Vec::new(),
        vips: Vec::new(),
        source_ranges: PerFamily::from_fn(|_| SourceRanges::Any),
        ports: (1..=ports).map(port).collect(),
        affinity: None,
        algorithm: pointsman::core::model::Algorithm::Random,
        ejects: false,
        internal_local: false,
        external_local: false,
        health_check_node_port: 0,
    };
    change(&mut service);
    vec![
        Change::Service(key(), Some(Box::new(service))),
        slice(0, ports, (0..endpoints).collect()),
    ]
}

fn slice(part: u32, ports: u32, addresses: Vec<u32>) -> Change {
    let first = u32::from(Ipv4Addr::new(10, 128, 0, 0));
    let port = |number: u32| SlicePort {
        name: format!("port-{number}").into(),
        protocol: Protocol::Tcp,
        port: 8080,
    };
    let endpoint = |address: u32| SliceEndpoint {
        address: Ipv4Addr::from(first + address).into(),
        ready: true,
        serving: true,
        terminating: false,
        local: true,
        node_hint: Hint::None,
        weight: 1,
        zone_hints: None,
    };
    let slice = EndpointSlice {
        service: key(),
        family: Family::V4,
        ports: (1..=ports).map(port).collect::<Vec<_>>().into(),
        endpoints: addresses.into_iter().map(endpoint).collect(),
    };
    let name = ObjectKey::new("tenant", format!("wide-{part}"));
    Change::EndpointSlice(name, Some(Box::new(slice)))
}

fn ranges(count: u32) -> SourceRanges {
    let range = |index: u32| {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + 2 * index);
        IpNetwork::V4(Ipv4Network::new(address, 32).expect("a prefix"))
    };
    SourceRanges::Only((0..count).map(range).collect())
}
