//! The four kinds that are watched, and where they live in the API.

use std::fmt::Debug;

use bytes::Buf;
use prost::{DecodeError, Message};
use serde::de::DeserializeOwned;

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

    /// As Kubernetes spells a list of them.
    pub(super) const fn list(self) -> &'static str {
        match self {
            Self::Service => "ServiceList",
            Self::EndpointSlice => "EndpointSliceList",
            Self::Node => "NodeList",
            Self::ServiceCidr => "ServiceCIDRList",
        }
    }

    /// The version of the API that has them.
    pub(super) const fn api_version(self) -> &'static str {
        match self {
            Self::Service | Self::Node => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::ServiceCidr => "networking.k8s.io/v1",
        }
    }

    /// Where all of them are, in all namespaces.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Service => "/api/v1/services",
            Self::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
            Self::Node => "/api/v1/nodes",
            Self::ServiceCidr => "/apis/networking.k8s.io/v1/servicecidrs",
        }
    }
}

/// A trimmed object.
pub(super) trait Trimmed:
    Message + Default + Clone + Debug + DeserializeOwned + Send + 'static
{
    const KIND: Kind;

    fn metadata(&self) -> &objects::Metadata;

    /// One that is to be read from so many bytes.
    fn with_room(_: usize) -> Self {
        Self::default()
    }

    /// Reads one.
    fn read(bytes: impl Buf) -> Result<Self, DecodeError> {
        let mut object = Self::with_room(bytes.remaining());
        object.merge(bytes)?;
        Ok(object)
    }
}

/// An endpoint takes about as many bytes with the names of its pod and its node.
const ENDPOINT: usize = 160;
/// A slice mostly has no more (`--max-endpoints-per-slice`, 100).
const MOST_ENDPOINTS: usize = 100;

macro_rules! trimmed {
    ($type:ty, $kind:ident $(, $with_room:item)?) => {
        impl Trimmed for $type {
            const KIND: Kind = Kind::$kind;

            $($with_room)?

            fn metadata(&self) -> &objects::Metadata {
                &self.metadata
            }
        }
    };
}

trimmed!(objects::Service, Service);
trimmed!(
    objects::EndpointSlice,
    EndpointSlice,
    fn with_room(bytes: usize) -> Self {
        Self {
            endpoints: Vec::with_capacity((bytes / ENDPOINT).min(MOST_ENDPOINTS)),
            ..Self::default()
        }
    }
);
trimmed!(objects::Node, Node);
trimmed!(objects::ServiceCidr, ServiceCidr);
