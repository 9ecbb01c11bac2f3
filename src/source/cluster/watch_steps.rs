//! What watches bring, step by step.

use std::time::Duration;

use crate::core::model::ObjectKey;
use crate::source::objects;

/// What a watch brought.
#[derive(Debug)]
pub(super) enum Item {
    Service(Step<objects::Service>),
    EndpointSlice(Step<objects::EndpointSlice>),
    Node(Step<objects::Node>),
    ServiceCidr(Step<objects::ServiceCidr>),
}

/// A step of a watch.
#[derive(Debug)]
pub(super) enum Step<T> {
    /// A list begins.
    Begin,
    /// Objects of the list.
    Listed(Vec<T>),
    /// Objects of the list that cannot be read, by name where that can be: of them nothing else is known.
    Spoiled(Vec<Option<ObjectKey>>),
    /// The list is complete: what it did not name does not exist.
    End,
    /// An object is new or has changed.
    Applied(T),
    /// An object is gone.
    Deleted(T),
    /// The watch failed, and will be tried again after so long.
    Failed(String, Duration),
}
