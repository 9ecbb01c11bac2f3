//! Whether this proxy does its work, and whether its node may get new traffic (docs/semantics.md, I1 to
//! I4).
//!
//! The sync loop says what happens; `/healthz`, `/livez` and the health checks of Services ask.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::core::model::{Family, PerFamily};

/// The proxy's state of health.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
    /// For so long a change may wait for a successful sync.
    timeout: Duration,
    families: Vec<Family>,
}

#[derive(Debug, Default)]
struct State {
    /// Since when the oldest change waits.
    pending: Option<Instant>,
    /// The last successful sync of any family.
    updated: Option<Timestamp>,
    /// The same of each, which stands still while the kernel refuses its program.
    updated_by: PerFamily<Option<Timestamp>>,
    /// Families that the kernel refuses.
    resting: PerFamily<bool>,
    eligible: bool,
    stopping: bool,
}

/// What `/healthz` and `/livez` answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whether the answer is 200, not 503.
    pub ok: bool,
    /// Compact JSON.
    pub body: String,
}

/// The answers' body, by kube-proxy's names and in its order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    #[serde(serialize_with = "as_text")]
    last_updated: Timestamp,
    #[serde(serialize_with = "as_text")]
    current_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<BTreeMap<&'static str, FamilyBody>>,
    /// Why not, if not. kube-proxy does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    #[serde(serialize_with = "as_text")]
    last_updated: Timestamp,
    healthy: bool,
}

fn as_text<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

impl Health {
    /// Not healthy until the first sync. A change may wait for a sync as long as `timeout`.
    #[must_use]
    pub fn new(timeout: Duration, families: Vec<Family>) -> Self {
        Self {
            state: Mutex::default(),
            timeout,
            families,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every state is a valid one, whoever panicked while it was locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change waits for a sync.
    pub fn queued(&self) {
        self.state().pending.get_or_insert_with(Instant::now);
    }

    /// A sync has succeeded, but for families that the kernel refuses. Where one serves the node is of
    /// use, and a restart would take that from it.
    pub fn synced(&self, resting: PerFamily<bool>) {
        let now = Timestamp::now();
        let mut state = self.state();
        state.pending = None;
        state.updated = Some(now);
        state.resting = resting;
        for family in Family::BOTH {
            if !*resting.get(family) {
                *state.updated_by.get_mut(family) = Some(now);
            }
        }
    }

    /// Whether the Node may get new traffic.
    pub fn set_eligible(&self, eligible: bool) {
        self.state().eligible = eligible;
    }

    /// The proxy is about to end.
    pub fn stop(&self) {
        self.state().stopping = true;
    }

    /// Whether the proxy does its work.
    pub fn is_healthy(&self) -> bool {
        self.state().is_healthy(self.timeout)
    }

    /// What `/healthz` answers.
    pub fn healthz(&self) -> Report {
        let state = self.state();
        let ok = state.is_healthy(self.timeout) && state.eligible;
        self.report(&state, ok, true)
    }

    /// What `/livez` answers.
    pub fn livez(&self) -> Report {
        let state = self.state();
        // One that still waits for the cluster does what it can, and a restart would not help.
        let ok = state.keeps_up(self.timeout);
        self.report(&state, ok, false)
    }

    /// What `/readyz` answers: whether the node is programmed, whatever else may be wrong.
    pub fn readyz(&self) -> Report {
        let state = self.state();
        let ok = state.updated.is_some() && !state.stopping;
        self.report(&state, ok, false)
    }

    fn report(&self, state: &State, ok: bool, with_eligible: bool) -> Report {
        let now = Timestamp::now();
        let healthy = if with_eligible {
            state.is_healthy(self.timeout)
        } else {
            ok
        };
        let last = state.updated.unwrap_or(NEVER);
        let updated = if ok { now } else { last };
        let families = self.families.iter().map(|family| {
            let family_body = FamilyBody {
                last_updated: state.updated_by.get(*family).unwrap_or(NEVER),
                healthy: healthy && !*state.resting.get(*family),
            };
            (family.name(), family_body)
        });
        let body = Body {
            last_updated: updated,
            current_time: now,
            node_eligible: with_eligible.then_some(state.eligible),
            healthy,
            status: state.updated.is_some().then(|| families.collect()),
            reason: (!ok).then(|| state.reason(self.timeout)),
        };
        // Numbers, texts and booleans can be written.
        let body = serde_json::to_string(&body).unwrap_or_default();
        Report { ok, body }
    }
}

/// Go's zero time, which kube-proxy prints for what has never happened.
const NEVER: Timestamp = Timestamp::constant(-62_135_596_800, 0);

impl State {
    fn is_healthy(&self, timeout: Duration) -> bool {
        self.updated.is_some() && self.keeps_up(timeout)
    }

    /// Why something is not as it should be.
    fn reason(&self, timeout: Duration) -> String {
        let waiting = self.pending.map(|since| since.elapsed());
        match waiting.filter(|waiting| *waiting >= timeout) {
            _ if self.stopping => "the proxy is about to end".to_owned(),
            _ if self.updated.is_none() => {
                "nothing is programmed yet; pointsman status says what is waited for".to_owned()
            }
            Some(waiting) => format!(
                "changes have not been in effect for {} s",
                waiting.as_secs()
            ),
            None => "the Node is about to be removed, or has not been seen".to_owned(),
        }
    }

    fn keeps_up(&self, timeout: Duration) -> bool {
        !self.stopping && self.pending.is_none_or(|since| since.elapsed() < timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(timeout: Duration) -> Health {
        Health::new(timeout, Family::BOTH.to_vec())
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn n_l1_a_node_is_ready_once_it_is_programmed_whether_it_may_get_new_traffic_or_not() {
        let health = health(Duration::ZERO);
        assert!(!health.readyz().ok);
        health.queued();
        health.synced(PerFamily::default());
        assert!(health.readyz().ok && !health.healthz().ok);
        // What waits does not change what is programmed.
        health.queued();
        assert!(health.readyz().ok && !health.livez().ok);
        health.stop();
        assert!(!health.readyz().ok);
    }

    #[test]
    fn n_i1_a_family_that_is_refused_is_unhealthy_and_the_node_is_not() {
        let health = health(LONG);
        health.set_eligible(true);
        health.queued();
        health.synced(PerFamily {
            v4: false,
            v6: true,
        });
        for report in [health.healthz(), health.livez()] {
            assert!(report.ok);
            let body: serde_json::Value = serde_json::from_str(&report.body).unwrap();
            assert_eq!(body["status"]["IPv4"]["healthy"], true);
            assert_eq!(body["status"]["IPv6"]["healthy"], false);
            assert_eq!(
                body["status"]["IPv6"]["lastUpdated"],
                "0001-01-01T00:00:00Z"
            );
        }
    }

    #[test]
    fn n_i2_a_proxy_is_alive_but_not_healthy_before_its_first_sync() {
        let health = health(LONG);
        health.set_eligible(true);
        assert!(!health.is_healthy());
        assert!(!health.healthz().ok);
        assert!(health.livez().ok);
        health.queued();
        health.synced(PerFamily::default());
        assert!(health.healthz().ok);
        assert!(health.livez().ok);
    }

    #[test]
    fn i1_a_change_that_waits_too_long_for_a_sync_makes_it_unhealthy() {
        let health = health(Duration::ZERO);
        health.synced(PerFamily::default());
        assert!(health.is_healthy());
        health.queued();
        assert!(!health.is_healthy());
        health.synced(PerFamily::default());
        assert!(health.is_healthy());
    }

    #[test]
    fn i3_a_node_that_is_not_eligible_fails_healthz_and_not_livez() {
        let health = health(LONG);
        health.synced(PerFamily::default());
        let healthz = health.healthz();
        assert!(!healthz.ok);
        assert!(
            healthz
                .body
                .contains(r#""nodeEligible":false,"healthy":true"#)
        );
        assert!(health.livez().ok);
    }

    #[test]
    fn a_proxy_that_is_about_to_end_fails_both() {
        let health = health(LONG);
        health.set_eligible(true);
        health.synced(PerFamily::default());
        health.stop();
        assert!(!health.healthz().ok);
        assert!(!health.livez().ok);
    }

    #[test]
    fn i4_bodies_have_kube_proxys_fields_in_their_order() {
        let health = health(LONG);
        health.set_eligible(true);
        let before: serde_json::Value = serde_json::from_str(&health.healthz().body).unwrap();
        assert_eq!(before["lastUpdated"], "0001-01-01T00:00:00Z");
        assert!(before.get("status").is_none());
        health.synced(PerFamily::default());
        let shape = |body: &str| {
            let value: serde_json::Value = serde_json::from_str(body).unwrap();
            for name in ["lastUpdated", "currentTime"] {
                let time = value[name].as_str().unwrap();
                assert!(time.parse::<Timestamp>().is_ok(), "{time}");
            }
            body.split('"')
                .skip(1)
                .step_by(2)
                .filter(|text| !text.ends_with('Z'))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            shape(&health.healthz().body),
            "lastUpdated currentTime nodeEligible healthy status IPv4 lastUpdated healthy IPv6 lastUpdated healthy"
        );
        assert_eq!(
            shape(&health.livez().body),
            "lastUpdated currentTime healthy status IPv4 lastUpdated healthy IPv6 lastUpdated healthy"
        );
    }
}
