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
use super::wire::uapi::{
    NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN, NFTA_GEN_PROC_NAME, NFTA_GEN_PROC_PID,
};
use crate::dataplane::Culprit;
use crate::host::netlink::attributes::{be_u32, find, string};
use crate::host::netlink::ffi::NetlinkSocket;
use crate::host::netlink::socket::messages;
use crate::host::netlink::{NFGEN_HEADER, NLMSG_HEADER, message_type};

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
/// `changed` is called after every transaction of anyone but the netlink socket with the port number
/// `ours` that changes them, with who that was, and when notices were lost.
///
/// # Errors
///
/// If the kernel refuses the socket.
pub fn watch(ours: u32, changed: impl Fn(Option<Culprit>) + Send + 'static) -> io::Result<()> {
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
                changed(None);
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
fn follow(socket: &NetlinkSocket, ours: u32, changed: &impl Fn(Option<Culprit>)) -> io::Error {
    let mut watched = Watched::by(ours);
    let mut buffer = vec![0; NOTICE];
    loop {
        match socket.0.recv_raw(&mut buffer) {
            Ok(length) => {
                let notices = buffer.get(..length).unwrap_or(&[]);
                for culprit in watched.hear(notices) {
                    changed(culprit);
                }
            }
            Err(error) if error.raw_os_error() == Some(Errno::EINTR as i32) => {}
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => changed(None),
            Err(error) => return error,
        }
    }
}

/// What the notices of one transaction have said so far.
#[derive(Debug)]
pub struct Watched {
    ours: u32,
    /// Another socket is changing our tables.
    is_interference: bool,
}

impl Watched {
    /// Watched by the netlink socket with this port number.
    #[must_use]
    pub const fn by(ours: u32) -> Self {
        Self {
            ours,
            is_interference: false,
        }
    }

    /// Takes in the notices that were received at once. Says whose each transaction was that was
    /// interference and has ended, as far as the kernel tells.
    pub fn hear(&mut self, notices: &[u8]) -> impl Iterator<Item = Option<Culprit>> {
        messages(notices).filter_map(|message| self.take(message.whole))
    }

    /// Takes in a notice. If it ends a transaction that was interference, says whose it was, as far as
    /// the kernel tells.
    fn take(&mut self, message: &[u8]) -> Option<Option<Culprit>> {
        let number = |at: usize| {
            Some(u32::from_ne_bytes(
                message.get(at..at + 4)?.try_into().ok()?,
            ))
        };
        if number(12) == Some(self.ours) {
            return None;
        }
        let attributes = message.get(NLMSG_HEADER + NFGEN_HEADER..).unwrap_or(&[]);
        let kind = message.get(4..6)?;
        if kind != message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN).to_ne_bytes() {
            self.is_interference |= find(attributes, TABLE_NAME).and_then(string) == Some(TABLE);
            return None;
        }
        std::mem::take(&mut self.is_interference).then(|| culprit(attributes))
    }
}

/// Who has made a generation of the ruleset.
fn culprit(attributes: &[u8]) -> Option<Culprit> {
    Some(Culprit {
        pid: be_u32(find(attributes, NFTA_GEN_PROC_PID)?)?,
        name: find(attributes, NFTA_GEN_PROC_NAME)
            .and_then(string)?
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::nftables::wire::uapi::NFT_MSG_NEWSETELEM;
    use crate::host::netlink::attributes::{put_bytes, put_string};
    use crate::host::netlink::{close_message, put_headers};

    #[test]
    fn transactions_of_others_that_change_our_tables_are_interference_and_the_kernel_says_whose() {
        let header = |kind: u16, port: u32| {
            let mut message = Vec::new();
            let kind = message_type(NFNL_SUBSYS_NFTABLES, kind);
            put_headers(&mut message, kind, 0, 0, 2, 0);
            message[12..16].copy_from_slice(&port.to_ne_bytes());
            message
        };
        let notice = |port: u32, table: &str| {
            let mut message = header(NFT_MSG_NEWSETELEM, port);
            put_string(&mut message, TABLE_NAME, table);
            close_message(&mut message, 0);
            message
        };
        let end = |port: u32| {
            let mut message = header(NFT_MSG_NEWGEN, port);
            put_bytes(&mut message, NFTA_GEN_PROC_PID, &77u32.to_be_bytes());
            put_string(&mut message, NFTA_GEN_PROC_NAME, "nft");
            close_message(&mut message, 0);
            message
        };
        let nft = Culprit {
            pid: 77,
            name: "nft".to_owned(),
        };
        let cases = [
            ("ours", vec![notice(7, "pointsman"), end(7)], vec![]),
            (
                "another's, of our table",
                vec![notice(8, "pointsman"), notice(8, "other"), end(8)],
                vec![Some(nft.clone())],
            ),
            (
                "another's, of another table",
                vec![notice(8, "kube-proxy"), end(8)],
                vec![],
            ),
            (
                "one that has not ended",
                vec![notice(8, "pointsman")],
                vec![],
            ),
            (
                "one cut short",
                vec![notice(8, "pointsman")[..20].to_vec(), end(8)],
                vec![],
            ),
            (
                "two, and ours between them",
                vec![
                    notice(8, "pointsman"),
                    end(8),
                    notice(7, "pointsman"),
                    end(7),
                    notice(9, "pointsman"),
                    header(NFT_MSG_NEWGEN, 9),
                ],
                vec![Some(nft), None],
            ),
        ];
        for (what, messages, expected) in cases {
            let mut watched = Watched::by(7);
            let found: Vec<Option<Culprit>> = messages
                .iter()
                .filter_map(|message| watched.take(message))
                .collect();
            assert_eq!(found, expected, "{what}");
        }
        let both = [notice(7, "pointsman"), notice(7, "pointsman")].concat();
        assert_eq!(messages(&both).count(), 2);
        assert_eq!(messages(&both[..5]).count(), 0);
    }

    #[test]
    fn a_notice_shorter_than_its_header_ends_what_is_heard() {
        for length in [0u32, 1, 15] {
            let mut notices = vec![0; 64];
            notices[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Watched::by(7).hear(&notices).count(), 0, "{length}");
        }
    }
}
