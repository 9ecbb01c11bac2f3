//! What has been programmed lately, on whose account, and how that went.
//!
//! A ring in memory: what a person is told who asks what happened, and what is logged on SIGUSR1.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::reconciler::{Desired, Synced};
use crate::core::explain::Programmed;
use crate::core::model::{ObjectKey, Owner, ServiceId};
use crate::source::changes::{Cause, OBSERVED};

/// How many transactions are kept.
const MOST_TRANSACTIONS: usize = 256;
/// How many objects are named of each.
const MOST_CAUSES: usize = 8;

/// One sync, of one transaction or several, or one that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    /// Counted from 1.
    pub(crate) number: u64,
    /// When it ended, RFC 3339.
    pub(crate) at: String,
    /// Objects that had changed.
    pub(crate) causes: Vec<String>,
    /// So many more had.
    #[serde(default)]
    pub(crate) more_causes: usize,
    /// Services that were compiled again.
    pub(crate) compiled: usize,
    /// Elements, or rules, that were written or taken away.
    pub(crate) operations: usize,
    /// Of how many transactions.
    pub(crate) transactions: usize,
    /// Bytes that were sent.
    pub(crate) bytes: usize,
    /// From the first of those changes to the end.
    pub(crate) took_us: u64,
    /// Of that, the kernel's part.
    pub(crate) kernel_us: u64,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<String>,
}

/// What a Service was last programmed for.
#[derive(Debug, Clone)]
struct Last {
    at: Timestamp,
    took: Duration,
    cause: Cause,
}

/// What has been programmed.
#[derive(Debug)]
pub(crate) struct Journal {
    entries: VecDeque<Entry>,
    numbers: u64,
    /// What has been heard since the last entry.
    causes: Vec<Cause>,
    more_causes: usize,
    since: Option<Instant>,
    /// What has been heard of each Service that is not in effect.
    pending: FxHashMap<ServiceId, (Cause, Instant)>,
    /// Services that have changed since the first sync.
    last: FxHashMap<ServiceId, Last>,
    /// Some object has gone since the last entry.
    some_gone: bool,
    /// When everything was programmed first.
    begun: Option<Timestamp>,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            numbers: 0,
            causes: Vec::new(),
            more_causes: 0,
            since: None,
            pending: FxHashMap::default(),
            last: FxHashMap::default(),
            some_gone: false,
            begun: None,
        }
    }

    /// Notes what has been taken in, after it was.
    pub(super) fn heard(&mut self, causes: Vec<Cause>, desired: &Desired) {
        let now = Instant::now();
        let state = desired.state();
        for cause in causes {
            self.some_gone |= cause.gone;
            let of = match cause.kind {
                "Service" => state.id_of(&cause.key),
                "EndpointSlice" => state.owner_of(&cause.key),
                OBSERVED => state.id_of(&cause.key),
                _ => None,
            };
            // A new list names objects that are as they were.
            let owner = of.map_or(Owner::Cluster, Owner::Service);
            if !cause.gone && !state.is_dirty(owner) {
                continue;
            }
            self.since.get_or_insert(now);
            if let Some(id) = of.filter(|_| cause.kind != OBSERVED) {
                let first = self.pending.remove(&id).map(|(_, first)| first);
                self.pending
                    .insert(id, (cause.clone(), first.unwrap_or(now)));
            }
            if self.causes.len() < MOST_CAUSES {
                self.causes.push(cause);
            } else {
                self.more_causes += 1;
            }
        }
    }

    /// Notes something that no object has brought.
    pub(super) fn other_cause(&mut self, what: &'static str) {
        self.since.get_or_insert_with(Instant::now);
        let cause = Cause {
            kind: what,
            key: ObjectKey::new("", ""),
            version: 0,
            gone: false,
        };
        if self.causes.len() < MOST_CAUSES && !self.causes.contains(&cause) {
            self.causes.push(cause);
        }
    }

    /// Notes what is in effect now.
    pub(super) fn synced(&mut self, synced: &Synced, desired: &Desired) {
        let now = Instant::now();
        let at = Timestamp::now();
        let settled = self.pending.extract_if(|id, _| {
            let owner = Owner::Service(*id);
            !desired.state().is_dirty(owner) && desired.engine().has_settled(owner)
        });
        for (id, (cause, since)) in settled {
            if desired.state().name(id).is_none() {
                self.last.remove(&id);
                continue;
            }
            let took = now - since;
            self.last.insert(id, Last { at, took, cause });
        }
        // A Service that goes is known by name only.
        if std::mem::take(&mut self.some_gone) {
            self.last
                .retain(|id, _| desired.state().name(*id).is_some());
            self.pending
                .retain(|id, _| desired.state().name(*id).is_some());
        }
        self.begun.get_or_insert(at);
        if synced.applied.operations > 0 || !self.causes.is_empty() {
            self.add(synced, None, at);
        } else {
            self.since = None;
        }
    }

    /// Notes what could not be programmed.
    pub(super) fn failed(&mut self, why: String) {
        self.add(&Synced::default(), Some(why), Timestamp::now());
    }

    fn add(&mut self, synced: &Synced, refused: Option<String>, at: Timestamp) {
        self.numbers += 1;
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let causes = std::mem::take(&mut self.causes);
        let entry = Entry {
            number: self.numbers,
            at: at.to_string(),
            causes: causes.iter().map(ToString::to_string).collect(),
            more_causes: std::mem::take(&mut self.more_causes),
            compiled: synced.compiled,
            operations: synced.applied.operations,
            transactions: synced.applied.transactions,
            bytes: synced.applied.bytes,
            took_us: self.since.take().map_or(0, |since| micros(since.elapsed())),
            kernel_us: micros(synced.applied.kernel),
            refused,
        };
        if self.entries.len() >= MOST_TRANSACTIONS {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// The last transactions, the newest last.
    pub(crate) fn entries(&self, most: usize) -> Vec<Entry> {
        let skip = self.entries.len().saturating_sub(most);
        self.entries.iter().skip(skip).cloned().collect()
    }

    /// When a Service was programmed last, and why.
    pub(crate) fn programmed(&self, id: ServiceId) -> Option<Programmed> {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        match self.last.get(&id) {
            Some(last) => Some(Programmed {
                at: last.at.to_string(),
                took_us: micros(last.took),
                because_of: last.cause.to_string(),
            }),
            None => self.begun.map(|begun| Programmed {
                at: begun.to_string(),
                took_us: 0,
                because_of: "the start of this process".to_owned(),
            }),
        }
    }

    /// How many syncs there have been.
    pub(crate) const fn number(&self) -> u64 {
        self.numbers
    }

    /// How many Services have changes that are not in effect.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Logs all of it.
    pub(crate) fn log(&self) {
        for entry in &self.entries {
            let causes = entry.causes.join(", ");
            tracing::info!(
                number = entry.number,
                at = entry.at,
                causes,
                more_causes = entry.more_causes,
                operations = entry.operations,
                transactions = entry.transactions,
                took_us = entry.took_us,
                kernel_us = entry.kernel_us,
                refused = entry.refused,
                "history",
            );
        }
    }
}

impl Drop for Journal {
    /// What led to a panic is told with it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.log();
        }
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
