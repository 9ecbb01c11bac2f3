//! Everything that knows nf_tables' messages: encoding, reading the kernel back.
//!
//! Unsafe code is in `ffi` and nowhere else.

pub(crate) mod batch;
pub(crate) mod dump;
pub(crate) mod elements;
mod expressions;
mod ffi;
pub(crate) mod foreign;
mod intervals;
mod lookup;
pub(crate) mod objects;
mod operands;
pub(crate) mod uapi;
