//! The four kinds that are watched, as kube's watcher wants them: trimmed objects that know
//! their API path.

use std::borrow::Cow;
use std::fmt::Debug;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::source::objects;

/// A kind of object that the cluster is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Services.
    Service,
    /// `EndpointSlice`s.
    EndpointSlice,
    /// This Node.
    Node,
    /// `ServiceCIDR`s.
    ServiceCidr,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::ServiceCidr,
    ];

    /// As Kubernetes spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }
}

/// A trimmed object and where it lives in the API.
pub(super) trait Trimmed: Clone + Debug + DeserializeOwned + Send + 'static {
    const KIND: Kind;
    const GROUP: &'static str;
    const PLURAL: &'static str;

    fn metadata(&self) -> &objects::Metadata;
}

macro_rules! trimmed {
    ($type:ty, $kind:ident, $group:literal, $plural:literal) => {
        impl Trimmed for $type {
            const KIND: Kind = Kind::$kind;
            const GROUP: &'static str = $group;
            const PLURAL: &'static str = $plural;

            fn metadata(&self) -> &objects::Metadata {
                &self.metadata
            }
        }
    };
}

trimmed!(objects::Service, Service, "", "services");
trimmed!(
    objects::EndpointSlice,
    EndpointSlice,
    "discovery.k8s.io",
    "endpointslices"
);
trimmed!(objects::Node, Node, "", "nodes");
trimmed!(
    objects::ServiceCidr,
    ServiceCidr,
    "networking.k8s.io",
    "servicecidrs"
);

/// What the watcher handles: the object, and as much metadata as it looks at.
#[derive(Debug, Clone)]
pub(super) struct Object<T> {
    metadata: ObjectMeta,
    pub(super) inner: T,
}

impl<'de, T: Trimmed> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let inner = T::deserialize(deserializer)?;
        let metadata = ObjectMeta {
            resource_version: inner.metadata().resource_version.clone(),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, inner })
    }
}

impl<T: Trimmed> Resource for Object<T> {
    type DynamicType = ();
    // All are watched in all namespaces.
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        T::KIND.name().into()
    }

    fn group((): &()) -> Cow<'_, str> {
        T::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        T::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
