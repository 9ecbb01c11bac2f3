//! What the sync loop hears, and waiting for it.

use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::inquiries::Asked;
use crate::dataplane::Culprit;
use crate::source::changes::Changes;

/// Something happened in the cluster or to the node's addresses.
pub(crate) type Events = mpsc::Sender<Changes>;

/// Messages that may wait. Who has more waits too, and so does the API server.
pub(crate) const WAITING: usize = 16;

/// Questions that may wait.
pub(crate) const MOST_QUESTIONS: usize = 4;

/// What the loop hears.
pub(crate) struct Inbox {
    pub(crate) events: mpsc::Receiver<Changes>,
    /// Ends the loop when the sender is gone, after the transaction that is under way.
    pub(crate) stop: oneshot::Receiver<()>,
    /// What somebody wants to know.
    pub(crate) questions: mpsc::Receiver<Asked>,
}

/// Why the loop goes on.
pub(crate) enum Woken {
    Event(Changes),
    Interference(Option<Culprit>),
    Asked(Asked),
    Time,
    Stop,
}

/// Waits until there is something to do, or until a time.
pub(crate) async fn wait(
    inbox: &mut Inbox,
    interfered: &mut mpsc::Receiver<Option<Culprit>>,
    until: Option<Instant>,
) -> Woken {
    let time = async {
        match until {
            Some(until) => tokio::time::sleep_until(until.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        _ = &mut inbox.stop => Woken::Stop,
        Some(culprit) = interfered.recv() => Woken::Interference(culprit),
        Some(question) = inbox.questions.recv() => Woken::Asked(question),
        event = inbox.events.recv() => event.map_or(Woken::Stop, Woken::Event),
        () = time => Woken::Time,
    }
}
