//! An event of a watch.

use bytes::Bytes;
use prost::Message;
use serde::Deserialize;

use super::formats::Format;
use super::resource::Trimmed;
use super::unreadable::Unreadable;
use super::wire::{Status, WatchEvent, unknown};
use crate::source::objects::Metadata;

/// What a watch says.
#[derive(Debug, Deserialize)]
#[serde(
    tag = "type",
    content = "object",
    rename_all = "UPPERCASE",
    bound = "T: Trimmed"
)]
pub(super) enum Event<T> {
    /// An object is new.
    Added(T),
    /// An object has changed.
    Modified(T),
    /// An object is gone.
    Deleted(T),
    /// All that happened up to a version has been told.
    Bookmark(Mark),
    /// The watch is over.
    Error(Status),
}

/// The object of a bookmark, which has nothing but a version.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
pub(super) struct Mark {
    #[prost(message, required, tag = "1")]
    pub(super) metadata: Metadata,
}

impl<T: Trimmed> Event<T> {
    /// Reads one.
    pub(super) fn read(format: Format, frame: Bytes) -> Result<Self, Unreadable> {
        if format == Format::Json {
            return Ok(serde_json::from_slice(&frame)?);
        }
        let event = WatchEvent::decode(frame)?;
        let object = unknown(event.object.raw)?;
        let kind = object.type_meta.kind;
        let expected = match event.type_.as_str() {
            "ERROR" => "Status",
            _ => T::KIND.name(),
        };
        if kind != expected {
            return Err(Unreadable::Kind {
                found: kind,
                expected,
            });
        }
        Ok(match event.type_.as_str() {
            "ADDED" => Self::Added(T::read(object.raw)?),
            "MODIFIED" => Self::Modified(T::read(object.raw)?),
            "DELETED" => Self::Deleted(T::read(object.raw)?),
            "BOOKMARK" => Self::Bookmark(Mark::decode(object.raw)?),
            "ERROR" => Self::Error(Status::decode(object.raw)?),
            _ => return Err(Unreadable::Event(event.type_)),
        })
    }
}
