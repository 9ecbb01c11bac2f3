//! The loop that owns everything that changes: it takes a closed set of events and keeps the
//! kernel in step (docs/semantics.md, G).
//!
//! The first event of a quiet time is programmed at once; what comes while a transaction runs is
//! programmed by the next one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use super::inbox::{Inbox, WAITING, Woken, wait};
use super::journal::Journal;
use super::metrics::{AgentMetrics, SyncTimes};
use super::noted::Noted;
use super::observer::Watching;
use super::published::{self, log_sync, stale_flows};
use super::repairs::Repairs;
use super::tasks::Tasks;
use super::waiting::Waiting;
use crate::agent::reconciler::{Proxy, Synced};
use crate::config::Config;
use crate::core::model::{Family, ObjectKey, PerFamily, Protocol};
use crate::dataplane::conntrack::Cleaner;
use crate::dataplane::{Backend, Culprit, Mode};
use crate::serve::health::Health;
use crate::serve::health_checks::Table;
use crate::serve::loopback;
use crate::source::changes::Changes;
use crate::source::report;

/// The verbosity from which on every sync is logged: "useful steady state information", as
/// Kubernetes' logging conventions have it.
const STEADY: u32 = 2;
/// While the first sync goes on, flows are looked through no more often.
const LONGEST_FIRST: Duration = Duration::from_secs(1);
/// Where the loop tells what a sync has brought.
pub(crate) struct Outlets {
    pub(crate) cleaner: Cleaner,
    pub(crate) tables: watch::Sender<Table>,
    /// Where `NodePort`s lead on loopback, in families that serve them there.
    pub(crate) loopback: watch::Sender<loopback::Table>,
    /// Whose connections are looked at.
    pub(crate) watching: watch::Sender<Watching>,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: AgentMetrics,
}

pub(crate) struct SyncLoop<B> {
    pub(crate) proxy: Proxy<B>,
    pub(crate) outlets: Outlets,
    pub(crate) config: Config,
    pub(super) waiting: Waiting,
    pub(super) tasks: Tasks,
    /// Wakes the loop when somebody else has changed our tables.
    pub(super) interfered: (
        mpsc::Sender<Option<Culprit>>,
        mpsc::Receiver<Option<Culprit>>,
    ),
    pub(super) repairs: Repairs,
    /// What the kernel holds has to be read before anything is sent.
    outdated: bool,
    first: bool,
    /// What rules had counted.
    pub(super) refused_on_loopback: HashMap<(Family, Protocol), u64>,
    /// What ipvs leaves is here, which has been said.
    pub(super) ipvs: bool,
    /// The kernel was read anew, so that the next sync compares everything.
    full: bool,
    /// What the transactions since the kernel was last as wanted have been.
    round: Option<Round>,
    /// What a person is told who asks.
    pub(super) journal: Journal,
    /// What of the cluster's objects could not be used.
    pub(super) noted: Noted,
    /// Since when nothing can be programmed, and why.
    pub(super) failing: Option<(Timestamp, String)>,
    /// When everything that was wanted was programmed last.
    pub(super) settled: Option<Timestamp>,
}

/// Transactions, of which the last leaves nothing to do.
#[derive(Debug, Clone, Copy)]
struct Round {
    began: Instant,
    /// When its flows were handed over last.
    handed_over: Instant,
    synced: Synced,
}

impl<B: Backend> SyncLoop<B> {
    /// A loop that has not begun. Changes that began before `started` are not its delay.
    pub(crate) fn new(
        proxy: Proxy<B>,
        outlets: Outlets,
        config: Config,
        started: Timestamp,
    ) -> Self {
        let waiting = Waiting::since(started, proxy.backend().families().len());
        Self {
            proxy,
            outlets,
            waiting,
            tasks: Tasks::new(config.sync_period),
            interfered: mpsc::channel(1),
            repairs: Repairs::default(),
            // Nothing has been read yet.
            outdated: true,
            first: true,
            refused_on_loopback: HashMap::new(),
            ipvs: false,
            full: true,
            round: None,
            journal: Journal::new(),
            noted: Noted::default(),
            failing: None,
            settled: None,
            config,
        }
    }

    /// Runs until it is told to stop, or nobody can tell it anything any more.
    ///
    /// # Errors
    ///
    /// If it cannot begin.
    pub(crate) fn run(mut self, mut inbox: Inbox) -> Result<()> {
        // Of this thread alone: a transaction blocks.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .context("cannot start the sync loop's runtime")?;
        self.tasks.repair.want(Instant::now());
        self.tasks.sync.want(Instant::now());
        self.tasks.families.want(Instant::now());
        self.queued();
        self.perform();
        loop {
            let next = self.tasks.next(!self.outdated);
            let mut heard = false;
            match runtime.block_on(wait(&mut inbox, &mut self.interfered.1, next)) {
                Woken::Stop => {
                    // What follows finds everything in effect, and would not look.
                    self.hand_over_flows();
                    return Ok(());
                }
                Woken::Time => {}
                Woken::Interference(culprit) => self.interference(culprit),
                Woken::Asked(question) => self.answer(question),
                Woken::Event(changes) => {
                    self.take(changes);
                    heard = true;
                }
            }
            // Whoever is loud does not drown out the others.
            for _ in 0..WAITING {
                let Ok(changes) = inbox.events.try_recv() else {
                    break;
                };
                self.take(changes);
                heard = true;
            }
            if let Ok(culprit) = self.interfered.1.try_recv() {
                self.interference(culprit);
            }
            if heard {
                self.tasks.sync.want(Instant::now());
                self.queued();
            }
            self.perform();
        }
    }

    fn interference(&mut self, culprit: Option<Culprit>) {
        self.repairs.heard(culprit);
        self.tasks.repair.want(Instant::now());
        self.queued();
    }

    /// Does what is due.
    fn perform(&mut self) {
        if self.tasks.repair.take(Instant::now()) {
            self.repair();
        }
        if !self.outdated && self.tasks.sync.take(Instant::now()) {
            self.sync();
        }
        if self.tasks.watch.take(Instant::now()) {
            self.watch();
        }
        if self.tasks.take_over.take(Instant::now()) {
            self.take_over();
        }
        if self.tasks.tidy.take(Instant::now()) {
            self.tidy();
        }
        if self.tasks.resting.take(Instant::now()) {
            self.proxy.wake();
            self.begin_anew();
        }
        if self.tasks.families.take(Instant::now()) {
            self.look_for_families();
        }
        if self.tasks.count.take(Instant::now()) {
            self.count();
        }
    }

    /// Has everything read, before anything else is sent.
    pub(super) fn begin_anew(&mut self) {
        self.outdated = true;
        self.tasks.repair.succeeded();
        self.tasks.repair.want(Instant::now());
        self.queued();
    }

    pub(super) fn queued(&self) {
        self.outlets.health.queued();
        self.outlets.metrics.queued();
    }

    fn take(&mut self, changes: Changes) {
        let metrics = &self.outlets.metrics;
        self.noted.take(&changes.causes, &changes.warnings);
        for field in report(changes.warnings) {
            metrics.warnings.with_label_values(&[field.as_str()]).inc();
        }
        self.waiting.count(&changes.changes, metrics);
        self.waiting.await_effect(changes.triggers);
        let before = self.proxy.desired().state().node().pod_cidrs.clone();
        self.proxy.take(changes.changes);
        self.journal.heard(changes.causes, self.proxy.desired());
        let node = self.proxy.desired().state().node();
        self.outlets.health.set_eligible(node.eligible);
        if self.config.needs_pod_cidrs() && node.pod_cidrs != before {
            self.reconfigure();
        }
    }

    /// Follows the Node's pod ranges: they are part of the program.
    fn reconfigure(&mut self) {
        let program = match super::options(&self.config, self.proxy.desired().state().node()) {
            Ok(program) => program,
            Err(error) => {
                tracing::warn!(%error, "pods are recognised as before");
                return;
            }
        };
        self.proxy.backend_mut().reconfigure(program);
        self.begin_anew();
    }

    /// Reads what is really there, after somebody else has changed it.
    fn repair(&mut self) {
        let began = Instant::now();
        if self.repairs.begin(began) {
            self.outlets.metrics.interference.inc();
        }
        self.journal.other_cause(if self.first {
            "the start"
        } else {
            "our tables, read anew"
        });
        let read = self.proxy.read_again();
        self.repairs.spend(began.elapsed());
        match read {
            Ok(()) => {
                self.outdated = false;
                self.tasks.repair.succeeded();
                self.rest_from_repair();
                self.full = true;
                self.tasks.sync.hurry();
                self.tasks.sync.want(Instant::now());
            }
            Err(error) => {
                let retry = self.tasks.repair.failed(Instant::now());
                tracing::error!(%error, ?retry, "cannot read our tables; what was programmed stays in place");
                self.fails(&error);
                self.hand_over_flows();
            }
        }
    }

    /// Two that undo each other's work all the time must not keep the node busy.
    fn rest_from_repair(&mut self) {
        self.tasks
            .repair
            .not_before(Instant::now() + self.repairs.rest());
    }

    /// Programs what has changed, in one transaction; if there is more, it comes after what has been
    /// heard meanwhile.
    fn sync(&mut self) {
        let round = self.round.take();
        let stepped = Instant::now();
        let Round {
            began,
            mut handed_over,
            synced: before,
        } = round.unwrap_or_else(|| Round {
            began: stepped,
            handed_over: stepped,
            synced: Synced::default(),
        });
        let result = self.proxy.step();
        let now = Instant::now();
        self.repairs.spend(now - stepped);
        match result {
            Ok(step) => {
                let mut synced = before;
                synced += step;
                let desired = self.proxy.desired();
                let is = |slice: &ObjectKey| desired.has_programmed(slice);
                self.waiting.in_effect(is, &self.outlets.metrics);
                // Nobody is served worse than before while the first one goes on, and each part of it is about all
                // flows of the node.
                if synced.settled || !self.first || now - handed_over > LONGEST_FIRST {
                    self.hand_over_flows();
                    handed_over = now;
                }
                if let Some(until) = synced.wait {
                    self.tasks.sync.want(until);
                }
                self.tasks.sync.succeeded();
                if !synced.settled {
                    self.round = Some(Round {
                        began,
                        handed_over,
                        synced,
                    });
                    self.tasks.sync.want(now);
                    return;
                }
                // A busy cluster has hundreds of transactions a second.
                let changed = synced.applied.operations > 0;
                let is_rare = self.full && self.repairs.is_told();
                let is_told =
                    self.first || (changed && (is_rare || self.config.verbosity >= STEADY));
                self.rest_from_repair();
                self.repairs.done();
                self.journal.synced(&synced, self.proxy.desired());
                self.failing = None;
                self.settled = Some(Timestamp::now());
                self.measure(&synced, now - began);
                self.rest(synced.resting);
                self.publish(synced.compiled > 0 || self.full);
                // Who reads it finds in the metrics what it is about.
                if is_told {
                    log_sync(&self.proxy, &synced);
                }
                self.full = false;
                let rest = self.proxy.backend().rest();
                self.tasks
                    .sync
                    .not_before(now + self.config.min_sync_period.max(rest));
                if std::mem::take(&mut self.first) {
                    if self.config.node_port_addresses.any_loopback() {
                        self.tasks.count.want(now);
                    }
                    self.tasks.watch.want(now);
                    super::remove_other_mode(&mut self.proxy);
                    if self.config.takeover {
                        self.tasks.take_over.want(now);
                    } else {
                        super::warn_of_leftovers(&mut self.proxy);
                    }
                }
                self.expect_garbage();
            }
            Err(error) => {
                self.round = round;
                self.repairs.done();
                // If nobody has asked for it but the time, health has to know.
                self.queued();
                self.fails(&error);
                let retry = self.tasks.sync.failed(now);
                tracing::error!(%error, ?retry, "sync failed; what was programmed stays in place");
                self.outlets.metrics.sync_failed(&Family::BOTH);
                // What was committed before the failure counts: flows are judged by it now, and
                // not by what has come since when the next sync succeeds.
                self.hand_over_flows();
            }
        }
    }

    fn hand_over_flows(&mut self) {
        self.outlets.cleaner.clean(stale_flows(&mut self.proxy));
    }

    fn fails(&mut self, error: &dyn std::fmt::Display) {
        let why = error.to_string();
        self.journal.failed(why.clone());
        let since = self
            .failing
            .take()
            .map_or_else(Timestamp::now, |(since, _)| since);
        self.failing = Some((since, why));
    }

    /// What the kernel refuses is tried again after a while.
    fn rest(&mut self, resting: PerFamily<bool>) {
        self.outlets.health.synced(resting);
        let refused: Vec<Family> = Family::BOTH
            .into_iter()
            .filter(|family| *resting.get(*family))
            .collect();
        if refused.is_empty() {
            self.tasks.resting.succeeded();
        } else if self.tasks.resting.at().is_none() {
            let retry = self.tasks.resting.failed(Instant::now());
            tracing::warn!(?retry, "the family that is refused is tried again");
            self.outlets.metrics.sync_failed(&refused);
        }
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
        if synced.wait.is_none() {
            self.waiting.done(metrics);
        }
        let desired = self.proxy.desired();
        for (family, without) in desired.without_local().iter() {
            metrics.set_no_local_endpoints(family, "internal", without.internal);
            metrics.set_no_local_endpoints(family, "external", without.external);
        }
        for (family, set, count) in self.proxy.backend().counts() {
            metrics.set_elements(family, set, count);
        }
        for (family, table, count) in self.proxy.backend().written() {
            metrics.set_written(family, table, count);
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
    fn publish(&mut self, changed: bool) {
        let watched = self.proxy.take_watched();
        let desired = self.proxy.desired();
        self.outlets.watching.send_if_modified(|known| {
            let is_new = watched.is_some();
            known.ports = watched.unwrap_or_else(|| std::mem::take(&mut known.ports));
            let addresses = match known.ports.as_slice() {
                [] => Vec::new(),
                _ => desired.node_port_addresses(),
            };
            let differs = is_new || known.node_addresses != addresses;
            known.node_addresses = addresses;
            differs
        });
        // Without a change too: a listener that could not be had is tried again.
        let checks = published::health_checks(desired);
        self.outlets.tables.send_replace(checks);
        if changed && desired.node_ports().any_loopback() {
            let routed = B::MODE == Mode::Iptables && self.config.routes_localhost();
            let ports = published::on_loopback(desired, routed);
            self.outlets.loopback.send_replace(ports);
        }
    }
}

#[cfg(test)]
#[path = "sync_loop_tests.rs"]
mod tests;
