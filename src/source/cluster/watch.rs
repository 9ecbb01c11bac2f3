//! One watch per kind, for as long as somebody listens.

use std::time::Duration;

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, InitialListStrategy, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;

use super::pauses::pauses;
use super::resource::{Object, Trimmed};
use crate::source::objects::{self, HEADLESS_LABEL, OTHER_PROXY_LABEL};

/// What to watch, and how.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// This node's name.
    pub node_name: String,
    /// After how long the server is asked to end a watch, which then goes on in a new one; five
    /// seconds later a connection without a word is given up.
    pub watch_timeout: Duration,
}

impl WatchOptions {
    /// The usual ones.
    #[must_use]
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.to_owned(),
            watch_timeout: Duration::from_secs(290),
        }
    }
}

/// What a watch brought.
#[derive(Debug)]
pub(super) enum Item {
    Service(Step<objects::Service>),
    EndpointSlice(Step<objects::EndpointSlice>),
    Node(Step<objects::Node>),
    ServiceCidr(Step<objects::ServiceCidr>),
}

/// A step of a watch.
#[derive(Debug)]
pub(super) enum Step<T> {
    /// A list begins.
    Begin,
    /// An object of the list.
    Listed(T),
    /// The list is complete: what it did not name does not exist.
    End,
    /// An object is new or has changed.
    Applied(T),
    /// An object is gone.
    Deleted(T),
    /// The watch failed and will be tried again.
    Failed(String),
}

/// What a server says that does not know a kind.
const NOT_FOUND: u16 = 404;
/// How long until it is asked again: it may have been upgraded.
const NOT_FOUND_PAUSE: Duration = Duration::from_secs(600);
/// The pause before starting over after an answer that cannot be read.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Starts the four watches.
pub(super) fn start(client: &Client, options: &WatchOptions, items: &mpsc::Sender<Item>) {
    let timeout = u32::try_from(options.watch_timeout.as_secs()).unwrap_or(u32::MAX);
    let config = watcher::Config::default().timeout(timeout);
    let services = config
        .clone()
        .labels(&format!("!{OTHER_PROXY_LABEL}"))
        .fields("spec.clusterIP!=None");
    let slices = config.clone().labels(&format!("!{HEADLESS_LABEL}"));
    let node = config
        .clone()
        .fields(&format!("metadata.name={}", options.node_name));
    tokio::spawn(follow(
        client.clone(),
        services,
        items.clone(),
        Item::Service,
    ));
    tokio::spawn(follow(
        client.clone(),
        slices,
        items.clone(),
        Item::EndpointSlice,
    ));
    tokio::spawn(follow(client.clone(), node, items.clone(), Item::Node));
    tokio::spawn(follow(
        client.clone(),
        config,
        items.clone(),
        Item::ServiceCidr,
    ));
}

/// What to do after a failure.
enum After {
    /// The watcher goes on by itself.
    GoOn,
    /// What was missed is unknown: list everything again.
    StartOver(Duration),
    /// The server does not stream lists: ask for pages.
    Pages,
}

async fn follow<T: Trimmed>(
    client: Client,
    config: watcher::Config,
    items: mpsc::Sender<Item>,
    item: fn(Step<T>) -> Item,
) {
    let mut strategy = InitialListStrategy::StreamingList;
    loop {
        let config = watcher::Config {
            initial_list_strategy: strategy.clone(),
            ..config.clone()
        };
        let api: Api<Object<T>> = Api::all(client.clone());
        let mut stream = std::pin::pin!(watcher(api, config).backoff(pauses()));
        // Lists that began and did not end.
        let mut unfinished = 0;
        let after = loop {
            let Some(event) = stream.next().await else {
                break After::StartOver(RESTART_PAUSE);
            };
            let (step, after) = match event {
                Ok(Event::Init) => {
                    unfinished += 1;
                    (Step::Begin, After::GoOn)
                }
                Ok(Event::InitApply(object)) => (Step::Listed(object.inner), After::GoOn),
                Ok(Event::InitDone) => {
                    unfinished = 0;
                    (Step::End, After::GoOn)
                }
                Ok(Event::Apply(object)) => (Step::Applied(object.inner), After::GoOn),
                Ok(Event::Delete(object)) => (Step::Deleted(object.inner), After::GoOn),
                Err(error) => {
                    let after = after(&error, unfinished > 0, &strategy);
                    (Step::Failed(describe(&error)), after)
                }
            };
            if items.send(item(step)).await.is_err() {
                return;
            }
            // A server too old to know what it is asked sends everything, and no end of it.
            if unfinished > 2 && strategy == InitialListStrategy::StreamingList {
                break After::Pages;
            }
            if !matches!(after, After::GoOn) {
                break after;
            }
        };
        match after {
            After::Pages => strategy = InitialListStrategy::ListWatch,
            After::StartOver(pause) => tokio::time::sleep(pause).await,
            After::GoOn => {}
        }
    }
}

fn after(error: &watcher::Error, listing: bool, strategy: &InitialListStrategy) -> After {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status)) => {
            match status.code {
                NOT_FOUND => After::StartOver(NOT_FOUND_PAUSE),
                400 | 422 if *strategy == InitialListStrategy::StreamingList => After::Pages,
                // The version to go on from is too old.
                410 => After::StartOver(RESTART_PAUSE),
                _ => After::GoOn,
            }
        }
        // A line that is no event: what it said is lost. kube takes one for a Status, all of whose
        // fields are optional, if it is JSON at all. During a list the watcher does not start
        // over by itself, either.
        WatchFailed(kube::Error::SerdeError(_) | kube::Error::Api(_)) => {
            After::StartOver(RESTART_PAUSE)
        }
        WatchFailed(_) if listing => After::StartOver(RESTART_PAUSE),
        _ => After::GoOn,
    }
}

/// The error and its causes, in one line.
fn describe(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
