//! Events in the cluster about this node's proxy (docs/semantics.md, M3).
//!
//! They are for people and never in the way: one that cannot be written is logged.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::{mpsc, oneshot};

use crate::core::model::ObjectKey;
use crate::core::observe::ejection::Verdict;

/// Something that the cluster should know.
#[derive(Debug)]
pub enum News {
    /// The proxy starts.
    Starting,
    /// A server whose address had to be had could not have it: which, and why; and whom to tell
    /// that this has been written.
    ServerFailed(&'static str, String, oneshot::Sender<()>),
    /// A Service's health checks cannot be served; why.
    HealthCheckFailed(ObjectKey, String),
    /// Something on this machine keeps connections from endpoints.
    Finding(String),
    /// An endpoint does not answer, or does so again.
    Judged(Verdict),
}

/// Writes events.
pub struct Events {
    recorder: Recorder,
    node_name: String,
}

impl Events {
    /// Events of the proxy on this node.
    #[must_use]
    pub fn new(client: kube::Client, node_name: &str) -> Self {
        let reporter = Reporter {
            // Whoever filters for kube-proxy's events goes on to see them.
            controller: "kube-proxy".to_owned(),
            instance: Some(format!("kube-proxy-{node_name}")),
        };
        Self {
            recorder: Recorder::new(client, reporter),
            node_name: node_name.to_owned(),
        }
    }

    /// Writes what is announced, until nobody announces any more.
    pub async fn run(self, mut announced: mpsc::UnboundedReceiver<News>) {
        while let Some(news) = announced.recv().await {
            let (event, about) = self.describe(&news);
            if let Err(error) = self.recorder.publish(&event, &about).await {
                tracing::info!(%error, ?news, "an event could not be written");
            }
            if let News::ServerFailed(.., told) = news {
                let _ = told.send(());
            }
        }
    }

    fn describe(&self, news: &News) -> (Event, ObjectReference) {
        let event = |type_, reason: &str, action: &str, note: Option<String>| Event {
            type_,
            reason: reason.to_owned(),
            note,
            action: action.to_owned(),
            secondary: None,
        };
        let node = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(self.node_name.clone()),
            ..ObjectReference::default()
        };
        match news {
            News::Starting => (
                event(EventType::Normal, "Starting", "StartKubeProxy", None),
                node,
            ),
            News::ServerFailed(what, why, _) => {
                let reason = match *what {
                    "health" => "FailedToStartProxierHealthcheck",
                    _ => "FailedToStartMetricServer",
                };
                let event = event(
                    EventType::Warning,
                    reason,
                    "StartKubeProxy",
                    Some(why.clone()),
                );
                (event, node)
            }
            News::Finding(what) => {
                let (reason, note) = ("NodeLosesConnections", Some(what.clone()));
                (
                    event(EventType::Warning, reason, "StartKubeProxy", note),
                    node,
                )
            }
            News::Judged(Verdict::Ejected {
                service,
                endpoint,
                unanswered,
                least,
            }) => {
                let note = format!(
                    "{endpoint} does not answer on {}, while others do ({unanswered} connections wait): \
                     passed over there until it answers, or for {} s at least",
                    self.node_name,
                    least.as_secs()
                );
                let event = event(EventType::Warning, "EndpointEjected", "Eject", Some(note));
                (event, about(service))
            }
            News::Judged(Verdict::Back {
                service,
                endpoint,
                answered,
            }) => {
                let why = if *answered {
                    "it answers"
                } else {
                    "its time is over"
                };
                let note = format!("{endpoint} is used again on {}: {why}", self.node_name);
                let event = event(EventType::Normal, "EndpointBack", "Eject", Some(note));
                (event, about(service))
            }
            News::HealthCheckFailed(service, why) => {
                let reason = "FailedToStartServiceHealthcheck";
                let service = about(service);
                (
                    event(EventType::Warning, reason, "Listen", Some(why.clone())),
                    service,
                )
            }
        }
    }
}

fn about(service: &ObjectKey) -> ObjectReference {
    ObjectReference {
        kind: Some("Service".to_owned()),
        namespace: Some(service.namespace.to_string()),
        name: Some(service.name.to_string()),
        ..ObjectReference::default()
    }
}
