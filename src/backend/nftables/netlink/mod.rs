//! Everything that knows netlink's bytes: encoding, the socket, reading the kernel back.
//!
//! Unsafe code is in `ffi` and nowhere else.

pub(crate) mod attributes;
pub(crate) mod batch;
pub(crate) mod dump;
pub(crate) mod elements;
mod expressions;
mod ffi;
pub(crate) mod objects;
pub(crate) mod socket;
pub(crate) mod uapi;

use nftnl::nftnl_sys::libc;

use crate::model::Family;

/// The table family's number: `NFPROTO_IPV4` or `NFPROTO_IPV6`.
pub(crate) const fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::NFPROTO_IPV4 as u8,
        Family::V6 => libc::NFPROTO_IPV6 as u8,
    }
}
