//! Connections that the kernel counts: of Services when that is asked for, and refusals always. Read when somebody
//! asks, and never otherwise.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::IntCounterVec;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::inquiries::Asked;
use crate::core::ir::Destination;
use crate::dataplane::nftables::counting::{self, Counted, Refusal};
use crate::dataplane::{CountingLevel, Mode};
use crate::serve::registry::{Made, Metrics};

/// For so long after somebody has asked, connections are counted for the next question.
const LEASE: Duration = Duration::from_secs(60);
/// How many elements of what is gone are taken away at a time.
const MOST_FORGOTTEN: usize = 10_000;

/// For so long the loop is waited for: whoever scrapes has more to hear.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the loop is asked, once it runs.
pub(crate) type Questions = watch::Receiver<Option<mpsc::Sender<Asked>>>;

/// What one Service port, or one of its endpoints, has been connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceCount {
    /// `namespace/name:port`.
    pub(crate) service: String,
    /// New connections since counting began.
    pub(crate) connections: u64,
    /// The same by endpoint, if that is counted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) endpoints: BTreeMap<String, u64>,
}

/// What has been counted until a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Counts {
    /// When, in milliseconds since 1970, UTC.
    pub(crate) at_ms: i64,
    /// Services that have been used.
    pub(crate) services: Vec<ServiceCount>,
    /// Refused connections, by reason.
    pub(crate) refusals: BTreeMap<String, u64>,
}

/// Who counts. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionCounts {
    mode: Mode,
    /// What the configuration wants.
    configured: CountingLevel,
    /// What is counted besides, and until when.
    lease: Arc<Mutex<Option<(CountingLevel, Instant)>>>,
    questions: Questions,
    refused: Option<IntCounterVec>,
    services: Option<IntCounterVec>,
    endpoints: Option<IntCounterVec>,
}

impl ConnectionCounts {
    /// Registers the metrics of what is configured.
    pub(crate) fn new(
        registry: &Metrics,
        mode: Mode,
        configured: CountingLevel,
        questions: Questions,
    ) -> Made<Self> {
        let refused = (mode == Mode::Nftables).then(|| {
            registry.counters(
                "pointsman_refused_connections_total",
                "Attempts to connect to Services that were refused or dropped, by reason, since the table was made; who is dropped tries again, and each try counts",
                &["ip_family", "reason"],
            )
        });
        let services = (configured > CountingLevel::Nothing).then(|| {
            registry.counters(
                "pointsman_service_connections_total",
                "New connections to a port of a Service, at all of its addresses, since the node counts",
                &["namespace", "service", "port"],
            )
        });
        let endpoints = (configured > CountingLevel::Services).then(|| {
            registry.counters(
                "pointsman_endpoint_connections_total",
                "New connections to an endpoint of a port of a Service, since the node counts",
                &["namespace", "service", "port", "endpoint"],
            )
        });
        Ok(Self {
            mode,
            configured,
            lease: Arc::default(),
            questions,
            refused: refused.transpose()?,
            services: services.transpose()?,
            endpoints: endpoints.transpose()?,
        })
    }

    /// Counts what is configured from now on, and nothing else.
    pub(crate) async fn start(&self) {
        let level = self.configured;
        aside(move || set(level)).await;
    }

    /// Counts this as well until nobody has asked for a while. Returns what is to be counted now.
    fn lease(&self, level: CountingLevel) -> CountingLevel {
        let mut lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        if level <= self.configured {
            return lease.map_or(self.configured, |(leased, _)| leased.max(self.configured));
        }
        let until = Instant::now() + LEASE;
        let before = lease.take();
        let level = before.map_or(level, |(before, _)| before.max(level));
        *lease = Some((level, until));
        if before.is_none() {
            let counts = self.clone();
            tokio::spawn(async move { counts.end_lease().await });
        }
        level
    }

    async fn end_lease(&self) {
        loop {
            let until = {
                let mut lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
                match *lease {
                    Some((_, until)) if until > Instant::now() => until,
                    _ => {
                        *lease = None;
                        break;
                    }
                }
            };
            tokio::time::sleep_until(until).await;
        }
        let counts = self.clone();
        aside(move || {
            // Somebody may have asked meanwhile.
            let lease = counts.lease.lock().unwrap_or_else(PoisonError::into_inner);
            if lease.is_none() {
                set(counts.configured);
            }
        })
        .await;
    }

    /// What has been counted.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub(crate) async fn read(&self, level: CountingLevel) -> Result<Counts, String> {
        let to_count = self.lease(level);
        let mode = self.mode;
        let read = aside(move || {
            // Somebody may have flushed it.
            set(to_count);
            let counted = counting::counted(level)?;
            let refused = match mode {
                Mode::Nftables => counting::refused()?,
                _ => Vec::new(),
            };
            Ok::<_, crate::host::netlink::SocketError>((counted, refused))
        })
        .await;
        let (counted, refused) = match read {
            Some(Ok(read)) => read,
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("the thread that reads counters has ended".to_owned()),
        };
        let mut refusals: BTreeMap<String, u64> = BTreeMap::new();
        for (_, refusal, count) in &refused {
            *refusals.entry(refusal.name().to_owned()).or_default() += count;
        }
        self.show_refused(&refused);
        let services = self.by_service(counted).await;
        let services = services.ok_or(
            "the sync loop is busy, or has not begun: it does not say whose connections are",
        )?;
        Ok(Counts {
            at_ms: jiff::Timestamp::now().as_millisecond(),
            services,
            refusals,
        })
    }

    /// Sums by Service port. What belongs to none is forgotten. Nothing if the loop is too busy to say whose it is.
    async fn by_service(&self, counted: Vec<Counted>) -> Option<Vec<ServiceCount>> {
        if counted.is_empty() {
            return Some(Vec::new());
        }
        let mut destinations: Vec<Destination> =
            counted.iter().map(|one| one.destination).collect();
        destinations.sort_unstable();
        destinations.dedup();
        let owners = self.owners(destinations.clone()).await?;
        let owners: HashMap<Destination, Option<String>> =
            destinations.into_iter().zip(owners).collect();
        let mut sums: BTreeMap<String, ServiceCount> = BTreeMap::new();
        let mut gone = Vec::new();
        for one in counted {
            let Some(service) = owners.get(&one.destination).cloned().flatten() else {
                gone.push(one);
                continue;
            };
            let sum = sums.entry(service.clone()).or_insert_with(|| ServiceCount {
                service,
                connections: 0,
                endpoints: BTreeMap::new(),
            });
            match one.endpoint {
                None => sum.connections += one.connections,
                Some(endpoint) => {
                    *sum.endpoints.entry(endpoint.to_string()).or_default() += one.connections;
                }
            }
        }
        if !gone.is_empty() {
            gone.truncate(MOST_FORGOTTEN);
            let forgotten = aside(move || counting::forget(&gone)).await;
            if let Some(Err(error)) = forgotten {
                tracing::debug!(%error, "counts of Services that are gone stay");
            }
        }
        Some(sums.into_values().collect())
    }

    /// Whose destinations are, if the loop knows them all by now and has a moment.
    async fn owners(&self, destinations: Vec<Destination>) -> Option<Vec<Option<String>>> {
        let questions = self.questions.borrow().clone()?;
        let (told, answer) = oneshot::channel();
        let answered = async {
            questions
                .send(Asked::Owners(destinations, told))
                .await
                .ok()?;
            answer.await.ok()?
        };
        tokio::time::timeout(PATIENCE, answered).await.ok()?
    }

    /// Has the metrics say what the kernel has counted.
    pub(crate) async fn refresh(&self) {
        let counts = match self.read(self.configured).await {
            Ok(counts) => counts,
            Err(error) => {
                tracing::debug!(error, "counters cannot be read");
                return;
            }
        };
        let total = |metric: &IntCounterVec, labels: &[&str], count| {
            metric.with_label_values(labels).inc_by(count);
        };
        if let Some(services) = &self.services {
            services.reset();
            for count in &counts.services {
                let [namespace, service, port] = parts(&count.service);
                total(services, &[namespace, service, port], count.connections);
            }
        }
        if let Some(endpoints) = &self.endpoints {
            endpoints.reset();
            for count in &counts.services {
                let [namespace, service, port] = parts(&count.service);
                for (endpoint, count) in &count.endpoints {
                    total(endpoints, &[namespace, service, port, endpoint], *count);
                }
            }
        }
    }

    fn show_refused(&self, refused: &[(crate::core::model::Family, Refusal, u64)]) {
        if let Some(metric) = &self.refused {
            metric.reset();
            for (family, refusal, count) in refused {
                let labels = [family.name(), refusal.name()];
                metric.with_label_values(&labels).inc_by(*count);
            }
        }
    }
}

/// `namespace/name:port` in its parts.
fn parts(label: &str) -> [&str; 3] {
    let (namespace, rest) = label.split_once('/').unwrap_or(("", label));
    let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
    [namespace, name, port]
}

fn set(level: CountingLevel) {
    if let Err(error) = counting::set_level(level)
        && level > CountingLevel::Nothing
    {
        tracing::warn!(%error, "connections cannot be counted: the kernel refuses the table that does");
    }
}

async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
