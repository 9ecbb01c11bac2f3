//! Kubernetes objects, cut down to the fields that a proxy reads.
//!
//! Field names and meanings are those of `core/v1`, `discovery.k8s.io/v1` and
//! `networking.k8s.io/v1`. Everything else that an object carries is passed over while parsing, so it
//! never takes memory (annotations of protobuf apart, until [`Metadata::trim`]). They are read from JSON, in which `null` means absent as it does to the API server,
//! and from protobuf, with the numbers of the `generated.proto` of each of those APIs; in that `""` and 0
//! mean absent, too.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use prost::Message;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A label that hands a Service to another proxy (`LabelServiceProxyName`).
pub const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// A label of slices that belong to a headless Service.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The label that names a slice's Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// A taint of a Node that the cluster autoscaler is about to remove.
pub const GOING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// The label that names a Node's zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// An annotation of a slice: when the change that led to it happened, RFC 3339.
pub const LAST_CHANGE_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// An annotation of a Service: which endpoint a connection goes to.
pub const ALGORITHM_ANNOTATION: &str = "pointsman.io/algorithm";
/// An annotation of a Service: whether endpoints that do not answer are passed over, `true` or `false`.
pub const EJECTION_ANNOTATION: &str = "pointsman.io/ejection";
/// An annotation of a slice: what its endpoints weigh.
pub const WEIGHT_ANNOTATION: &str = "service.cilium.io/weight";
/// An annotation of a slice: what single endpoints weigh, `ADDRESS=WEIGHT` with commas between.
pub const WEIGHTS_ANNOTATION: &str = "pointsman.io/weights";

const ANNOTATIONS: [&str; 5] = [
    LAST_CHANGE_ANNOTATION,
    ALGORITHM_ANNOTATION,
    EJECTION_ANNOTATION,
    WEIGHT_ANNOTATION,
    WEIGHTS_ANNOTATION,
];

/// `null` is nothing.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Annotations by name.
pub type Annotations = BTreeMap<String, Vec<u8>>;

/// The text of one of an object's annotations.
#[must_use]
pub fn annotation<'a>(annotations: &'a Annotations, name: &str) -> Option<Cow<'a, str>> {
    let value = annotations.get(name)?;
    Some(String::from_utf8_lossy(value))
}

impl Metadata {
    /// Forgets the annotations that nobody reads: they may be hundreds of kilobytes.
    pub fn trim(&mut self) {
        self.annotations
            .retain(|name, _| ANNOTATIONS.contains(&name.as_str()));
    }
}

/// The annotations that are read.
fn annotations<'de, D>(deserializer: D) -> Result<Annotations, D::Error>
where
    D: Deserializer<'de>,
{
    struct Known;

    impl<'de> Visitor<'de> for Known {
        type Value = Annotations;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("annotations")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
            let mut known = BTreeMap::new();
            while let Some(name) = all.next_key::<String>()? {
                if !ANNOTATIONS.contains(&name.as_str()) {
                    all.next_value::<IgnoredAny>()?;
                } else if let Some(text) = all.next_value::<Option<String>>()? {
                    known.insert(name, text.into_bytes());
                }
            }
            Ok(known)
        }
    }

    deserializer.deserialize_any(Known)
}

/// `metadata`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// The name.
    #[serde(deserialize_with = "or_default")]
    #[prost(string, tag = "1")]
    pub name: String,
    /// The namespace; empty for objects that have none.
    #[serde(deserialize_with = "or_default")]
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// Where in its history the object is.
    #[prost(string, optional, tag = "6")]
    pub resource_version: Option<String>,
    /// When it was made.
    #[prost(message, optional, tag = "8")]
    pub creation_timestamp: Option<Time>,
    /// Set on an object that is being deleted.
    #[prost(message, optional, tag = "9")]
    pub deletion_timestamp: Option<Time>,
    /// The annotations that are read. Nobody sees to it that what is stored of them is text.
    #[serde(deserialize_with = "annotations")]
    #[prost(btree_map = "string, bytes", tag = "12")]
    pub annotations: Annotations,
    /// The labels.
    #[serde(deserialize_with = "or_default")]
    #[prost(btree_map = "string, string", tag = "11")]
    pub labels: BTreeMap<String, String>,
}

/// A moment: in protobuf a number of seconds, in JSON a text, RFC 3339.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(from = "String")]
pub struct Time {
    /// Seconds since 1970; none if it was never set, as Go writes that. [`Time::WRONG`] for a text that is no time.
    #[prost(int64, optional, tag = "1")]
    pub seconds: Option<i64>,
}

impl Time {
    /// A text that is no time.
    pub const WRONG: i64 = i64::MIN;
}

impl From<String> for Time {
    fn from(text: String) -> Self {
        let time = text.parse().map(jiff::Timestamp::as_second);
        Self {
            seconds: Some(time.unwrap_or(Self::WRONG)),
        }
    }
}

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

/// One of a slice's endpoints.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct Endpoint {
    #[serde(deserialize_with = "or_default")]
    #[prost(string, repeated, tag = "1")]
    pub addresses: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "2")]
    pub conditions: Conditions,
    #[prost(string, optional, tag = "6")]
    pub node_name: Option<String>,
    #[prost(message, optional, tag = "8")]
    pub hints: Option<Hints>,
}

/// An endpoint's conditions.
#[derive(Clone, Copy, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct Conditions {
    #[prost(bool, optional, tag = "1")]
    pub ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    pub terminating: Option<bool>,
}

/// An endpoint's topology hints.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct Hints {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "1")]
    pub for_zones: Vec<ForName>,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "2")]
    pub for_nodes: Vec<ForName>,
}

/// A zone or a node that a hint names.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ForName {
    #[serde(deserialize_with = "or_default")]
    #[prost(string, tag = "1")]
    pub name: String,
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
