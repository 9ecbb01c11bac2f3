//! Netlink, whoever uses it: attributes, message headers, the socket.
//!
//! What a subsystem's messages mean is not known here. Unsafe code is in `ffi` and nowhere else.

pub(crate) mod attributes;
pub(crate) mod ffi;
pub(crate) mod socket;

pub use socket::SocketError;
#[cfg(feature = "internals")]
pub use socket::{Refusal, answers};

use crate::core::model::Family;

// `include/uapi/linux/netlink.h`.
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_ACK_TLVS: u16 = 0x200;
pub(crate) const NLM_F_CAPPED: u16 = 0x100;
pub(crate) const NLMSGERR_ATTR_MSG: u16 = 1;
pub(crate) const NLMSGERR_ATTR_OFFS: u16 = 2;

/// A netlink message's header: length, type, flags, sequence number, port.
pub(crate) const NLMSG_HEADER: usize = 16;
/// nfnetlink's own header: family, version, resource (`nfnetlink.h`).
pub(crate) const NFGEN_HEADER: usize = 4;

/// A netfilter subsystem's message type: its number and the message's.
pub(crate) const fn message_type(subsystem: u16, message: u16) -> u16 {
    (subsystem << 8) | message
}

/// The family's number in netfilter: `NFPROTO_IPV4` or `NFPROTO_IPV6`.
pub(crate) const fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Appends netlink's and nfnetlink's headers; [`close_message`] fills in the length.
pub(crate) fn put_headers(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
) {
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    // nfgenmsg: family, version, resource in network byte order.
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
}

/// Fills in the length of the message that begins at `start` and ends here.
pub(crate) fn close_message(out: &mut [u8], start: usize) {
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// A request to list objects in a family, narrowed down by attributes. `kind` is a
/// [`message_type`].
pub(crate) fn dump_request(kind: u16, family: Family, attributes: &[u8]) -> Vec<u8> {
    dump_request_of(kind, family_number(family), attributes)
}

/// The same for a family by its number (`NFPROTO_*`).
pub(crate) fn dump_request_of(kind: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let mut request = Vec::with_capacity(NLMSG_HEADER + NFGEN_HEADER + attributes.len());
    put_headers(&mut request, kind, NLM_F_REQUEST | NLM_F_DUMP, 0, family, 0);
    request.extend_from_slice(attributes);
    close_message(&mut request, 0);
    request
}
