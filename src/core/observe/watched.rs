//! Whose connections are watched.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::core::compile::{ByPort, served_ports, uses};
use crate::core::ir::{Destination, Host};
use crate::core::model::{
    Algorithm, Endpoint, EndpointSlice, Family, KnownService, Node, ObjectKey, Protocol,
};
use crate::core::select::{Selection, select};

/// A Service port of one family, of which connections are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// The Service.
    pub service: ObjectKey,
    /// The family of its addresses.
    pub family: Family,
    /// The protocol.
    pub protocol: Protocol,
    /// What clients connect to.
    pub destinations: Vec<Destination>,
    /// Those of its endpoints that may take connections, with their weights.
    pub endpoints: Vec<(Endpoint, u32)>,
    /// Those of them that are on this node.
    pub here: BTreeSet<Endpoint>,
    /// How connections are spread.
    pub algorithm: Algorithm,
    /// Whether endpoints that do not answer are passed over.
    pub ejects: bool,
}

/// The ports of a Service that are watched; none unless it wants something that takes watching.
#[must_use]
pub fn watched(known: KnownService<'_>, node: &Node) -> Vec<Watched> {
    let service = known.service;
    let counts = service.algorithm.counts_connections();
    if !counts && !service.ejects {
        return Vec::new();
    }
    let slices: Vec<&EndpointSlice> = known.slices().collect();
    let by_port = ByPort::new(service, &slices);
    let ports = served_ports(service).filter_map(|(family, port)| {
        let ejects = service.ejects && port.protocol == Protocol::Tcp;
        if !counts && !ejects {
            return None;
        }
        let at = |host, port_number| Destination {
            host,
            protocol: port.protocol,
            port: port_number,
        };
        let cluster_ip = *service.cluster_ips.get(family);
        let others = service.vips.iter().chain(&service.external_ips).copied();
        let others = others.filter(|address| Family::of(*address) == family);
        let addresses = cluster_ip.into_iter().chain(others);
        let by_address = |address: IpAddr| at(Host::Address(address), port.port);
        let mut destinations: Vec<Destination> = addresses.map(by_address).collect();
        if port.node_port != 0 {
            destinations.push(at(Host::Node(family), port.node_port));
        }
        let selection = select(by_port.of(family, port), uses(service, family, port), node);
        Some(Watched {
            service: known.key.clone(),
            family,
            protocol: port.protocol,
            destinations,
            endpoints: endpoints(&selection),
            here: selection.on_this_node.iter().copied().collect(),
            algorithm: service.algorithm,
            ejects,
        })
    });
    ports
        .filter(|watched| !watched.endpoints.is_empty())
        .collect()
}

fn endpoints(selection: &Selection) -> Vec<(Endpoint, u32)> {
    let lists = selection.cluster.iter().chain(selection.local.iter());
    let mut all: Vec<Endpoint> = lists.copied().collect();
    all.sort_unstable();
    all.dedup();
    let weight = |endpoint: &Endpoint| match &selection.weights {
        Some(weights) => weights.get(endpoint).copied().unwrap_or(1),
        None => 1,
    };
    all.into_iter()
        .map(|endpoint| (endpoint, weight(&endpoint)))
        .collect()
}
