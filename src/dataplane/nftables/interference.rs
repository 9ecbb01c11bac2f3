//! Notices when somebody else changes our tables, for as long as the process lives.
//!
//! The kernel tells its nf_tables listeners about every change and who asked for it; what is not
//! ours and concerns our tables is interference. Only the notice lives here: what to do about it
//! is the sync loop's business.

use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use super::program::TABLE;
use crate::host::netlink::attributes::{find, string};
use crate::host::netlink::ffi::NetlinkSocket;
use crate::host::netlink::{NFGEN_HEADER, NLMSG_HEADER};

/// `NFNLGRP_NFTABLES` as a bit of the groups to bind to (`nfnetlink.h`).
const GROUP: u32 = 1 << (7 - 1);
/// Room for the notices of a large transaction of our own.
const RECEIVE_BUFFER: usize = 16 * 1024 * 1024;
/// More than the largest notice.
const NOTICE: usize = 64 * 1024;
/// The table's name has this number in the messages about tables, chains, rules, sets and
/// elements alike (`NFTA_*_TABLE`, `NFTA_TABLE_NAME`).
const TABLE_NAME: u16 = 1;

/// The pause before a watch that has ended begins anew.
const PAUSE: Duration = Duration::from_secs(1);

/// Follows changes of our tables from a thread of its own, for as long as the process lives.
///
/// `changed` is called after every change by anyone but the netlink socket with the port number
/// `ours`, and when notices were lost.
///
/// # Errors
///
/// If the kernel refuses the socket.
pub fn watch(ours: u32, changed: impl Fn() + Send + 'static) -> io::Result<()> {
    let mut socket = open()?;
    thread::Builder::new()
        .name("nftables-watch".to_owned())
        .spawn(move || {
            loop {
                let error = follow(&socket, ours, &changed);
                tracing::warn!(%error, "the watch of our tables has ended; it begins anew");
                socket = loop {
                    thread::sleep(PAUSE);
                    match open() {
                        Ok(socket) => break socket,
                        Err(error) => {
                            tracing::warn!(%error, "cannot watch our tables; trying again");
                        }
                    }
                };
                // Nobody has watched meanwhile.
                changed();
            }
        })?;
    Ok(())
}

fn open() -> io::Result<NetlinkSocket> {
    let socket = mnl::Socket::open(mnl::Bus::Netfilter)?;
    socket.bind(GROUP, 0)?;
    let socket = NetlinkSocket(socket);
    // Without the privilege the default has to do; lost notices only cost a look.
    let _ = setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER);
    Ok(socket)
}

/// Follows what a socket says, until it fails.
fn follow(socket: &NetlinkSocket, ours: u32, changed: &impl Fn()) -> io::Error {
    let mut buffer = vec![0; NOTICE];
    loop {
        match socket.0.recv_raw(&mut buffer) {
            Ok(length) => {
                let notices = buffer.get(..length).unwrap_or(&[]);
                if messages(notices).any(|message| is_interference(message, ours)) {
                    changed();
                }
            }
            Err(error) if error.raw_os_error() == Some(Errno::EINTR as i32) => {}
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => changed(),
            Err(error) => return error,
        }
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let message = bytes.get(..length.max(NLMSG_HEADER))?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

/// Whether a notice says that another socket changed our tables.
fn is_interference(message: &[u8], ours: u32) -> bool {
    let port = message
        .get(12..16)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u32::from_ne_bytes);
    let attributes = message.get(NLMSG_HEADER + NFGEN_HEADER..).unwrap_or(&[]);
    port != Some(ours) && find(attributes, TABLE_NAME).and_then(string) == Some(TABLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::attributes::put_string;
    use crate::host::netlink::{close_message, put_headers};

    #[test]
    fn only_changes_of_our_tables_by_others_are_interference() {
        let notice = |port: u32, table: &str| {
            let mut message = Vec::new();
            put_headers(&mut message, 0x0a0c, 0, 0, 2, 0);
            message[12..16].copy_from_slice(&port.to_ne_bytes());
            put_string(&mut message, TABLE_NAME, table);
            close_message(&mut message, 0);
            message
        };
        let cases = [
            ("ours", notice(7, "pointsman"), false),
            ("another's, of our table", notice(8, "pointsman"), true),
            (
                "another's, of another table",
                notice(8, "kube-proxy"),
                false,
            ),
            (
                "one cut short",
                notice(8, "pointsman")[..20].to_vec(),
                false,
            ),
        ];
        for (what, message, expected) in cases {
            assert_eq!(is_interference(&message, 7), expected, "{what}");
        }
        let both = [notice(7, "pointsman"), notice(8, "pointsman")].concat();
        assert_eq!(messages(&both).count(), 2);
        assert_eq!(messages(&both[..5]).count(), 0);
    }
}
