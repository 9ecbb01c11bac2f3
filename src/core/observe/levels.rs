//! How many of a list's places each endpoint is to have, so that all come to have as many connections as
//! their weight makes fair.
//!
//! The kernel draws places by chance, and knows of no counts; between two looks at the counts it goes on by
//! the places of the last one. So this is no scheduler that sees every connection but a controller: whoever
//! has more than is fair gets next to nothing until the next look, one place of many, and what each needs in the long
//! run is learnt. Nobody is left without a place: who has none has left, and its clients are forgotten.

use std::collections::BTreeMap;

use crate::core::model::{Algorithm, Endpoint};
use crate::core::select::places::apportion;

/// Places for each endpoint, on average.
const EACH: usize = 128;
/// Places of all, but twice as many as endpoints.
const ALL: usize = 1_024;
/// How much less, and more, than the others' an endpoint's rate may be.
const RATES: (f64, f64) = (1.0 / 256.0, 4.0);

/// What is known of one list's endpoints after some looks.
#[derive(Debug, Clone, Default)]
pub struct Levels {
    /// At which rate each takes connections without having more than is fair, in proportion.
    rates: BTreeMap<Endpoint, f64>,
    last: BTreeMap<Endpoint, u32>,
}

impl Levels {
    /// Takes in how many connections each endpoint has. Returns the places, if they are to change.
    pub fn look(
        &mut self,
        algorithm: Algorithm,
        endpoints: &[(Endpoint, u32)],
        live: impl Fn(&Endpoint) -> u64,
    ) -> Option<&BTreeMap<Endpoint, u32>> {
        let counted: Vec<Counted> = endpoints
            .iter()
            .filter(|(_, weight)| *weight > 0)
            .map(|(endpoint, weight)| Counted {
                endpoint: *endpoint,
                weight: f64::from(*weight),
                live: count(live(endpoint)),
            })
            .collect();
        // Without a connection there is nothing to go by: it stays as it is.
        if counted.iter().all(|one| one.live < 0.5) && !counted.is_empty() {
            return None;
        }
        let known = |endpoint: &Endpoint| counted.iter().any(|one| one.endpoint == *endpoint);
        self.rates.retain(|endpoint, _| known(endpoint));
        let shares = self.shares(algorithm, &counted);
        let places = (EACH * counted.len()).min(ALL).max(2 * counted.len());
        let places = apportion(&shares, places as u64);
        let now: BTreeMap<Endpoint, u32> =
            counted.iter().map(|one| one.endpoint).zip(places).collect();
        if !differ(&self.last, &now) {
            return None;
        }
        self.last = now;
        Some(&self.last)
    }

    /// The places that the last look led to that changed them.
    #[must_use]
    pub const fn places(&self) -> &BTreeMap<Endpoint, u32> {
        &self.last
    }

    /// In proportion to what each is to get.
    fn shares(&mut self, algorithm: Algorithm, counted: &[Counted]) -> Vec<u64> {
        let live: f64 = counted.iter().map(|one| one.live).sum();
        let weights: f64 = counted.iter().map(|one| one.weight).sum();
        let idle = counted.iter().any(|one| one.live < 0.5);
        let mut shares = Vec::with_capacity(counted.len());
        for one in counted {
            let fair = live * one.weight / weights;
            let rate = self.rates.entry(one.endpoint).or_insert(1.0);
            // One connection more or less is nothing to learn from.
            let excess = (one.live + 1.0) / (fair + 1.0);
            *rate = (*rate * excess.powf(-0.5).clamp(0.5, 2.0)).clamp(RATES.0, RATES.1);
            let room = match algorithm {
                Algorithm::NeverQueue if idle => f64::from(u8::from(one.live < 0.5)),
                // The new connection counts: a heavy one is left room for it first.
                Algorithm::ShortestExpectedDelay | Algorithm::NeverQueue => {
                    let expected = (live + counted.len() as f64) * one.weight / weights;
                    2.0 - (one.live + 1.0) / expected.max(0.5)
                }
                // Chance may have it so for a while, but not for one that has learnt to be slow.
                _ if one.live >= fair + fair.sqrt().max(1.0) * rate.min(1.0) => 0.0,
                _ => 2.0 - excess,
            };
            shares.push(one.weight * *rate * room.clamp(0.0, 2.0));
        }
        if shares.iter().all(|share| *share <= 0.0) {
            shares = counted.iter().map(|one| one.weight).collect();
        }
        let most = shares.iter().copied().fold(0.0, f64::max);
        shares
            .iter()
            .map(|share| scaled(share / most).max(1))
            .collect()
    }
}

struct Counted {
    endpoint: Endpoint,
    weight: f64,
    live: f64,
}

#[allow(clippy::cast_precision_loss, reason = "nobody has 2^52 connections")]
const fn count(live: u64) -> f64 {
    live as f64
}

/// A part of one as a whole number, of so many that rounding does not matter.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is between 0 and a million"
)]
fn scaled(part: f64) -> u64 {
    (part.clamp(0.0, 1.0) * 1e6).ceil() as u64
}

/// Whether two differ by more than a sixteenth of all places, or in who there is.
fn differ(last: &BTreeMap<Endpoint, u32>, now: &BTreeMap<Endpoint, u32>) -> bool {
    if !last.keys().eq(now.keys()) {
        return true;
    }
    let pairs = || last.values().zip(now.values());
    let whole: u32 = now.values().sum();
    let moved: u32 = pairs().map(|(was, is)| was.abs_diff(*is)).sum();
    moved * 8 > whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(number: usize) -> Endpoint {
        Endpoint::new([10, 244, 0, number as u8].into(), 80)
    }

    /// A cluster of endpoints whose connections last so many looks each, drawn by the places, with so
    /// many new ones between two looks. Returns the live connections after each look.
    fn simulate(
        algorithm: Algorithm,
        weights: &[u32],
        lasting: &[f64],
        arrivals: usize,
        looks: usize,
    ) -> Vec<Vec<u64>> {
        let endpoints: Vec<(Endpoint, u32)> = weights
            .iter()
            .enumerate()
            .map(|(n, weight)| (endpoint(n), *weight))
            .collect();
        let mut levels = Levels::default();
        let mut random = 0x2545_f491_4f6c_dd1du64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut ends: Vec<Vec<f64>> = vec![Vec::new(); weights.len()];
        let mut places: Vec<u32> = weights.to_vec();
        let mut history = Vec::new();
        for look in 0..looks {
            for arrival in 0..arrivals {
                let now = look as f64 + arrival as f64 / arrivals as f64;
                let all: u32 = places.iter().sum();
                let mut drawn = (next() * f64::from(all)) as u32;
                let at = places.iter().position(|count| {
                    let here = drawn < *count;
                    drawn = drawn.saturating_sub(*count);
                    here
                });
                let at = at.unwrap_or(0);
                ends[at].push(now - lasting[at] * (1.0 - next()).ln());
            }
            let now = (look + 1) as f64;
            for ends in &mut ends {
                ends.retain(|end| *end > now);
            }
            let live: Vec<u64> = ends.iter().map(|ends| ends.len() as u64).collect();
            let at = |one: &Endpoint| endpoints.iter().position(|(known, _)| known == one);
            levels.look(algorithm, &endpoints, |one| live[at(one).unwrap()]);
            places = endpoints.iter().map(|(one, _)| levels.last[one]).collect();
            history.push(live);
        }
        history
    }

    /// The mean of the last looks, for each endpoint.
    fn mean(history: &[Vec<u64>]) -> Vec<f64> {
        let last = &history[history.len() / 2..];
        (0..last[0].len())
            .map(|at| last.iter().map(|live| live[at] as f64).sum::<f64>() / last.len() as f64)
            .collect()
    }

    #[test]
    fn a_slow_endpoint_of_five_has_no_more_than_its_fair_share_of_long_connections() {
        for (slow, arrivals) in [(10.0, 50), (100.0, 50), (10.0, 2_000), (3.0, 5)] {
            let lasting = [5.0, 5.0, 5.0, 5.0, 5.0 * slow];
            let looks = (40.0 * slow) as usize;
            let history = simulate(
                Algorithm::LeastConnection,
                &[1; 5],
                &lasting,
                arrivals,
                looks.max(400),
            );
            let mean = mean(&history);
            let fair = mean.iter().sum::<f64>() / 5.0;
            assert!(mean[4] < fair * 1.1, "{slow} x, {arrivals}: {mean:?}");
            let equal: f64 = 5.0 * slow / (4.0 + slow);
            assert!(
                mean[0] > fair * 0.8,
                "the others share the rest ({equal:.1}): {mean:?}"
            );
        }
    }

    #[test]
    fn short_connections_are_spread_evenly_over_equals() {
        let history = simulate(Algorithm::LeastConnection, &[1; 4], &[0.05; 4], 1_000, 200);
        let mean = mean(&history);
        let fair = mean.iter().sum::<f64>() / 4.0;
        assert!(
            mean.iter().all(|live| (live / fair - 1.0).abs() < 0.15),
            "{mean:?}"
        );
    }

    #[test]
    fn weights_are_shares_of_what_is_live() {
        for algorithm in [Algorithm::LeastConnection, Algorithm::ShortestExpectedDelay] {
            let history = simulate(algorithm, &[3, 1], &[8.0, 8.0], 100, 300);
            let mean = mean(&history);
            let share = mean[0] / (mean[0] + mean[1]);
            assert!((share - 0.75).abs() < 0.06, "{algorithm:?}: {mean:?}");
        }
    }

    #[test]
    fn whoever_has_no_connection_comes_first_where_nobody_is_to_queue() {
        let endpoints = [0, 1, 2].map(|number| (endpoint(number), 1));
        let live = [5, 0, 3];
        let at = |one: &Endpoint| endpoints.iter().position(|(known, _)| known == one);
        let mut levels = Levels::default();
        let places = levels.look(Algorithm::NeverQueue, &endpoints, |one| {
            live[at(one).unwrap()]
        });
        let places: Vec<u32> = places.unwrap().values().copied().collect();
        assert_eq!((places[0], places[2]), (1, 1));
        assert!(places[1] > 100, "{places:?}");
        // A light one too.
        let endpoints = [(endpoint(0), 9), (endpoint(1), 1)];
        let mut levels = Levels::default();
        let live = |one: &Endpoint| u64::from(*one == endpoint(0));
        let places = levels.look(Algorithm::NeverQueue, &endpoints, live);
        assert_eq!(places.unwrap()[&endpoint(0)], 1);
    }

    #[test]
    fn nothing_changes_where_hardly_anything_has() {
        let endpoints = [0, 1].map(|number| (endpoint(number), 1));
        let mut levels = Levels::default();
        let first = levels.look(Algorithm::LeastConnection, &endpoints, |_| 100);
        assert!(first.is_some());
        let again = levels.look(Algorithm::LeastConnection, &endpoints, |_| 101);
        assert!(again.is_none());
        let none = levels.look(Algorithm::LeastConnection, &[], |_| 0);
        assert!(none.is_some_and(BTreeMap::is_empty));
    }
}
