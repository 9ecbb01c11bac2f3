//! What somebody may want to know of the sync loop.

use tokio::sync::oneshot;

use super::journal::Entry;
use super::status::Loop;
use crate::core::explain::{Explanation, Question};
use crate::core::ir::{Delta, Destination};
use crate::core::model::Owner;
use crate::dataplane::Options;

/// A question, and where the answer goes.
pub(crate) enum Asked {
    /// What will happen to a connection.
    Explain(Box<Question>, oneshot::Sender<Explanation>),
    /// How the node is.
    Status(oneshot::Sender<Loop>),
    /// The last transactions, so many at most.
    History(usize, oneshot::Sender<Vec<Entry>>),
    /// Everything that the kernel should hold, or why that cannot be said.
    Wanted(oneshot::Sender<Result<Wanted, String>>),
    /// How many syncs there have been, and whether something is under way.
    Number(oneshot::Sender<(u64, bool)>),
    /// What Services are called.
    Names(Vec<Owner>, oneshot::Sender<Vec<Option<String>>>),
    /// Whose some destinations are, once everything has been programmed.
    Owners(
        Vec<Destination>,
        oneshot::Sender<Option<Vec<Option<String>>>>,
    ),
    /// Log the last transactions.
    LogHistory,
}

/// What the kernel should hold.
pub(crate) struct Wanted {
    pub(crate) whole: Delta,
    pub(crate) options: Options,
    /// So many syncs there have been: the same before and after means that nothing has changed meanwhile.
    pub(crate) number: u64,
    /// Something is not in the kernel yet, and is known to be missing.
    pub(crate) pending: bool,
}
