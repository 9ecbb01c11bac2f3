//! Where the cluster's objects come from, and how they become the model.
//!
//! Kubernetes' object format is known here and nowhere else. Malformed input never fails a
//! source: the part that is wrong is left out with a [`Warning`] that names the object and the
//! field, and everything else goes on.

pub mod addresses;
pub mod cluster;
pub mod convert;
pub mod manifests;
pub mod objects;
mod parse;
mod slices;
pub mod watch_files;

use std::fmt;

/// Something in the input that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The object: kind, namespace and name.
    pub object: String,
    /// The path of the field inside the object; empty if it is about the whole object.
    pub field: String,
    /// What is wrong and what happens instead.
    pub problem: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.object, self.problem)
        } else {
            write!(f, "{}: {}: {}", self.object, self.field, self.problem)
        }
    }
}
