//! The room with unsafe code for libnftnl's objects.
//!
//! Everything here takes and gives owned Rust values and bytes; no pointer leaves. What the
//! objects mean is decided elsewhere. Pieces that `nftnl` has (tables, chains, rules) are its
//! own; what it lacks (arbitrary expressions, sets with types and user data, reading rules back)
//! is built here on `nftnl-sys`.

#![allow(unsafe_code, reason = "libnftnl is a C library")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::NonNull;

use nftnl::nftnl_sys as sys;
use nftnl::{MsgType, NlMsg};
use sys::libc;

use crate::host::netlink::ffi::words_as_bytes_mut;
use crate::host::netlink::{NLM_F_ACK, NLM_F_CREATE};

/// The value of an expression's attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// One byte.
    U8(u8),
    /// Four bytes, host byte order.
    U32(u32),
    /// Eight bytes, host byte order.
    U64(u64),
    /// Bytes as they are compared with registers.
    Bytes(Vec<u8>),
    /// A name.
    Text(String),
}

/// An nftables expression: its kind and its attributes, as `nftnl_expr_set` takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expression {
    /// `payload`, `lookup`, …
    pub(super) name: &'static CStr,
    /// `NFTNL_EXPR_*` and their values.
    pub(super) attributes: Vec<(u32, Value)>,
}

/// A C string; what a NUL would cut off never was a valid name.
fn c_string(text: &str) -> CString {
    let until_nul: Vec<u8> = text.bytes().take_while(|byte| *byte != 0).collect();
    // There is no NUL in it.
    CString::new(until_nul).unwrap_or_default()
}

/// libnftnl allocates a few bytes; without them there is nothing left to do, and Rust's own
/// allocator aborts in the same place.
fn allocated<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).unwrap_or_else(|| std::process::abort())
}

impl nftnl::expr::Expression for Expression {
    fn to_expr(&self, _rule: &nftnl::Rule<'_>) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name is a C string; an unknown one gives NULL, which `allocated` catches.
        let expression = allocated(unsafe { sys::nftnl_expr_alloc(self.name.as_ptr()) });
        let raw = expression.as_ptr();
        for (attribute, value) in &self.attributes {
            // NFTNL_EXPR_* are small numbers that the setters take as 16 bits.
            let attribute = *attribute as u16;
            match value {
                // SAFETY: `raw` is a live expression; the setters copy their argument.
                Value::U8(number) => unsafe { sys::nftnl_expr_set_u8(raw, attribute, *number) },
                // SAFETY: as above.
                Value::U32(number) => unsafe { sys::nftnl_expr_set_u32(raw, attribute, *number) },
                // SAFETY: as above.
                Value::U64(number) => unsafe { sys::nftnl_expr_set_u64(raw, attribute, *number) },
                Value::Bytes(bytes) => {
                    let length = u32::try_from(bytes.len()).unwrap_or(0);
                    // SAFETY: as above, and pointer and length are those of one slice.
                    unsafe {
                        sys::nftnl_expr_set(raw, attribute, bytes.as_ptr().cast(), length);
                    }
                }
                Value::Text(text) => {
                    let text = c_string(text);
                    // SAFETY: as above, and the text ends with a NUL.
                    unsafe {
                        sys::nftnl_expr_set_str(raw, attribute, text.as_ptr());
                    }
                }
            }
        }
        expression
    }
}

/// Room for any one message: what libnftnl itself reserves.
fn message_buffer() -> Vec<u8> {
    vec![0; nftnl::nft_nlmsg_maxsize() as usize]
}

/// The length that a message's header states.
fn message_length(buffer: &[u8]) -> usize {
    let header: [u8; 4] = buffer
        .get(..4)
        .and_then(|bytes| bytes.try_into().ok())
        .unwrap_or_default();
    (u32::from_ne_bytes(header) as usize)
        .next_multiple_of(4)
        .min(buffer.len())
}

/// A message that adds or deletes one of `nftnl`'s objects.
pub(super) fn message<T: NlMsg>(object: &T, kind: MsgType, sequence: u32) -> Vec<u8> {
    let mut buffer = message_buffer();
    // SAFETY: the buffer has `nft_nlmsg_maxsize()` bytes, as `write` demands.
    unsafe { object.write(buffer.as_mut_ptr().cast::<c_void>(), sequence, kind) };
    buffer.truncate(message_length(&buffer));
    buffer
}

/// A table's name as `nftnl` wants it.
pub(super) fn table(name: &str, family: nftnl::ProtoFamily) -> nftnl::Table {
    nftnl::Table::new(c_string(name), family)
}

/// A chain of a table.
pub(super) fn chain<'a>(name: &str, table: &'a nftnl::Table) -> nftnl::Chain<'a> {
    nftnl::Chain::new(c_string(name), table)
}

/// A set or map to create: the attributes of `NFT_MSG_NEWSET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NewSet {
    /// `NFPROTO_*`.
    pub(super) family: u16,
    /// The table's name.
    pub(super) table: &'static str,
    /// Its own name.
    pub(super) name: String,
    /// A number unique in its transaction.
    pub(super) id: u32,
    /// `NFT_SET_*`.
    pub(super) flags: u32,
    /// nft's number for the key's type.
    pub(super) key_type: u32,
    /// Bytes of the key.
    pub(super) key_length: u32,
    /// The data's type and bytes, for a map.
    pub(super) data: Option<(u32, u32)>,
    /// The most elements that it takes, if it is bounded.
    pub(super) size: Option<u32>,
    /// What nft keeps about it.
    pub(super) user_data: Vec<u8>,
}

/// A message that creates a set.
pub(super) fn new_set(set: &NewSet, sequence: u32) -> Vec<u8> {
    let mut buffer = message_buffer();
    let (table, name) = (c_string(set.table), c_string(&set.name));
    // SAFETY: allocates an empty set, freed below.
    let raw = allocated(unsafe { sys::nftnl_set_alloc() }).as_ptr();
    let put_u32 = |attribute: sys::nftnl_set_attr, value: u32| {
        // SAFETY: `raw` is live until the end of this function, and this attribute is 32 bits.
        unsafe { sys::nftnl_set_set_u32(raw, attribute as u16, value) };
    };
    let put_bytes = |attribute: sys::nftnl_set_attr, bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).unwrap_or(0);
        // SAFETY: `raw` is live, and the bytes are copied.
        unsafe {
            sys::nftnl_set_set_data(raw, attribute as u16, bytes.as_ptr().cast(), length);
        }
    };
    // SAFETY: `raw` is live, and both texts end with a NUL and are copied.
    unsafe {
        sys::nftnl_set_set_str(raw, sys::NFTNL_SET_TABLE as u16, table.as_ptr());
        sys::nftnl_set_set_str(raw, sys::NFTNL_SET_NAME as u16, name.as_ptr());
    }
    put_u32(sys::NFTNL_SET_FAMILY, u32::from(set.family));
    put_u32(sys::NFTNL_SET_ID, set.id);
    put_u32(sys::NFTNL_SET_FLAGS, set.flags);
    put_u32(sys::NFTNL_SET_KEY_TYPE, set.key_type);
    put_u32(sys::NFTNL_SET_KEY_LEN, set.key_length);
    if let Some((kind, length)) = set.data {
        put_u32(sys::NFTNL_SET_DATA_TYPE, kind);
        put_u32(sys::NFTNL_SET_DATA_LEN, length);
    }
    if let Some(size) = set.size {
        put_u32(sys::NFTNL_SET_DESC_SIZE, size);
    }
    put_bytes(sys::NFTNL_SET_USERDATA, &set.user_data);
    // SAFETY: the buffer holds the largest message that libnftnl writes, and `raw` is live
    // until it is freed here, once.
    unsafe {
        let header = sys::nftnl_nlmsg_build_hdr(
            buffer.as_mut_ptr().cast::<c_char>(),
            super::uapi::NFT_MSG_NEWSET,
            set.family,
            NLM_F_CREATE | NLM_F_ACK,
            sequence,
        );
        sys::nftnl_set_nlmsg_build_payload(header, raw);
        sys::nftnl_set_free(raw);
    }
    buffer.truncate(message_length(&buffer));
    buffer
}

/// libnftnl's description of the rule in a message: two rules that do the same have the same
/// one, whoever encoded them. `None` if the message is not a rule.
///
/// The message must be whole, as [`message`] or the kernel made it.
pub(super) fn describe_rule(message: &[u8]) -> Option<String> {
    if message.len() < crate::host::netlink::NLMSG_HEADER || message_length(message) > message.len()
    {
        return None;
    }
    // libmnl reads the header in place, so it has to be aligned.
    let mut aligned: Vec<u32> = vec![0; message.len().div_ceil(4)];
    words_as_bytes_mut(&mut aligned)[..message.len()].copy_from_slice(message);
    let mut text = vec![0u8; 16 * 1024];
    // SAFETY: the rule is allocated and freed here; the message is aligned, and its header's
    // length lies within the buffer; snprintf writes at most `text.len()` bytes.
    let written = unsafe {
        let rule = allocated(sys::nftnl_rule_alloc()).as_ptr();
        let parsed = sys::nftnl_rule_nlmsg_parse(aligned.as_ptr().cast::<libc::nlmsghdr>(), rule);
        let written = if parsed < 0 {
            -1
        } else {
            sys::nftnl_rule_unset(rule, sys::NFTNL_RULE_HANDLE as u16);
            sys::nftnl_rule_unset(rule, sys::NFTNL_RULE_POSITION as u16);
            sys::nftnl_rule_snprintf(
                text.as_mut_ptr().cast::<c_char>(),
                text.len(),
                rule,
                sys::NFTNL_OUTPUT_DEFAULT,
                0,
            )
        };
        sys::nftnl_rule_free(rule);
        written
    };
    let length = usize::try_from(written).ok()?.min(text.len());
    let text = text.get(..length)?;
    let text = String::from_utf8_lossy(text);
    Some(text.trim_end_matches('\0').trim().to_owned())
}
