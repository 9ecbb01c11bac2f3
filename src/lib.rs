//! pointsman sets the points of a Kubernetes node: it makes every connection to a Service reach
//! one of its endpoints.
//!
//! Data flows one way: `source` → `core` (model, select, compile, ir, diff) → `dataplane`.
//! `ARCHITECTURE.md` has the map and the invariants.

pub mod agent;
pub mod command;
pub mod config;
pub mod core;
pub mod dataplane;
pub mod host;
pub mod serve;
pub mod source;
