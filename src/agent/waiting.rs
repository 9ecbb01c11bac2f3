//! What has been taken in and is not in effect yet, and how long it takes until it is.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use super::metrics::AgentMetrics;
use crate::core::model::{Change, Family, ObjectKey};
use crate::source::changes::Trigger;

/// How many changes of one slice may wait to be measured.
const MOST_TRIGGERS: usize = 100;

/// Changes that wait for their effect.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Changes that began before are not our delay.
    started: Timestamp,
    /// Each family takes in every Service.
    families: u64,
    endpoint_changes: u64,
    service_changes: u64,
    /// When the changes began that slices announce, in nanoseconds since 1970.
    triggers: HashMap<ObjectKey, (Family, Vec<i128>)>,
}

impl Waiting {
    /// Nothing yet, since then, on a node of so many families.
    pub(crate) fn since(started: Timestamp, families: usize) -> Self {
        Self {
            started,
            families: u64::try_from(families).unwrap_or(1),
            endpoint_changes: 0,
            service_changes: 0,
            triggers: HashMap::new(),
        }
    }

    /// Counts changes that have been taken in.
    pub(crate) fn count(&mut self, changes: &[Change], metrics: &AgentMetrics) {
        for change in changes {
            match change {
                Change::Service(..) => self.service_changes += 1,
                Change::EndpointSlice(..) => self.endpoint_changes += 1,
                _ => {}
            }
        }
        self.show(metrics);
    }

    fn show(&self, metrics: &AgentMetrics) {
        let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        metrics
            .service_changes_pending
            .set(gauge(self.service_changes));
        metrics
            .endpoint_changes_pending
            .set(gauge(self.endpoint_changes));
    }

    /// Notes when changes began.
    pub(crate) fn await_effect(&mut self, triggers: Vec<Trigger>) {
        for trigger in triggers {
            match trigger {
                Trigger::At(slice, family, at) if at > self.started.as_nanosecond() => {
                    let waiting = self.triggers.entry(slice);
                    let began = &mut waiting.or_insert((family, Vec::new())).1;
                    if began.len() < MOST_TRIGGERS {
                        began.push(at);
                    }
                }
                Trigger::At(..) => {}
                Trigger::Gone(slice) => {
                    self.triggers.remove(&slice);
                }
            }
        }
    }

    /// Measures the changes of slices that are in effect now.
    pub(crate) fn in_effect(&mut self, is: impl Fn(&ObjectKey) -> bool, metrics: &AgentMetrics) {
        let now = Timestamp::now().as_nanosecond();
        for (_, (family, began)) in self.triggers.extract_if(|slice, _| is(slice)) {
            for at in began {
                let after = Duration::from_nanos(u64::try_from(now - at).unwrap_or(0));
                metrics.programmed(family, after);
            }
        }
    }

    /// All is in effect.
    pub(crate) fn done(&mut self, metrics: &AgentMetrics) {
        let services = std::mem::take(&mut self.service_changes);
        let endpoints = std::mem::take(&mut self.endpoint_changes);
        metrics.service_changes.inc_by(services * self.families);
        metrics.endpoint_changes.inc_by(endpoints);
        self.show(metrics);
    }
}
