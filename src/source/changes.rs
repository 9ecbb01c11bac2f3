//! What has happened in the cluster, as its sources tell it.

use super::report::Warning;
use crate::core::model::{Change, Family, ObjectKey};

/// What happened, in order.
#[derive(Debug, Default)]
pub struct Changes {
    /// The objects.
    pub changes: Vec<Change>,
    /// Parts of them that were left out.
    pub warnings: Vec<Warning>,
    /// For how long traffic has been waiting for them.
    pub triggers: Vec<Trigger>,
}

/// When the change began that a slice announces, as the slice tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger {
    /// A slice of a family, and when its change began: nanoseconds since 1970, UTC.
    At(ObjectKey, Family, i128),
    /// A slice has gone, and nobody waits for what it announced.
    Gone(ObjectKey),
}
