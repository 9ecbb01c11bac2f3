//! How much of the sync loop's time the Services of one namespace may take.
//!
//! Who may create Services decides how much work a change of them is, and how often they change.
//! What is costly is taken in at once as long as it is rare; a namespace that has used up what it may
//! have waits with its costly Services, and with no others. Pure: the time is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::core::model::{Algorithm, KnownService, Name};
use crate::core::select::places::{EXACT_PLACES, LARGEST_TABLE};

/// What costs less is not counted.
const CHEAP: Duration = Duration::from_millis(2);
/// How much a namespace may take at once.
const BURST: Duration = Duration::from_secs(1);
/// And then one part in so many of the time.
const SHARE: u32 = 10;
/// Nobody waits for longer, whatever it has taken: what it no longer wants is in others' way.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// What an operation counts for, however long others have held the kernel's lock meanwhile.
const OPERATION: Duration = Duration::from_micros(2);
/// Up to so many elements a Service is cheap.
const FEW: usize = 1_000;

/// Whether a Service may be so much that a change of it takes time.
pub(crate) fn is_costly(known: KnownService<'_>) -> bool {
    let service = known.service;
    let addresses = service.vips.len() + service.external_ips.len() + 2;
    let ranges = [&service.source_ranges.v4, &service.source_ranges.v6];
    let ranges: usize = ranges.iter().map(|all| all.ranges().len()).sum();
    // Weights and tables make more places than there are endpoints.
    let places = match service.algorithm {
        Algorithm::SourceHash | Algorithm::DestinationHash | Algorithm::Maglev => LARGEST_TABLE,
        algorithm if known.is_weighted() || algorithm.counts_connections() => EXACT_PLACES,
        _ => 1,
    };
    let places = places.saturating_mul(service.ports.len());
    let endpoints = known.port_endpoints().max(service.ports.len()).max(places);
    let elements = endpoints.saturating_mul(addresses);
    let sources = ranges.saturating_mul(service.vips.len() * service.ports.len());
    elements.saturating_add(sources) > FEW
}

/// What so many operations take of the kernel's time, about.
pub(crate) fn operations(count: u32) -> Duration {
    OPERATION * count
}

/// What namespaces have taken.
#[derive(Debug, Default)]
pub(crate) struct Budgets {
    debts: HashMap<Name, Debt>,
}

#[derive(Debug)]
struct Debt {
    taken: Duration,
    since: Instant,
}

impl Debt {
    fn left(&self, now: Instant) -> Duration {
        let paid = now.saturating_duration_since(self.since) / SHARE;
        self.taken.saturating_sub(paid)
    }
}

impl Budgets {
    /// A Service of a namespace has taken so much time.
    pub(crate) fn spend(&mut self, namespace: &Name, time: Duration, now: Instant) {
        if time < CHEAP {
            return;
        }
        let taken = self.debts.get(namespace).map(|debt| debt.left(now));
        let taken = taken.unwrap_or_default() + time;
        let debt = Debt {
            taken: taken.min(BURST + LONGEST_WAIT / SHARE),
            since: now,
        };
        self.debts.insert(Name::clone(namespace), debt);
    }

    /// Forgets what has been paid.
    pub(crate) fn settle(&mut self, now: Instant) {
        self.debts.retain(|_, debt| !debt.left(now).is_zero());
    }

    /// Whether nobody has taken anything that counts.
    pub(crate) fn are_free(&self) -> bool {
        self.debts.is_empty()
    }

    /// Until when costly Services of a namespace have to wait, if they have.
    pub(crate) fn wait(&self, namespace: &Name, now: Instant) -> Option<Instant> {
        let over = self.debts.get(namespace)?.left(now).checked_sub(BURST)?;
        (!over.is_zero()).then(|| now + over * SHARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_takes_much_at_once_waits_but_not_for_ever() {
        let (shop, bank): (Name, Name) = ("shop".into(), "bank".into());
        let start = Instant::now();
        let mut budgets = Budgets::default();
        budgets.spend(&shop, SECOND, start);
        assert_eq!(budgets.wait(&shop, start), None, "once is not too much");
        budgets.spend(&shop, SECOND / 2, start);
        assert_eq!(budgets.wait(&shop, start), Some(start + 5 * SECOND));
        assert_eq!(budgets.wait(&bank, start), None);
        for _ in 0..1_000 {
            budgets.spend(&shop, Duration::from_micros(50), start);
        }
        let wait = budgets.wait(&shop, start);
        assert_eq!(wait, Some(start + 5 * SECOND), "what is cheap is free");
        budgets.spend(&shop, 60 * SECOND, start);
        assert_eq!(budgets.wait(&shop, start), Some(start + LONGEST_WAIT));
        assert_eq!(budgets.wait(&shop, start + LONGEST_WAIT), None);
        budgets.settle(start + LONGEST_WAIT + 10 * SECOND);
        assert!(budgets.debts.is_empty());
    }

    #[test]
    fn a_namespace_that_never_stops_gets_a_tenth_of_the_time() {
        let shop: Name = "shop".into();
        let start = Instant::now();
        let mut budgets = Budgets::default();
        let (mut now, mut taken) = (start, Duration::ZERO);
        while now < start + 100 * SECOND {
            now = budgets.wait(&shop, now).unwrap_or(now);
            budgets.spend(&shop, SECOND / 10, now);
            now += SECOND / 10;
            taken += SECOND / 10;
        }
        let share = taken.as_secs_f64() / 100.0;
        assert!((0.09..0.13).contains(&share), "{share}");
    }
}
