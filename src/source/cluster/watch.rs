//! One watch per kind, for as long as somebody listens: a list, and then what changes.
//!
//! Lists come whole, compressed, in protobuf, and from the server's cache: of all ways that it has, streamed lists
//! among them, this one costs its processor and the network least (docs/design.md).

use std::sync::Arc;
use std::time::Duration;

use form_urlencoded::Serializer;
use http::StatusCode;
use http::header::{ACCEPT, ACCEPT_ENCODING};
use kube::Client;
use kube::client::Body;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout};

use super::answer::{Answer, Halt, PLAIN, ZIP};
use super::event::Event;
use super::frames::Frames;
use super::list::{List, warn_of};
use super::pauses::Pauses;
use super::refusal::Refusal;
use super::resource::{Kind, Trimmed};
use super::trouble::Trouble;
use super::unreadable::Unreadable;
use super::watch_options::WatchOptions;
use super::watch_steps::{Item, Step};
use crate::source::objects::{HEADLESS_LABEL, OTHER_PROXY_LABEL};

/// How long until a server that knows no ServiceCIDRs is asked again: it may have been upgraded.
const NOT_FOUND_PAUSE: Duration = Duration::from_secs(600);
/// So long after its time a watch is given up.
const GRACE: Duration = Duration::from_secs(5);
/// For so long, at most, nobody hurries ahead of the first request.
const HURRY: Duration = Duration::from_secs(1);
/// A watch that ends sooner has failed.
const SHORT: Duration = Duration::from_secs(1);
/// For so long, at most, nobody asks again where the server ends a watch before its time: it is leaving, and has ended
/// those of all nodes.
const LEAVING: Duration = Duration::from_millis(500);
/// Bytes that are decompressed at once: they may be a thousand times as many then.
const PIECE: usize = 8 << 10;
/// Objects of a list that are told together, at most.
const TOGETHER: usize = 16;
/// Objects in a page of a list that comes from etcd; the server's cache gives all at once.
const PAGE: &str = "500";
/// The most pages of a list.
const MOST_PAGES: usize = 2000;
/// So many times as long as it may go no further, a page may take as a whole.
const MOST_PATIENCE: u32 = 15;
/// So often the API server refuses a watch at a version, for reasons of its own, before everything is listed: it may be
/// the version after all. With the pauses that is a minute.
const MOST_REFUSALS: u32 = 12;
/// The same where something on the way says it, or nobody knows who: watches may be what it cannot do. With the pauses
/// that is five minutes.
const MOST_ON_THE_WAY: u32 = 40;
/// So often it is refused to ask for ServiceCIDRs before that is taken for what it is: whoever has only rights to what
/// older versions of Kubernetes have.
const MOST_FORBIDDEN: u32 = 3;
/// Who has this name is nobody.
const NOBODY: &str = "metadata.name=-";
/// So many lists that went on for long before they broke off are enough: the server gives a request a minute
/// (`--request-timeout`), and a page is less than a list.
const MOST_SLOW: u32 = 2;
/// So many times as long as it may go no further, a list has gone on for long.
const SLOW: u32 = 2;
/// The version that stands for whatever the server's cache has.
const CACHED: &str = "0";

/// Starts the four watches.
pub(super) fn start(client: &Client, options: &WatchOptions, items: &mpsc::Sender<Item>) {
    let name = format!("metadata.name={}", options.node_name);
    let no_other_proxy = format!("!{OTHER_PROXY_LABEL}");
    let not_headless = format!("!{HEADLESS_LABEL}");
    let services = [
        ("labelSelector", no_other_proxy.as_str()),
        ("fieldSelector", "spec.clusterIP!=None"),
    ];
    let all = All {
        client,
        options,
        items,
        door: Arc::new(Semaphore::new(1)),
    };
    all.spawn(&services, Item::Service);
    all.spawn(&[("labelSelector", &not_headless)], Item::EndpointSlice);
    all.spawn(&[("fieldSelector", &name)], Item::Node);
    all.spawn(&[], Item::ServiceCidr);
}

/// What the watches have in common.
struct All<'a> {
    client: &'a Client,
    options: &'a WatchOptions,
    items: &'a mpsc::Sender<Item>,
    door: Arc<Semaphore>,
}

impl All<'_> {
    fn spawn<T: Trimmed>(&self, selectors: &[(&'static str, &str)], item: fn(Step<T>) -> Item) {
        let formats = self.options.formats.iter().map(|format| format.name());
        let watch = Watch {
            client: self.client.clone(),
            accept: formats.collect::<Vec<_>>().join(","),
            selectors: selectors
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            options: self.options.clone(),
            items: self.items.clone(),
            item,
            door: Arc::clone(&self.door),
            at: None,
            newest: CACHED.to_owned(),
            in_pages: true,
            refusals: 0,
            slow: 0,
            forbidden: 0,
            heard: Instant::now(),
        };
        tokio::spawn(watch.run());
    }
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
    /// Whether what comes from etcd comes in pages.
    in_pages: bool,
    /// How often the server has refused in a row.
    refusals: u32,
    /// How often a list has gone on for long and then broken off.
    slow: u32,
    /// How often nobody may ask.
    forbidden: u32,
    /// When the server last said how far it has come.
    heard: Instant,
}

impl<T: Trimmed> Watch<T> {
    async fn run(mut self) {
        let mut pauses = Pauses::new();
        loop {
            let began = Instant::now();
            let done = match self.at.clone() {
                None => self.list().await,
                Some(version) if self.heard.elapsed() > self.options.watch_timeout => {
                    self.check(&version).await
                }
                Some(version) => self.watch(version).await,
            };
            let trouble = match done {
                Ok(()) => continue,
                Err(Stop::Unheard) => return,
                Err(Stop::Trouble(trouble)) => trouble,
            };
            let pause = self.after(&trouble, began.elapsed(), pauses.next(Instant::now()));
            let failed = Step::Failed(describe(&trouble), pause);
            if self.tell(failed).await.is_err() {
                return;
            }
            sleep(pause).await;
        }
    }

    /// What a failure after so long means for what is asked next; returns how long to wait before that.
    fn after(&mut self, trouble: &Trouble, took: Duration, pause: Duration) -> Duration {
        let was_list = self.at.is_none();
        let refusal = match trouble {
            Trouble::Refused(refusal) => refusal,
            // What is on the way said it, and nothing of the cluster is lost.
            Trouble::Unreadable(Unreadable::Format(_) | Unreadable::Encoding(_)) => {
                self.refused(MOST_ON_THE_WAY);
                return pause;
            }
            Trouble::Unreadable(_) => {
                self.at = None;
                return pause;
            }
            Trouble::Ended(refusal) => {
                // It does not go on from here, whatever the reason; but who is overloaded is not helped by a list.
                if refusal.code != 429 {
                    self.at = None;
                }
                return pause;
            }
            Trouble::Halted(Halt::Broken(_))
                if was_list && took > SLOW * self.options.list_patience =>
            {
                self.slow += 1;
                if self.slow >= MOST_SLOW {
                    self.newest.clear();
                }
                return pause;
            }
            Trouble::Request(_) | Trouble::Halted(_) | Trouble::Short => return pause,
        };
        match refusal.code {
            // A token whose list is forgotten: all of it at once, then.
            410 if was_list && self.newest.is_empty() => self.in_pages = false,
            // A list at the version that is too old to go on from is answered with a newer one, unless just that
            // was refused.
            410 if was_list => self.newest.clear(),
            _ if was_list && refusal.is_too_new && self.newest != CACHED => self.newest.clear(),
            400 if was_list => self.newest.clear(),
            // Who is overloaded, or does not let us in, has nothing against the version.
            403 if T::KIND == Kind::ServiceCidr => self.forbidden += 1,
            401 | 403 | 429 => {}
            // Nor has what is on the way to the server; or says so often enough.
            code if !refusal.is_of_the_api && code != 410 => self.refused(MOST_ON_THE_WAY),
            500.. => self.refused(MOST_REFUSALS),
            _ => self.at = None,
        }
        let is_unknown = refusal.code == 404 && refusal.is_of_the_api;
        if T::KIND == Kind::ServiceCidr && (is_unknown || self.forbidden > MOST_FORBIDDEN) {
            return NOT_FOUND_PAUSE;
        }
        // All are told the same.
        pause + refusal.retry_after
    }

    /// A watch was refused; when that has been so too often, everything is listed.
    fn refused(&mut self, most: u32) {
        self.refusals += 1;
        if self.refusals > most {
            self.refusals = 0;
            self.at = None;
        }
    }

    /// Asks whether the server knows the version. Servers say at times how far they have come, and one that is silent may
    /// have nothing to say, or not have come as far as we have, since its store was restored: then it says nothing until
    /// it has, and refuses to list anything at that version.
    async fn check(&mut self, version: &str) -> Result<(), Stop> {
        let query = [("fieldSelector", NOBODY), ("resourceVersion", version)];
        match self.ask_for(&query, PLAIN).await {
            Err(Trouble::Refused(refusal)) if refusal.is_too_new => {
                self.at = None;
                Err(Trouble::Refused(refusal).into())
            }
            Err(trouble) => Err(trouble.into()),
            Ok(_) => {
                self.heard = Instant::now();
                Ok(())
            }
        }
    }

    async fn list(&mut self) -> Result<(), Stop> {
        let mut token: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let mut query = vec![("resourceVersion", self.newest.as_str())];
            if self.newest.is_empty() {
                query.clear();
                if self.in_pages {
                    query.push(("limit", PAGE));
                }
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
            let most = Instant::now() + patience * MOST_PATIENCE;
            let mut objects = 0;
            while let Some(bytes) = answer.more(most.min(Instant::now() + patience)).await? {
                for bytes in bytes.chunks(PIECE) {
                    list.push(bytes)?;
                    loop {
                        let some = list.some(TOGETHER)?;
                        objects += some.len();
                        let are_all = some.len() < TOGETHER;
                        if !some.is_empty() {
                            self.tell(Step::Listed(some)).await?;
                        }
                        if are_all {
                            break;
                        }
                    }
                    // What is decompressed may go on for long without an object.
                    tokio::task::consume_budget().await;
                }
            }
            let spoiled = list.take_spoiled();
            if !spoiled.is_empty() {
                warn_of(T::KIND, &spoiled);
                let keys = spoiled.into_iter().map(|spoiled| spoiled.key);
                self.tell(Step::Spoiled(keys.collect())).await?;
            }
            let (metadata, rest) = list.end()?;
            objects += rest.len();
            let mut rest = rest.into_iter().peekable();
            while rest.peek().is_some() {
                let some = rest.by_ref().take(TOGETHER).collect();
                self.tell(Step::Listed(some)).await?;
            }
            if metadata.r#continue.is_empty() {
                self.has_told(metadata.resource_version);
                self.in_pages = true;
                return self.tell(Step::End).await;
            }
            if objects == 0 {
                break;
            }
            token = Some(metadata.r#continue);
        }
        Err(Unreadable::Endless.into())
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
        // Its time is over: whoever was to say so has been silent for too long.
        let deadline = began + patience + GRACE;
        loop {
            let bytes = match answer.more(deadline).await {
                Ok(Some(bytes)) => bytes,
                // Whoever is told something each time and the end at once would ask a thousand times a second.
                Ok(None) if began.elapsed() < SHORT => return Err(Trouble::Short.into()),
                Ok(None) if began.elapsed() + SHORT < patience => {
                    sleep(LEAVING.mul_f64(fastrand::f64())).await;
                    return Ok(());
                }
                // What it had begun to say when it ended, it will say again.
                Ok(None) | Err(Halt::Stalled) => return Ok(()),
                Err(halt) => return Err(Trouble::from(halt).into()),
            };
            frames.push(&bytes);
            while let Some(frame) = frames.next()? {
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
                let refusal = Refusal::of(status, StatusCode::INTERNAL_SERVER_ERROR);
                return Err(Trouble::Ended(refusal).into());
            }
        };
        // Versions are numbers (KEP-5504).
        let version = version.filter(|version| version.parse::<u64>().is_ok());
        let version = version.ok_or(Unreadable::NoVersion)?;
        if let Some(step) = step {
            self.tell(step).await?;
        }
        self.has_told(version.into());
        Ok(())
    }

    fn has_told(&mut self, version: String) {
        self.refusals = 0;
        self.slow = 0;
        self.forbidden = 0;
        self.heard = Instant::now();
        self.newest.clone_from(&version);
        self.at = Some(version);
    }

    async fn tell(&self, step: Step<T>) -> Result<(), Stop> {
        let told = self.items.send((self.item)(step)).await;
        told.map_err(|_| Stop::Unheard)
    }

    /// Asks for what is watched. What comes back is an answer, and no refusal.
    async fn ask(&self, query: &[(&str, &str)], encoding: &str) -> Result<Answer, Trouble> {
        let selectors = self.selectors.iter();
        let selectors = selectors.map(|(name, value)| (*name, value.as_str()));
        let query: Vec<(&str, &str)> = selectors.chain(query.iter().copied()).collect();
        self.ask_for(&query, encoding).await
    }

    async fn ask_for(&self, query: &[(&str, &str)], encoding: &str) -> Result<Answer, Trouble> {
        let text = Serializer::new(String::new()).extend_pairs(query).finish();
        let request = http::Request::get(format!("{}?{text}", T::KIND.path()))
            .header(ACCEPT, &self.accept)
            .header(ACCEPT_ENCODING, encoding)
            .body(Body::empty())
            .map_err(|error| Trouble::Request(kube::Error::HttpError(error)))?;
        let first = timeout(HURRY, self.door.acquire()).await;
        let response = self.client.send(request).await.map_err(Trouble::Request)?;
        drop(first);
        self.door.close();
        if !response.status().is_success() {
            let refusal = Refusal::read(response, self.options.list_patience).await;
            return Err(refusal.into());
        }
        Ok(Answer::new(response, encoding)?)
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
