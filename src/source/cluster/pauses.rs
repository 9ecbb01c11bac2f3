//! How long until a watch that failed is tried again.
//!
//! A server that is back hears of every node within ten seconds, and never of many at once: each waits a time of its
//! own choice.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

/// The first pause, at least.
const FIRST: Duration = Duration::from_millis(800);
/// The longest ones, at least; with what chance adds they are twice as long at most.
const LONG: Duration = Duration::from_secs(5);
/// After so long without a failure the next one is the first.
const FORGET: Duration = Duration::from_secs(120);

/// Pauses that grow and differ.
pub(super) struct Pauses {
    growing: ExponentialBackoff,
    last: Option<Instant>,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self {
            growing: growing(),
            last: None,
        }
    }

    /// The pause after a failure at this time.
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        if self.last.is_some_and(|last| now - last > FORGET) {
            self.growing = growing();
        }
        self.last = Some(now);
        self.growing.next().unwrap_or(LONG)
    }
}

fn growing() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(FIRST)
        .with_max_delay(LONG)
        .without_max_times()
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hundred_clients_of_a_server_that_is_back_come_spread_over_seconds_and_within_ten() {
        let mut by_half_second = [0; 20];
        let now = Instant::now();
        for _ in 0..200 {
            let mut all = Pauses::new();
            // It was away for a minute or so.
            let last = (0..12).map(|_| all.next(now)).last();
            let last = last.expect("a pause without end");
            let index = usize::try_from(last.as_millis() / 500).expect("a small number");
            by_half_second[index] += 1;
        }
        assert_eq!(by_half_second[..10], [0; 10]);
        // 20 on average.
        let most = by_half_second.iter().max();
        assert!(most.is_some_and(|most| *most < 50), "{by_half_second:?}");
    }

    #[test]
    fn the_first_pause_is_short_and_so_is_the_one_after_minutes_without_a_failure() {
        let mut all = Pauses::new();
        let now = Instant::now();
        assert!(all.next(now) < 2 * FIRST);
        let later = (0..9).map(|_| all.next(now)).last();
        assert!(later.is_some_and(|pause| pause >= LONG));
        assert!(all.next(now + FORGET / 2) >= LONG);
        assert!(all.next(now + 2 * FORGET) < 2 * FIRST);
    }
}
