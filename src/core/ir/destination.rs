//! What a client connects to, and whose that is.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::core::model::{Family, Protocol};

/// The address part of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// One address: a `ClusterIP`, an external IP or a load-balancer VIP.
    Address(IpAddr),
    /// The node's own addresses in a family, as far as they accept `NodePort`s.
    Node(Family),
}

/// What a client connects to. At most one Service port owns a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// The address.
    pub host: Host,
    /// The protocol.
    pub protocol: Protocol,
    /// The port, in host byte order.
    pub port: u16,
}

impl Destination {
    /// The family that it belongs to.
    #[must_use]
    pub const fn family(self) -> Family {
        match self.host {
            Host::Address(address) => Family::of(address),
            Host::Node(family) => family,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}")?,
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
            Host::Node(Family::V4) => f.write_str("node(IPv4)")?,
            Host::Node(Family::V6) => f.write_str("node(IPv6)")?,
        }
        write!(f, ":{}/{}", self.port, self.protocol)
    }
}

/// The longest label, in bytes. A backend writes it into a comment, beside a remark of its own; the
/// shortest comments are nft's, of 128 bytes (`NFTNL_UDATA_COMMENT_MAXLEN` in libnftnl's `udata.h`).
pub const LABEL_MAX: usize = 104;

/// Who a destination belongs to, for people: `namespace/name:port`, shortened to [`LABEL_MAX`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label(Arc<str>);

impl Label {
    /// A label from its text. Anything that nft could not print as a comment is left out.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let clean = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
        if text.len() <= LABEL_MAX && text.chars().all(clean) {
            return Self(Arc::from(text));
        }
        let short: String = text.chars().filter(|c| clean(*c)).take(LABEL_MAX).collect();
        Self(Arc::from(short))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
