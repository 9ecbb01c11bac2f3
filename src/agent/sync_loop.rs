//! The loop that owns everything that changes: it takes a closed set of events and keeps the
//! kernel in step (SEMANTICS G, N).
//!
//! The first event of a quiet time is programmed at once; what comes while a transaction runs is
//! programmed by the next one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::agent::reconciler::{Proxy, Synced};
use crate::config::Config;
use crate::core::model::{Change, Family, ObjectKey, PerFamily};
use crate::dataplane::conntrack::{Cleaner, Work};
use crate::dataplane::nftables::Nftables;
use crate::serve::health::Health;
use crate::serve::health_checks::{Addresses, Table};
use crate::serve::metrics::{Metrics, SyncTimes};
use crate::source::cluster::{Changes, Trigger};
use crate::source::report;

/// A message to the sync loop.
#[derive(Debug)]
pub(crate) enum Event {
    /// Something happened in the cluster.
    Changes(Changes),
    /// Somebody else has changed our tables.
    Interference,
    /// Somebody else may have changed our tables while nobody watched.
    ReadAgain,
    /// Finish what is under way, and end.
    Stop,
}

/// The verbosity from which on every sync is logged: "useful steady state information", as
/// Kubernetes' logging conventions have it.
const STEADY: u32 = 2;
/// How long there is between two repairs, and how old what is unused becomes: it may be of use again
/// soon, and is gone by then however busy the node is.
const QUIET: Duration = Duration::from_secs(1);
/// The pause after the first failure of a sync; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// Where the loop tells what a sync has brought.
pub(crate) struct Outlets {
    pub(super) cleaner: Cleaner,
    pub(super) tables: watch::Sender<Table>,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Metrics,
    /// Called after the first sync.
    pub(super) first_sync: Option<Box<dyn FnOnce(&mut Proxy<Nftables>) + Send>>,
}

/// What has been taken in and not yet been programmed.
#[derive(Debug, Default)]
struct Waiting {
    endpoint_changes: i64,
    service_changes: i64,
    /// When the changes began that slices announce, in nanoseconds since 1970.
    triggers: HashMap<ObjectKey, (Family, Vec<i128>)>,
}

pub(crate) struct SyncLoop {
    pub(super) proxy: Proxy<Nftables>,
    pub(super) outlets: Outlets,
    pub(super) config: Config,
    waiting: Waiting,
    started: Timestamp,
    families: usize,
    last_repair: Option<Instant>,
    /// Somebody else has changed our tables since they were last read.
    interfered: bool,
    /// When to read the kernel again.
    repair_due: Option<Instant>,
    /// When to take away what is unused.
    tidy_due: Option<Instant>,
    last_end: Option<Instant>,
    retry: Duration,
    /// The kernel was read anew, so that the next sync compares everything.
    full: bool,
}

impl SyncLoop {
    /// A loop that has not begun. Changes that began before `started` are not its delay.
    pub(super) fn new(
        proxy: Proxy<Nftables>,
        outlets: Outlets,
        config: Config,
        started: Timestamp,
    ) -> Self {
        Self {
            proxy,
            outlets,
            config,
            waiting: Waiting::default(),
            started,
            families: crate::host::families().len(),
            last_repair: None,
            interfered: false,
            repair_due: None,
            tidy_due: None,
            last_end: None,
            retry: FIRST_RETRY,
            full: true,
        }
    }

    /// Runs until it is told to stop, or nobody can tell it any more.
    pub(super) fn run(mut self, inbox: &Receiver<Event>) {
        let mut sync_due = Some(Instant::now());
        self.queued();
        loop {
            let due = [sync_due, self.repair_due, self.tidy_due];
            let event = match due.into_iter().flatten().min() {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match event {
                Ok(event) => {
                    for event in std::iter::once(event).chain(inbox.try_iter()) {
                        match event {
                            Event::Changes(changes) => self.take(changes),
                            Event::Interference => self.interference(),
                            Event::ReadAgain => self.repair_due = Some(Instant::now()),
                            Event::Stop => return,
                        }
                    }
                    self.queued();
                    sync_due = Some(Instant::now());
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if is_due(self.repair_due) {
                self.repair();
                sync_due = Some(Instant::now());
            }
            if is_due(sync_due) {
                sync_due = self.too_early().or_else(|| self.sync());
            }
            if is_due(self.tidy_due) {
                self.tidy();
            }
        }
    }

    fn queued(&self) {
        self.outlets.health.queued();
        self.outlets.metrics.queued();
    }

    fn take(&mut self, changes: Changes) {
        let metrics = &self.outlets.metrics;
        for field in report(changes.warnings) {
            metrics.warnings.with_label_values(&[field.as_str()]).inc();
        }
        for change in &changes.changes {
            match change {
                Change::Service(..) => self.waiting.service_changes += 1,
                Change::EndpointSlice(..) => self.waiting.endpoint_changes += 1,
                _ => {}
            }
        }
        metrics
            .service_changes_pending
            .set(self.waiting.service_changes);
        metrics
            .endpoint_changes_pending
            .set(self.waiting.endpoint_changes);
        self.await_effect(changes.triggers);
        let before = self.proxy.desired().state().node().pod_cidrs.clone();
        self.proxy.take(changes.changes);
        let node = self.proxy.desired().state().node();
        self.outlets.health.set_eligible(node.eligible);
        if self.config.needs_pod_cidrs() && node.pod_cidrs != before {
            self.reconfigure();
        }
    }

    /// Notes which changes the next sync brings into effect.
    pub(super) fn await_effect(&mut self, triggers: Vec<Trigger>) {
        for trigger in triggers {
            match trigger {
                // What happened before we ran is not our delay.
                Trigger::At(slice, family, at) if at > self.started.as_nanosecond() => {
                    let waiting = self.waiting.triggers.entry(slice);
                    waiting.or_insert((family, Vec::new())).1.push(at);
                }
                Trigger::At(..) => {}
                Trigger::Gone(slice) => {
                    self.waiting.triggers.remove(&slice);
                }
            }
        }
    }

    /// Follows the Node's pod ranges: they are part of the program.
    fn reconfigure(&mut self) {
        let program = match super::program(&self.config, self.proxy.desired().state().node()) {
            Ok(program) => program,
            Err(error) => {
                tracing::warn!(%error, "pods are recognised as before");
                return;
            }
        };
        let program = crate::dataplane::Options {
            families: crate::host::families(),
            ..program
        };
        self.proxy.backend_mut().reconfigure(program);
        if let Err(error) = self.proxy.read_again() {
            tracing::error!(%error, "cannot read our tables; trying again");
            self.repair_due = Some(Instant::now() + QUIET);
        }
        self.full = true;
    }

    /// When the next sync may be, if that is not now.
    fn too_early(&self) -> Option<Instant> {
        let at = self.last_end? + self.config.min_sync_period;
        (at > Instant::now()).then_some(at)
    }

    fn interference(&mut self) {
        self.interfered = true;
        self.repair_due = Some(Instant::now());
    }

    /// Reads what is really there, after somebody else has changed it, or notes to do so: two that
    /// undo each other's work all the time must not keep the node busy.
    fn repair(&mut self) {
        let due = self
            .last_repair
            .map_or_else(Instant::now, |last| last + QUIET);
        if due > Instant::now() {
            self.repair_due = Some(due);
            return;
        }
        self.repair_due = None;
        self.last_repair = Some(Instant::now());
        if std::mem::take(&mut self.interfered) {
            tracing::warn!("somebody else has changed our tables: reading them again");
            self.outlets.metrics.interference.inc();
        }
        if let Err(error) = self.proxy.read_again() {
            tracing::error!(%error, "cannot read our tables; trying again");
            self.repair_due = Some(Instant::now() + QUIET);
            return;
        }
        self.full = true;
    }

    /// Programs what has changed. Returns when to try again, if that failed.
    fn sync(&mut self) -> Option<Instant> {
        let started = Instant::now();
        let result = self.proxy.sync();
        self.last_end = Some(Instant::now());
        match result {
            Ok(synced) => {
                let first = self.outlets.first_sync.take();
                // A busy cluster has hundreds of transactions a second.
                let changed = synced.applied.operations > 0;
                if first.is_some() || (changed && (self.full || self.config.verbosity >= STEADY)) {
                    log_sync(&self.proxy, &synced);
                }
                self.measure(&synced, started.elapsed());
                self.outlets.health.synced();
                self.publish();
                self.retry = FIRST_RETRY;
                self.full = false;
                if let Some(first) = first {
                    first(&mut self.proxy);
                }
                self.expect_garbage();
                None
            }
            Err(error) => {
                let retry = self.retry;
                tracing::error!(%error, ?retry, "sync failed; what was programmed stays in place");
                self.outlets.metrics.sync_failed();
                // What was committed before the failure counts: flows are judged by it now, and
                // not by what has come since when the next sync succeeds.
                self.outlets.cleaner.clean(stale_flows(&mut self.proxy));
                self.retry = (retry * 2).min(self.config.sync_period.max(FIRST_RETRY));
                Some(Instant::now() + retry)
            }
        }
    }

    /// What is unused is taken away when it has been so for a while, whatever comes meanwhile.
    fn expect_garbage(&mut self) {
        if self.tidy_due.is_none() && self.proxy.has_garbage() {
            self.tidy_due = Some(Instant::now() + QUIET);
        }
    }

    fn tidy(&mut self) {
        self.tidy_due = None;
        if !self.proxy.tidy() {
            self.outlets.metrics.cleanup_failed();
        }
        self.expect_garbage();
    }

    fn measure(&mut self, synced: &Synced, whole: Duration) {
        let metrics = &self.outlets.metrics;
        let times = SyncTimes {
            whole,
            computing: synced.computing + synced.applied.encoding,
            kernel: synced.applied.kernel,
        };
        metrics.synced(
            self.full,
            times,
            synced.applied.operations,
            synced.applied.bytes,
        );
        let waiting = std::mem::take(&mut self.waiting);
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        // Each family takes in every Service.
        let families = u64::try_from(self.families).unwrap_or(1);
        metrics
            .service_changes
            .inc_by(count(waiting.service_changes) * families);
        metrics
            .endpoint_changes
            .inc_by(count(waiting.endpoint_changes));
        metrics.service_changes_pending.set(0);
        metrics.endpoint_changes_pending.set(0);
        let now = Timestamp::now().as_nanosecond();
        for (family, began) in waiting.triggers.into_values() {
            for at in began {
                let after = Duration::from_nanos(u64::try_from(now - at).unwrap_or(0));
                metrics.programmed(family, after);
            }
        }
        let desired = self.proxy.desired();
        for (family, without) in desired.without_local().iter() {
            metrics.set_no_local_endpoints(family, "internal", without.internal);
            metrics.set_no_local_endpoints(family, "external", without.external);
        }
        for (family, set, count) in self.proxy.backend().elements() {
            metrics.set_elements(family, set, count);
        }
        let contested = desired.engine().contested_claims();
        metrics
            .contested
            .set(i64::try_from(contested).unwrap_or(i64::MAX));
        metrics
            .refused
            .set(i64::try_from(synced.left_out).unwrap_or(i64::MAX));
    }

    /// Tells those who depend on what is programmed.
    fn publish(&mut self) {
        self.outlets.cleaner.clean(stale_flows(&mut self.proxy));
        let desired = self.proxy.desired();
        let addresses = desired.node_port_addresses();
        let table = Table {
            checks: desired.health_checks().cloned().collect(),
            addresses: PerFamily::from_fn(|family| {
                if desired.node_ports().all(family) {
                    Addresses::All
                } else {
                    Addresses::Some(addresses.clone())
                }
            }),
        };
        // Without a change too: a listener that could not be had is tried again.
        self.outlets.tables.send_replace(table);
    }
}

fn is_due(at: Option<Instant>) -> bool {
    at.is_some_and(|at| at <= Instant::now())
}

/// One line per sync.
pub(crate) fn log_sync(proxy: &Proxy<Nftables>, synced: &Synced) {
    let applied = synced.applied;
    tracing::info!(
        services = proxy.desired().state().service_count(),
        operations = applied.operations,
        bytes = applied.bytes,
        transactions = applied.transactions,
        kernel = ?applied.kernel,
        "synced",
    );
}

/// The UDP flows that the last sync may have left stale.
pub(crate) fn stale_flows(proxy: &mut Proxy<Nftables>) -> Work {
    Work {
        destinations: proxy.take_stale_flows(),
        node_addresses: proxy.desired().node_port_addresses(),
    }
}
