//! The netlink socket: transactions out, errors and dumps in.
//!
//! A transaction is one `sendmsg`, whatever its size: the kernel takes a batch that comes in two
//! for two broken ones (`nfnetlink_rcv_batch`). It has been applied, or not, when that call
//! returns; what went wrong waits in the receive queue.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use thiserror::Error;

use super::attributes::{be_u32, find, string};
use super::*;

/// A failure to talk to the kernel at all.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The socket cannot be had.
    #[error(
        "cannot open a netfilter netlink socket: {0}; the kernel needs nf_tables (5.10 or newer)"
    )]
    Open(io::Error),
    /// We may not.
    #[error(
        "not permitted to use nftables: run as root, or with CAP_NET_ADMIN in this network namespace"
    )]
    NotPermitted,
    /// The kernel has no nf_tables.
    #[error(
        "the kernel does not support nf_tables for {family}: {what}: {error}; load the nf_tables modules, or use a kernel of 5.10 or newer that has them"
    )]
    Unsupported {
        /// The table family asked for.
        family: &'static str,
        /// What it refuses.
        what: String,
        /// What the kernel said.
        error: Errno,
    },
    /// A message could not be sent.
    #[error(
        "cannot send {bytes} bytes to the kernel: {error}; a batch needs a send buffer of its size, which takes CAP_NET_ADMIN in the initial user namespace or a higher net.core.wmem_max"
    )]
    Send {
        /// The batch's size.
        bytes: usize,
        /// Why.
        error: io::Error,
    },
    /// An answer could not be read.
    #[error("cannot read the kernel's answer: {0}")]
    Receive(io::Error),
    /// A request was refused.
    #[error("the kernel refuses to list its nftables objects: {0}")]
    Dump(Errno),
    /// The ruleset was never quiet for as long as listing it takes.
    #[error(
        "nftables changed under each of {tries} listings: find the program that writes it all the time (nft monitor)"
    )]
    Restless {
        /// How often it was listed.
        tries: u32,
    },
    /// The kernel's answers to a transaction did not fit into the socket.
    #[error(
        "the kernel's answer to a transaction got lost: whether it was applied shows when the tables are read; a higher net.core.rmem_max makes room for more"
    )]
    Unanswered,
    /// The kernel does not answer.
    #[error("no answer from the kernel within {0:?}")]
    TimedOut(Duration),
}

/// An error that the kernel reports about one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The message's sequence number.
    pub sequence: u32,
    /// Why.
    pub errno: Errno,
    /// The kernel's own words, if it has any.
    pub message: Option<String>,
    /// Where in the message the offending attribute begins, in bytes, if it says so.
    pub offset: Option<u32>,
}

/// How long a dump may stall before it counts as failed. A dump is answered at once; this only
/// keeps a broken kernel from hanging the sync loop.
const PATIENCE: Duration = Duration::from_secs(30);
/// For how long a listing that is disturbed is begun again.
pub(crate) const RESTLESS: Duration = Duration::from_secs(10);
/// More than the largest piece that the kernel hands out at once (`NLMSG_GOODSIZE`, 32 KiB).
const RECEIVE_CHUNK: usize = 64 * 1024;
/// Room for the errors of a batch: one for each of its messages, at most.
const ERROR_BUFFER: usize = 4 * 1024 * 1024;
/// `NETLINK_CAP_ACK` and `NETLINK_EXT_ACK` (`include/uapi/linux/netlink.h`).
const NETLINK_CAP_ACK: i32 = 10;
const NETLINK_EXT_ACK: i32 = 11;

/// A socket to the kernel's nf_tables.
pub(crate) struct Socket {
    inner: ffi::NetlinkSocket,
    /// Aligned for a netlink header, as `mnl` demands.
    buffer: Vec<u32>,
    send_buffer: usize,
}

impl Socket {
    /// Opens a socket in the current network namespace.
    pub(crate) fn open() -> Result<Self, SocketError> {
        let inner = mnl::Socket::new(mnl::Bus::Netfilter).map_err(SocketError::Open)?;
        let inner = ffi::NetlinkSocket(inner);
        {
            let fd = inner.as_fd();
            let errno = |error: Errno| SocketError::Open(error.into());
            let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(errno)?;
            let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
            fcntl(fd, FcntlArg::F_SETFL(flags)).map_err(errno)?;
            ffi::enable_netlink_option(fd, NETLINK_CAP_ACK).map_err(SocketError::Open)?;
            ffi::enable_netlink_option(fd, NETLINK_EXT_ACK).map_err(SocketError::Open)?;
            // Without the privilege the default has to do; a large batch then says so.
            let _ = setsockopt(&fd, sockopt::RcvBufForce, &ERROR_BUFFER);
        }
        Ok(Self {
            inner,
            buffer: vec![0; RECEIVE_CHUNK / 4],
            send_buffer: 0,
        })
    }

    /// The number by which the kernel knows this socket.
    pub(crate) fn port(&self) -> u32 {
        self.inner.0.portid()
    }

    /// Sends a whole batch at once and returns what the kernel refused of it: nothing if it
    /// has been applied, everything if there is a single refusal.
    ///
    /// `last` is the sequence number of its last message, which asks for an acknowledgement, and no
    /// other does: answers to thousands of messages do not fit into the socket, and the kernel drops
    /// without a word what does not (`netlink_ack`). If that one does not come, others may be missing.
    pub(crate) fn transact(
        &mut self,
        batch: &[u8],
        last: u32,
    ) -> Result<Vec<Refusal>, SocketError> {
        self.drain()?;
        self.make_room(batch.len());
        self.inner.0.send(batch).map_err(|error| {
            if error.raw_os_error() == Some(Errno::EPERM as i32) {
                SocketError::NotPermitted
            } else {
                SocketError::Send {
                    bytes: batch.len(),
                    error,
                }
            }
        })?;
        let mut refusals = Vec::new();
        let mut acknowledged = false;
        // The kernel has answered before it returns from sending.
        while let Some(length) = self.receive()? {
            let (refused, acknowledges) = answers(bytes(&self.buffer, length), last);
            refusals.extend(refused);
            acknowledged |= acknowledges;
        }
        if refusals.is_empty() && !acknowledged {
            return Err(SocketError::Unanswered);
        }
        // Of the whole, that is; a single table may belong to somebody else (`NFT_TABLE_F_OWNER`).
        let whole = |refusal: &Refusal| refusal.errno == Errno::EPERM && refusal.sequence == 0;
        if refusals.iter().any(whole) {
            return Err(SocketError::NotPermitted);
        }
        Ok(refusals)
    }

    /// Asks for a listing and calls `each` with every message of it. If the ruleset changes
    /// underneath, it starts over with a fresh `start()`, until there has been no quiet moment for
    /// too long.
    pub(crate) fn dump<S>(
        &mut self,
        request: &[u8],
        start: impl Fn() -> S,
        mut each: impl FnMut(&mut S, &Message<'_>),
    ) -> Result<S, SocketError> {
        let began = Instant::now();
        let mut tries: u32 = 0;
        loop {
            let (state, disturbed) = self.dump_once(request, start(), &mut each)?;
            if !disturbed {
                return Ok(state);
            }
            tries += 1;
            if began.elapsed() >= RESTLESS {
                return Err(SocketError::Restless { tries });
            }
            if tries.is_power_of_two() {
                tracing::debug!(
                    tries,
                    "the ruleset changed while it was listed: listing it again"
                );
            }
        }
    }

    /// Asks for a listing once, and calls `each` with every message of it. Also returns whether
    /// the ruleset, anybody's, changed underneath.
    pub(crate) fn dump_once<S>(
        &mut self,
        request: &[u8],
        mut state: S,
        mut each: impl FnMut(&mut S, &Message<'_>),
    ) -> Result<(S, bool), SocketError> {
        self.drain()?;
        self.inner
            .0
            .send(request)
            .map_err(|error| SocketError::Send {
                bytes: request.len(),
                error,
            })?;
        let mut disturbed = false;
        loop {
            let length = self.wait()?;
            for message in messages(bytes(&self.buffer, length)) {
                disturbed |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => return Ok((state, disturbed)),
                    NLMSG_ERROR => match message.refusal() {
                        Some(refusal) if refusal.errno == Errno::EPERM => {
                            return Err(SocketError::NotPermitted);
                        }
                        Some(refusal) => return Err(SocketError::Dump(refusal.errno)),
                        None => return Ok((state, disturbed)),
                    },
                    _ => each(&mut state, &message),
                }
            }
        }
    }

    /// Sends messages that each ask for objects and for an acknowledgement, which ends the answer,
    /// and calls `each` with every message of the answers. An object that is not there ends an
    /// answer too.
    pub(crate) fn ask(
        &mut self,
        requests: &[u8],
        count: usize,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<(), SocketError> {
        if count == 0 {
            return Ok(());
        }
        self.drain()?;
        self.inner
            .0
            .send(requests)
            .map_err(|error| SocketError::Send {
                bytes: requests.len(),
                error,
            })?;
        let mut ended = 0;
        while ended < count {
            let length = self.wait()?;
            for message in messages(bytes(&self.buffer, length)) {
                if message.kind != NLMSG_ERROR {
                    each(&message);
                    continue;
                }
                ended += 1;
                match message.refusal().map(|refusal| refusal.errno) {
                    None | Some(Errno::ENOENT) => {}
                    Some(Errno::EPERM) => return Err(SocketError::NotPermitted),
                    Some(errno) => return Err(SocketError::Dump(errno)),
                }
            }
        }
        Ok(())
    }

    /// The kernel copies a batch whole: the send buffer has to hold it.
    fn make_room(&mut self, batch: usize) {
        // Room for the socket's own bookkeeping too.
        let wanted = batch + batch / 8 + 64 * 1024;
        if self.send_buffer >= wanted {
            return;
        }
        let fd = self.inner.as_fd();
        if setsockopt(&fd, sockopt::SndBufForce, &wanted).is_err() {
            // Bounded by net.core.wmem_max; if that is too little, sending says so.
            let _ = setsockopt(&fd, sockopt::SndBuf, &wanted);
        }
        self.send_buffer = wanted;
    }

    /// Throws away answers to earlier requests.
    fn drain(&mut self) -> Result<(), SocketError> {
        while self.receive()?.is_some() {}
        Ok(())
    }

    /// Reads what is there, or `None`.
    fn receive(&mut self) -> Result<Option<usize>, SocketError> {
        loop {
            match self.inner.0.recv_raw(bytes_mut(&mut self.buffer)) {
                Ok(length) => return Ok(Some(length)),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return Ok(None),
                    Some(Errno::EINTR) => {}
                    // Errors were lost: the batch failed all the same, and the first ones that
                    // were queued say why.
                    Some(Errno::ENOBUFS) => {}
                    _ => return Err(SocketError::Receive(error)),
                },
            }
        }
    }

    fn wait(&mut self) -> Result<usize, SocketError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(length) = self.receive()? {
                return Ok(length);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(SocketError::TimedOut(PATIENCE));
            }
            let fd = self.inner.as_fd();
            let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(SocketError::Receive(error.into())),
            }
        }
    }
}

fn bytes(buffer: &[u32], length: usize) -> &[u8] {
    ffi::words_as_bytes(buffer).get(..length).unwrap_or(&[])
}

fn bytes_mut(buffer: &mut [u32]) -> &mut [u8] {
    ffi::words_as_bytes_mut(buffer)
}

/// What the kernel refuses in its answers to a transaction, and whether it acknowledges the message with
/// the sequence number `last`.
pub fn answers(bytes: &[u8], last: u32) -> (Vec<Refusal>, bool) {
    let mut refusals = Vec::new();
    let mut acknowledged = false;
    for message in messages(bytes) {
        if message.kind != NLMSG_ERROR {
            continue;
        }
        match message.refusal() {
            Some(refusal) => refusals.push(refusal),
            None => acknowledged |= message.sequence() == Some(last),
        }
    }
    (refusals, acknowledged)
}

/// One netlink message.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    flags: u16,
    payload: &'a [u8],
    /// All of it, header included.
    pub(crate) whole: &'a [u8],
}

impl Message<'_> {
    /// The number of the request that it answers.
    fn sequence(&self) -> Option<u32> {
        let bytes = self.whole.get(8..12)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    /// The family that an nfnetlink message is about, if it is one of ours.
    pub(crate) fn family(&self) -> Option<Family> {
        let number = *self.payload.first()?;
        Family::BOTH
            .into_iter()
            .find(|family| family_number(*family) == number)
    }

    /// The attributes of an nfnetlink message.
    pub(crate) fn attributes(&self) -> &[u8] {
        self.payload.get(NFGEN_HEADER..).unwrap_or(&[])
    }

    /// What an error message says; `None` if it is an acknowledgement.
    fn refusal(&self) -> Option<Refusal> {
        let code = i32::from_ne_bytes(self.payload.get(..4)?.try_into().ok()?);
        if code == 0 {
            return None;
        }
        let refused = self.payload.get(4..4 + NLMSG_HEADER)?;
        let sequence = u32::from_ne_bytes(refused.get(8..12)?.try_into().ok()?);
        let mut refusal = Refusal {
            sequence,
            errno: Errno::from_raw(code.wrapping_neg()),
            message: None,
            offset: None,
        };
        if self.flags & NLM_F_ACK_TLVS != 0 {
            // The refused message follows, cut down to its header if the flag says so.
            let refused_length = if self.flags & NLM_F_CAPPED != 0 {
                NLMSG_HEADER
            } else {
                u32::from_ne_bytes(refused.get(..4)?.try_into().ok()?) as usize
            };
            let attributes = self
                .payload
                .get(4 + refused_length.next_multiple_of(4)..)
                .unwrap_or(&[]);
            refusal.message = find(attributes, NLMSGERR_ATTR_MSG)
                .and_then(string)
                .map(str::to_owned);
            refusal.offset = find(attributes, NLMSGERR_ATTR_OFFS)
                .and_then(|value| Some(u32::from_ne_bytes(value.try_into().ok()?)));
        }
        Some(refusal)
    }
}

/// The messages that were received at once.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let whole = bytes.get(..length)?;
        let message = Message {
            kind: u16::from_ne_bytes(whole.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(whole.get(6..8)?.try_into().ok()?),
            payload: whole.get(NLMSG_HEADER..)?,
            whole,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

/// Whether a number read from a listing is there and what it is.
pub(crate) fn number(attributes: &[u8], kind: u16) -> Option<u32> {
    find(attributes, kind).and_then(be_u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_any_number_is_a_refusal() {
        for (code, errno) in [
            (-1, Errno::EPERM),
            (i32::MIN, Errno::UnknownErrno),
            (i32::MAX, Errno::UnknownErrno),
        ] {
            let mut message = Vec::new();
            put_headers(&mut message, NLMSG_ERROR, 0, 0, 0, 0);
            message.truncate(NLMSG_HEADER);
            message.extend_from_slice(&code.to_ne_bytes());
            message.resize(2 * NLMSG_HEADER + 4, 0);
            close_message(&mut message, 0);
            let (refusals, acknowledged) = answers(&message, 0);
            assert_eq!(refusals.len(), 1, "{code}");
            assert_eq!(refusals[0].errno, errno, "{code}");
            assert!(!acknowledged);
        }
    }
}
