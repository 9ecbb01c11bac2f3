//! When the tasks of the sync loop are due: each has its own earliest and latest time.
//!
//! Pure: the time is an argument.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The first pause after a failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// When one task is due.
#[derive(Debug)]
pub(crate) struct Deadline {
    /// By when it is wanted; `None` if there is nothing to do.
    latest: Option<Instant>,
    /// Before when it must not happen, whoever wants it.
    earliest: Option<Instant>,
    longest_retry: Duration,
    retries: Option<ExponentialBackoff>,
}

impl Deadline {
    /// Nothing to do. After failures in a row pauses grow up to the longest.
    pub(crate) const fn new(longest_retry: Duration) -> Self {
        Self {
            latest: None,
            earliest: None,
            longest_retry,
            retries: None,
        }
    }

    /// There is something to do, which has time until then.
    pub(crate) fn want(&mut self, by: Instant) {
        self.latest = Some(self.latest.map_or(by, |latest| latest.min(by)));
    }

    /// Not before then, even if it is wanted earlier. A time that is later already stays.
    pub(crate) fn not_before(&mut self, at: Instant) {
        self.earliest = Some(self.earliest.map_or(at, |earliest| earliest.max(at)));
    }

    /// As early as it is wanted, unless it has failed.
    pub(crate) const fn hurry(&mut self) {
        if self.retries.is_none() {
            self.earliest = None;
        }
    }

    /// When it is to happen, if it is.
    pub(crate) fn at(&self) -> Option<Instant> {
        let latest = self.latest?;
        Some(
            self.earliest
                .map_or(latest, |earliest| earliest.max(latest)),
        )
    }

    /// Whether it is to happen now. If so it is no longer wanted.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let due = self.at().is_some_and(|at| at <= now);
        if due {
            self.latest = None;
        }
        due
    }

    /// It went well: the next failure is the first.
    pub(crate) fn succeeded(&mut self) {
        self.retries = None;
        self.earliest = None;
    }

    /// It failed: it is wanted again after a pause, which nothing shortens. Returns the pause.
    pub(crate) fn failed(&mut self, now: Instant) -> Duration {
        let longest = self.longest_retry.max(FIRST_RETRY);
        let retries = self.retries.get_or_insert_with(|| {
            ExponentialBuilder::new()
                .with_min_delay(FIRST_RETRY)
                .with_max_delay(longest)
                .without_max_times()
                .build()
        });
        let pause = retries.next().unwrap_or(longest);
        // It multiplies floating-point numbers, and people read this.
        let pause = Duration::from_millis(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        self.want(now + pause);
        self.not_before(now + pause);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn g4_no_event_shortens_the_pause_after_a_failure() {
        let start = Instant::now();
        let mut sync = Deadline::new(30 * SECOND);
        let mut attempts = Vec::new();
        // 250 events in 7.5 s, and as much time again.
        for step in 0..500u32 {
            let now = start + step * Duration::from_millis(30);
            if step < 250 {
                sync.want(now);
            }
            if sync.take(now) {
                attempts.push(step * 30);
                sync.failed(now);
            }
        }
        assert_eq!(attempts, [0, 120, 330, 750, 1560, 3180, 6390, 12_810]);
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let now = Instant::now();
        let mut sync = Deadline::new(2 * SECOND);
        let pauses: Vec<u128> = (0..7).map(|_| sync.failed(now).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
        sync.succeeded();
        assert_eq!(sync.failed(now).as_millis(), 100);
    }

    #[test]
    fn what_is_wanted_comes_by_its_time_however_often_it_is_wanted_again() {
        let start = Instant::now();
        let mut tidy = Deadline::new(SECOND);
        let mut done = None;
        for step in 0..300u32 {
            let now = start + step * Duration::from_millis(10);
            tidy.want(now + SECOND);
            if tidy.take(now) {
                done.get_or_insert(step * 10);
            }
        }
        assert_eq!(done, Some(1000));
    }

    #[test]
    fn it_is_not_early_and_not_without_somebody_who_wants_it() {
        let now = Instant::now();
        let mut sync = Deadline::new(SECOND);
        sync.not_before(now + SECOND);
        assert_eq!(sync.at(), None);
        assert!(!sync.take(now + 2 * SECOND), "nobody wants it");
        sync.want(now);
        assert!(!sync.take(now));
        assert!(sync.take(now + SECOND));
        assert!(!sync.take(now + 2 * SECOND), "once");
    }
}
