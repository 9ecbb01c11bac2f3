//! Being the proxy: the sync loop's thread, the sources that feed it, and the servers beside it,
//! from the first moment to SIGTERM.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::connection_counts::ConnectionCounts;
use super::inbox::{self, Inbox};
use super::inquiries::Asked;
use super::local_api::{self, LocalApi};
use super::metrics::AgentMetrics;
use super::observer::{Observer, Watching};
use super::sync_loop::{Outlets, SyncLoop};
use super::watches::Watches;
use super::{cluster, files, new_desired};
use crate::agent::reconciler::Desired;
use crate::config::{Config, Origin};
use crate::core::model::Change;
use crate::dataplane::conntrack::Cleaner;
use crate::dataplane::{Backend, Mode, Options};
use crate::host::descriptors;
use crate::host::interfaces::AddressWatch;
use crate::host::ipv6_is_off;
use crate::serve::admin::{self, Answers, Refresh};
use crate::serve::events::{Events, News};
use crate::serve::health::Health;
use crate::serve::health_checks::{self, Table};
use crate::serve::http::Places;
use crate::serve::local_socket;
use crate::serve::loopback::{self, LoopbackMetrics};
use crate::serve::registry::Metrics;
use crate::source::changes::Changes;
use crate::source::cluster::Notice;

/// For so long the end waits for the event that says why.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs until a signal says stop, or something that cannot be mended.
pub(crate) async fn run<B: Backend + Send + 'static>(config: &Config) -> Result<()> {
    let mut signals = Signals::new()?;
    // What is missing for good is said at once, not after the first list.
    let backend = B::open(Options::default())?;
    let families = backend.families();
    if ipv6_is_off() {
        tracing::warn!(
            "IPv6 is switched off on this node (net.ipv6.conf.all.disable_ipv6): its rules serve when it is switched on"
        );
    }
    let health = Arc::new(Health::new(config.sync_period * 2, families.clone()));
    let registry = Metrics::new()?;
    let metrics = AgentMetrics::new(&registry, &families, B::MODE)?;
    let (ask, questions) = watch::channel(None);
    let shared = Shared {
        ask,
        watches: Watches::default(),
        loopback: LoopbackMetrics::new(&registry, &families)?,
        places: Places::shared(descriptors::raise_limit()),
        health: &health,
        metrics: &metrics,
    };
    let (news, announced) = mpsc::unbounded_channel();
    let (stop, stopped) = watch::channel(());
    let counts = ConnectionCounts::new(&registry, B::MODE, config.counting, questions.clone())?;
    let local = LocalApi {
        node: config.node_name.clone(),
        mode: B::MODE,
        source: source(config),
        watched: matches!(config.origin, Origin::Cluster { .. }),
        watches: shared.watches.clone(),
        questions: questions.clone(),
        counts: counts.clone(),
        verify: local_api::verify::<B>,
    };
    tokio::spawn(answer_administrators(
        config.socket.clone(),
        local,
        stopped.clone(),
    ));
    look_around(B::MODE, &news);
    counts.start().await;
    let telling = answers(config, &health, &registry, (B::MODE, counts))?;
    let mut servers = pin!(serve(config, telling, news.clone(), stopped));
    let mut running = None;
    let start = files::of_the_start(config);
    let result = tokio::select! {
        result = work(config, backend, &shared, (news, announced), &mut running) => result,
        result = &mut servers => return result,
        result = files::until_any_changed(config, &start) => result,
        () = signals.received() => Ok(()),
    };
    // Who asks meanwhile hears that this proxy ends.
    health.stop();
    drop(stop);
    let ended = async {
        if let Some(running) = running {
            running.end().await;
        }
    };
    let (served, ()) = tokio::join!(servers, ended);
    result.and(served)
}

/// What tasks have together.
struct Shared<'a> {
    health: &'a Arc<Health>,
    metrics: &'a AgentMetrics,
    /// Of health checks, and of `NodePort`s on loopback.
    places: [Places; 2],
    loopback: LoopbackMetrics,
    /// Where the loop is asked, told when it runs.
    ask: watch::Sender<Option<mpsc::Sender<Asked>>>,
    watches: Watches,
}

/// Where the objects come from, in words.
fn source(config: &Config) -> String {
    match &config.origin {
        Origin::Manifests(path) => format!("files at {}", path.display()),
        Origin::Cluster {
            kubeconfig, server, ..
        } => match (server, kubeconfig) {
            (Some(server), _) => server.clone(),
            (None, Some(path)) => format!("of {}", path.display()),
            (None, None) => "of this pod's service account".to_owned(),
        },
    }
}

/// Says what on this machine keeps connections from endpoints.
fn look_around(mode: Mode, news: &mpsc::UnboundedSender<News>) {
    let news = news.clone();
    tokio::task::spawn_blocking(move || {
        let (_, findings) = local_api::look_around(mode);
        for finding in findings {
            tracing::warn!(
                finding = finding.id,
                todo = finding.todo,
                "{}",
                finding.what
            );
            if finding.certain {
                let _ = news.send(News::Finding(finding.what));
            }
        }
    });
}

/// Answers on the socket, if there is to be one. Nobody's connection depends on it.
async fn answer_administrators(
    path: Option<PathBuf>,
    local: LocalApi,
    mut stopped: watch::Receiver<()>,
) {
    let Some(path) = path else { return };
    match local_socket::listen(&path).await {
        Ok(listening) => {
            let answer = move |uri| local.clone().answer(uri);
            let stop = async move {
                // Never sent: it ends when its sender is gone.
                let _ = stopped.changed().await;
            };
            local_socket::serve(listening, answer, stop).await;
        }
        Err(error) => {
            tracing::warn!(%error, "pointsman explain, status, verify, top and history cannot ask this process");
        }
    }
}

/// What the servers answer from.
fn answers(
    config: &Config,
    health: &Arc<Health>,
    metrics: &Metrics,
    (mode, counts): (Mode, ConnectionCounts),
) -> Result<Answers> {
    let refresh: Refresh = Arc::new(move || {
        let counts = counts.clone();
        Box::pin(async move { counts.refresh().await })
    });
    let configuration = serde_json::to_string(&serde_json::json!({
        "kubeproxy.config.k8s.io": config.effective,
    }))
    .context("cannot print the configuration")?;
    let configuration = configuration.into();
    let health = Arc::clone(health);
    Ok(Answers::new(
        health,
        metrics.clone(),
        configuration,
        mode.name(),
        refresh,
    )?)
}

/// Starts the servers; the future ends only if one of them must not fail and does.
fn serve(
    config: &Config,
    sources: Answers,
    news: mpsc::UnboundedSender<News>,
    stopped: watch::Receiver<()>,
) -> impl Future<Output = Result<()>> + use<> {
    let hard_fail = config.bind_hard_fail;
    let metrics_address = config.metrics_address;
    let health_address = config.health_address;
    let stop = move || {
        let mut stopped = stopped.clone();
        async move {
            // Never sent: it ends when its sender is gone.
            let _ = stopped.changed().await;
        }
    };
    async move {
        let metrics = admin::serve_metrics(sources.clone(), metrics_address, hard_fail, stop());
        let health = async {
            match health_address {
                Some(address) => admin::serve_health(sources, address, hard_fail, stop()).await,
                None => {
                    stop().await;
                    Ok(())
                }
            }
        };
        let failed = tokio::try_join!(metrics, health).map(|_| ());
        if let Err(error) = &failed {
            let (told, written) = oneshot::channel();
            let _ = news.send(News::ServerFailed(error.what, error.to_string(), told));
            // The cluster should know before this process is gone, if it can be told at all.
            let _ = tokio::time::timeout(LAST_WORDS, written).await;
        }
        Ok(failed?)
    }
}

/// Gets the cluster's objects, and keeps the kernel in step with them.
async fn work<B: Backend + Send + 'static>(
    config: &Config,
    backend: B,
    shared: &Shared<'_>,
    (news, announced): (mpsc::UnboundedSender<News>, mpsc::UnboundedReceiver<News>),
    running: &mut Option<Running>,
) -> Result<()> {
    let started = Timestamp::now();
    let mut desired = new_desired(config)?;
    match &config.origin {
        Origin::Manifests(path) => {
            // There is no cluster to tell.
            drop(announced);
            let manifests = files::manifests(config, path);
            let (manifests, changes) = files::load_strictly_aside(manifests).await?;
            let known = Changes {
                warnings: changes.warnings,
                ..Changes::default()
            };
            desired.take(changes.changes);
            let running = running.insert(
                Running::start(config, (desired, backend), known, started, shared, news).await?,
            );
            files::follow(manifests, running.events.clone()).await
        }
        Origin::Cluster { .. } => {
            let mut cluster = cluster::connect(config).await?;
            let events = Events::new(cluster.client.clone(), &config.node_name);
            tokio::spawn(events.run(announced));
            let _ = news.send(News::Starting);
            let known = cluster::fill(config, &mut cluster, &mut desired, |notice| {
                shared.watches.heard(notice);
                if let Notice::Failed(kind, ..) = notice {
                    shared
                        .metrics
                        .watch_failures
                        .with_label_values(&[kind.name()])
                        .inc();
                }
            })
            .await?;
            let running = running.insert(
                Running::start(config, (desired, backend), known, started, shared, news).await?,
            );
            let watches = shared.watches.clone();
            cluster::follow(
                cluster,
                shared.metrics.clone(),
                watches,
                running.events.clone(),
            )
            .await
        }
    }
}

/// The sync loop and what hangs on it.
struct Running {
    events: inbox::Events,
    /// Dropped to end the loop.
    stop: oneshot::Sender<()>,
    threads: Vec<thread::JoinHandle<()>>,
    health_checks: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start<B: Backend + Send + 'static>(
        config: &Config,
        (desired, backend): (Desired, B),
        known: Changes,
        started: Timestamp,
        shared: &Shared<'_>,
        news: mpsc::UnboundedSender<News>,
    ) -> Result<Self> {
        let Shared {
            health,
            metrics,
            places: [for_health_checks, for_loopback],
            ..
        } = shared;
        // Nothing of the machine is changed before everything that can be refused has been checked.
        super::apply_sysctls_if_allowed(config, B::MODE)?;
        let (events, inbox) = mpsc::channel(inbox::WAITING);
        health.set_eligible(desired.state().node().eligible);
        // Before the first transaction, so that no change is missed.
        follow_addresses(&events);
        let owned = config.clone();
        // The kernel is not read on the runtime that answers `/livez`.
        let proxy = tokio::task::spawn_blocking(move || super::start(&owned, desired, backend))
            .await
            .context("the kernel could not be read")??;
        let counted = (*metrics).clone();
        let (cleaner, cleaning) = Cleaner::start(move |family, cleaned| {
            counted.conntrack_cleaned(family, cleaned.took, cleaned.ended);
        })
        .context("cannot start the conntrack thread")?;
        let (tables, health_checks) = watch::channel(Table::default());
        let (watching, watched) = watch::channel(Watching::default());
        let (loopback, on_loopback) = watch::channel(loopback::Table::default());
        let serving = config
            .node_port_addresses
            .any_loopback()
            .then(|| loopback::start(on_loopback, for_loopback.clone(), shared.loopback.clone()))
            .transpose()
            .context("cannot start the thread that serves NodePorts on loopback")?;
        let outlets = Outlets {
            cleaner,
            tables,
            watching,
            loopback,
            health: Arc::clone(health),
            metrics: (*metrics).clone(),
        };
        let mut sync_loop = SyncLoop::new(proxy, outlets, config.clone(), started);
        sync_loop.waiting.await_effect(known.triggers);
        sync_loop.noted.take(&known.causes, &known.warnings);
        let (stop, stopped) = oneshot::channel();
        let (ask, questions) = mpsc::channel(inbox::MOST_QUESTIONS);
        let inbox = Inbox {
            events: inbox,
            stop: stopped,
            questions,
        };
        log_history_on_signal(ask.clone())?;
        shared.ask.send_replace(Some(ask));
        let sync = thread::Builder::new()
            .name("sync".to_owned())
            .spawn(move || {
                if let Err(error) = sync_loop.run(inbox) {
                    tracing::error!(%error, "the rules stay in place");
                }
            })
            .context("cannot start the sync thread")?;
        // It ends with the loop, whose watching it follows.
        let observer = Observer {
            watching: watched,
            events: events.clone(),
            news: news.clone(),
            metrics: (*metrics).clone(),
            most_percent: config.most_ejected_percent,
        };
        tokio::spawn(observer.run());
        // With health off, the proxy counts as healthy (docs/semantics.md, I8).
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
            for_health_checks.clone(),
            Arc::new(healthy),
            Box::new(failed),
        ));
        Ok(Self {
            events,
            stop,
            // With the sync loop goes the cleaner's handle: its thread ends when its work is done.
            threads: [sync, cleaning].into_iter().chain(serving).collect(),
            health_checks,
        })
    }

    /// Finishes the transaction under way, and drains the health checks.
    async fn end(self) {
        drop(self.stop);
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a thread panicked; the rules stay in place");
                }
            }
        });
        let _ = joined.await;
        // Their table went with the loop.
        let _ = self.health_checks.await;
    }
}

/// Tells the sync loop when the node's addresses change.
fn follow_addresses(events: &inbox::Events) {
    let events = events.clone();
    let watch = AddressWatch::start(move |addresses| {
        let changes = Changes {
            changes: vec![Change::InterfaceAddresses(addresses)],
            ..Changes::default()
        };
        // The loop that has ended needs to know nothing.
        let _ = events.blocking_send(changes);
    });
    if let Err(error) = watch {
        tracing::warn!(%error, "changes of the node's addresses are not followed");
    }
}

/// SIGUSR1 has the last transactions logged.
fn log_history_on_signal(ask: mpsc::Sender<Asked>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut signals = signal(SignalKind::user_defined1()).context("cannot wait for signals")?;
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            if ask.send(Asked::LogHistory).await.is_err() {
                return;
            }
        }
    });
    Ok(())
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
