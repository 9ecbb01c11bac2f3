//! What the sync loop does now and then, each by a deadline of its own: counting, watching for others, taking
//! over, taking away what is unused.

use std::time::{Duration, Instant};

use super::TakenOver;
use super::sync_loop::SyncLoop;
use crate::core::model::Family;
use crate::dataplane::Backend;

/// How often what rules have counted is read.
const COUNT: Duration = Duration::from_secs(5);
/// How old what is unused becomes: it may be of use again soon, and is gone by then however busy the
/// node is.
const QUIET: Duration = Duration::from_secs(1);

impl<B: Backend> SyncLoop<B> {
    /// Counts what rules have refused; a table that was replaced begins at nothing.
    pub(super) fn count(&mut self) {
        let counts = self.proxy.backend_mut().refused_on_loopback();
        for (family, protocol, now) in counts.unwrap_or_default() {
            let known = self.refused_on_loopback.entry((family, protocol));
            let before = std::mem::replace(known.or_default(), now);
            let by = now.checked_sub(before).unwrap_or(now);
            self.outlets
                .metrics
                .refused_on_loopback(family, protocol, by);
        }
        self.tasks.count.want(Instant::now() + COUNT);
    }

    /// Programs families that the kernel has not had before.
    pub(super) fn look_for_families(&mut self) {
        if self.proxy.backend_mut().look_for_families() {
            tracing::info!("the kernel has both families now");
            self.begin_anew();
        }
        if self.proxy.backend().families().len() < Family::BOTH.len() {
            let next = Instant::now() + self.config.sync_period;
            self.tasks.families.want(next);
        }
    }

    /// Begins to hear of changes by others.
    pub(super) fn watch(&mut self) {
        let interfered = self.interfered.0.clone();
        let changed = move |culprit| {
            // One that waits already says the same.
            let _ = interfered.try_send(culprit);
        };
        match self.proxy.backend_mut().watch(Box::new(changed)) {
            Ok(true) => self.tasks.watch.succeeded(),
            Ok(false) => {
                self.tasks.watch.succeeded();
                tracing::info!(
                    "another program has changed nftables meanwhile (nft monitor shows who): reading our tables again"
                );
                self.tasks.repair.want(Instant::now());
                self.queued();
            }
            Err(error) => {
                let retry = self.tasks.watch.failed(Instant::now());
                tracing::warn!(%error, ?retry, "changes of our tables by others are not noticed yet");
            }
        }
    }

    /// Removes what another proxy has left, until that is done.
    pub(super) fn take_over(&mut self) {
        match super::take_over_leftovers(&mut self.proxy) {
            Ok(TakenOver::Done) => self.tasks.take_over.succeeded(),
            Ok(TakenOver::NotYet) => {
                if !std::mem::replace(&mut self.ipvs, true) {
                    super::warn_of_ipvs();
                }
                let next = Instant::now() + self.config.sync_period;
                self.tasks.take_over.want(next);
            }
            Err(error) => {
                let retry = self.tasks.take_over.failed(Instant::now());
                tracing::warn!(
                    %error, ?retry,
                    "kube-proxy's iptables chains could not be removed; kube-proxy --cleanup does it",
                );
            }
        }
    }

    /// What is unused is taken away when it has been so for a while, whatever comes meanwhile.
    pub(super) fn expect_garbage(&mut self) {
        if self.tasks.tidy.at().is_none() && self.proxy.has_garbage() {
            self.tasks.tidy.want(Instant::now() + QUIET);
        }
    }

    pub(super) fn tidy(&mut self) {
        if self.proxy.tidy() {
            self.tasks.tidy.succeeded();
            self.expect_garbage();
        } else {
            self.outlets.metrics.cleanup_failed();
            self.tasks.tidy.failed(Instant::now());
        }
    }
}
