//! A slice of a Service's endpoints.

use std::sync::Arc;

use super::{Family, ObjectKey, SliceEndpoints, SlicePort};

/// Some of a Service's endpoints, in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service that its `kubernetes.io/service-name` label names.
    pub service: ObjectKey,
    /// The family of its addresses.
    pub family: Family,
    /// Its ports: every endpoint serves on each of them.
    pub ports: Arc<[SlicePort]>,
    /// Its endpoints.
    pub endpoints: SliceEndpoints,
}
