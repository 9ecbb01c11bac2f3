//! Kubernetes objects, cut down to the fields that a proxy reads.
//!
//! Field names and meanings are those of `core/v1`, `discovery.k8s.io/v1` and
//! `networking.k8s.io/v1`. Everything else that an object carries is passed over while parsing, so it
//! never takes memory. They are read from JSON, in which `null` means absent as it does to the API server,
//! and from protobuf, with the numbers of the `generated.proto` of each of those APIs; in that `""` and 0
//! mean absent, too.

use compact_str::CompactString;
use serde::Deserialize;

use super::absent::or_default;
use super::fields::messages;
pub use super::metadata::*;
pub use super::slice_endpoint::*;

/// A `core/v1` Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// `metadata`.
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
    /// `spec`.
    #[serde(deserialize_with = "or_default")]
    pub spec: ServiceSpec,
    /// `status`.
    #[serde(deserialize_with = "or_default")]
    pub status: ServiceStatus,
}

/// A Service's `spec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub type_: Option<CompactString>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<CompactString>,
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    pub cluster_ips: Vec<CompactString>,
    #[serde(deserialize_with = "or_default")]
    pub ip_families: Vec<CompactString>,
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ServicePort>,
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    pub external_ips: Vec<CompactString>,
    #[serde(deserialize_with = "or_default")]
    pub load_balancer_source_ranges: Vec<CompactString>,
    pub session_affinity: Option<CompactString>,
    pub session_affinity_config: Option<SessionAffinityConfig>,
    pub internal_traffic_policy: Option<CompactString>,
    pub external_traffic_policy: Option<CompactString>,
    pub health_check_node_port: Option<i64>,
}

/// One of a Service's ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ServicePort {
    pub name: Option<CompactString>,
    pub protocol: Option<CompactString>,
    pub port: Option<i64>,
    pub node_port: Option<i64>,
}

/// `spec.sessionAffinityConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// `spec.sessionAffinityConfig.clientIP`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ClientIpConfig {
    pub timeout_seconds: Option<i64>,
}

/// A Service's `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ServiceStatus {
    #[serde(deserialize_with = "or_default")]
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct LoadBalancerStatus {
    #[serde(deserialize_with = "or_default")]
    pub ingress: Vec<Ingress>,
}

/// One of `status.loadBalancer.ingress`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct Ingress {
    pub ip: Option<CompactString>,
    pub ip_mode: Option<CompactString>,
}

/// A `discovery.k8s.io/v1` `EndpointSlice`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct EndpointSlice {
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    pub address_type: CompactString,
    #[serde(deserialize_with = "or_default")]
    pub endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<EndpointPort>,
}

/// One of a slice's ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct EndpointPort {
    pub name: Option<CompactString>,
    pub protocol: Option<CompactString>,
    pub port: Option<i64>,
}

/// A `core/v1` Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct Node {
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    pub spec: NodeSpec,
    #[serde(deserialize_with = "or_default")]
    pub status: NodeStatus,
}

/// A Node's `spec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct NodeSpec {
    #[serde(rename = "podCIDRs", deserialize_with = "or_default")]
    pub pod_cidrs: Vec<CompactString>,
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<CompactString>,
    #[serde(deserialize_with = "or_default")]
    pub taints: Vec<Taint>,
}

/// One of a Node's taints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct Taint {
    #[serde(deserialize_with = "or_default")]
    pub key: CompactString,
}

/// A Node's `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct NodeStatus {
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<NodeAddress>,
}

/// One of a Node's addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct NodeAddress {
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub type_: CompactString,
    #[serde(deserialize_with = "or_default")]
    pub address: CompactString,
}

/// A `networking.k8s.io/v1` `ServiceCIDR`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ServiceCidr {
    #[serde(deserialize_with = "or_default")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    pub spec: ServiceCidrSpec,
}

/// A `ServiceCIDR`'s `spec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ServiceCidrSpec {
    #[serde(deserialize_with = "or_default")]
    pub cidrs: Vec<CompactString>,
}

messages! {
    Service {
        1: metadata,
        2: spec,
        3: status,
    }
    ServiceSpec {
        4: type_,
        3: cluster_ip,
        18: cluster_ips,
        19: ip_families,
        1: ports,
        5: external_ips,
        9: load_balancer_source_ranges,
        7: session_affinity,
        14: session_affinity_config,
        22: internal_traffic_policy,
        11: external_traffic_policy,
        12: health_check_node_port,
    }
    ServicePort {
        1: name,
        2: protocol,
        3: port,
        5: node_port,
    }
    SessionAffinityConfig {
        1: client_ip,
    }
    ClientIpConfig {
        1: timeout_seconds,
    }
    ServiceStatus {
        1: load_balancer,
    }
    LoadBalancerStatus {
        1: ingress,
    }
    Ingress {
        1: ip,
        3: ip_mode,
    }
    EndpointSlice {
        1: metadata,
        4: address_type,
        2: endpoints,
        3: ports,
    }
    EndpointPort {
        1: name,
        2: protocol,
        3: port,
    }
    Node {
        1: metadata,
        2: spec,
        3: status,
    }
    NodeSpec {
        7: pod_cidrs,
        1: pod_cidr,
        5: taints,
    }
    Taint {
        1: key,
    }
    NodeStatus {
        5: addresses,
    }
    NodeAddress {
        1: type_,
        2: address,
    }
    ServiceCidr {
        1: metadata,
        2: spec,
    }
    ServiceCidrSpec {
        1: cidrs,
    }
}
