//! From Kubernetes objects to the model (docs/semantics.md, A, B, C).
//!
//! Pure. Whatever cannot be used is left out with a warning; what remains is programmed.

use std::net::IpAddr;

use compact_str::CompactString;
use rustc_hash::FxHashMap;

use super::balancing::Balancing;
use super::nodes::{node, parsed_networks, service_ranges};
use super::objects;
use super::parse::{self, port_number, protocol};
use super::report::{Reporter, Warning};
use super::slices;
use super::tally::{Tally, Unserved};
use crate::core::model::{
    Affinity, Change, Family, Interner, Name, ObjectKey, PerFamily, Protocol, Service, ServicePort,
    SlicePort, SourceRanges,
};
use crate::core::networks;

/// The longest affinity that the API server takes, in seconds (`MaxClientIPServiceAffinitySeconds`).
const MOST_AFFINITY_SECONDS: u32 = 86_400;
/// The affinity timeout that the API server fills in, in seconds
/// (`DefaultClientIPServiceAffinitySeconds`).
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// Turns objects into changes for one node.
#[derive(Debug)]
pub struct Converter {
    node_name: String,
    options: ConvertOptions,
    names: Interner,
    ports: Interner<[SlicePort]>,
    warnings: Vec<Warning>,
    tally: Tally,
}

/// What the operator has said about objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvertOptions {
    /// The node's address of its family, whatever its Node says.
    pub bind_address: Option<IpAddr>,
    /// Whether `spec.externalIPs` counts.
    pub external_ips: bool,
    /// How connections are spread where a Service says nothing of it.
    pub balancing: Balancing,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            bind_address: None,
            external_ips: true,
            balancing: Balancing::default(),
        }
    }
}

impl Converter {
    /// A converter for the node with this name.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            options: ConvertOptions::default(),
            names: Interner::default(),
            ports: Interner::default(),
            warnings: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// The same, with what the operator has said.
    #[must_use]
    pub fn with_options(mut self, options: ConvertOptions) -> Self {
        self.options = options;
        self
    }

    /// What was read so far.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The warnings since the last call.
    pub fn take_warnings(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.warnings)
    }

    fn key(&mut self, metadata: &objects::Metadata, name: Name) -> Option<ObjectKey> {
        (!metadata.name.is_empty() && !metadata.namespace.is_empty()).then(|| ObjectKey {
            namespace: self.names.intern(&metadata.namespace),
            name,
        })
    }

    fn unnamed(&mut self, kind: &str, metadata: &objects::Metadata) {
        self.warnings.push(Warning {
            object: format!("{kind} {}/{}", metadata.namespace, metadata.name),
            field: "metadata".to_owned(),
            problem: "has no name or no namespace; the object is left out".to_owned(),
        });
    }

    /// A Service. One that is not for us is a Service that is gone.
    pub fn service(&mut self, object: &objects::Service) -> Option<Change> {
        // Slices know its name too.
        let name = self.names.intern(&object.metadata.name);
        let Some(key) = self.key(&object.metadata, name) else {
            self.unnamed("Service", &object.metadata);
            return None;
        };
        let unserved = Unserved::why(object);
        self.tally.service(&key, unserved);
        if unserved.is_some() {
            return Some(Change::Service(key, None));
        }
        let mut report = Reporter {
            kind: "Service",
            key: &key,
            warnings: &mut self.warnings,
        };
        let balancing = self.options.balancing;
        let mut service = service(object, balancing, &mut self.names, &mut report);
        if !self.options.external_ips {
            service.external_ips.clear();
        }
        Some(Change::Service(key, Some(Box::new(service))))
    }

    /// An `EndpointSlice`. One that no Service can use is a slice that is gone.
    pub fn endpoint_slice(&mut self, object: &objects::EndpointSlice) -> Option<Change> {
        let name = Name::from(object.metadata.name.as_str());
        let Some(key) = self.key(&object.metadata, name) else {
            self.unnamed("EndpointSlice", &object.metadata);
            return None;
        };
        let mut report = Reporter {
            kind: "EndpointSlice",
            key: &key,
            warnings: &mut self.warnings,
        };
        let slice = slices::endpoint_slice(
            object,
            &key.namespace,
            &self.node_name,
            &mut self.names,
            &mut self.ports,
            &mut report,
        );
        self.tally.slices += 1;
        if slice.is_none() {
            self.tally.useless_slices += 1;
        }
        Some(Change::EndpointSlice(key, slice.map(Box::new)))
    }

    /// A Node; any but ours is passed over.
    pub fn node(&mut self, object: &objects::Node) -> Option<Change> {
        if object.metadata.name != self.node_name {
            self.tally.other_nodes += 1;
            return None;
        }
        self.tally.nodes += 1;
        let mut report = Reporter {
            kind: "Node",
            key: &object.metadata.name,
            warnings: &mut self.warnings,
        };
        let mut node = node(object, &mut report);
        if let Some(address) = self.options.bind_address {
            node.addresses
                .retain(|other| Family::of(*other) != Family::of(address));
            node.addresses.insert(0, address);
        }
        Some(Change::Node(Some(Box::new(node))))
    }

    /// A `ServiceCIDR`.
    pub fn service_cidr(&mut self, object: &objects::ServiceCidr) -> Option<Change> {
        let name = object.metadata.name.to_string();
        let mut report = Reporter {
            kind: "ServiceCIDR",
            key: &name,
            warnings: &mut self.warnings,
        };
        let cidrs = service_ranges(object, &mut report);
        Some(Change::ServiceCidr(name, Some(cidrs)))
    }
}

fn service(
    object: &objects::Service,
    balancing: Balancing,
    names: &mut Interner,
    report: &mut Reporter<'_>,
) -> Service {
    let spec = &object.spec;
    let annotations = &object.metadata.annotations;
    let cluster_ips = cluster_ips(spec, report);
    let vips = vips(object, report);
    let external_local = external_local(spec);
    Service {
        created: created(&object.metadata, report),
        cluster_ips,
        external_ips: addresses("spec.externalIPs", &spec.external_ips, report),
        source_ranges: source_ranges(spec, &vips, report),
        vips,
        ports: ports(spec, names, report),
        affinity: affinity(spec, report),
        algorithm: balancing.algorithm(annotations, report),
        ejects: balancing.ejects(annotations, report),
        internal_local: is_local(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
            report,
        ),
        external_local: external_local
            && is_local(
                "spec.externalTrafficPolicy",
                spec.external_traffic_policy.as_deref(),
                report,
            ),
        health_check_node_port: health_check_node_port(spec, external_local, report),
    }
}

fn created(metadata: &objects::Metadata, report: &mut Reporter<'_>) -> i64 {
    let time = metadata.creation_timestamp.as_ref();
    match time.and_then(|time| time.seconds) {
        None => i64::MAX,
        Some(objects::Time::WRONG) => {
            report.warn(
                "metadata.creationTimestamp",
                "is not a time in RFC 3339; the Service counts as the youngest",
            );
            i64::MAX
        }
        Some(seconds) => seconds,
    }
}

/// The address of each family: `ipFamilies` pairs with `clusterIPs` by position.
fn cluster_ips(
    spec: &objects::ServiceSpec,
    report: &mut Reporter<'_>,
) -> PerFamily<Option<IpAddr>> {
    let mut found = PerFamily::default();
    let mut take = |field: String, text: &str, family: Option<Family>| {
        match parse::address(text) {
        Some(address) if family.is_none_or(|family| family == Family::of(address)) => {
            *found.get_mut(Family::of(address)) = Some(address);
        }
        Some(_) => report.warn(
            field,
            format!("{text:?} is not of the family that spec.ipFamilies pairs it with; the family is left out"),
        ),
        None => report.warn(
            field,
            format!("{text:?} is not an IP address; the family is left out"),
        ),
    }
    };
    if spec.ip_families.is_empty() {
        take(
            "spec.clusterIP".to_owned(),
            spec.cluster_ip.as_deref().unwrap_or_default(),
            None,
        );
        return found;
    }
    for (index, family) in spec.ip_families.iter().enumerate() {
        let family = match family.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => continue,
        };
        if let Some(text) = spec.cluster_ips.get(index) {
            take(format!("spec.clusterIPs[{index}]"), text, Some(family));
        }
    }
    found
}

fn addresses(field: &str, texts: &[CompactString], report: &mut Reporter<'_>) -> Vec<IpAddr> {
    let mut addresses = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match parse::address(text) {
            Some(address) => addresses.push(address),
            None if text.trim().is_empty() => {}
            None => report.warn(
                format!("{field}[{index}]"),
                format!("{text:?} is not an IP address; it is left out"),
            ),
        }
    }
    addresses
}

fn vips(object: &objects::Service, report: &mut Reporter<'_>) -> Vec<IpAddr> {
    let mut vips = Vec::new();
    for (index, ingress) in object.status.load_balancer.ingress.iter().enumerate() {
        if ingress.ip_mode.as_deref().is_some_and(|mode| mode != "VIP") {
            continue;
        }
        match ingress.ip.as_deref() {
            None | Some("") => {}
            Some(text) => match parse::address(text) {
                Some(address) => vips.push(address),
                None => report.warn(
                    format!("status.loadBalancer.ingress[{index}].ip"),
                    format!("{text:?} is not an IP address; it is left out"),
                ),
            },
        }
    }
    vips
}

/// A list that leaves a family without a valid range admits nobody there: a typo must not open
/// a VIP to the world.
fn source_ranges(
    spec: &objects::ServiceSpec,
    vips: &[IpAddr],
    report: &mut Reporter<'_>,
) -> PerFamily<SourceRanges> {
    let field = "spec.loadBalancerSourceRanges";
    if spec.load_balancer_source_ranges.is_empty() {
        return PerFamily::default();
    }
    let ranges = parsed_networks(field, &spec.load_balancer_source_ranges, report);
    PerFamily::from_fn(|family| {
        let mine = ranges.iter().copied();
        let mine = mine.filter(|range| networks::family(*range) == family);
        // Once here, and not each time that the Service is compiled.
        let mine = networks::merge(mine);
        if mine.iter().any(|range| range.prefix() == 0) {
            return SourceRanges::Any;
        }
        if mine.is_empty() && vips.iter().any(|vip| Family::of(*vip) == family) {
            report.warn(
                field,
                format!(
                    "has no valid {family} range; the {family} load-balancer addresses admit nobody"
                ),
            );
        }
        SourceRanges::Only(mine.into())
    })
}

fn ports(
    spec: &objects::ServiceSpec,
    names: &mut Interner,
    report: &mut Reporter<'_>,
) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(spec.ports.len());
    let mut first_of: FxHashMap<(Protocol, u16), Name> = FxHashMap::default();
    for (index, port) in spec.ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let Some(protocol) = protocol(port.protocol.as_deref()) else {
            report.warn(
                field("protocol"),
                format!(
                    "{:?} is none of TCP, UDP and SCTP; the port is left out",
                    port.protocol.as_deref().unwrap_or_default()
                ),
            );
            continue;
        };
        let number = port.port.unwrap_or(0);
        let Some(number) = port_number(number) else {
            report.warn(
                field("port"),
                format!("{number} is not between 1 and 65535; the port is left out"),
            );
            continue;
        };
        let node_port = match port.node_port.unwrap_or(0) {
            0 => 0,
            wanted => port_number(wanted).unwrap_or_else(|| {
                report.warn(
                    field("nodePort"),
                    format!("{wanted} is not between 1 and 65535; the port has no node port"),
                );
                0
            }),
        };
        let port = ServicePort {
            name: names.intern(port.name.as_deref().unwrap_or_default()),
            protocol,
            port: number,
            node_port,
        };
        let first = first_of.entry((port.protocol, port.port));
        let first = first.or_insert_with(|| Name::clone(&port.name));
        if *first != port.name {
            report.warn(
                field("port"),
                format!(
                    "{}/{} is claimed by port {:?} already, which keeps it",
                    port.port, port.protocol, &**first
                ),
            );
        }
        ports.push(port);
    }
    ports
}

fn affinity(spec: &objects::ServiceSpec, report: &mut Reporter<'_>) -> Option<Affinity> {
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => {}
        None | Some("" | "None") => return None,
        Some(other) => {
            report.warn(
                "spec.sessionAffinity",
                format!("{other:?} is neither ClientIP nor None; there is no affinity"),
            );
            return None;
        }
    }
    let configured = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|client| client.timeout_seconds);
    let timeout_seconds = match configured {
        None => DEFAULT_AFFINITY_SECONDS,
        Some(seconds) => u32::try_from(seconds)
            .ok()
            .filter(|seconds| (1..=MOST_AFFINITY_SECONDS).contains(seconds))
            .unwrap_or_else(|| {
                report.warn(
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                    format!(
                        "{seconds} is not a possible timeout; it is {DEFAULT_AFFINITY_SECONDS}"
                    ),
                );
                DEFAULT_AFFINITY_SECONDS
            }),
    };
    Some(Affinity { timeout_seconds })
}

/// An unknown policy is taken as Local, the one that lets less through.
fn is_local(field: &str, policy: Option<&str>, report: &mut Reporter<'_>) -> bool {
    match policy {
        None | Some("" | "Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            report.warn(
                field,
                format!("{other:?} is neither Cluster nor Local; it is taken as Local"),
            );
            true
        }
    }
}

/// Whether `externalTrafficPolicy` has a meaning for this Service (docs/semantics.md, B9).
fn external_local(spec: &objects::ServiceSpec) -> bool {
    match spec.type_.as_deref() {
        Some("LoadBalancer" | "NodePort") => true,
        None | Some("" | "ClusterIP") => !spec.external_ips.is_empty(),
        Some(_) => false,
    }
}

fn health_check_node_port(
    spec: &objects::ServiceSpec,
    external_local: bool,
    report: &mut Reporter<'_>,
) -> u16 {
    let applies = external_local
        && spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local");
    if !applies {
        return 0;
    }
    spec.health_check_node_port
        .and_then(port_number)
        .unwrap_or_else(|| {
            report.warn(
                "spec.healthCheckNodePort",
                "is not between 1 and 65535; load balancers cannot ask whether this node has endpoints",
            );
            0
        })
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
