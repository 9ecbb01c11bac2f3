//! What has happened in the cluster, as its sources tell it.

use std::fmt;

use super::report::Warning;
use crate::core::model::{Change, Family, ObjectKey};

/// The kind of a cause that is no object: what this node has seen of a Service's endpoints.
pub const OBSERVED: &str = "connections of Service";

/// An object that has changed, and what it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Its kind.
    pub kind: &'static str,
    /// Its name; of kinds without a namespace, that is empty.
    pub key: ObjectKey,
    /// Its resourceVersion, if it has one.
    pub version: u64,
    /// It is gone.
    pub gone: bool,
}

impl Cause {
    /// Whose change it is, unless it is the node's own doing.
    #[must_use]
    pub fn of(change: &Change) -> Option<Self> {
        let (kind, key, gone) = match change {
            Change::Service(key, now) => ("Service", key.clone(), now.is_none()),
            Change::EndpointSlice(key, now) => ("EndpointSlice", key.clone(), now.is_none()),
            Change::Node(now) => {
                let name = now
                    .as_ref()
                    .map_or_else(|| "".into(), |node| node.name.clone());
                ("Node", ObjectKey::new("", name), now.is_none())
            }
            Change::ServiceCidr(name, now) => (
                "ServiceCIDR",
                ObjectKey::new("", name.as_str()),
                now.is_none(),
            ),
            Change::Observed(key, _) => (OBSERVED, key.clone(), false),
            Change::InterfaceAddresses(_) => return None,
        };
        Some(Self {
            kind,
            key,
            version: 0,
            gone,
        })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        match (self.key.namespace.is_empty(), self.key.name.is_empty()) {
            (false, _) => write!(f, " {}", self.key)?,
            (true, false) => write!(f, " {}", self.key.name)?,
            (true, true) => {}
        }
        if self.version > 0 {
            write!(f, " at resourceVersion {}", self.version)?;
        }
        if self.gone {
            f.write_str(" (gone)")?;
        }
        Ok(())
    }
}

/// What happened, in order.
#[derive(Debug, Default)]
pub struct Changes {
    /// The objects.
    pub changes: Vec<Change>,
    /// Parts of them that were left out.
    pub warnings: Vec<Warning>,
    /// For how long traffic has been waiting for them.
    pub triggers: Vec<Trigger>,
    /// The objects that brought them.
    pub causes: Vec<Cause>,
}

/// When the change began that a slice announces, as the slice tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger {
    /// A slice of a family, and when its change began: nanoseconds since 1970, UTC.
    At(ObjectKey, Family, i128),
    /// A slice has gone, and nobody waits for what it announced.
    Gone(ObjectKey),
}
