//! When our tables are read again after others have changed them, and what is said of that.
//!
//! At once, as long as that is cheap: whoever flushes them all the time has no connection lost for longer
//! than a repair takes. What holds repairs back is their cost and nothing else.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::dataplane::Culprit;

/// How many times as long as a repair took nobody repairs after it.
const REST: u32 = 4;
/// How often a line is worth it.
const TELLING: Duration = Duration::from_secs(1);

/// How many repairs are remembered.
const MOST_TIMES: usize = 256;
/// For how long.
const LATELY: Duration = Duration::from_secs(600);

/// What others have done to our tables.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    /// How often somebody has changed them since they were last read.
    changes: u32,
    /// Who did last, if that is known.
    culprit: Option<Culprit>,
    /// What the repair that is under way has taken, if one is.
    took: Option<Duration>,
    /// When it was last told, and how many repairs have gone without a word since.
    told: Option<Instant>,
    untold: u32,
    /// When there was one, the oldest first.
    times: VecDeque<Instant>,
    /// Who it was last.
    last_by: Option<String>,
}

impl Repairs {
    /// Somebody else has changed our tables.
    pub(super) fn heard(&mut self, culprit: Option<Culprit>) {
        self.changes += 1;
        self.culprit = culprit.or_else(|| self.culprit.take());
    }

    /// The tables are about to be read. Returns whether that is because of others.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        self.took.get_or_insert_default();
        let heard = std::mem::take(&mut self.changes) > 0;
        if heard {
            if self.times.len() >= MOST_TIMES {
                self.times.pop_front();
            }
            self.times.push_back(now);
            let by = self.culprit.as_ref().map(ToString::to_string);
            self.last_by = by.or_else(|| self.last_by.take());
        }
        if heard && self.told.is_none_or(|told| now - told >= TELLING) {
            let by = self.culprit.take().map(|culprit| culprit.to_string());
            let by = by
                .as_deref()
                .unwrap_or("a process that nftables does not name");
            let repairs = std::mem::take(&mut self.untold) + 1;
            tracing::warn!(
                by,
                repairs,
                "somebody else has changed our tables: reading them again, and putting right what differs",
            );
            self.told = Some(now);
        } else if heard {
            self.untold += 1;
        }
        heard
    }

    /// How often there was one in the last ten minutes.
    pub(super) fn lately(&self, now: Instant) -> usize {
        let recent = |time: &&Instant| now.saturating_duration_since(**time) < LATELY;
        self.times.iter().filter(recent).count()
    }

    /// Who it was last.
    pub(super) fn last_by(&self) -> Option<String> {
        self.last_by.clone()
    }

    /// Whether a line was worth it for this repair.
    pub(super) const fn is_told(&self) -> bool {
        self.untold == 0
    }

    /// The repair that is under way, if one is, has taken so much more time: waiting is none.
    pub(super) fn spend(&mut self, time: Duration) {
        if let Some(took) = &mut self.took {
            *took += time;
        }
    }

    /// How long no other repair is to begin, the one that is under way having come so far.
    pub(super) fn rest(&self) -> Duration {
        self.took.unwrap_or_default() * REST
    }

    /// The repair that is under way, if one is, is done.
    pub(super) const fn done(&mut self) {
        self.took = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_rest_in_proportion_to_what_they_cost() {
        let now = Instant::now();
        let millisecond = Duration::from_millis(1);
        let mut repairs = Repairs::default();
        repairs.spend(millisecond);
        assert_eq!(repairs.rest(), Duration::ZERO, "that was none");
        repairs.heard(None);
        assert!(repairs.begin(now));
        repairs.spend(millisecond);
        assert_eq!(repairs.rest(), 4 * millisecond);
        // Reading is a part of it, and so is programming what was missing.
        assert!(!repairs.begin(now), "nobody has changed anything");
        repairs.spend(9 * millisecond);
        assert_eq!(repairs.rest(), 40 * millisecond);
        repairs.done();
        assert_eq!(repairs.rest(), Duration::ZERO);
    }

    #[test]
    fn one_line_a_second_says_who_it_was() {
        let start = Instant::now();
        let mut repairs = Repairs::default();
        let culprit = Culprit {
            pid: 7,
            name: "nft".to_owned(),
        };
        for step in 0..100 {
            repairs.heard(Some(culprit.clone()));
            assert!(repairs.begin(start + step * Duration::from_millis(5)));
            repairs.done();
        }
        assert_eq!(repairs.untold, 99);
        repairs.heard(None);
        repairs.begin(start + TELLING);
        assert_eq!((repairs.untold, repairs.culprit), (0, None));
    }
}
