//! UDP flows that go where nobody serves any more: found in conntrack's table and ended.
//!
//! Only flows to this node's own Service destinations are ever touched, only UDP, and only those
//! that do not go to an endpoint which serves. The kernel picks the flows out where there are few
//! destinations to look for; memory does not grow with the table.

mod cleaner;
mod flow;

pub use cleaner::{Cleaner, Work, clean};
#[cfg(feature = "internals")]
pub use flow::{Flow, listed};
