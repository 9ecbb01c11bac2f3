//! Why a watch failed.

use thiserror::Error;

use super::answer::Halt;
use super::refusal::Refusal;
use super::unreadable::Unreadable;

/// Why a watch failed, by what it was doing. What has been programmed stays, and the watch is tried again.
#[derive(Debug, Error)]
pub(super) enum Trouble {
    /// There was no answer.
    #[error("cannot ask: {0}")]
    Request(#[source] kube::Error),
    /// The answer was a refusal.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A watch was ended by the server, with a reason.
    #[error("ended: {0}")]
    Ended(#[source] Refusal),
    /// The answer did not come to its end.
    #[error(transparent)]
    Halted(#[from] Halt),
    /// Something was said that has no meaning: what it was meant to say is lost.
    #[error("the answer cannot be read: {0}")]
    Unreadable(#[from] Unreadable),
    /// A watch that ends as soon as it has begun, without an event.
    #[error("the watch was ended at once")]
    Short,
}
