//! Everything that knows nf_tables' messages: encoding, reading the kernel back.
//!
//! Unsafe code is in `libnftnl` and nowhere else.

pub(crate) mod batch;
pub(crate) mod counters;
pub(crate) mod counts_table;
pub(crate) mod dump;
pub(crate) mod elements;
mod expressions;
pub(crate) mod foreign;
pub(crate) mod forward;
mod intervals;
mod libnftnl;
mod lookup;
#[cfg(feature = "internals")]
pub(crate) mod offline;
mod operands;
pub(crate) mod presence;
mod registers;
pub(crate) mod remembered;
pub(crate) mod tables;
pub(crate) mod uapi;
