//! What the program does once it knows what it was asked: puts the parts together and keeps
//! them going.
//!
//! The sync loop runs in a thread of its own, since a transaction blocks; sources talk to it by
//! message.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::watch;

use crate::backend::Backend;
use crate::backend::nftables::{self, Nftables, ProgramConfig};
use crate::cli::{Action, Config, Output};
use crate::compile::NodePortAddresses;
use crate::conntrack::{self, Cleaner, Work};
use crate::dry_run;
use crate::health_checks::{self, Addresses, Table};
use crate::model::{Change, Family, Node, PerFamily};
use crate::proxy::{Desired, Proxy, Synced};
use crate::source::addresses::{AddressWatch, interface_addresses};
use crate::source::manifests::{Loaded, Manifests, STDIN};
use crate::source::watch_files::FileWatch;

/// A message to the sync loop.
#[derive(Debug)]
enum Event {
    /// Something happened in the cluster.
    Changes(Vec<Change>),
    /// Somebody else has changed our tables.
    Interference,
    /// Finish what is under way, and end.
    Stop,
}

/// How long a quiet moment is, before unused chains are taken away.
const QUIET: Duration = Duration::from_secs(1);
/// The pause after the first failure of a sync; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest pause between retries.
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Editors write in several steps; a load that comes between them is only wasted.
const SETTLE: Duration = Duration::from_millis(20);

/// Does what was asked.
///
/// # Errors
///
/// If it cannot be done; the message says what to do about it.
pub fn run(config: &Config) -> Result<()> {
    if config.action == Action::Cleanup {
        let program = ProgramConfig {
            families: families(),
            ..ProgramConfig::default()
        };
        Nftables::connect(program)?.cleanup()?;
        return Ok(());
    }
    let path = config.manifests.clone().context("no manifests")?;
    let mut manifests = Manifests::new(path, &config.node_name);
    let mut loaded = manifests.load()?;
    report(&mut loaded);
    // At the start there is nothing to fall back on: a broken file is a failure.
    if let Some(error) = loaded.broken.pop() {
        return Err(error.into());
    }
    let (desired, program) = prepare(config, loaded.changes)?;
    match config.action {
        Action::DryRun(Output::Nft) => {
            print_whole(&dry_run::nft(&program, &desired))?;
        }
        Action::DryRun(Output::Json) => {
            print_whole(&dry_run::json(&desired)?)?;
        }
        Action::Once => {
            apply_sysctls(config)?;
            let program = ProgramConfig {
                families: families(),
                ..program
            };
            let mut proxy = Proxy::start(desired, Nftables::connect(program)?)?;
            let synced = proxy.sync()?;
            anyhow::ensure!(
                synced.left_out == 0,
                "the kernel refused {} Services; everything else was committed",
                synced.left_out
            );
            conntrack::clean(&stale_flows(&mut proxy))?;
            proxy.tidy();
            log_sync(&proxy, &synced);
        }
        Action::Run => {
            apply_sysctls(config)?;
            let program = ProgramConfig {
                families: families(),
                ..program
            };
            let proxy = Proxy::start(desired, Nftables::connect(program)?)?;
            follow(proxy, manifests)?;
        }
        Action::Cleanup => {}
    }
    Ok(())
}

fn apply_sysctls(config: &Config) -> Result<()> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    Ok(config.conntrack.apply(processors)?)
}

/// Prints all of a text; a reader that goes away early is no error of ours.
fn print_whole(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out
        .write_all(text.as_bytes())
        .and_then(|()| {
            if text.ends_with('\n') {
                Ok(())
            } else {
                out.write_all(b"\n")
            }
        })
        .and_then(|()| out.flush())
    {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// The cluster of the first load, and the program that suits its node.
fn prepare(config: &Config, changes: Vec<Change>) -> Result<(Desired, ProgramConfig)> {
    let node = Node::named(config.node_name.as_str());
    let mut desired = Desired::new(node, config.node_port_addresses.clone());
    let addresses = interface_addresses().context("cannot list the node's addresses")?;
    desired.take([Change::InterfaceAddresses(addresses)]);
    desired.take(changes);
    desired.compile();
    let node = desired.state().node();
    if config.node_port_addresses == NodePortAddresses::Primary && node.addresses.is_empty() {
        tracing::warn!(
            node = config.node_name,
            "there is no Node of this name with an address: NodePorts are accepted nowhere until there is",
        );
    }
    let program = ProgramConfig {
        masquerade_all: config.masquerade_all,
        local_detector: config.local_detector(node)?,
        node_ports_everywhere: PerFamily::from_fn(|family| config.node_port_addresses.all(family)),
        ..ProgramConfig::default()
    };
    Ok((desired, program))
}

/// The families that this kernel speaks.
fn families() -> Vec<Family> {
    if std::path::Path::new("/proc/net/if_inet6").exists() {
        Family::BOTH.to_vec()
    } else {
        vec![Family::V4]
    }
}

fn report(loaded: &mut Loaded) {
    for warning in loaded.warnings.drain(..) {
        tracing::warn!(
            object = warning.object,
            field = warning.field,
            "{}",
            warning.problem
        );
    }
}

fn log_sync<B: Backend>(proxy: &Proxy<B>, synced: &Synced) {
    let applied = synced.applied;
    tracing::info!(
        services = proxy.desired().state().service_count(),
        operations = applied.operations,
        bytes = applied.bytes,
        kernel = ?applied.kernel,
        "synced",
    );
}

/// The UDP flows that the last sync may have left stale.
fn stale_flows<B: Backend>(proxy: &mut Proxy<B>) -> Work {
    Work {
        destinations: proxy.take_stale_flows(),
        node_addresses: proxy.desired().node_port_addresses(),
    }
}

/// Where the sync loop tells what a sync has brought.
struct Outlets {
    cleaner: Cleaner,
    tables: watch::Sender<Table>,
    health: Arc<Health>,
    /// Starts to notice interference.
    watch: Box<dyn FnOnce() + Send>,
}

impl Outlets {
    fn publish<B: Backend>(&self, proxy: &mut Proxy<B>) {
        self.cleaner.clean(stale_flows(proxy));
        let desired = proxy.desired();
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
        self.tables.send_replace(table);
    }
}

/// Whether syncs succeed.
#[derive(Debug, Default)]
struct Health {
    failing_since: Mutex<Option<Instant>>,
}

/// For so long syncs may fail before the node counts as unhealthy: twice kube-proxy's default
/// `syncPeriod` (SEMANTICS I1).
const HEALTH_TIMEOUT: Duration = Duration::from_secs(60);

impl Health {
    fn failing_since(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        // A time is a time, whoever panicked while it was locked.
        self.failing_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) {
        self.failing_since().get_or_insert_with(Instant::now);
    }

    fn succeed(&self) {
        *self.failing_since() = None;
    }

    fn is_healthy(&self) -> bool {
        self.failing_since()
            .is_none_or(|since| since.elapsed() < HEALTH_TIMEOUT)
    }
}

/// Follows the manifests until a signal says stop.
fn follow(proxy: Proxy<Nftables>, manifests: Manifests) -> Result<()> {
    let (events, inbox) = channel();
    let port = proxy.backend().port();
    let (cleaner, cleaning) = Cleaner::start().context("cannot start the conntrack thread")?;
    let health = Arc::new(Health::default());
    let (tables, health_checks) = watch::channel(Table::default());
    let interference = events.clone();
    let outlets = Outlets {
        cleaner,
        tables,
        health: Arc::clone(&health),
        // The first sync is the largest, and nobody knows our tables yet: it goes unwatched.
        watch: Box::new(move || {
            let changed = move || {
                // The loop that has ended needs to know nothing.
                let _ = interference.send(Event::Interference);
            };
            if let Err(error) = nftables::watch(port, changed) {
                tracing::warn!(%error, "changes of our tables by others are not noticed");
            }
        }),
    };
    let sync = thread::Builder::new()
        .name("sync".to_owned())
        .spawn(move || sync_loop(proxy, &inbox, outlets))
        .context("cannot start the sync thread")?;
    follow_addresses(&events);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let healthy = move || health.is_healthy();
        let servers = tokio::spawn(health_checks::serve(health_checks, Arc::new(healthy)));
        let result = watch_manifests(manifests, &events).await;
        servers.abort();
        result
    });
    // The loop may have ended already, with nobody to tell.
    let _ = events.send(Event::Stop);
    let ended = sync.join();
    // With the sync loop its handle has gone: the thread ends when its work is done.
    let _ = cleaning.join();
    result?;
    ended.map_err(|_| anyhow::anyhow!("the sync thread panicked; the rules stay in place"))
}

/// Tells the sync loop when the node's addresses change.
fn follow_addresses(events: &Sender<Event>) {
    let events = events.clone();
    let watch = AddressWatch::start(move |addresses| {
        // The loop that has ended needs to know nothing.
        let _ = events.send(Event::Changes(vec![Change::InterfaceAddresses(addresses)]));
    });
    if let Err(error) = watch {
        tracing::warn!(%error, "changes of the node's addresses are not followed");
    }
}

async fn watch_manifests(mut manifests: Manifests, events: &Sender<Event>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let mut files = if manifests.path() == std::path::Path::new(STDIN) {
        None
    } else {
        match FileWatch::start(manifests.path()) {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(%error, "manifests are not followed");
                None
            }
        }
    };
    // What changed between the first load and the start of the watch.
    if files.is_some() {
        load_again(&mut manifests, events)?;
    }
    loop {
        let changed = async {
            match &mut files {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            moved = changed => {
                if moved.is_none() {
                    files = None;
                    continue;
                }
                tokio::time::sleep(SETTLE).await;
                load_again(&mut manifests, events)?;
            }
        }
    }
}

fn load_again(manifests: &mut Manifests, events: &Sender<Event>) -> Result<()> {
    match manifests.load() {
        Ok(mut loaded) => {
            report(&mut loaded);
            for error in loaded.broken {
                tracing::warn!(%error, "the file counts as it last was");
            }
            events
                .send(Event::Changes(loaded.changes))
                .map_err(|_| anyhow::anyhow!("the sync thread has ended"))?;
        }
        Err(error) => tracing::warn!(%error, "everything stays as it was"),
    }
    Ok(())
}

/// Takes events and keeps the kernel in step. The first event of a quiet time is programmed at
/// once; what comes while a transaction runs is programmed by the next one.
fn sync_loop<B: Backend>(mut proxy: Proxy<B>, inbox: &Receiver<Event>, outlets: Outlets) {
    let mut outlets = outlets;
    let mut watch = Some(std::mem::replace(&mut outlets.watch, Box::new(|| {})));
    let mut retry = FIRST_RETRY;
    let mut last_repair: Option<Instant> = None;
    let mut wake = Some(Wake::Sync(Instant::now()));
    loop {
        let event = match wake {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(Wake::Sync(at) | Wake::Tidy(at) | Wake::Repair(at)) => {
                inbox.recv_timeout(at.saturating_duration_since(Instant::now()))
            }
        };
        let mut interfered = false;
        match event {
            Ok(event) => {
                for event in std::iter::once(event).chain(inbox.try_iter()) {
                    match event {
                        Event::Changes(changes) => proxy.take(changes),
                        Event::Interference => interfered = true,
                        Event::Stop => return,
                    }
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => match wake {
                Some(Wake::Tidy(_)) => {
                    wake = proxy.tidy().then(|| Wake::Tidy(Instant::now() + QUIET));
                    continue;
                }
                Some(Wake::Repair(_)) => interfered = true,
                Some(Wake::Sync(_)) | None => {}
            },
        }
        if interfered {
            // Two that undo each other's work all the time must not keep the node busy.
            let due = last_repair.map_or_else(Instant::now, |last| last + QUIET);
            if due > Instant::now() {
                wake = Some(Wake::Repair(due));
                continue;
            }
            last_repair = Some(Instant::now());
            tracing::warn!("somebody else has changed our tables: reading them again");
            if let Err(error) = proxy.read_again() {
                tracing::error!(%error, "cannot read our tables; trying again");
                wake = Some(Wake::Repair(Instant::now() + QUIET));
                continue;
            }
        }
        outlets.health.begin();
        wake = Some(match proxy.sync() {
            Ok(synced) => {
                if watch.is_some() || synced.applied.operations > 0 {
                    log_sync(&proxy, &synced);
                }
                if let Some(watch) = watch.take() {
                    watch();
                }
                outlets.health.succeed();
                outlets.publish(&mut proxy);
                retry = FIRST_RETRY;
                Wake::Tidy(Instant::now() + QUIET)
            }
            Err(error) => {
                tracing::error!(%error, ?retry, "sync failed; what was programmed stays in place");
                let at = Instant::now() + retry;
                retry = (retry * 2).min(LAST_RETRY);
                Wake::Sync(at)
            }
        });
    }
}

/// What the loop does if nothing happens until then.
#[derive(Debug, Clone, Copy)]
enum Wake {
    Sync(Instant),
    Tidy(Instant),
    Repair(Instant),
}
