//! How much of the sync loop's time the Services of one namespace may take.
//!
//! Who may create Services decides how much work a change of them is, and how often they change.
//! What is costly is taken in at once as long as it is rare; a namespace that has used up what it may
//! have waits with its costly Services, and with no others. Pure: the time is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::core::model::{Name, ServiceId};

/// What costs less is not counted.
const CHEAP: Duration = Duration::from_millis(2);
/// How much a namespace may take at once.
const BURST: Duration = Duration::from_secs(1);
/// And then one part in so many of the time.
const SHARE: u32 = 10;

/// What namespaces have taken, and which Services it was for.
#[derive(Debug, Default)]
pub(crate) struct Budgets {
    debts: HashMap<Name, Debt>,
    costly: HashMap<ServiceId, Name>,
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
    /// A Service has taken so much time.
    pub(crate) fn spend(
        &mut self,
        service: ServiceId,
        namespace: &Name,
        time: Duration,
        now: Instant,
    ) {
        if time < CHEAP {
            return;
        }
        let taken = self.debts.get(namespace).map(|debt| debt.left(now));
        let taken = taken.unwrap_or_default() + time;
        let debt = Debt { taken, since: now };
        self.debts.insert(Name::clone(namespace), debt);
        self.costly.insert(service, Name::clone(namespace));
    }

    /// Forgets what has been paid.
    pub(crate) fn settle(&mut self, now: Instant) {
        if self.debts.is_empty() {
            return;
        }
        self.debts.retain(|_, debt| !debt.left(now).is_zero());
        let debts = &self.debts;
        self.costly
            .retain(|_, namespace| debts.contains_key(namespace));
    }

    /// Until when a Service has to wait, if it has.
    pub(crate) fn wait(&self, service: ServiceId, now: Instant) -> Option<Instant> {
        let debt = self.debts.get(self.costly.get(&service)?)?;
        let over = debt.left(now).checked_sub(BURST)?;
        (!over.is_zero()).then(|| now + over * SHARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_takes_much_at_once_waits_and_who_is_cheap_does_not() {
        let (service, other) = (ServiceId::FIRST, ServiceId::FIRST.next());
        let namespace: Name = "shop".into();
        let start = Instant::now();
        let mut budgets = Budgets::default();
        budgets.spend(service, &namespace, SECOND, start);
        assert_eq!(budgets.wait(service, start), None, "once is not too much");
        budgets.spend(service, &namespace, SECOND / 2, start);
        assert_eq!(budgets.wait(service, start), Some(start + 5 * SECOND));
        assert_eq!(budgets.wait(other, start), None);
        budgets.spend(other, &namespace, Duration::from_micros(50), start);
        assert_eq!(budgets.wait(other, start), None, "it is cheap");
        budgets.spend(other, &namespace, SECOND / 2, start);
        assert_eq!(budgets.wait(other, start), Some(start + 10 * SECOND));
        assert_eq!(budgets.wait(service, start + 10 * SECOND), None);
        budgets.settle(start + 10 * SECOND);
        assert_eq!(
            budgets.wait(service, start),
            Some(start + 10 * SECOND),
            "it owes a second"
        );
        budgets.settle(start + 20 * SECOND);
        assert!(budgets.debts.is_empty() && budgets.costly.is_empty());
    }

    #[test]
    fn a_namespace_that_never_stops_gets_a_tenth_of_the_time() {
        let (service, namespace): (_, Name) = (ServiceId::FIRST, "shop".into());
        let start = Instant::now();
        let mut budgets = Budgets::default();
        let (mut now, mut taken) = (start, Duration::ZERO);
        while now < start + 100 * SECOND {
            now = budgets.wait(service, now).unwrap_or(now);
            budgets.spend(service, &namespace, SECOND / 10, now);
            now += SECOND / 10;
            taken += SECOND / 10;
        }
        let share = taken.as_secs_f64() / 100.0;
        assert!((0.09..0.13).contains(&share), "{share}");
    }
}
