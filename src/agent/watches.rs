//! How the watches of the API server fare, for who asks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::source::cluster::{Kind, Notice};

/// A watch that is tried again is given up after less than so many seconds, but for a list that the server breaks off
/// then: without news of another failure for so long, it has succeeded.
const RECOVERED: Duration = Duration::from_secs(65);

/// One watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Watch {
    /// What is watched.
    pub(crate) kind: String,
    /// All objects have been listed once.
    pub(crate) complete: bool,
    /// When the last object came, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_heard: Option<String>,
    /// Since when it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failing_since: Option<String>,
    /// For how many seconds.
    #[serde(default)]
    pub(crate) failing_for: i64,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
}

#[derive(Debug, Clone, Default)]
struct State {
    complete: bool,
    last_heard: Option<Timestamp>,
    failure: Option<Failure>,
}

#[derive(Debug, Clone)]
struct Failure {
    since: Timestamp,
    /// Without another failure by then, there is none.
    until: Timestamp,
    times: u32,
    why: String,
}

/// All of them. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watches(Arc<Mutex<[State; Kind::ALL.len()]>>);

impl Watches {
    /// Notes what a watch has brought.
    pub(super) fn heard(&self, notice: &Notice) {
        let now = Timestamp::now();
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match notice {
            Notice::Changes(changes) => {
                for kind in Kind::ALL {
                    let is_of_kind = |cause: &&'static str| *cause == kind.name();
                    let mut kinds = changes.causes.iter().map(|cause| cause.kind);
                    if kinds.any(|name| is_of_kind(&name)) {
                        states[kind as usize].last_heard = Some(now);
                        states[kind as usize].failure = None;
                    }
                }
            }
            Notice::Complete(kind) => {
                states[*kind as usize].complete = true;
                states[*kind as usize].failure = None;
            }
            Notice::Failed(kind, why, pause) => {
                let state = &mut states[*kind as usize];
                let goes_on = state
                    .failure
                    .take()
                    .filter(|failure| is_recent(failure, now));
                state.failure = Some(Failure {
                    since: goes_on.as_ref().map_or(now, |failure| failure.since),
                    times: goes_on.map_or(1, |failure| failure.times + 1),
                    until: now.saturating_add(*pause + RECOVERED).unwrap_or(now),
                    why: why.clone(),
                });
            }
        }
    }

    /// What there is to say of them.
    pub(crate) fn all(&self) -> Vec<Watch> {
        let now = Timestamp::now();
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = |(kind, state): (Kind, &State)| {
            let failure = state
                .failure
                .as_ref()
                .filter(|failure| is_recent(failure, now));
            Watch {
                kind: kind.name().to_owned(),
                complete: state.complete,
                last_heard: state.last_heard.map(|at| at.to_string()),
                failing_since: failure.map(|failure| failure.since.to_string()),
                failing_for: failure
                    .map_or(0, |failure| now.as_second() - failure.since.as_second()),
                why: failure.map(|failure| failure.why.clone()),
            }
        };
        Kind::ALL
            .into_iter()
            .zip(states.iter())
            .map(watch)
            .collect()
    }
}

fn is_recent(failure: &Failure, now: Timestamp) -> bool {
    now < failure.until
}
