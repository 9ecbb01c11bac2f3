//! pointsman sets the points of a Kubernetes node: it makes every connection to a Service reach
//! one of its endpoints.
//!
//! Data flows one way: `source` → `model` → `select` → `compile` → `ir` → `diff` → `backend`.
//! `ARCHITECTURE.md` has the map and the invariants.

pub mod admin;
pub mod backend;
pub mod cli;
pub mod compile;
pub mod conntrack;
pub mod diff;
pub mod dry_run;
pub mod events;
pub mod health;
pub mod health_checks;
pub mod http;
pub mod incremental;
pub mod ir;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod networks;
pub mod proxy;
pub mod run;
pub mod select;
pub mod source;
pub mod sysctl;
