//! Looks at connections now and then, for Services that want their endpoints chosen by it, and tells the
//! sync loop what it has seen.
//!
//! A look is a walk of the kernel's over all its connections, so the pause after it is many times as long as
//! it took, whatever Services say. Without a Service that wants it nothing is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use super::inbox;
use super::metrics::AgentMetrics;
use crate::core::ir::Destination;
use crate::core::model::{Change, Endpoint, Family, ObjectKey, Observed, Protocol};
use crate::core::observe::Watched;
use crate::core::observe::ejection::{Ejections, Outcome, Sight, Verdict};
use crate::core::observe::levels::Levels;
use crate::dataplane::conntrack::{self, Seen, Wanted};
use crate::serve::events::News;
use crate::source::changes::{Cause, Changes};

/// The shortest pause between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// How many times as long as a look the pause after it is: not quite a hundredth of a processor for those without an
/// answer, a twentieth for all, which the kernel has to hand out.
const REST: u32 = 120;
const REST_OF_ALL: u32 = 20;
/// The shortest pause when a suspicion has come up, and how many times as long as the look it is.
const HURRY: Duration = Duration::from_millis(250);
const REST_IN_A_HURRY: u32 = 20;
/// The pause after a look that failed.
const FAILED: Duration = Duration::from_secs(5);
/// After so many in a row what was seen counts no more.
const MOST_FAILURES: u32 = 12;
/// How long a probe may take to be answered.
const PROBE: Duration = Duration::from_millis(600);
/// Endpoints that are watched at most, of all Services together: those that came first.
const MOST_ENDPOINTS: usize = 1 << 16;

/// Whose connections are watched, as the sync loop has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Watching {
    pub(crate) ports: Vec<Arc<[Watched]>>,
    /// The node's addresses that accept `NodePort`s.
    pub(crate) node_addresses: Vec<IpAddr>,
}

/// What an observer needs of the others.
pub(crate) struct Observer {
    pub(crate) watching: watch::Receiver<Watching>,
    pub(crate) events: inbox::Events,
    pub(crate) news: mpsc::UnboundedSender<News>,
    pub(crate) metrics: AgentMetrics,
    /// How much of a list may be passed over, in percent.
    pub(crate) most_percent: u8,
}

/// A list of endpoints whose connections are counted.
type Counted = (ObjectKey, Family, Protocol, Destination);

/// What has been seen so far.
struct Sightings {
    began: Instant,
    ejections: Ejections,
    levels: BTreeMap<Counted, Levels>,
    /// What the loop was told of each Service last.
    told: BTreeMap<ObjectKey, Observed>,
    /// The next look is to tell who answers.
    ask_answered: bool,
    counted: Option<Instant>,
    /// What is watched, as of the last look at that.
    destinations: Arc<FxHashMap<Destination, usize>>,
    /// More is to be watched than there may be, which has been said.
    too_many: bool,
    /// The loop is told everything again: it may know Services by another record now.
    tell_all: bool,
}

impl Observer {
    /// Looks until nobody is there any more to be told.
    pub(crate) async fn run(mut self) {
        let mut sightings = Sightings {
            began: Instant::now(),
            ejections: Ejections::default(),
            levels: BTreeMap::new(),
            told: BTreeMap::new(),
            ask_answered: false,
            counted: None,
            destinations: Arc::default(),
            too_many: false,
            tell_all: false,
        };
        let mut is_new = true;
        let mut failures = 0;
        let (answers, mut answered) = mpsc::unbounded_channel();
        loop {
            let (changed, watching) = {
                let watching = self.watching.borrow_and_update();
                (watching.has_changed(), watching.clone())
            };
            is_new |= changed;
            let watched = bounded(&watching);
            if std::mem::take(&mut is_new) {
                sightings.begin(&watching, &watched);
            }
            if watched.is_empty() {
                self.metrics.ejected(0);
                if !self.tell(sightings.end()).await || self.watching.changed().await.is_err() {
                    return;
                }
                is_new = true;
                continue;
            }
            while let Ok((endpoint, answers)) = answered.try_recv() {
                let now = sightings.began.elapsed();
                sightings.ejections.probed(endpoint, answers, now);
            }
            let pause = match self.look(&watching, &watched, &mut sightings).await {
                Ok((outcome, changes, pause)) => {
                    failures = 0;
                    probe(&outcome, &answers);
                    self.announce(&outcome);
                    if !self.tell(changes).await {
                        return;
                    }
                    pause
                }
                Err(error) => {
                    tracing::warn!(%error, "connections cannot be looked at: endpoints are chosen as before");
                    failures += 1;
                    // Nobody would bring back who was ejected.
                    if failures == MOST_FAILURES {
                        self.metrics.ejected(0);
                        if !self.tell(sightings.end()).await {
                            return;
                        }
                        is_new = true;
                    }
                    FAILED
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.watching.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    is_new = true;
                    // Whoever changes a Service all the time does not have us look all the time.
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn look(
        &self,
        watching: &Watching,
        watched: &[&Watched],
        sightings: &mut Sightings,
    ) -> anyhow::Result<(Outcome, Vec<(ObjectKey, Observed)>, Duration)> {
        let counts = watched.iter().any(|one| one.algorithm.counts_connections());
        let is_due = sightings.counted.is_none_or(|last| last.elapsed() >= LOOK);
        let all = (counts && is_due) || sightings.ask_answered;
        let wanted = Wanted {
            destinations: Arc::clone(&sightings.destinations),
            node_addresses: watching.node_addresses.iter().copied().collect(),
            all,
        };
        let looked = tokio::task::spawn_blocking(move || conntrack::look(&wanted)).await?;
        let (mut seen, took) = looked?;
        self.metrics.looked(took);
        let mut seen: Vec<Seen> = (0..watched.len())
            .map(|at| seen.remove(&at).unwrap_or_default())
            .collect();
        if all {
            sightings.counted = Some(Instant::now());
        }
        let now = sightings.began.elapsed();
        let sights = watched.iter().zip(&mut seen);
        let sights: Vec<(&Watched, Sight)> = sights
            .filter(|(watched, seen)| {
                !seen.waiting.is_empty() || sightings.ejections.knows(&watched.service)
            })
            .map(|(watched, seen)| {
                let sight = Sight {
                    waiting: std::mem::take(&mut seen.waiting),
                    answered: std::mem::take(&mut seen.answered),
                };
                (*watched, sight)
            })
            .collect();
        let outcome = sightings.ejections.look(&sights, self.most_percent, now);
        sightings.ask_answered = outcome.ask_answered;
        self.metrics.ejected(sightings.ejections.count());
        let changes = sightings.changes(watched, all.then_some(&seen), self.most_percent);
        tracing::debug!(?took, all, hurry = outcome.hurry, "looked at connections");
        let pause = match (outcome.hurry, all) {
            (true, _) => HURRY.max(took * REST_IN_A_HURRY),
            (false, true) => LOOK.max(took * REST_OF_ALL),
            (false, false) => LOOK.max(took * REST),
        };
        Ok((outcome, changes, pause))
    }

    /// Tells the loop; whether it is still there.
    async fn tell(&self, seen: Vec<(ObjectKey, Observed)>) -> bool {
        if seen.is_empty() {
            return !self.events.is_closed();
        }
        let changes: Vec<Change> = seen
            .into_iter()
            .map(|(service, observed)| {
                let observed = (!observed.is_empty()).then(|| Box::new(observed));
                Change::Observed(service, observed)
            })
            .collect();
        let changes = Changes {
            causes: changes.iter().filter_map(Cause::of).collect(),
            changes,
            ..Changes::default()
        };
        self.events.send(changes).await.is_ok()
    }

    fn announce(&self, outcome: &Outcome) {
        for verdict in &outcome.verdicts {
            match verdict {
                Verdict::Ejected {
                    service,
                    endpoint,
                    unanswered,
                    least,
                } => {
                    tracing::warn!(
                        %service, %endpoint, unanswered,
                        "the endpoint does not answer while others do: it is passed over until it answers \
                         a probe, or for {least:?} at least"
                    );
                    self.metrics.ejections.inc();
                }
                Verdict::Back {
                    service,
                    endpoint,
                    answered,
                } => tracing::info!(%service, %endpoint, answered, "the endpoint is used again"),
            }
            let _ = self.news.send(News::Judged(verdict.clone()));
        }
    }
}

/// As many of those that are watched as may be.
fn bounded(watching: &Watching) -> Vec<&Watched> {
    let mut left = MOST_ENDPOINTS;
    let ports = watching.ports.iter().flat_map(|ports| ports.iter());
    let fits = |port: &&Watched| {
        let fits = port.endpoints.len() <= left;
        if fits {
            left -= port.endpoints.len();
        }
        fits
    };
    ports.filter(fits).collect()
}

/// Connects to endpoints, to see whether anybody answers.
fn probe(outcome: &Outcome, answers: &mpsc::UnboundedSender<(Endpoint, bool)>) {
    for endpoint in outcome.probes.iter().copied() {
        let answers = answers.clone();
        tokio::spawn(async move {
            let to = SocketAddr::new(endpoint.address, endpoint.port);
            let answered = match tokio::time::timeout(PROBE, TcpStream::connect(to)).await {
                Ok(Ok(_)) => true,
                // Somebody is there, who has nothing at this port.
                Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
                Err(_) => false,
            };
            let _ = answers.send((endpoint, answered));
        });
    }
}

impl Sightings {
    /// Something else is watched from now on.
    fn begin(&mut self, watching: &Watching, watched: &[&Watched]) {
        let all: usize = watching.ports.iter().map(|ports| ports.len()).sum();
        let too_many = watched.len() < all;
        if too_many && !self.too_many {
            tracing::warn!(
                watched = watched.len(),
                all,
                "more than {MOST_ENDPOINTS} endpoints are of Services that want connections looked at: those of \
                 the others are chosen as if they did not",
            );
        }
        self.too_many = too_many;
        self.tell_all = true;
        let mut destinations: FxHashMap<Destination, usize> = FxHashMap::default();
        for (at, port) in watched.iter().enumerate() {
            for destination in &port.destinations {
                destinations.entry(*destination).or_insert(at);
            }
        }
        self.destinations = Arc::new(destinations);
        let endpoints = watched.iter().filter(|port| port.ejects);
        let endpoints = endpoints.flat_map(|port| &port.endpoints);
        self.ejections
            .meet(&endpoints.map(|(endpoint, _)| *endpoint).collect());
    }

    /// What the loop has to be told of Services that it was told something else of.
    fn changes(
        &mut self,
        watched: &[&Watched],
        seen: Option<&Vec<Seen>>,
        most_percent: u8,
    ) -> Vec<(ObjectKey, Observed)> {
        let mut all: BTreeMap<ObjectKey, Observed> = BTreeMap::new();
        let mut counted = BTreeSet::new();
        for (at, port) in watched.iter().enumerate() {
            let counts = port.algorithm.counts_connections();
            let is_told = self.told.contains_key(&port.service);
            if !counts && !is_told && !self.ejections.knows(&port.service) {
                continue;
            }
            let observed = all
                .entry(port.service.clone())
                .or_insert_with(|| self.ejections.observed(&port.service, most_percent));
            let Some(first) = port.destinations.first() else {
                continue;
            };
            if !counts {
                continue;
            }
            let list = (port.service.clone(), port.family, port.protocol, *first);
            let levels = self.levels.entry(list.clone()).or_default();
            counted.insert(list);
            let looked = seen.and_then(|seen| seen.get(at)).map(|seen| {
                let live = |one: &Endpoint| seen.live.get(one).copied().unwrap_or(0);
                levels.look(port.algorithm, &port.endpoints, live).is_some()
            });
            let told = self.told.get(&port.service);
            let shares = match (looked, told) {
                // What hardly differs is left as it is.
                (Some(false) | None, Some(told)) if !told.shares.is_empty() => levels.places(),
                (None, _) => continue,
                _ => levels.places(),
            };
            let shares = shares
                .iter()
                .map(|(one, places)| ((port.protocol, *one), *places));
            observed.shares.extend(shares);
        }
        self.levels.retain(|list, _| counted.contains(list));
        let gone = self
            .told
            .keys()
            .filter(|service| !all.contains_key(*service));
        let gone: Vec<ObjectKey> = gone.cloned().collect();
        all.extend(
            gone.into_iter()
                .map(|service| (service, Observed::default())),
        );
        all.retain(|service, observed| {
            let told = self.told.get(service);
            // How much may be passed over is of interest to those who are.
            let says = |one: &Observed| (one.ejected.clone(), one.shares.clone());
            let differs = told.map(says).unwrap_or_default() != says(observed);
            differs || (self.tell_all && !observed.is_empty())
        });
        self.tell_all = false;
        for (service, observed) in &all {
            if observed.is_empty() {
                self.told.remove(service);
            } else {
                self.told.insert(service.clone(), observed.clone());
            }
        }
        all.into_iter().collect()
    }

    /// Nobody is watched any more.
    fn end(&mut self) -> Vec<(ObjectKey, Observed)> {
        self.ejections = Ejections::default();
        self.levels.clear();
        let told = std::mem::take(&mut self.told).into_keys();
        told.map(|service| (service, Observed::default())).collect()
    }
}
