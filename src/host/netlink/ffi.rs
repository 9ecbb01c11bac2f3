//! The room with unsafe code for netlink sockets: what `mnl` has no safe call for.

#![allow(unsafe_code, reason = "socket options and alignment")]

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::libc;

/// Asks a netlink socket for an option of `SOL_NETLINK`.
pub(crate) fn enable_netlink_option(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
) -> std::io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the value is an int of the stated length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast::<c_void>(),
            length,
        )
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// A netlink socket that may move to another thread.
pub(crate) struct NetlinkSocket(pub(crate) mnl::Socket);

// SAFETY: libmnl's socket is a descriptor and an address, owned by one struct; nothing in it
// belongs to a thread.
unsafe impl Send for NetlinkSocket {}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket owns an open descriptor for as long as it is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// The bytes of aligned words.
pub(crate) fn words_as_bytes(words: &[u32]) -> &[u8] {
    // SAFETY: any byte is a valid u8, and the length is that of the same memory.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

/// The bytes of aligned words, to fill.
pub(crate) fn words_as_bytes_mut(words: &mut [u32]) -> &mut [u8] {
    // SAFETY: as above, and any bytes make valid words.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}
