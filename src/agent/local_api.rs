//! What the running agent answers on its socket, as JSON.
//!
//! `/v1/status`, `/v1/explain?from=…&to=…`, `/v1/verify`, `/v1/history?most=…`, `/v1/top?endpoints=…`. Each answer says
//! of which format it is and who gave it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hyper::{StatusCode, Uri};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::connection_counts::{ConnectionCounts, Questions};
use super::inquiries::{Asked, Wanted};
use super::preflight::{self, Finding};
use super::question;
use super::status::{Found, Status};
use super::watches::Watches;
use crate::core::explain::{Explanation, Remembered};
use crate::core::ir::{Delta, Destination, Host};
use crate::core::model::Owner;
use crate::dataplane::{
    Backend, CountingLevel, Difference, Mode, Options, Unavailable, conntrack, iptables, nftables,
};
use crate::host::facts::Facts;

/// The format of the answers. One that is not this cannot be read.
pub(crate) const FORMAT: u32 = 1;
/// For so long an answer of the loop is waited for. All that an answer may take is less than the socket allows.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two comparisons with the kernel.
const PAUSE: Duration = Duration::from_millis(50);
/// Of so many destinations flows are counted.
const MOST_COUNTED: usize = 8;
/// So many differences are told.
const MOST_DIFFERENCES: usize = 1000;
/// How often the kernel is compared again if something was programmed meanwhile.
const ATTEMPTS: usize = 5;

/// Every answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope<T> {
    /// Of which format it is.
    pub(crate) format: u32,
    /// The agent's version.
    pub(crate) version: String,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The answer.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub(crate) answer: Option<T>,
}

/// What a comparison with the kernel has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verified {
    /// Elements, or facts that rules are made of, that are wanted.
    pub(crate) wanted: usize,
    /// What differs.
    pub(crate) differences: Vec<Differs>,
    /// So many more.
    pub(crate) more: usize,
    /// Something is being programmed all the time: what was found may be that.
    pub(crate) busy: bool,
    /// How long it took.
    pub(crate) took_ms: u64,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Differs {
    /// Of which family.
    pub(crate) family: String,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<String>,
    /// What.
    pub(crate) what: String,
}

impl Verified {
    /// What was found, with the names of those whose it is, in the same order.
    pub(crate) fn new(
        wanted: usize,
        differences: Vec<Difference>,
        names: impl IntoIterator<Item = Option<String>>,
        busy: bool,
        began: Instant,
    ) -> Self {
        let more = differences.len().saturating_sub(MOST_DIFFERENCES);
        let told = differences.into_iter().take(MOST_DIFFERENCES).zip(names);
        Self {
            wanted,
            differences: told
                .map(|(one, service)| Differs {
                    family: one.family.name().to_owned(),
                    service,
                    what: one.what,
                })
                .collect(),
            more,
            busy,
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Compares the kernel with what is wanted, by one mode's means.
type Verify = fn(Options, &Delta) -> Result<Vec<Difference>, Unavailable>;

/// Compares by a backend that programs nothing.
pub(crate) fn verify<B: Backend>(
    options: Options,
    whole: &Delta,
) -> Result<Vec<Difference>, Unavailable> {
    let families = options.families.clone();
    let mut backend = B::open(Options {
        families,
        ..Options::default()
    })?;
    backend.reconfigure(options);
    backend.differences(whole)
}

/// What is found on the machine.
pub(crate) fn look_around(mode: Mode) -> (Facts, Vec<Finding>) {
    let facts = Facts::gather();
    let mut dropping = nftables::dropping().unwrap_or_else(|error| {
        tracing::debug!(%error, "other tables cannot be listed");
        Vec::new()
    });
    dropping.extend(iptables::legacy_dropping());
    let findings = preflight::findings(&facts, &dropping, mode);
    (facts, findings)
}

/// Who answers. Clones are the same.
#[derive(Clone)]
pub(crate) struct LocalApi {
    pub(super) node: String,
    pub(super) mode: Mode,
    /// Where the objects come from, in words.
    pub(super) source: String,
    /// The objects come from an API server.
    pub(super) watched: bool,
    pub(super) watches: Watches,
    pub(super) questions: Questions,
    pub(super) counts: ConnectionCounts,
    pub(super) verify: Verify,
}

impl LocalApi {
    /// Answers a request.
    pub(crate) async fn answer(self, uri: Uri) -> (StatusCode, Vec<u8>) {
        let query = |name: &str| parameter(&uri, name);
        match uri.path() {
            "/v1/status" => told(Ok(self.status().await)),
            "/v1/explain" => told(self.explain(query("from"), query("to")).await),
            "/v1/verify" => told(self.verified().await),
            "/v1/history" => {
                let most = query("most").and_then(|most| most.parse().ok());
                let asked = |told| Asked::History(most.unwrap_or(20), told);
                told(self.ask(asked).await)
            }
            "/v1/top" => {
                let level = match query("endpoints").as_deref() {
                    Some("true") => CountingLevel::Endpoints,
                    _ => CountingLevel::Services,
                };
                told(self.counts.read(level).await)
            }
            _ => told::<()>(Err("nothing is served at this path".to_owned())),
        }
    }

    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Asked,
    ) -> Result<T, String> {
        let questions = self.questions.borrow().clone();
        let Some(questions) = questions else {
            return Err(
                "nothing is programmed yet; pointsman status says what is waited for".to_owned(),
            );
        };
        let (told, answer) = oneshot::channel();
        let answered = async {
            questions.send(question(told)).await.ok()?;
            answer.await.ok()
        };
        match timeout(PATIENCE, answered).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err("the agent is about to end".to_owned()),
            Err(_) => Err(format!(
                "the agent is busy for more than {} s",
                PATIENCE.as_secs()
            )),
        }
    }

    async fn status(&self) -> Status {
        let runs = self.questions.borrow().is_some();
        let inner = self.ask(Asked::Status).await.ok();
        let mode = self.mode;
        let around = tokio::task::spawn_blocking(move || look_around(mode)).await;
        let (machine, findings) = around.unwrap_or_default();
        Found {
            node: self.node.clone(),
            mode: mode.name(),
            source: self.source.clone(),
            watches: if self.watched {
                self.watches.all()
            } else {
                Vec::new()
            },
            is_silent: runs && inner.is_none(),
            inner,
            machine,
            findings,
        }
        .judge()
    }

    async fn explain(
        &self,
        from: Option<String>,
        to: Option<String>,
    ) -> Result<Explanation, String> {
        let to = to.unwrap_or_default();
        let question = question::parse(from.as_deref(), &to).map_err(|error| error.to_string())?;
        let asked = |told| Asked::Explain(Box::new(question), told);
        let explained = self.ask(asked).await?;
        let client = match from.as_deref().map(str::parse::<IpAddr>) {
            Some(Ok(client)) if self.mode == Mode::Nftables => Some(client),
            _ => None,
        };
        let counted = tokio::task::spawn_blocking(move || with_kernel(explained, client)).await;
        counted.map_err(|_| "the thread that counts flows has ended".to_owned())
    }

    async fn verified(&self) -> Result<Verified, String> {
        let began = Instant::now();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let Wanted {
                whole,
                options,
                number,
                pending,
            } = self.ask(Asked::Wanted).await??;
            let verify = self.verify;
            let compared = tokio::task::spawn_blocking(move || {
                let wanted = whole.add.len();
                verify(options, &whole).map(|differences| (wanted, differences))
            });
            let compared = compared
                .await
                .map_err(|_| "the thread that compares has ended".to_owned())?;
            let (wanted, differences) = compared.map_err(|error| error.to_string())?;
            let (after, still) = self.ask(Asked::Number).await?;
            let busy = pending || still || after != number;
            if busy && !differences.is_empty() && attempt < ATTEMPTS && began.elapsed() < PATIENCE {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let owners: Vec<Owner> = differences
                .iter()
                .map(|one| one.owner)
                .take(MOST_DIFFERENCES)
                .collect();
            let names = self.ask(|told| Asked::Names(owners, told)).await?;
            return Ok(Verified::new(wanted, differences, names, busy, began));
        }
    }
}

/// Adds what the kernel knows, where it can be asked: flows, and whom the client comes back to.
fn with_kernel(mut explanation: Explanation, client: Option<IpAddr>) -> Explanation {
    for route in explanation.routes.iter_mut().take(MOST_COUNTED) {
        let Some(key) = route.key else { continue };
        if let Some(client) = client
            && route.affinity_seconds.is_some()
        {
            route.remembered = remembered(client, key, &route.node_addresses);
        }
        let counts = match conntrack::live(key, &route.node_addresses) {
            Ok(counts) => counts,
            Err(error) => {
                tracing::debug!(%error, "flows cannot be counted");
                return explanation;
            }
        };
        let counts: HashMap<String, u64> = counts
            .into_iter()
            .map(|(endpoint, count)| (endpoint.to_string(), count))
            .collect();
        route.live_flows = Some(counts.values().sum());
        for line in &mut route.endpoints {
            line.live_flows = counts.get(&line.endpoint).copied();
        }
    }
    explanation
}

fn remembered(client: IpAddr, to: Destination, node_addresses: &[IpAddr]) -> Option<Remembered> {
    let addresses = match to.host {
        Host::Address(address) => vec![address],
        Host::Node(_) => node_addresses.to_vec(),
    };
    let of_family = addresses
        .into_iter()
        .filter(|address| address.is_ipv4() == client.is_ipv4());
    of_family.take(MOST_COUNTED).find_map(|at| {
        let memory = nftables::remembered(client, to, at).ok()??;
        Some(Remembered {
            endpoint: memory.endpoint.to_string(),
            seconds_left: memory.left_ms / 1000,
        })
    })
}

fn told<T: Serialize>(answer: Result<T, String>) -> (StatusCode, Vec<u8>) {
    let code = match &answer {
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let (answer, error) = match answer {
        Ok(answer) => (Some(answer), None),
        Err(error) => (None, Some(error)),
    };
    let envelope = Envelope {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        error,
        answer,
    };
    match serde_json::to_vec(&envelope) {
        Ok(body) => (code, body),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string().into_bytes(),
        ),
    }
}

/// A parameter of a query.
fn parameter(uri: &Uri, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(uri.query()?.as_bytes());
    let found = pairs.find(|(key, _)| key == name);
    found.map(|(_, value)| value.into_owned())
}
