//! Services.

use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::{Algorithm, Family, Name, PerFamily, Protocol};

/// One port of a Service, in every family that the Service has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Its name; empty for an unnamed one.
    pub name: Name,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on cluster addresses; never 0.
    pub port: u16,
    /// The port on node addresses; 0 for none.
    pub node_port: u16,
}

/// Session affinity by client address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Affinity {
    /// Seconds after the last new connection at which a client is forgotten; never 0.
    pub timeout_seconds: u32,
}

/// Which sources the load-balancer VIPs of one family admit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SourceRanges {
    /// All of them: no list, or one with a range that covers the family.
    #[default]
    Any,
    /// These and no others; an empty list admits nobody.
    Only(Arc<[IpNetwork]>),
}

impl SourceRanges {
    /// The ranges; none if all sources are admitted.
    #[must_use]
    pub fn ranges(&self) -> &[IpNetwork] {
        match self {
            Self::Any => &[],
            Self::Only(ranges) => ranges,
        }
    }
}

/// What matters of a Service that a proxy serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `metadata.creationTimestamp`, in seconds since the epoch; the age decides who owns a
    /// tuple that two Services claim. A Service without one counts as the youngest.
    pub created: i64,
    /// The `ClusterIP` of each family.
    pub cluster_ips: PerFamily<Option<IpAddr>>,
    /// `spec.externalIPs`, both families.
    pub external_ips: Vec<IpAddr>,
    /// Load-balancer addresses with mode VIP, both families.
    pub vips: Vec<IpAddr>,
    /// Who may reach the VIPs.
    pub source_ranges: PerFamily<SourceRanges>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Its session affinity, if any.
    pub affinity: Option<Affinity>,
    /// Which endpoint a new connection goes to.
    pub algorithm: Algorithm,
    /// Whether endpoints that do not answer are passed over for a while.
    pub ejects: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`, where it has a meaning.
    pub external_local: bool,
    /// `spec.healthCheckNodePort`, where it has a meaning; 0 for none.
    pub health_check_node_port: u16,
}

impl Service {
    /// Whether one of its ports can be reached from outside the cluster in this family.
    #[must_use]
    pub fn externally_accessible(&self, family: Family, port: &ServicePort) -> bool {
        let in_family = |address: &IpAddr| Family::of(*address) == family;
        port.node_port != 0
            || self.vips.iter().any(in_family)
            || self.external_ips.iter().any(in_family)
    }
}
