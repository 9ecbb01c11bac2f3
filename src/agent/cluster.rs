//! Objects from an API server: waiting for the first lists, and what changes later.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::convert_options;
use super::inbox::Events;
use super::metrics::AgentMetrics;
use super::watches::Watches;
use crate::agent::reconciler::Desired;
use crate::config::{Config, Origin};
use crate::source::changes::Changes;
use crate::source::cluster::{self, Format, Kind, Notice, WatchOptions};
use crate::source::convert::Converter;
use crate::source::report;

/// For so long a Node without addresses is waited for (docs/semantics.md, K9).
const ADDRESSES: Duration = Duration::from_secs(30);
/// For so long a Node without pod ranges is waited for, if they are needed.
const POD_CIDRS: Duration = Duration::from_secs(300);

/// An API server, and what it tells.
pub(crate) struct Cluster {
    /// To write events with.
    pub(super) client: kube::Client,
    /// Where it is.
    server: http::Uri,
    notices: mpsc::Receiver<Notice>,
}

/// Starts to watch. Nothing has been received yet.
pub(crate) async fn connect(config: &Config) -> Result<Cluster> {
    let Origin::Cluster {
        kubeconfig,
        server,
        accept,
    } = &config.origin
    else {
        anyhow::bail!("the objects come from files");
    };
    let (formats, others) = Format::among(accept);
    for other in others {
        tracing::warn!(
            "clientConnection: {other:?} cannot be read here; the API server is asked for {}",
            formats
                .iter()
                .map(|format| format.name())
                .collect::<Vec<_>>()
                .join(" or ")
        );
    }
    let (client, server) = cluster::connect(kubeconfig.clone(), server.as_deref()).await?;
    let converter = Converter::new(config.node_name.as_str()).with_options(convert_options(config));
    let options = WatchOptions {
        formats,
        ..WatchOptions::new(&config.node_name)
    };
    let notices = cluster::follow(&client, converter, &options);
    Ok(Cluster {
        client,
        server,
        notices,
    })
}

/// Waits until Services and EndpointSlices are complete, and the Node says what is needed of it.
/// Nothing is programmed before (docs/semantics.md, G2), and what is programmed already stays. Returns for
/// how long traffic has been waiting for what has come.
pub(crate) async fn fill(
    config: &Config,
    cluster: &mut Cluster,
    desired: &mut Desired,
    mut watch: impl FnMut(&Notice),
) -> Result<Changes> {
    let mut known = Changes::default();
    let mut missing = vec![Kind::Service, Kind::EndpointSlice, Kind::Node];
    let mut patience: Option<Instant> = None;
    loop {
        let node = desired.state().node();
        let enough =
            node.addresses.is_empty() || (config.needs_pod_cidrs() && node.pod_cidrs.is_empty());
        if missing.is_empty() && !enough {
            return Ok(known);
        }
        if missing.is_empty() && patience.is_none() {
            let long = if config.needs_pod_cidrs() {
                POD_CIDRS
            } else {
                ADDRESSES
            };
            tracing::info!(node = config.node_name, "waiting for the Node's addresses");
            patience = Some(Instant::now() + long);
        }
        let notice = match patience {
            None => cluster.notices.recv().await,
            Some(deadline) => match timeout_at(deadline, cluster.notices.recv()).await {
                Ok(notice) => notice,
                // It goes on without; `program` refuses what cannot be done without.
                Err(_) => return Ok(known),
            },
        };
        let notice = notice.context("the watch has ended")?;
        watch(&notice);
        match notice {
            Notice::Changes(changes) => {
                report(changes.warnings.iter().cloned());
                desired.take(changes.changes);
                known.warnings.extend(changes.warnings);
                known.triggers.extend(changes.triggers);
            }
            Notice::Complete(kind) => missing.retain(|other| *other != kind),
            Notice::Failed(kind, why, _) => failed(kind, &why, &cluster.server),
        }
    }
}

fn failed(kind: Kind, why: &str, server: &http::Uri) {
    tracing::warn!(kind = kind.name(), %server, why, "the watch failed; trying again");
}

/// Passes on what the cluster tells, for ever.
pub(crate) async fn follow(
    mut cluster: Cluster,
    metrics: AgentMetrics,
    watches: Watches,
    events: Events,
) -> Result<()> {
    while let Some(notice) = cluster.notices.recv().await {
        watches.heard(&notice);
        match notice {
            Notice::Changes(changes) => {
                if !changes.is_empty() {
                    events
                        .send(changes)
                        .await
                        .context("the sync thread has ended")?;
                }
            }
            Notice::Complete(_) => {}
            Notice::Failed(kind, why, _) => {
                metrics
                    .watch_failures
                    .with_label_values(&[kind.name()])
                    .inc();
                failed(kind, &why, &cluster.server);
            }
        }
    }
    anyhow::bail!("the watch has ended")
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.warnings.is_empty() && self.triggers.is_empty()
    }
}
