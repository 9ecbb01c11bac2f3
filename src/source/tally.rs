//! How many objects were read, and how many of them are nothing to this proxy and why.

use std::collections::BTreeMap;

use super::objects::{self, OTHER_PROXY_LABEL};
use crate::core::model::ObjectKey;

/// Why a Service is not served (docs/semantics.md, A1, A4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unserved {
    /// It has no address: nobody has given it one.
    NoClusterIp,
    /// It says that it wants none.
    Headless,
    /// It is a name for another.
    ExternalName,
    /// It belongs to another proxy.
    OtherProxy,
}

impl Unserved {
    /// Why this Service is not served, if it is not.
    pub(super) fn why(object: &objects::Service) -> Option<Self> {
        let spec = &object.spec;
        if object.metadata.labels.text(OTHER_PROXY_LABEL).is_some() {
            Some(Self::OtherProxy)
        } else if spec.type_.as_deref() == Some("ExternalName") {
            Some(Self::ExternalName)
        } else {
            match spec.cluster_ip.as_deref().unwrap_or_default() {
                "None" => Some(Self::Headless),
                "" => Some(Self::NoClusterIp),
                _ => None,
            }
        }
    }

    /// The same in words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::NoClusterIp => "without spec.clusterIP",
            Self::Headless => "headless",
            Self::ExternalName => "of type ExternalName",
            Self::OtherProxy => "labelled as another proxy's",
        }
    }
}

/// What was read so far, each object as often as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Services.
    pub services: usize,
    /// Those that are not served: how many, and the first of them.
    pub unserved: BTreeMap<Unserved, (usize, ObjectKey)>,
    /// `EndpointSlice`s.
    pub slices: usize,
    /// Those that no Service can use.
    pub useless_slices: usize,
    /// Nodes that are this one.
    pub nodes: usize,
    /// Other Nodes, which do not count.
    pub other_nodes: usize,
}

impl Tally {
    pub(super) fn service(&mut self, key: &ObjectKey, unserved: Option<Unserved>) {
        self.services += 1;
        if let Some(why) = unserved {
            let (count, _) = self.unserved.entry(why).or_insert_with(|| (0, key.clone()));
            *count += 1;
        }
    }
}
