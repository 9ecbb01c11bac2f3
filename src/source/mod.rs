//! Where the cluster's objects come from, and how they become the model.
//!
//! Kubernetes' object format is known here and nowhere else. Malformed input never fails a
//! source: the part that is wrong is left out with a [`Warning`] that names the object and the
//! field, and everything else goes on.

mod absent;
pub mod balancing;
pub mod changes;
pub mod cluster;
pub mod convert;
mod documents;
mod fields;
pub mod manifests;
mod metadata;
mod nodes;
pub mod objects;
mod parse;
mod report;
mod slice_endpoint;
mod slices;
pub mod tally;
mod tree;

pub use report::{Warning, report};
