//! From one Service and its endpoints to what packets must experience.
//!
//! Pure, and one Service at a time: its result depends on the Service, its slices and the node,
//! and on nothing else, so a change costs what its Service costs. Who owns a destination that
//! two Services claim is not decided here.

mod cluster;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::core::ir::{Action, Destination, Forwarding, Host, Label, Shared, SourcePolicy};
use crate::core::model::{
    EndpointSlice, Endpoints, Family, KnownService, Name, Node, ObjectKey, PerFamily, Protocol,
    Service, ServicePort, SourceRanges,
};
use crate::core::networks;
use crate::core::select::{Selection, ServingSlice, Uses, select, serving};

pub use cluster::{NodePortAddresses, accepted_node_port_addresses, compile_cluster};

/// One Service, compiled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compiled {
    /// The age that decides contested destinations: smaller is older.
    pub created: i64,
    /// The name that decides between Services of one age.
    pub key: Option<ObjectKey>,
    /// What it claims, and what should happen there. A destination appears once.
    pub destinations: Box<[(Destination, Forwarding)]>,
    /// Where flows to its UDP destinations may go: a flow to anything else is stale. UDP has no
    /// handshake by which a client would notice.
    pub flows: Box<[(Destination, Endpoints)]>,
    /// Facts that it states together with others.
    pub shared: Box<[Shared]>,
    /// What a load balancer's health check of this node is told.
    pub health_check: Option<Box<HealthCheck>>,
    /// How many of its ports have endpoints, but none that a Local policy may use.
    pub without_local: PerFamily<WithoutLocal>,
    /// How many of its destinations are left out, because they and their endpoints are too many.
    pub left_out: u32,
}

/// How much one Service may be to a backend: its destinations, each with its endpoints and source
/// ranges. Its author multiplies ports by addresses by endpoints; a Service of 100,000 endpoints with
/// a few ports and addresses is within it.
pub const MOST_ELEMENTS: usize = 1 << 20;

impl Compiled {
    /// Whether another one claims the same destinations with the same right.
    #[must_use]
    pub fn claims_what(&self, other: &Self) -> bool {
        let mine = self.destinations.iter().map(|(destination, _)| destination);
        let others = other
            .destinations
            .iter()
            .map(|(destination, _)| destination);
        self.created == other.created && self.key == other.key && mine.eq(others)
    }
}

/// Service ports whose policy is Local and which have endpoints elsewhere only (docs/semantics.md, E2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WithoutLocal {
    /// `internalTrafficPolicy`.
    pub internal: u32,
    /// `externalTrafficPolicy`.
    pub external: u32,
}

/// A Service's health check (`spec.healthCheckNodePort`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port on the node.
    pub port: u16,
    /// Endpoints on this node, by address, in the families that the Service has: ready ones,
    /// without the fallback to terminating ones.
    pub local_endpoints: PerFamily<Option<usize>>,
}

/// Compiles one Service, with its slices in the order of their names.
#[must_use]
pub fn compile(
    key: &ObjectKey,
    service: &Service,
    slices: &[&EndpointSlice],
    node: &Node,
) -> Compiled {
    let index = (service.ports.len() > FEW_PORTS).then(|| by_port(slices));
    let select = |family, port: &ServicePort, uses| match &index {
        Some(index) => {
            let of_port = index.get(&(family, &*port.name, port.protocol));
            select(of_port.into_iter().flatten().copied(), uses, node)
        }
        None => {
            let of_port = |slice| serving(slice, family, &port.name, port.protocol);
            select(slices.iter().copied().flat_map(of_port), uses, node)
        }
    };
    let health_check = health_check(service, |family| {
        local_endpoints(service, slices, family).len()
    });
    compile_selected(key, service, node, select, health_check)
}

/// Compiles one Service as it is known.
#[must_use]
pub fn compile_known(known: KnownService<'_>, node: &Node) -> Compiled {
    let slices: Vec<&EndpointSlice> = known.slices().collect();
    compile(known.key, known.service, &slices, node)
}

/// Up to so many ports a look at each is faster than a table.
const FEW_PORTS: usize = 8;

/// The slices that serve each port.
fn by_port<'a>(
    slices: &[&'a EndpointSlice],
) -> FxHashMap<(Family, &'a str, Protocol), Vec<ServingSlice<'a>>> {
    let mut index: FxHashMap<_, Vec<ServingSlice<'_>>> = FxHashMap::default();
    for slice in slices {
        for port in &*slice.ports {
            let of_port = (slice.family, &*port.name, port.protocol);
            index.entry(of_port).or_default().push((slice, port.port));
        }
    }
    index
}

/// Compiles one Service whose endpoints are selected already.
#[must_use]
pub fn compile_selected(
    key: &ObjectKey,
    service: &Service,
    node: &Node,
    mut select: impl FnMut(Family, &ServicePort, Uses) -> Selection,
    health_check: Option<HealthCheck>,
) -> Compiled {
    let mut parts = Parts::with_room_for(service);
    for (family, port) in served_ports(service) {
        let Some(cluster_ip) = *service.cluster_ips.get(family) else {
            continue;
        };
        let compiler = PortCompiler {
            key,
            service,
            family,
            port,
        };
        let selection = select(family, port, uses(service, family, port));
        compiler.compile(cluster_ip, &selection, node, &mut parts);
    }
    if !service.ports.is_empty() {
        let cluster_ips = service.cluster_ips.iter().filter_map(|(_, ip)| *ip);
        parts.shared.extend(cluster_ips.map(Shared::ClusterIp));
    }
    parts.shared.sort_unstable();
    parts.shared.dedup();
    parts
        .flows
        .sort_unstable_by_key(|(destination, _)| *destination);
    Compiled {
        created: service.created,
        key: Some(key.clone()),
        destinations: parts.destinations.into(),
        flows: parts.flows.into(),
        shared: parts.shared.into(),
        health_check: health_check.map(Box::new),
        without_local: parts.without_local,
        left_out: parts.left_out,
    }
}

/// The ports of a Service in each family that it has. Of two ports with one name and protocol the
/// last counts (docs/semantics.md, B1).
pub fn served_ports(service: &Service) -> impl Iterator<Item = (Family, &ServicePort)> {
    let last: Option<FxHashMap<(&str, Protocol), usize>> =
        (service.ports.len() > FEW_PORTS).then(|| {
            let ports = service.ports.iter().enumerate();
            ports
                .map(|(index, port)| ((&*port.name, port.protocol), index))
                .collect()
        });
    let counts = move |index: usize, port: &ServicePort| match &last {
        Some(last) => last.get(&(&*port.name, port.protocol)) == Some(&index),
        None => !service.ports[index + 1..]
            .iter()
            .any(|other| other.name == port.name && other.protocol == port.protocol),
    };
    Family::BOTH
        .into_iter()
        .filter(|family| service.cluster_ips.get(*family).is_some())
        .flat_map(|family| {
            let ports = service.ports.iter().enumerate();
            ports.map(move |(index, port)| (family, index, port))
        })
        .filter(move |(_, index, port)| counts(*index, port))
        .map(|(family, _, port)| (family, port))
}

/// Which lists a Service port has a use for.
#[must_use]
pub fn uses(service: &Service, family: Family, port: &ServicePort) -> Uses {
    let external = service.externally_accessible(family, port);
    Uses {
        cluster: !service.internal_local || external,
        local: service.internal_local || (service.external_local && external),
        flows: port.protocol == Protocol::Udp,
    }
}

/// The addresses of ready endpoints on this node that serve one of a Service's ports.
fn local_endpoints(
    service: &Service,
    slices: &[&EndpointSlice],
    family: Family,
) -> BTreeSet<IpAddr> {
    slices
        .iter()
        .filter(|slice| slice.family == family && serves(service, slice))
        .flat_map(|slice| slice.endpoints.iter())
        .filter(|endpoint| endpoint.local && endpoint.ready)
        .map(|endpoint| endpoint.address)
        .collect()
}

/// Whether a slice serves one of a Service's ports.
#[must_use]
pub fn serves(service: &Service, slice: &EndpointSlice) -> bool {
    slice.ports.iter().any(|known| {
        let same = |port: &ServicePort| port.name == known.name && port.protocol == known.protocol;
        service.ports.iter().any(same)
    })
}

/// A Service's health check, if it has one; `count` is how many endpoints are here in a family.
pub fn health_check(service: &Service, count: impl Fn(Family) -> usize) -> Option<HealthCheck> {
    if service.health_check_node_port == 0 {
        return None;
    }
    Some(HealthCheck {
        port: service.health_check_node_port,
        local_endpoints: PerFamily::from_fn(|family| {
            (*service.cluster_ips.get(family)).map(|_| count(family))
        }),
    })
}

/// What a Service is compiled to, under construction.
#[derive(Default)]
struct Parts {
    destinations: Vec<(Destination, Forwarding)>,
    claimed: FxHashSet<Destination>,
    flows: Vec<(Destination, Endpoints)>,
    shared: Vec<Shared>,
    without_local: PerFamily<WithoutLocal>,
    /// Elements of all destinations.
    elements: usize,
    left_out: u32,
}

/// Up to so many destinations a look at each is faster than a table.
const FEW_DESTINATIONS: usize = 16;

impl Parts {
    /// Whether a destination is claimed for the first time.
    fn claim(&mut self, destination: Destination) -> bool {
        let known = self.destinations.iter().map(|(known, _)| *known);
        if self.destinations.len() < FEW_DESTINATIONS {
            return !known.into_iter().any(|known| known == destination);
        }
        if self.claimed.is_empty() {
            self.claimed = known.collect();
        }
        self.claimed.insert(destination)
    }

    /// Room for as much as a Service mostly has: what is compiled stays in memory.
    fn with_room_for(service: &Service) -> Self {
        let families = service.cluster_ips.iter().flat_map(|(_, ip)| ip).count();
        let of_ports: usize = service
            .ports
            .iter()
            .map(|port| families * (1 + usize::from(port.node_port != 0)))
            .sum();
        let addresses = service.external_ips.len() + service.vips.len();
        let most = of_ports + addresses.saturating_mul(service.ports.len());
        Self {
            destinations: Vec::with_capacity(most.min(FEW_PORTS * FEW_DESTINATIONS)),
            shared: Vec::with_capacity(families),
            ..Self::default()
        }
    }
}

/// One Service port in one family: kube-proxy's "service port" (docs/semantics.md, terms).
struct PortCompiler<'a> {
    key: &'a ObjectKey,
    service: &'a Service,
    family: Family,
    port: &'a ServicePort,
}

impl PortCompiler<'_> {
    fn compile(&self, cluster_ip: IpAddr, selection: &Selection, node: &Node, parts: &mut Parts) {
        let Self {
            service,
            family,
            port,
            ..
        } = *self;
        let external = service.externally_accessible(family, port);
        let uses = uses(service, family, port);
        if uses.local && selection.has_any && selection.local.is_empty() {
            let without = parts.without_local.get_mut(family);
            without.internal += u32::from(service.internal_local);
            without.external += u32::from(service.external_local && external);
        }
        let label = label(self.key, &port.name);

        let mut claim = |host, action, allowed_sources| {
            let destination = Destination {
                host,
                protocol: port.protocol,
                port: if matches!(host, Host::Node(_)) {
                    port.node_port
                } else {
                    port.port
                },
            };
            // One Service may list an address twice, or have two ports that differ in name
            // only: the first claim stands.
            if parts.claim(destination) {
                let forwarding = Forwarding {
                    label: label.clone(),
                    action,
                    allowed_sources,
                };
                let elements = parts.elements.saturating_add(forwarding.weight());
                if elements > MOST_ELEMENTS {
                    parts.left_out = parts.left_out.saturating_add(1);
                    return;
                }
                parts.elements = elements;
                parts.destinations.push((destination, forwarding));
                if port.protocol == Protocol::Udp {
                    parts.flows.push((destination, selection.serving.clone()));
                }
            }
        };

        claim(
            Host::Address(cluster_ip),
            self.internal_action(selection),
            None,
        );
        let mut vips = in_family(&service.vips, family).peekable();
        if vips.peek().is_some() {
            let allowed = self.allowed_sources(node);
            for vip in vips {
                let action = self.external_action(selection);
                claim(Host::Address(vip), action, allowed.clone());
            }
        }
        for address in in_family(&service.external_ips, family) {
            claim(
                Host::Address(address),
                self.external_action(selection),
                None,
            );
        }
        if port.node_port != 0 {
            claim(Host::Node(family), self.external_action(selection), None);
        }
        parts.shared.extend(
            selection
                .on_this_node
                .iter()
                .map(|endpoint| Shared::Hairpin {
                    protocol: port.protocol,
                    endpoint: *endpoint,
                }),
        );
    }

    fn internal_action(&self, selection: &Selection) -> Action {
        let list = if self.service.internal_local {
            &selection.local
        } else {
            &selection.cluster
        };
        self.action(selection, SourcePolicy::ClusterIp, list, None)
    }

    fn external_action(&self, selection: &Selection) -> Action {
        if self.service.external_local {
            self.action(
                selection,
                SourcePolicy::ExternalLocal,
                &selection.cluster,
                Some(&selection.local),
            )
        } else {
            self.action(selection, SourcePolicy::External, &selection.cluster, None)
        }
    }

    fn action(
        &self,
        selection: &Selection,
        policy: SourcePolicy,
        primary: &Endpoints,
        external: Option<&Endpoints>,
    ) -> Action {
        if !selection.has_any {
            Action::Reject
        } else if primary.is_empty() {
            Action::Drop
        } else {
            Action::Balance {
                policy,
                primary: primary.clone(),
                external: external.cloned(),
                affinity: self.service.affinity.map(|a| a.timeout_seconds),
            }
        }
    }

    /// Who may reach the VIPs. A range that holds the node's own address admits the VIPs as
    /// sources too: some balancers deliver with their own address (docs/semantics.md, E10).
    fn allowed_sources(&self, node: &Node) -> Option<Arc<[IpNetwork]>> {
        let SourceRanges::Only(ranges) = self.service.source_ranges.get(self.family) else {
            return None;
        };
        let holds_node = node
            .primary_addresses()
            .get(self.family)
            .is_some_and(|address| ranges.iter().any(|range| range.contains(address)));
        if !holds_node {
            return Some(networks::merge(ranges.iter().copied()).into());
        }
        let vips = in_family(&self.service.vips, self.family).map(IpNetwork::from);
        Some(networks::merge(ranges.iter().copied().chain(vips)).into())
    }
}

fn in_family(addresses: &[IpAddr], family: Family) -> impl Iterator<Item = IpAddr> {
    addresses
        .iter()
        .copied()
        .filter(move |address| Family::of(*address) == family)
}

fn label(key: &ObjectKey, port_name: &Name) -> Label {
    let ObjectKey { namespace, name } = key;
    let colon = if port_name.is_empty() { "" } else { ":" };
    Label::new(&[namespace, "/", name, colon, port_name].concat())
}

#[cfg(test)]
mod tests;
