//! Flows that go where nobody serves: found in conntrack's table and ended.
//!
//! Only flows to this node's own Service destinations are ever touched: of UDP those that do not go to an
//! endpoint which serves, of TCP and SCTP those that began while there were no rules, and that nobody
//! answers. The kernel picks the flows out where there are few destinations to look for; memory does not grow
//! with the table.

mod cleaner;
mod flow;
mod live;
mod look;

#[cfg(feature = "internals")]
pub use cleaner::Cleaned;
pub use cleaner::{Cleaner, Work, clean};
#[cfg(feature = "internals")]
pub use flow::{Flow, listed};
pub use live::live;
pub use look::{Seen, Wanted, look};
