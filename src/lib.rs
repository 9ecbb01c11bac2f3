//! pointsman sets the points of a Kubernetes node: it makes every connection to a Service reach
//! one of its endpoints.
//!
//! Data flows one way: `source` → `core` (model, select, compile, ir, diff) → `dataplane`.
//! `ARCHITECTURE.md` has the map and the invariants.
//!
//! It is a program: all that others may use of it is [`main`]. Its tests and benchmarks look inside by
//! the feature `internals`; what is public in a room is so for other rooms and for them.

#[cfg(feature = "internals")]
pub mod agent;
#[cfg(feature = "internals")]
pub mod command;
#[cfg(feature = "internals")]
pub mod config;
#[cfg(feature = "internals")]
pub mod core;
#[cfg(feature = "internals")]
pub mod dataplane;
#[cfg(feature = "internals")]
pub mod host;
#[cfg(feature = "internals")]
pub mod serve;
#[cfg(feature = "internals")]
pub mod source;

#[cfg(not(feature = "internals"))]
mod agent;
#[cfg(not(feature = "internals"))]
mod command;
#[cfg(not(feature = "internals"))]
mod config;
#[cfg(not(feature = "internals"))]
mod core;
#[cfg(not(feature = "internals"))]
mod dataplane;
#[cfg(not(feature = "internals"))]
mod host;
#[cfg(not(feature = "internals"))]
mod serve;
#[cfg(not(feature = "internals"))]
mod source;

pub use command::main;
