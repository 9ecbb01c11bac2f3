//! The cluster as an API server tells it: four watches, turned into changes of the model
//! (docs/semantics.md, A, M).
//!
//! `watch` asks, `formats`, `frames`, `list`, `event`, `refusal` and `wire` read what is answered, without any I/O. What
//! a new list says about objects that are gone, and which events came too late, is decided here.

mod answer;
mod client;
mod event;
mod formats;
mod frames;
mod list;
mod pauses;
mod refusal;
mod resource;

mod trouble;
mod unread;
mod unreadable;
mod versions;
mod watch;
mod watch_options;
mod watch_steps;
mod wire;

#[cfg(feature = "internals")]
pub use client::connect_with_patience;
pub use client::{connect, identity_files};
pub use formats::Format;
pub use resource::Kind;
pub use watch_options::WatchOptions;

use std::time::Duration;

use tokio::sync::mpsc;

use super::changes::{Cause, Changes, Trigger};
use super::convert::Converter;
use super::objects::{LAST_CHANGE_ANNOTATION, Metadata};
use crate::core::model::{Change, ObjectKey};
use versions::Versions;
use watch_steps::{Item, Step};

/// Something the cluster has to say.
#[derive(Debug)]
pub enum Notice {
    /// What happened, in order.
    Changes(Changes),
    /// Everything of this kind has been told that exists, after each list of it.
    Complete(Kind),
    /// A watch failed; it comes back by itself, after so long.
    Failed(Kind, String, Duration),
}

/// Notices that may wait. What comes faster waits at the server's end.
const WAITING: usize = 256;
/// What watches brought that may wait: an object, or a few of a list.
const ITEMS: usize = 16;
/// So many objects, or a few more, are told together while they are listed.
const CHUNK: usize = 512;

/// Watches the cluster until the receiver is dropped. Needs a running tokio runtime.
#[must_use]
pub fn follow(
    client: &kube::Client,
    converter: Converter,
    options: &WatchOptions,
) -> mpsc::Receiver<Notice> {
    let (items, incoming) = mpsc::channel(ITEMS);
    let (notices, outgoing) = mpsc::channel(WAITING);
    watch::start(client, options, &items);
    tokio::spawn(Teller::new(converter, notices).run(incoming));
    outgoing
}

/// What is known of one kind.
#[derive(Debug, Default)]
struct Known {
    /// Objects that exist, and their versions.
    objects: Versions,
    /// Those of the list under way.
    listing: Option<Versions>,
    /// In it is an object whose name cannot be read, which may be any: nobody is gone.
    is_vague: bool,
    /// What that list has changed, told when it is complete.
    held: Changes,
    complete: bool,
}

/// An object's name within its kind.
type Name = ObjectKey;

/// Turns watch events into notices.
struct Teller {
    converter: Converter,
    known: [Known; Kind::ALL.len()],
    notices: mpsc::Sender<Notice>,
}

impl Teller {
    fn new(converter: Converter, notices: mpsc::Sender<Notice>) -> Self {
        Self {
            converter,
            known: Default::default(),
            notices,
        }
    }

    async fn run(mut self, mut incoming: mpsc::Receiver<Item>) {
        while let Some(item) = incoming.recv().await {
            for notice in self.take(item) {
                // Nobody listens any more: the watches end with this task's receiver.
                if self.notices.send(notice).await.is_err() {
                    return;
                }
            }
        }
    }

    fn take(&mut self, item: Item) -> Vec<Notice> {
        match item {
            Item::Service(step) => self.step(Kind::Service, step, Converter::service),
            Item::EndpointSlice(step) => {
                self.step(Kind::EndpointSlice, step, Converter::endpoint_slice)
            }
            Item::Node(step) => self.step(Kind::Node, step, Converter::node),
            Item::ServiceCidr(step) => self.step(Kind::ServiceCidr, step, Converter::service_cidr),
        }
    }

    fn step<T: AsMetadata>(
        &mut self,
        kind: Kind,
        step: Step<T>,
        convert: fn(&mut Converter, &T) -> Option<Change>,
    ) -> Vec<Notice> {
        let known = &mut self.known[kind as usize];
        let mut notices = Vec::new();
        match step {
            Step::Failed(why, pause) => {
                // What a list had brought that broke off, the next one brings again.
                known.listing = None;
                known.held = Changes::default();
                notices.push(Notice::Failed(kind, why, pause));
            }
            Step::Begin => {
                // Where nothing is known, nothing can be gone.
                let anew = known.complete || !known.objects.is_empty();
                known.listing = anew.then(Versions::default);
                known.is_vague = false;
                known.held = Changes::default();
            }
            Step::Listed(objects) => {
                for object in objects {
                    let version = version(object.metadata());
                    let change = convert(&mut self.converter, &object);
                    let name = name(change.as_ref(), object.metadata());
                    let is_news = !known.complete || known.objects.get(&name) != Some(version);
                    known
                        .held
                        .tell(&object, change, is_news, &mut self.converter);
                    // The first list can be told as it comes: nothing is known that it could
                    // contradict. Should it break off, the next one will say what of it is gone.
                    // Later lists are told as one change.
                    if !known.complete {
                        known.objects.insert(name.clone(), version);
                    }
                    if let Some(listing) = &mut known.listing {
                        listing.insert(name, version);
                    }
                }
                if !known.complete && known.held.changes.len() >= CHUNK {
                    notices.push(Notice::Changes(std::mem::take(&mut known.held)));
                }
            }
            Step::Spoiled(keys) => {
                for key in keys {
                    let Some(key) = key else {
                        known.is_vague = true;
                        continue;
                    };
                    let version = known.objects.get(&key);
                    if let (Some(listing), Some(version)) = (&mut known.listing, version) {
                        listing.insert(key, version);
                    }
                }
            }
            Step::End => {
                let mut changes = std::mem::take(&mut known.held);
                if let Some(mut listed) = known.listing.take() {
                    for name in known.objects.keys() {
                        if listed.get(&name).is_some() {
                            continue;
                        }
                        match known.objects.get(&name) {
                            Some(version) if known.is_vague => listed.insert(name, version),
                            _ => changes.gone(kind, &name),
                        }
                    }
                    known.objects = listed;
                }
                notices.push(Notice::Changes(changes));
                known.complete = true;
                notices.push(Notice::Complete(kind));
            }
            Step::Applied(object) => {
                let name = key(object.metadata());
                let version = version(object.metadata());
                if known.objects.get(&name).is_some_and(|last| version < last) {
                    tracing::debug!(kind = kind.name(), %name, "an event that came too late");
                    return notices;
                }
                let change = convert(&mut self.converter, &object);
                known
                    .objects
                    .insert(self::name(change.as_ref(), object.metadata()), version);
                let mut changes = Changes::default();
                changes.tell(&object, change, true, &mut self.converter);
                notices.push(Notice::Changes(changes));
            }
            Step::Deleted(object) => {
                let name = key(object.metadata());
                let version = version(object.metadata());
                if known.objects.get(&name).is_some_and(|last| version < last) {
                    tracing::debug!(kind = kind.name(), %name, "an event that came too late");
                    return notices;
                }
                known.objects.remove(&name);
                let mut changes = Changes::default();
                changes.gone(kind, &name);
                notices.push(Notice::Changes(changes));
            }
        }
        notices
    }
}

impl Changes {
    fn tell<T: AsMetadata>(
        &mut self,
        object: &T,
        change: Option<Change>,
        is_news: bool,
        converter: &mut Converter,
    ) {
        if is_news && let Some(Change::EndpointSlice(name, Some(slice))) = &change {
            let began = began(object.metadata());
            self.triggers
                .extend(began.map(|at| Trigger::At(name.clone(), slice.family, at)));
        }
        if let Some(change) = change {
            let cause = Cause::of(&change).filter(|_| is_news);
            self.causes.extend(cause.map(|cause| Cause {
                version: version(object.metadata()),
                ..cause
            }));
            self.changes.push(change);
        }
        self.warnings.append(&mut converter.take_warnings());
    }

    fn gone(&mut self, kind: Kind, name: &Name) {
        let change = match kind {
            Kind::Service => Change::Service(name.clone(), None),
            Kind::EndpointSlice => {
                self.triggers.push(Trigger::Gone(name.clone()));
                Change::EndpointSlice(name.clone(), None)
            }
            Kind::Node => Change::Node(None),
            Kind::ServiceCidr => Change::ServiceCidr(name.name.to_string(), None),
        };
        self.causes.extend(Cause::of(&change));
        self.changes.push(change);
    }
}

/// Objects have metadata.
trait AsMetadata {
    fn metadata(&self) -> &Metadata;
}

impl<T: resource::Trimmed> AsMetadata for T {
    fn metadata(&self) -> &Metadata {
        resource::Trimmed::metadata(self)
    }
}

fn key(metadata: &Metadata) -> Name {
    ObjectKey::new(metadata.namespace.as_str(), metadata.name.as_str())
}

/// The object's name, in the memory that the model has for it.
fn name(change: Option<&Change>, metadata: &Metadata) -> Name {
    match change {
        Some(Change::Service(key, _) | Change::EndpointSlice(key, _)) => key.clone(),
        _ => key(metadata),
    }
}

/// Versions of one kind are numbers that grow (KEP-5504); one that is none counts as the oldest.
fn version(metadata: &Metadata) -> u64 {
    metadata
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

/// When the change that a slice announces began.
fn began(metadata: &Metadata) -> Option<i128> {
    let text = metadata.annotations.text(LAST_CHANGE_ANNOTATION)?;
    let at: jiff::Timestamp = text.parse().ok()?;
    Some(at.as_nanosecond())
}

#[cfg(test)]
mod tests;
