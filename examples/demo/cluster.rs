//! What the manifests say, read without pointsman's help, so that the demo knows what to expect.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The label that names a slice's Service.
const SERVICE_NAME_LABEL: &str = "/metadata/labels/kubernetes.io~1service-name";

/// What kind of address a Service is reached at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
}

impl fmt::Display for Via {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "externalIP",
        })
    }
}

/// An address and port of a Service.
#[derive(Debug, Clone, Copy)]
pub struct Destination {
    pub via: Via,
    pub address: SocketAddr,
}

/// One place that a pod is reached at.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub pod: String,
    pub node: String,
}

impl Endpoint {
    /// The part of the pod's name that tells it from its siblings.
    pub fn short_name(&self) -> &str {
        self.pod.rsplit('-').next().unwrap_or(&self.pod)
    }
}

/// The first port of a Service, with all that leads to it and all that is behind it.
#[derive(Debug, Clone)]
pub struct Service {
    pub name: String,
    pub is_udp: bool,
    pub is_sticky: bool,
    pub destinations: Vec<Destination>,
    pub endpoints: Vec<Endpoint>,
}

impl Service {
    /// The endpoints of a destination: those of its family.
    pub fn endpoints_of(&self, destination: Destination) -> BTreeMap<SocketAddr, &Endpoint> {
        self.endpoints
            .iter()
            .filter(|endpoint| endpoint.address.is_ipv4() == destination.address.is_ipv4())
            .map(|endpoint| (endpoint.address, endpoint))
            .collect()
    }

    /// Its destination of a kind and a family.
    pub fn destination(&self, via: Via, is_ipv4: bool) -> Destination {
        self.destinations
            .iter()
            .copied()
            .find(|destination| destination.via == via && destination.address.is_ipv4() == is_ipv4)
            .unwrap_or_else(|| panic!("{} has no such {via}", self.name))
    }
}

/// The Services of a directory of manifests that have addresses, by name.
pub fn services(directory: &Path) -> Vec<Service> {
    let items: Vec<Value> = files(directory)
        .iter()
        .flat_map(|path| items(path))
        .collect();
    let node_addresses: Vec<IpAddr> = of_kind(&items, "Node")
        .flat_map(|node| list(node, "/status/addresses"))
        .filter(|address| text(address, "/type") == "InternalIP")
        .map(|address| ip(text(address, "/address")))
        .collect();
    let mut services: Vec<Service> = of_kind(&items, "Service")
        .filter(|service| text(service, "/spec/clusterIP") != "None")
        .map(|service| Service {
            name: text(service, "/metadata/name").to_owned(),
            is_udp: text(service, "/spec/ports/0/protocol") == "UDP",
            is_sticky: text(service, "/spec/sessionAffinity") == "ClientIP",
            destinations: destinations(service, &node_addresses),
            endpoints: endpoints(service, &items),
        })
        .collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    services
}

/// The manifests in a directory.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory)
        .expect("the directory of manifests")
        .map(|entry| entry.expect("a file").path())
        .collect()
}

fn items(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("a manifest");
    let document: Value = serde_saphyr::from_str(&text).expect("YAML");
    list(&document, "/items").to_vec()
}

fn of_kind<'a>(items: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    items.iter().filter(move |item| text(item, "/kind") == kind)
}

fn destinations(service: &Value, node_addresses: &[IpAddr]) -> Vec<Destination> {
    let port = number(service, "/spec/ports/0/port").expect("a port");
    let at = |via, address: &Value| Destination {
        via,
        address: SocketAddr::new(ip(address.as_str().unwrap_or_default()), port),
    };
    let mut found = Vec::new();
    let cluster_ips = list(service, "/spec/clusterIPs").iter();
    found.extend(cluster_ips.map(|address| at(Via::ClusterIp, address)));
    if let Some(node_port) = number(service, "/spec/ports/0/nodePort") {
        found.extend(node_addresses.iter().map(|address| Destination {
            via: Via::NodePort,
            address: SocketAddr::new(*address, node_port),
        }));
    }
    let ingress = list(service, "/status/loadBalancer/ingress").iter();
    found.extend(ingress.map(|ingress| at(Via::LoadBalancer, &ingress["ip"])));
    let external_ips = list(service, "/spec/externalIPs").iter();
    found.extend(external_ips.map(|address| at(Via::ExternalIp, address)));
    found
}

fn endpoints(service: &Value, items: &[Value]) -> Vec<Endpoint> {
    let port_name = text(service, "/spec/ports/0/name");
    let mut found = Vec::new();
    for slice in of_kind(items, "EndpointSlice") {
        let is_of_service = text(slice, SERVICE_NAME_LABEL) == text(service, "/metadata/name")
            && text(slice, "/metadata/namespace") == text(service, "/metadata/namespace");
        let port = list(slice, "/ports")
            .iter()
            .find(|port| text(port, "/name") == port_name)
            .and_then(|port| number(port, "/port"));
        let (true, Some(port)) = (is_of_service, port) else {
            continue;
        };
        found.extend(list(slice, "/endpoints").iter().map(|endpoint| Endpoint {
            address: SocketAddr::new(ip(text(endpoint, "/addresses/0")), port),
            pod: text(endpoint, "/targetRef/name").to_owned(),
            node: text(endpoint, "/nodeName").to_owned(),
        }));
    }
    found
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn number(value: &Value, pointer: &str) -> Option<u16> {
    u16::try_from(value.pointer(pointer)?.as_u64()?).ok()
}

fn ip(text: &str) -> IpAddr {
    text.parse()
        .unwrap_or_else(|_| panic!("{text:?} is no address"))
}
