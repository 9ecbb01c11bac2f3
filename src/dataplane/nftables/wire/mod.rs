//! Everything that knows nf_tables' messages: encoding, reading the kernel back.
//!
//! Unsafe code is in `ffi` and nowhere else.

pub(crate) mod batch;
pub(crate) mod dump;
pub(crate) mod elements;
mod expressions;
mod ffi;
mod lookup;
pub(crate) mod objects;
pub(crate) mod uapi;
