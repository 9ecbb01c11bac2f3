//! What makes the intermediate representation real on a node.
//!
//! A [`Backend`] holds entries, takes deltas, and can say what it holds. It decides nothing
//! about Services: everything that it is told to do is in the delta.

pub mod conntrack;
pub mod iptables;
pub mod nftables;
pub mod options;
mod owners;

use std::error::Error;
use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use thiserror::Error;

use crate::core::ir::{Delta, Entry};
use crate::core::model::{Family, Owner, Protocol};

pub use options::{CountingLevel, Mode, Options};

/// The kernel could not be asked at all. Nothing has changed; try again after a while.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct Unavailable(#[from] pub Box<dyn Error + Send + Sync>);

/// A transaction that did not happen. Nothing of it was applied.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The kernel could not be asked.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The kernel refused the transaction. What it holds may differ from what it was taken to
    /// hold: read it again.
    #[error("the kernel refused the transaction: {}", reasons(.0))]
    Refused(Vec<Refused>),
}

/// One part of a transaction that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What it was about.
    pub what: String,
    /// Whose tables it was for, unless it was the transaction as a whole.
    pub family: Option<Family>,
    /// On whose behalf it was sent; empty if it was the program's.
    pub owners: Vec<Owner>,
    /// Why.
    pub errno: nix::errno::Errno,
    /// The kernel's own words, if it has any.
    pub message: Option<String>,
}

impl Refused {
    /// Whether it says something of the machine and nothing of what was sent: another time the same
    /// may be taken.
    #[must_use]
    pub const fn is_nobodys_fault(&self) -> bool {
        use nix::errno::Errno;
        matches!(
            self.errno,
            Errno::ENOMEM
                | Errno::ENOBUFS
                | Errno::EAGAIN
                | Errno::EINTR
                | Errno::EPERM
                | Errno::EACCES
                | Errno::ENFILE
                | Errno::EMFILE
                | Errno::ENOSPC
                | Errno::EIO
                | Errno::ETIMEDOUT
        )
    }
}

fn reasons(refused: &[Refused]) -> String {
    const SHOWN: usize = 3;
    let mut texts: Vec<String> = refused
        .iter()
        .take(SHOWN)
        .map(|refused| {
            let words = refused
                .message
                .as_ref()
                .map_or_else(String::new, |words| format!(" ({words})"));
            format!("{}: {}{words}", refused.what, refused.errno)
        })
        .collect();
    if refused.len() > SHOWN {
        texts.push(format!("and {} more", refused.len() - SHOWN));
    }
    texts.join("; ")
}

/// What a transaction was, or several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// Element operations.
    pub operations: usize,
    /// Netlink messages.
    pub messages: usize,
    /// Bytes sent.
    pub bytes: usize,
    /// Time that encoding took.
    pub encoding: Duration,
    /// Time that the kernel took.
    pub kernel: Duration,
    /// How many transactions it was.
    pub transactions: usize,
    /// Time that the kernel took for the longest of them.
    pub longest: Duration,
    /// Element operations and other messages in the largest of them.
    pub largest: usize,
}

impl AddAssign for Applied {
    fn add_assign(&mut self, other: Self) {
        self.operations += other.operations;
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.encoding += other.encoding;
        self.kernel += other.kernel;
        self.transactions += other.transactions;
        self.longest = self.longest.max(other.longest);
        self.largest = self.largest.max(other.largest);
    }
}

/// Hears that somebody else has changed what is ours, and who, if that is known.
pub type Changed = Box<dyn Fn(Option<Culprit>) + Send>;

/// A process that has changed what is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Culprit {
    /// Its number, in the first PID namespace.
    pub pid: u32,
    /// Its name, as in `/proc/PID/comm`.
    pub name: String,
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever names a process may write anything.
        write!(f, "{} (pid {})", self.name.escape_debug(), self.pid)
    }
}

/// Something that is held otherwise than it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Whose tables it is in.
    pub family: Family,
    /// On whose behalf it is wanted, or was.
    pub owner: Owner,
    /// What it is, and how it differs.
    pub what: String,
}

/// A chain, not ours, that drops what this node forwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropping {
    /// Its table, with the family.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// What it does: "drops" or "rejects".
    pub how: &'static str,
}

/// The node's packet filter, as far as it is ours.
pub trait Backend {
    /// What it programs.
    const MODE: Mode;

    /// Connects to it, and sees which of the families it can program: of those that it cannot it warns.
    /// Changes nothing; but what the kernel needs for it is loaded afterwards, conntrack included.
    ///
    /// # Errors
    ///
    /// If this kernel has it for no family, or we may not use it.
    fn open(options: Options) -> Result<Self, Unavailable>
    where
        Self: Sized;

    /// The text that a person would load to have the same.
    fn render(options: &Options, entries: &[Entry]) -> String
    where
        Self: Sized;

    /// Programs differently from the next transaction on, in the same families. The caller reads again
    /// first.
    fn reconfigure(&mut self, options: Options);

    /// The families that are programmed: those of the options that the kernel has, but for those that are
    /// withheld.
    fn families(&self) -> Vec<Family>;

    /// Leaves a family as it is from now on, or does so no longer. The caller reads again first.
    fn withhold(&mut self, family: Family, withhold: bool);

    /// Whether a family can be programmed that could not when it was looked for last. The caller reads
    /// again first.
    fn look_for_families(&mut self) -> bool;

    /// Has the next transaction remove what another proxy has programmed by the same means.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    fn take_over(&mut self) -> Result<(), Unavailable>;

    /// Removes what another proxy has programmed by other means, once our own rules serve. Returns how
    /// many chains that were.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked or refuses; nothing has changed then.
    fn remove_leftovers(&mut self) -> Result<usize, ApplyError>;

    /// Removes what another mode of ours has programmed, once this one's rules are in place. Returns how much it
    /// was.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked or refuses.
    fn remove_other_mode(&mut self) -> Result<usize, ApplyError> {
        Ok(0)
    }

    /// Whether another proxy has left something that a takeover would remove.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    fn has_leftovers(&mut self) -> Result<bool, Unavailable> {
        Ok(false)
    }

    /// Removes everything that is ours, and nothing else.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked or refuses.
    fn clean_up(&mut self) -> Result<(), ApplyError>;

    /// Calls `changed` after every change of what is ours by somebody else, for as long as the process
    /// lives. Returns whether nobody can have changed it since it was read.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    fn watch(&mut self, changed: Changed) -> Result<bool, Unavailable>;

    /// How much it holds, by family and by what it is: elements of sets, or rules of tables. Remembered clients do not count: the kernel adds
    /// and removes them.
    fn counts(&self) -> Vec<(Family, &'static str, usize)>;

    /// How much of it the last transaction that changed anything wrote, where that is not what it changed.
    fn written(&self) -> Vec<(Family, &'static str, usize)> {
        Vec::new()
    }

    /// How many packets to `NodePort`s on loopback have been refused, by family and protocol, since it was
    /// programmed; none where nobody serves them there.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    fn refused_on_loopback(&mut self) -> Result<Vec<(Family, Protocol, u64)>, Unavailable>;

    /// Reads what it holds. If that is anything but what we program, it is logged, nothing is
    /// returned, and the next [`Self::apply`] replaces all of it at once.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    fn read(&mut self) -> Result<Vec<Entry>, Unavailable>;

    /// Reads what it holds and says in what that differs from what is wanted, of which this is all. Changes
    /// nothing. For a backend that has programmed nothing and will not.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    fn differences(&mut self, whole: &Delta) -> Result<Vec<Difference>, Unavailable>;

    /// Applies a delta, all of it or nothing.
    ///
    /// # Errors
    ///
    /// Nothing has been applied then. The caller reads again and tries again: without the
    /// owners that a refusal names if it has named them before.
    fn apply(&mut self, delta: &Delta) -> Result<Applied, ApplyError>;

    /// After how many operations a transaction had better end, and another begin: the kernel lets
    /// nobody else change the packet filter meanwhile. No limit if all has to be replaced at once.
    fn most_operations(&self) -> usize;

    /// How long it had better be left alone after a transaction, so that it does not do nothing else.
    fn rest(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether transactions keep Services apart, so that a refusal names exactly one of them.
    fn isolate_services(&mut self, isolate: bool);

    /// Whether something is held that nothing needs any more.
    fn has_garbage(&self) -> bool;

    /// Takes away what nothing needs any more.
    ///
    /// # Errors
    ///
    /// What could not be taken away stays, harmlessly.
    fn tidy(&mut self) -> Result<(), ApplyError>;
}
