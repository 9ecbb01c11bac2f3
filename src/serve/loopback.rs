//! NodePorts on loopback addresses (KEP-6032): connections to them are taken here and passed on, since
//! the kernel does not route what comes from 127.0.0.1 or ::1 to another host.
//!
//! TCP only, as in the KEP. Which ports there are and where they lead is the sync loop's business.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::{IntCounterVec, IntGaugeVec};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::core::model::{Endpoint, Endpoints, Family};
use crate::serve::http::{self, Place, Places};
use crate::serve::registry::{Made, Metrics};

/// The pause before a port that was taken is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How long an endpoint may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many endpoints a connection is offered before it is given up.
const TRIES: usize = 3;
/// After so many seconds without a word the kernel asks whether the other end is still there, so many
/// seconds apart.
const SILENCE: u32 = 60;
const PROBES: u32 = 10;
/// Connections of one port that are open at once.
const MOST_CONNECTIONS: usize = 1024;

/// Where a port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `namespace/name:port`.
    pub label: String,
    /// Never empty.
    pub endpoints: Endpoints,
    /// For how long after its last connection a client comes back to the same endpoint.
    pub affinity: Option<Duration>,
}

/// The ports of each family that lead somewhere, as of the last sync.
pub type Table = BTreeMap<(Family, u16), Target>;

/// What is counted.
#[derive(Debug, Clone)]
pub struct LoopbackMetrics {
    listeners: IntGaugeVec,
    failures: IntCounterVec,
}

impl LoopbackMetrics {
    /// All at zero.
    ///
    /// # Errors
    ///
    /// If there is a metric of one of the names already.
    pub fn new(metrics: &Metrics, families: &[Family]) -> Made<Self> {
        let made = Self {
            listeners: metrics.gauges(
                "kubeproxy_nftables_localhost_nodeport_listeners",
                "Number of active localhost NodePort userspace proxy listeners.",
                &["ip_family"],
            )?,
            failures: metrics.counters(
                "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total",
                "Number of localhost NodePort userspace proxy listener creation failures.",
                &["ip_family"],
            )?,
        };
        for family in families {
            let _ = made.listeners.with_label_values(&[family.name()]);
            let _ = made.failures.with_label_values(&[family.name()]);
        }
        Ok(made)
    }
}

/// Serves what the tables say in a thread of its own, for what passes through it takes time, until their
/// sender is gone.
///
/// # Errors
///
/// If there can be no thread.
pub fn start(
    tables: watch::Receiver<Table>,
    places: Places,
    metrics: LoopbackMetrics,
) -> io::Result<thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    thread::Builder::new()
        .name("loopback".to_owned())
        .spawn(move || runtime.block_on(serve(tables, places, metrics)))
}

/// A port that is served. Dropping it ends no connection: what is established stays, as in the kernel.
struct Port {
    target: Arc<Mutex<Current>>,
    task: JoinHandle<()>,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where a port leads now, and where it led last.
struct Current {
    target: Target,
    /// All clients are this host, so they have one memory.
    remembered: Option<(Endpoint, Instant)>,
}

async fn serve(mut tables: watch::Receiver<Table>, places: Places, metrics: LoopbackMetrics) {
    let mut ports: BTreeMap<(Family, u16), Port> = BTreeMap::new();
    // Those that cannot be had, as was told, and when they are tried again.
    let mut without: BTreeSet<(Family, u16)> = BTreeSet::new();
    let mut retry = Instant::now();
    loop {
        let now = Instant::now();
        let again = now >= retry;
        let table = tables.borrow_and_update().clone();
        ports.retain(|port, _| table.contains_key(port));
        without.retain(|port| table.contains_key(port));
        for (port, target) in table {
            if let Some(known) = ports.get(&port) {
                change(&known.target, target);
                continue;
            }
            if without.contains(&port) && !again {
                continue;
            }
            let label = target.label.clone();
            match listen(port, target, &places) {
                Ok(served) => {
                    without.remove(&port);
                    ports.insert(port, served);
                }
                // A family that this machine does not speak has nobody who would ask.
                Err(error) if is_foreign(&error) => {
                    without.insert(port);
                }
                Err(error) => {
                    let family = port.0.name();
                    metrics.failures.with_label_values(&[family]).inc();
                    if without.insert(port) {
                        tracing::warn!(
                            service = label, address = %address(port), %error,
                            "cannot serve a NodePort on loopback; trying again every {} s", RETRY.as_secs(),
                        );
                    }
                }
            }
        }
        for family in Family::BOTH {
            let count = ports.keys().filter(|(of, _)| *of == family).count();
            let gauge = metrics.listeners.with_label_values(&[family.name()]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        if again {
            retry = now + RETRY;
        }
        let changed = if without.is_empty() {
            tables.changed().await
        } else {
            let left = retry.saturating_duration_since(Instant::now());
            timeout(left, tables.changed()).await.unwrap_or(Ok(()))
        };
        if changed.is_err() {
            return;
        }
    }
}

fn is_foreign(error: &io::Error) -> bool {
    use nix::errno::Errno;
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL]
        .map(|errno| Some(errno as i32))
        .contains(&error.raw_os_error())
}

const fn address((family, port): (Family, u16)) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port),
        Family::V6 => SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), port),
    }
}

fn change(current: &Mutex<Current>, target: Target) {
    let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
    if current.target.affinity != target.affinity {
        current.remembered = None;
    }
    current.target = target;
}

fn listen(port: (Family, u16), target: Target, places: &Places) -> io::Result<Port> {
    let place = places
        .for_listener()
        .ok_or_else(|| io::Error::other("too few open files are allowed (RLIMIT_NOFILE)"))?;
    let listener = http::listen(address(port))?;
    let target = Arc::new(Mutex::new(Current {
        target,
        remembered: None,
    }));
    let task = tokio::spawn(accept(
        (listener, place),
        Arc::clone(&target),
        places.clone(),
    ));
    Ok(Port { target, task })
}

async fn accept(
    (listener, _place): (TcpListener, Place),
    target: Arc<Mutex<Current>>,
    places: Places,
) {
    let open = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // No descriptors are left: others need a moment to give some back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // One for each end.
        let both = places.for_connection().zip(places.for_connection());
        let Some(both) = both.zip(Arc::clone(&open).try_acquire_owned().ok()) else {
            tracing::debug!("too many connections to NodePorts on loopback: one is closed");
            continue;
        };
        let target = Arc::clone(&target);
        tokio::spawn(async move {
            pass(client, &target).await;
            drop(both);
        });
    }
}

/// Has the kernel notice that nobody is at the other end any more.
fn keep_alive(stream: &TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    // What the kernel does not take is not worth a connection.
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &SILENCE);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &PROBES);
}

/// Passes a connection on to an endpoint, until either end has had enough.
async fn pass(mut client: TcpStream, target: &Mutex<Current>) {
    let mut tried = Vec::new();
    while tried.len() < TRIES {
        let Some(endpoint) = choose(target, &tried) else {
            return;
        };
        let to = SocketAddr::new(endpoint.address, endpoint.port);
        match timeout(PATIENCE, TcpStream::connect(to)).await {
            Ok(Ok(mut server)) => {
                keep_alive(&client);
                keep_alive(&server);
                remember(target, endpoint);
                // Whoever breaks off early does so to the other end, not to us.
                let _ = copy_bidirectional(&mut client, &mut server).await;
                return;
            }
            _ => tried.push(endpoint),
        }
    }
}

/// The endpoint that was chosen last, if it is to be remembered, or any other.
fn choose(target: &Mutex<Current>, tried: &[Endpoint]) -> Option<Endpoint> {
    let current = target.lock().unwrap_or_else(PoisonError::into_inner);
    let Target {
        endpoints,
        affinity,
        ..
    } = &current.target;
    if let Some((endpoint, at)) = current.remembered
        && affinity.is_some_and(|affinity| at.elapsed() <= affinity)
        && !tried.contains(&endpoint)
        && endpoints.iter().any(|known| *known == endpoint)
    {
        return Some(endpoint);
    }
    let left: Vec<Endpoint> = endpoints
        .iter()
        .filter(|endpoint| !tried.contains(endpoint))
        .copied()
        .collect();
    fastrand::choice(left)
}

fn remember(target: &Mutex<Current>, endpoint: Endpoint) {
    let mut current = target.lock().unwrap_or_else(PoisonError::into_inner);
    if current.target.affinity.is_some() {
        current.remembered = Some((endpoint, Instant::now()));
    }
}
