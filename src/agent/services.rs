//! Being the proxy: the sync loop's thread, the sources that feed it, and the servers beside it,
//! from the first moment to SIGTERM.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::sync_loop::{Event, Outlets, SyncLoop};
use super::{cluster, files, new_desired};
use crate::agent::reconciler::Desired;
use crate::config::{Config, Origin};
use crate::core::model::Change;
use crate::dataplane::conntrack::Cleaner;
use crate::dataplane::{self, nftables};
use crate::host::addresses::AddressWatch;
use crate::host::families;
use crate::serve::admin::{self, Sources};
use crate::serve::events::{Events, News};
use crate::serve::health::Health;
use crate::serve::health_checks::{self, Table};
use crate::serve::metrics::Metrics;
use crate::source::cluster::{Changes, Notice, Trigger};

/// For so long the end waits for the event that says why.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs until a signal says stop, or something that cannot be mended.
pub(crate) async fn run(config: &Config) -> Result<()> {
    let mut signals = Signals::new()?;
    let families = families();
    // What is missing for good is said at once, not after the first list.
    nftables::Nftables::connect(dataplane::Options {
        families: families.clone(),
        ..dataplane::Options::default()
    })?;
    let health = Arc::new(Health::new(config.sync_period * 2, families.clone()));
    let metrics = Metrics::new(&families)?;
    let (news, announced) = mpsc::unbounded_channel();
    let servers = serve(config, &health, &metrics, news.clone())?;
    tokio::select! {
        result = work(config, &health, &metrics, news, announced) => result,
        result = servers => result,
        result = files::until_changed(config.file.as_ref()) => result,
        () = signals.received() => Ok(()),
    }
}

/// Starts the servers; the future ends only if one of them must not fail and does.
fn serve(
    config: &Config,
    health: &Arc<Health>,
    metrics: &Metrics,
    news: mpsc::UnboundedSender<News>,
) -> Result<impl Future<Output = Result<()>> + use<>> {
    let configuration = serde_json::to_string(&serde_json::json!({
        "kubeproxy.config.k8s.io": config.effective,
    }))
    .context("cannot print the configuration")?;
    let sources = Sources {
        health: Arc::clone(health),
        metrics: metrics.clone(),
        configuration: configuration.into(),
    };
    let hard_fail = config.bind_hard_fail;
    let metrics_address = config.metrics_address;
    let health_address = config.health_address;
    Ok(async move {
        let metrics = admin::serve_metrics(sources.clone(), metrics_address, hard_fail);
        let health = async {
            match health_address {
                Some(address) => admin::serve_health(sources, address, hard_fail).await,
                None => std::future::pending().await,
            }
        };
        let failed = tokio::select! {
            result = metrics => result,
            result = health => result,
        };
        if let Err(error) = &failed {
            let (told, written) = oneshot::channel();
            let _ = news.send(News::ServerFailed(error.what, error.to_string(), told));
            // The cluster should know before this process is gone, if it can be told at all.
            let _ = tokio::time::timeout(LAST_WORDS, written).await;
        }
        Ok(failed?)
    })
}

/// Gets the cluster's objects, and keeps the kernel in step with them.
async fn work(
    config: &Config,
    health: &Arc<Health>,
    metrics: &Metrics,
    news: mpsc::UnboundedSender<News>,
    announced: mpsc::UnboundedReceiver<News>,
) -> Result<()> {
    let started = Timestamp::now();
    let mut desired = new_desired(config)?;
    match &config.origin {
        Origin::Manifests(path) => {
            // There is no cluster to tell.
            drop(announced);
            let mut manifests = files::manifests(config, path);
            desired.take(files::load_strictly(&mut manifests)?);
            let running = Running::start(
                config,
                desired,
                Vec::new(),
                started,
                (health, metrics),
                news,
            )?;
            files::follow(manifests, running.events.clone()).await
        }
        Origin::Cluster { .. } => {
            let mut cluster = cluster::connect(config).await?;
            let events = Events::new(cluster.client.clone(), &config.node_name);
            tokio::spawn(events.run(announced));
            let _ = news.send(News::Starting);
            let triggers = cluster::fill(config, &mut cluster, &mut desired, |notice| {
                if let Notice::Failed(kind, _) = notice {
                    metrics
                        .watch_failures
                        .with_label_values(&[kind.name()])
                        .inc();
                }
            })
            .await?;
            let running =
                Running::start(config, desired, triggers, started, (health, metrics), news)?;
            cluster::follow(cluster, metrics.clone(), running.events.clone()).await
        }
    }
}

/// The sync loop and what hangs on it. Dropping it finishes the transaction under way.
struct Running {
    events: Sender<Event>,
    health: Arc<Health>,
    threads: Vec<thread::JoinHandle<()>>,
    health_checks: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(
        config: &Config,
        desired: Desired,
        triggers: Vec<Trigger>,
        started: Timestamp,
        (health, metrics): (&Arc<Health>, &Metrics),
        news: mpsc::UnboundedSender<News>,
    ) -> Result<Self> {
        let (events, inbox) = channel();
        health.set_eligible(desired.state().node().eligible);
        let proxy = super::start(config, desired)?;
        let port = proxy.backend().port();
        let counted = metrics.clone();
        let (cleaner, cleaning) = Cleaner::start(move |family, cleaned| {
            counted.conntrack_cleaned(family, cleaned.took, cleaned.ended);
        })
        .context("cannot start the conntrack thread")?;
        let (tables, health_checks) = watch::channel(Table::default());
        let (interference, looking_again) = (events.clone(), events.clone());
        let owned = config.clone();
        let outlets = Outlets {
            cleaner,
            tables,
            health: Arc::clone(health),
            metrics: metrics.clone(),
            // The first sync is the largest, and nobody knows our tables yet: it goes unwatched.
            first_sync: Some(Box::new(move |proxy| {
                super::take_over_iptables(&owned, proxy);
                let changed = move || {
                    // The loop that has ended needs to know nothing.
                    let _ = interference.send(Event::Interference);
                };
                let disturbed = proxy.backend().was_disturbed();
                match nftables::watch(port, changed) {
                    // Nobody watched when they were read.
                    Ok(()) if disturbed => {
                        let _ = looking_again.send(Event::ReadAgain);
                    }
                    Ok(()) => {}
                    Err(error) => {
                        tracing::warn!(%error, "changes of our tables by others are not noticed");
                    }
                }
            })),
        };
        let mut sync_loop = SyncLoop::new(proxy, outlets, config.clone(), started);
        sync_loop.await_effect(triggers);
        let sync = thread::Builder::new()
            .name("sync".to_owned())
            .spawn(move || sync_loop.run(&inbox))
            .context("cannot start the sync thread")?;
        follow_addresses(&events);
        // With health off, the proxy counts as healthy (SEMANTICS I8).
        let off = config.health_address.is_none();
        let asked = Arc::clone(health);
        let healthy = move || off || asked.is_healthy();
        let failed = move |service: &_, why: &str| {
            let _ = news.send(News::HealthCheckFailed(
                Clone::clone(service),
                why.to_owned(),
            ));
        };
        let health_checks = tokio::spawn(health_checks::serve(
            health_checks,
            Arc::new(healthy),
            Box::new(failed),
        ));
        Ok(Self {
            events,
            health: Arc::clone(health),
            // With the sync loop goes the cleaner's handle: its thread ends when its work is done.
            threads: vec![sync, cleaning],
            health_checks,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.health.stop();
        // The loop may have ended already, with nobody to tell.
        let _ = self.events.send(Event::Stop);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread panicked; the rules stay in place");
            }
        }
        self.health_checks.abort();
    }
}

/// Tells the sync loop when the node's addresses change.
fn follow_addresses(events: &Sender<Event>) {
    let events = events.clone();
    let watch = AddressWatch::start(move |addresses| {
        let changes = Changes {
            changes: vec![Change::InterfaceAddresses(addresses)],
            ..Changes::default()
        };
        // The loop that has ended needs to know nothing.
        let _ = events.send(Event::Changes(changes));
    });
    if let Err(error) = watch {
        tracing::warn!(%error, "changes of the node's addresses are not followed");
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot wait for signals")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot wait for signals")?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
