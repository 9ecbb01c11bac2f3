//! What can be asked, and what is answered.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::core::ir::Destination;
use crate::core::model::{ObjectKey, Protocol};

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Somebody: a pod to a `ClusterIP`, and someone outside to everything else.
    Anyone,
    /// A process of this node.
    Host,
    /// Someone with this address.
    Address(IpAddr),
}

/// Whom to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// A Service, at all of its addresses.
    Service {
        /// Which.
        service: ObjectKey,
        /// The name or the number of one of its ports.
        port: Option<String>,
        /// Of which protocol.
        protocol: Option<Protocol>,
    },
    /// An address and a port.
    Address {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// Of which protocol.
        protocol: Option<Protocol>,
    },
    /// A port of the node.
    NodePort {
        /// The port.
        port: u16,
        /// Of which protocol.
        protocol: Option<Protocol>,
    },
}

/// A connection that somebody asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Who connects.
    pub from: From,
    /// Whom to.
    pub to: To,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It goes to an endpoint.
    Connects,
    /// The client is told at once that there is nobody.
    Refused,
    /// The client hears nothing.
    Dropped,
    /// It is none of the proxy's business.
    LeftAlone,
    /// Nothing of that name exists.
    Unknown,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What happens, and why, in a sentence.
    pub headline: String,
    /// Each destination that was asked about.
    pub routes: Vec<Route>,
    /// So many more were left out.
    #[serde(default)]
    pub more_routes: usize,
    /// What else may help.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What becomes of connections to one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// The destination, for who looks it up.
    #[serde(skip)]
    pub key: Option<Destination>,
    /// Of a `NodePort`: the node's addresses at which it is this Service's.
    #[serde(skip)]
    pub node_addresses: Vec<IpAddr>,
    /// The destination in words.
    pub destination: String,
    /// What that is: a `ClusterIP`, a `NodePort`.
    pub kind: String,
    /// Whose it is, with the port's name.
    pub service: String,
    /// The Service that was asked for, if another one has what it claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_to: Option<String>,
    /// Who else claims it, and waits.
    #[serde(default)]
    pub waiting: Vec<String>,
    /// What the source counts as.
    pub source: String,
    /// What happens.
    pub outcome: Outcome,
    /// The same with the reason, in words.
    pub sentence: String,
    /// Who alone may connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_sources: Option<Vec<String>>,
    /// Whether endpoints see this node's address instead of the client's.
    #[serde(default)]
    pub masqueraded: bool,
    /// What topology hints come to.
    pub hints: String,
    /// For how long a client comes back to its endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u32>,
    /// Every endpoint of the Service, whether it takes these connections, and why not.
    pub endpoints: Vec<EndpointLine>,
    /// So many more were left out.
    #[serde(default)]
    pub more_endpoints: usize,
    /// Whether the kernel has it as it is told here; unknown to who only compiles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_effect: Option<bool>,
    /// When and from what it was programmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programmed: Option<Programmed>,
    /// Whom the source comes back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remembered: Option<Remembered>,
    /// Flows that conntrack has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_flows: Option<u64>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointLine {
    /// Its address and port.
    pub endpoint: String,
    /// It takes these connections.
    pub used: bool,
    /// Why, or why not.
    pub why: String,
    /// It is on this node.
    #[serde(default)]
    pub on_this_node: bool,
    /// Flows that conntrack has to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_flows: Option<u64>,
}

/// When and from what something was programmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Programmed {
    /// RFC 3339.
    pub at: String,
    /// From hearing of the change to the kernel's taking it, in microseconds.
    pub took_us: u64,
    /// The object whose change it was, with its resourceVersion.
    pub because_of: String,
}

/// Whom a client comes back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Remembered {
    /// The endpoint.
    pub endpoint: String,
    /// For how much longer.
    pub seconds_left: u64,
}

impl Explanation {
    /// One that says that there is nothing of that name, and what is near.
    pub(super) fn unknown(headline: String, notes: Vec<String>) -> Self {
        Self {
            headline,
            notes,
            ..Self::default()
        }
    }

    /// What happens at the first destination.
    #[cfg(test)]
    pub(super) fn outcome(&self) -> Outcome {
        let first = self.routes.first();
        first.map_or(Outcome::Unknown, |route| route.outcome)
    }
}
