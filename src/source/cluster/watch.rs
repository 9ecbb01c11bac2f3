//! One watch per kind, for as long as somebody listens: a list, and then what changes.
//!
//! Lists come whole, compressed, in protobuf, and from the server's cache: of all ways that it has, streamed lists
//! among them, this one costs its processor and the network least (docs/design.md).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use form_urlencoded::Serializer;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::event::Event;
use super::formats::Format;
use super::frames::Frames;
use super::list::List;
use super::pauses::Pauses;
use super::resource::Trimmed;
use super::trouble::{Trouble, Unreadable};
use super::wire::{Status, unknown};
use crate::source::objects::{self, HEADLESS_LABEL, OTHER_PROXY_LABEL};

/// What to watch, and how.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// This node's name.
    pub node_name: String,
    /// The formats that answers may have, the preferred one first.
    pub formats: Vec<Format>,
    /// After how long the server is asked to end a watch, which then goes on in a new one: up to twice as long, so
    /// that nodes do not come together. Five seconds later a connection without a word is given up.
    pub watch_timeout: Duration,
    /// For so long a list may go no further.
    pub list_patience: Duration,
}

impl WatchOptions {
    /// The usual ones.
    #[must_use]
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.to_owned(),
            formats: Format::ALL.to_vec(),
            watch_timeout: Duration::from_secs(300),
            list_patience: Duration::from_secs(20),
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

/// How long until a server that does not know a kind is asked again: it may have been upgraded.
const NOT_FOUND_PAUSE: Duration = Duration::from_secs(600);
/// The longest that a server may ask to be left alone.
const MOST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// So long after its time a watch is given up.
const GRACE: Duration = Duration::from_secs(5);
/// For so long, at most, nobody hurries ahead of the first request.
const HURRY: Duration = Duration::from_secs(1);
/// A watch that ends sooner, and has said nothing, has failed.
const SHORT: Duration = Duration::from_secs(1);
/// The most bytes of a refusal that are read.
const MOST_REFUSAL: usize = 64 << 10;
/// Objects in a page of a list that comes from etcd; the server's cache gives all at once.
const PAGE: &str = "500";
/// The version that stands for whatever the server's cache has.
const CACHED: &str = "0";

/// How an answer may be encoded (RFC 9110, 8.4.1).
const ZIP: &str = "gzip";
const PLAIN: &str = "identity";

/// Starts the four watches.
pub(super) fn start(client: &Client, options: &WatchOptions, items: &mpsc::Sender<Item>) {
    let door = Arc::new(Semaphore::new(1));
    let name = format!("metadata.name={}", options.node_name);
    let no_other_proxy = format!("!{OTHER_PROXY_LABEL}");
    let not_headless = format!("!{HEADLESS_LABEL}");
    spawn(
        client,
        options,
        &[
            ("labelSelector", &no_other_proxy),
            ("fieldSelector", "spec.clusterIP!=None"),
        ],
        (items, Item::Service),
        &door,
    );
    spawn(
        client,
        options,
        &[("labelSelector", &not_headless)],
        (items, Item::EndpointSlice),
        &door,
    );
    spawn(
        client,
        options,
        &[("fieldSelector", &name)],
        (items, Item::Node),
        &door,
    );
    spawn(client, options, &[], (items, Item::ServiceCidr), &door);
}

fn spawn<T: Trimmed>(
    client: &Client,
    options: &WatchOptions,
    selectors: &[(&'static str, &str)],
    (items, item): (&mpsc::Sender<Item>, fn(Step<T>) -> Item),
    door: &Arc<Semaphore>,
) {
    let formats = options.formats.iter().map(|format| format.name());
    let watch = Watch {
        client: client.clone(),
        accept: formats.collect::<Vec<_>>().join(","),
        selectors: selectors
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect(),
        options: options.clone(),
        items: items.clone(),
        item,
        door: Arc::clone(door),
        at: None,
        newest: CACHED.to_owned(),
    };
    tokio::spawn(watch.run());
}

/// Why a watch stops.
enum Stop {
    /// It failed.
    Trouble(Trouble),
    /// Nobody listens any more.
    Unheard,
}

impl<E: Into<Trouble>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Trouble(error.into())
    }
}

/// The watch of a kind.
struct Watch<T> {
    client: Client,
    accept: String,
    selectors: Vec<(&'static str, String)>,
    options: WatchOptions,
    items: mpsc::Sender<Item>,
    item: fn(Step<T>) -> Item,
    /// Closed when the server has answered for the first time. The first request finds out whether one connection is
    /// enough for all; without the others waiting for that, each would make one of its own.
    door: Arc<Semaphore>,
    /// The version that has been told, from which a watch goes on; without it, everything is listed.
    at: Option<String>,
    /// What a list has to know at least: `0` for whatever is at hand, nothing for all that there is.
    newest: String,
}

/// What the server says.
struct Answer {
    format: Format,
    zipped: bool,
    body: Body,
}

impl<T: Trimmed> Watch<T> {
    async fn run(mut self) {
        let mut pauses = Pauses::new();
        loop {
            let done = match self.at.clone() {
                None => self.list().await,
                Some(version) => self.watch(version).await,
            };
            let trouble = match done {
                Ok(()) => continue,
                Err(Stop::Unheard) => return,
                Err(Stop::Trouble(trouble)) => trouble,
            };
            let pause = self.after(&trouble, pauses.next(Instant::now()));
            if self.tell(Step::Failed(describe(&trouble))).await.is_err() {
                return;
            }
            sleep(pause).await;
        }
    }

    /// What a failure means for what is asked next; returns how long to wait before that.
    fn after(&mut self, trouble: &Trouble, pause: Duration) -> Duration {
        match trouble {
            Trouble::Refused {
                code, retry_after, ..
            } => {
                match code {
                    404 => self.at = None,
                    // The version to go on from is too old. A list at that version is answered with a newer
                    // one, unless that was refused.
                    410 if self.at.take().is_none() => self.newest.clear(),
                    // The server has not heard of the version yet, and does not within its patience.
                    504 if self.at.is_none() => self.newest.clear(),
                    _ => {}
                }
                if *code == 404 {
                    return NOT_FOUND_PAUSE;
                }
                retry_after.map_or(pause, |wish| pause.max(wish.min(MOST_RETRY_AFTER)))
            }
            Trouble::Unreadable(_) => {
                self.at = None;
                pause
            }
            _ => pause,
        }
    }

    async fn list(&mut self) -> Result<(), Stop> {
        let mut token: Option<String> = None;
        loop {
            let mut query = vec![("resourceVersion", self.newest.as_str())];
            if self.newest.is_empty() {
                query = vec![("limit", PAGE)];
            }
            if let Some(token) = &token {
                query = vec![("limit", PAGE), ("continue", token)];
            }
            let mut answer = self.ask(&query, ZIP).await?;
            if token.is_none() {
                self.tell(Step::Begin).await?;
            }
            let mut list = List::<T>::new(answer.format, answer.zipped);
            let patience = self.options.list_patience;
            let stalled = |()| Trouble::Stalled(patience);
            while let Some(bytes) =
                more(&mut answer.body, Instant::now() + patience, stalled).await?
            {
                list.push(&bytes)?;
                while let Some(object) = list.next()? {
                    self.tell(Step::Listed(object)).await?;
                }
            }
            let (metadata, rest) = list.end()?;
            for object in rest {
                self.tell(Step::Listed(object)).await?;
            }
            if metadata.r#continue.is_empty() {
                self.has_told(metadata.resource_version);
                return self.tell(Step::End).await;
            }
            token = Some(metadata.r#continue);
        }
    }

    async fn watch(&mut self, version: String) -> Result<(), Stop> {
        let least = self.options.watch_timeout;
        let patience = least + least.mul_f64(fastrand::f64());
        let seconds = patience.as_secs().to_string();
        let query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", &version),
            ("timeoutSeconds", &seconds),
        ];
        let began = Instant::now();
        // The server compresses no watches: what it says must be read at once.
        let mut answer = self.ask(&query, PLAIN).await?;
        let mut frames = Frames::new(answer.format);
        let mut heard = false;
        // Its time is over: whoever was to say so has been silent for too long.
        let deadline = began + patience + GRACE;
        let over = |()| Trouble::Stalled(patience + GRACE);
        loop {
            let bytes = match more(&mut answer.body, deadline, over).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) if !heard && began.elapsed() < SHORT => return Err(Trouble::Short.into()),
                // What it had begun to say when it ended, it will say again.
                Ok(None) | Err(Trouble::Stalled(_)) => return Ok(()),
                Err(trouble) => return Err(trouble.into()),
            };
            frames.push(&bytes);
            while let Some(frame) = frames.next()? {
                heard = true;
                self.take(Event::read(answer.format, frame)?).await?;
            }
        }
    }

    async fn take(&mut self, event: Event<T>) -> Result<(), Stop> {
        let (step, version) = match event {
            Event::Added(object) | Event::Modified(object) => {
                let version = object.metadata().resource_version.clone();
                (Some(Step::Applied(object)), version)
            }
            Event::Deleted(object) => {
                let version = object.metadata().resource_version.clone();
                (Some(Step::Deleted(object)), version)
            }
            Event::Bookmark(mark) => (None, mark.metadata.resource_version),
            Event::Error(status) => {
                let refused = refused(status, StatusCode::INTERNAL_SERVER_ERROR, None);
                // It does not go on from here, whatever the reason.
                if !matches!(refused, Trouble::Refused { code: 410, .. }) {
                    self.at = None;
                }
                return Err(refused.into());
            }
        };
        let version = version.filter(|version| !version.is_empty());
        let version = version.ok_or(Unreadable::NoVersion)?;
        if let Some(step) = step {
            self.tell(step).await?;
        }
        self.has_told(version);
        Ok(())
    }

    fn has_told(&mut self, version: String) {
        self.newest.clone_from(&version);
        self.at = Some(version);
    }

    async fn tell(&self, step: Step<T>) -> Result<(), Stop> {
        let told = self.items.send((self.item)(step)).await;
        told.map_err(|_| Stop::Unheard)
    }

    fn address(&self, query: &[(&str, &str)]) -> String {
        let mut text = Serializer::new(String::new());
        text.extend_pairs(&self.selectors);
        text.extend_pairs(query);
        format!("{}?{}", T::KIND.path(), text.finish())
    }

    /// Makes a request. What comes back is an answer, and no refusal.
    async fn ask(&self, query: &[(&str, &str)], encoding: &str) -> Result<Answer, Trouble> {
        let request = http::Request::get(self.address(query))
            .header(ACCEPT, &self.accept)
            .header(ACCEPT_ENCODING, encoding)
            .body(Body::empty())
            .map_err(|error| Trouble::Request(kube::Error::HttpError(error)))?;
        let first = timeout(HURRY, self.door.acquire()).await;
        let response = self.client.send(request).await.map_err(Trouble::Request)?;
        drop(first);
        self.door.close();
        if !response.status().is_success() {
            return Err(refusal(response, self.options.list_patience).await);
        }
        let format = Format::of(response.headers())?;
        let zipped = match response.headers().get(CONTENT_ENCODING) {
            None => false,
            Some(is) if is == PLAIN => false,
            Some(is) if is == ZIP && encoding == ZIP => true,
            Some(is) => {
                let text = String::from_utf8_lossy(is.as_bytes()).into_owned();
                return Err(Unreadable::Encoding(text).into());
            }
        };
        Ok(Answer {
            format,
            zipped,
            body: response.into_body(),
        })
    }
}

/// The next bytes of an answer; none at its end.
async fn more(
    body: &mut Body,
    deadline: Instant,
    late: impl FnOnce(()) -> Trouble,
) -> Result<Option<Bytes>, Trouble> {
    loop {
        let frame = match timeout_at(deadline, body.frame()).await {
            Err(_) => return Err(late(())),
            Ok(None) => return Ok(None),
            Ok(Some(frame)) => frame.map_err(Trouble::Broken)?,
        };
        // What is no data is trailers.
        if let Ok(bytes) = frame.into_data() {
            return Ok(Some(bytes));
        }
    }
}

/// What a refusal says.
async fn refusal(response: Response<Body>, patience: Duration) -> Trouble {
    let (head, mut body) = response.into_parts();
    let retry_after = head.headers.get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let mut said = Vec::new();
    let deadline = Instant::now() + patience;
    while let Ok(Some(bytes)) = more(&mut body, deadline, |()| Trouble::Short).await {
        said.extend_from_slice(&bytes[..bytes.len().min(MOST_REFUSAL - said.len())]);
        if said.len() == MOST_REFUSAL {
            break;
        }
    }
    let said = Bytes::from(said);
    let status = match Format::of(&head.headers) {
        Ok(Format::Json) => serde_json::from_slice(&said).ok(),
        Ok(Format::Protobuf) => unknown(said.clone())
            .ok()
            .and_then(|object| prost::Message::decode(object.raw).ok()),
        Err(_) => None,
    };
    let status = status.unwrap_or_else(|| Status {
        message: String::from_utf8_lossy(&said).chars().take(200).collect(),
        ..Status::default()
    });
    refused(status, head.status, retry_after.map(Duration::from_secs))
}

fn refused(status: Status, head: StatusCode, retry_after: Option<Duration>) -> Trouble {
    let code = u16::try_from(status.code).unwrap_or_default();
    Trouble::Refused {
        code: if code == 0 { head.as_u16() } else { code },
        reason: status.reason,
        message: status.message,
        retry_after,
    }
}

/// The error and its causes, in one line.
fn describe(error: &Trouble) -> String {
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
