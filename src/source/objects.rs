//! Kubernetes objects, cut down to the fields that a proxy reads.
//!
//! Field names and meanings are those of `core/v1`, `discovery.k8s.io/v1` and
//! `networking.k8s.io/v1`. Everything else that an object carries is passed over while parsing, so it
//! never takes memory. They are read from JSON, in which `null` means absent as it does to the API server,
//! and from protobuf, with the numbers of the `generated.proto` of each of those APIs; in that `""` and 0
//! mean absent, too.

use prost::Message;
use serde::Deserialize;

use super::absent::or_default;
pub use super::metadata::*;
pub use super::slice_endpoint::*;

/// A `core/v1` Service.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
pub struct Service {
    /// `metadata`.
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "1")]
    pub metadata: Metadata,
    /// `spec`.
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "2")]
    pub spec: ServiceSpec,
    /// `status`.
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "3")]
    pub status: ServiceStatus,
}

/// A Service's `spec`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    #[prost(string, optional, tag = "4")]
    pub type_: Option<String>,
    #[serde(rename = "clusterIP")]
    #[prost(string, optional, tag = "3")]
    pub cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    #[prost(string, repeated, tag = "18")]
    pub cluster_ips: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    #[prost(string, repeated, tag = "19")]
    pub ip_families: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "1")]
    pub ports: Vec<ServicePort>,
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    #[prost(string, repeated, tag = "5")]
    pub external_ips: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    #[prost(string, repeated, tag = "9")]
    pub load_balancer_source_ranges: Vec<String>,
    #[prost(string, optional, tag = "7")]
    pub session_affinity: Option<String>,
    #[prost(message, optional, tag = "14")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    #[prost(string, optional, tag = "22")]
    pub internal_traffic_policy: Option<String>,
    #[prost(string, optional, tag = "11")]
    pub external_traffic_policy: Option<String>,
    #[prost(int64, optional, tag = "12")]
    pub health_check_node_port: Option<i64>,
}

/// One of a Service's ports.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ServicePort {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub protocol: Option<String>,
    #[prost(int64, optional, tag = "3")]
    pub port: Option<i64>,
    #[prost(int64, optional, tag = "5")]
    pub node_port: Option<i64>,
}

/// `spec.sessionAffinityConfig`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    #[prost(message, optional, tag = "1")]
    pub client_ip: Option<ClientIpConfig>,
}

/// `spec.sessionAffinityConfig.clientIP`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ClientIpConfig {
    #[prost(int64, optional, tag = "1")]
    pub timeout_seconds: Option<i64>,
}

/// A Service's `status`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ServiceStatus {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "1")]
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct LoadBalancerStatus {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "1")]
    pub ingress: Vec<Ingress>,
}

/// One of `status.loadBalancer.ingress`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct Ingress {
    #[prost(string, optional, tag = "1")]
    pub ip: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub ip_mode: Option<String>,
}

/// A `discovery.k8s.io/v1` `EndpointSlice`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct EndpointSlice {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "1")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    #[prost(string, tag = "4")]
    pub address_type: String,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "2")]
    pub endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "3")]
    pub ports: Vec<EndpointPort>,
}

/// One of a slice's ports.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct EndpointPort {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub protocol: Option<String>,
    #[prost(int64, optional, tag = "3")]
    pub port: Option<i64>,
}

/// A `core/v1` Node.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct Node {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "1")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "2")]
    pub spec: NodeSpec,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "3")]
    pub status: NodeStatus,
}

/// A Node's `spec`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct NodeSpec {
    #[serde(rename = "podCIDRs", deserialize_with = "or_default")]
    #[prost(string, repeated, tag = "7")]
    pub pod_cidrs: Vec<String>,
    #[serde(rename = "podCIDR")]
    #[prost(string, optional, tag = "1")]
    pub pod_cidr: Option<String>,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "5")]
    pub taints: Vec<Taint>,
}

/// One of a Node's taints.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct Taint {
    #[serde(deserialize_with = "or_default")]
    #[prost(string, tag = "1")]
    pub key: String,
}

/// A Node's `status`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct NodeStatus {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "5")]
    pub addresses: Vec<NodeAddress>,
}

/// One of a Node's addresses.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct NodeAddress {
    #[serde(rename = "type", deserialize_with = "or_default")]
    #[prost(string, tag = "1")]
    pub type_: String,
    #[serde(deserialize_with = "or_default")]
    #[prost(string, tag = "2")]
    pub address: String,
}

/// A `networking.k8s.io/v1` `ServiceCIDR`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ServiceCidr {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "1")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "2")]
    pub spec: ServiceCidrSpec,
}

/// A `ServiceCIDR`'s `spec`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ServiceCidrSpec {
    #[serde(deserialize_with = "or_default")]
    #[prost(string, repeated, tag = "1")]
    pub cidrs: Vec<String>,
}
