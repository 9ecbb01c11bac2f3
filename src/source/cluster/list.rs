//! A list, object by object as its bytes come in.
//!
//! Of protobuf no more than one object is held at a time: `k8s\0`, an `Unknown`, and in its `raw` the list,
//! whose field 1 is a `ListMeta` and whose fields 2 are the objects. JSON is read when all of it is there.

use std::fmt;
use std::marker::PhantomData;

use prost::{DecodeError, Message};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::event::Mark;
use super::formats::Format;
use super::frames::within;
use super::resource::Kind;
use super::resource::Trimmed;
use super::unread::Unread;
use super::unreadable::Unreadable;
use super::wire::{ListMeta, MAGIC, TypeMeta};
use crate::core::model::ObjectKey;

/// The most bytes of a list in JSON: it is held as a whole.
const MOST_JSON: usize = 256 << 20;
/// The most objects of a list. What a cluster can have of them is a fraction of it.
const MOST_OBJECTS: usize = 1_000_000;

/// Where in a list in protobuf one is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Before everything.
    Magic,
    /// Between the fields of the `Unknown`.
    Envelope,
    /// Between the fields of the list, of which so many bytes are still to come.
    Within(u64),
}

/// An object that cannot be read.
#[derive(Debug)]
pub(super) struct Spoiled {
    /// Which one it is, if that can be read.
    pub(super) key: Option<ObjectKey>,
    /// Why.
    pub(super) error: DecodeError,
}

impl Spoiled {
    fn new(bytes: &[u8], error: DecodeError) -> Self {
        let metadata = Mark::decode(bytes).map(|mark| mark.metadata).ok();
        let metadata = metadata.filter(|metadata| !metadata.name.is_empty());
        let key = metadata
            .map(|metadata| ObjectKey::new(metadata.namespace.as_str(), metadata.name.as_str()));
        Self { key, error }
    }
}

/// A list under way.
#[derive(Debug)]
pub(super) struct List<T> {
    format: Format,
    unread: Unread,
    place: Place,
    has_kind: bool,
    count: usize,
    metadata: ListMeta,
    spoiled: Vec<Spoiled>,
    objects: PhantomData<T>,
}

/// A list in JSON.
#[derive(Deserialize)]
#[serde(bound = "T: Trimmed")]
struct Whole<T> {
    #[serde(default, rename = "apiVersion")]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: ListMeta,
    #[serde(deserialize_with = "named")]
    items: Vec<T>,
}

/// Objects, all of which have names, and no more than there can be.
fn named<'de, D: Deserializer<'de>, T: Trimmed>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct Named<T>(PhantomData<T>);

    impl<'de, T: Trimmed> Visitor<'de> for Named<T> {
        type Value = Vec<T>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("objects")
        }

        // A list of Go that is nil.
        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Vec<T>, A::Error> {
            let mut objects: Vec<T> = Vec::new();
            while let Some(object) = all.next_element::<T>()? {
                if object.metadata().name.is_empty() {
                    return Err(A::Error::custom(Unreadable::NoName));
                }
                if objects.len() == MOST_OBJECTS {
                    return Err(A::Error::custom(Unreadable::Endless));
                }
                objects.push(object);
            }
            Ok(objects)
        }
    }

    deserializer.deserialize_any(Named(PhantomData))
}

impl<T: Trimmed> List<T> {
    /// One that begins, compressed or not.
    pub(super) fn new(format: Format, zipped: bool) -> Self {
        Self {
            format,
            unread: Unread::new(zipped),
            place: Place::Magic,
            has_kind: false,
            count: 0,
            metadata: ListMeta::default(),
            spoiled: Vec::new(),
            objects: PhantomData,
        }
    }

    /// The objects that could not be read, since the last call; they have been left out.
    pub(super) fn take_spoiled(&mut self) -> Vec<Spoiled> {
        std::mem::take(&mut self.spoiled)
    }

    /// More has come. Compressed, a thousand times as much may have.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Unreadable> {
        self.unread.push(bytes)?;
        if self.format == Format::Json && self.unread.bytes().len() > MOST_JSON {
            return Err(Unreadable::Endless);
        }
        Ok(())
    }

    /// The next objects of those of which all has come, and no more than so many.
    pub(super) fn some(&mut self, most: usize) -> Result<Vec<T>, Unreadable> {
        let mut some = Vec::new();
        while some.len() < most
            && let Some(object) = self.next()?
        {
            some.push(object);
        }
        Ok(some)
    }

    /// The next object, if all of it has come.
    fn next(&mut self) -> Result<Option<T>, Unreadable> {
        if self.format == Format::Json {
            return Ok(None);
        }
        loop {
            let unread = &mut self.unread;
            let bytes = unread.bytes();
            let field = match self.place {
                Place::Magic => {
                    let Some(begin) = bytes.first_chunk::<4>() else {
                        return Ok(None);
                    };
                    if *begin != MAGIC {
                        return Err(Unreadable::NoObject);
                    }
                    unread.advance(MAGIC.len());
                    self.place = Place::Envelope;
                    continue;
                }
                Place::Within(0) => {
                    self.place = Place::Envelope;
                    continue;
                }
                Place::Envelope | Place::Within(_) => Field::at(bytes)?,
            };
            let Some(field) = field else {
                return Ok(None);
            };
            if let (Place::Envelope, true) = (self.place, field.is(2)) {
                unread.advance(field.head);
                self.place = Place::Within(field.length);
                continue;
            }
            let end = field.head + within(field.length)?;
            if let Place::Within(left) = &mut self.place {
                let rest = left.checked_sub(end as u64).ok_or(Unreadable::Half)?;
                if bytes.len() >= end {
                    *left = rest;
                }
            }
            let Some(value) = bytes.get(field.head..end) else {
                return Ok(None);
            };
            let mut object = None;
            match self.place {
                Place::Within(_) if field.is(1) => self.metadata = ListMeta::decode(value)?,
                Place::Within(_) if field.is(2) => {
                    let read = T::read(value);
                    object = Some(read.map_err(|error| Spoiled::new(value, error)));
                }
                Place::Envelope if field.is(1) => {
                    let what = TypeMeta::decode(value)?;
                    is_list_of::<T>(&what.api_version, &what.kind)?;
                    self.has_kind = true;
                }
                _ => {}
            }
            unread.advance(end);
            match object {
                Some(Ok(object)) => {
                    self.count()?;
                    if object.metadata().name.is_empty() {
                        return Err(Unreadable::NoName);
                    }
                    return Ok(Some(object));
                }
                // An author's business, and no reason to do without everybody else's.
                Some(Err(spoiled)) => {
                    self.count()?;
                    self.spoiled.push(spoiled);
                }
                None => {}
            }
        }
    }

    const fn count(&mut self) -> Result<(), Unreadable> {
        if self.count == MOST_OBJECTS {
            return Err(Unreadable::Endless);
        }
        self.count += 1;
        Ok(())
    }

    /// All has come: what the list says of itself, and the objects that have not been taken.
    pub(super) fn end(self) -> Result<(ListMeta, Vec<T>), Unreadable> {
        if !self.unread.is_whole() {
            return Err(Unreadable::Half);
        }
        let bytes = self.unread.bytes();
        let (metadata, rest) = match (self.format, self.place) {
            (Format::Protobuf, Place::Envelope | Place::Within(0)) if bytes.is_empty() => {
                (self.metadata, Vec::new())
            }
            (Format::Protobuf, _) => return Err(Unreadable::Half),
            (Format::Json, _) => {
                let whole: Whole<T> = serde_json::from_slice(bytes)?;
                is_list_of::<T>(&whole.api_version, &whole.kind)?;
                (whole.metadata, whole.items)
            }
        };
        // Something that is no list at all must not pass for an empty one.
        if self.format == Format::Protobuf && !self.has_kind {
            return Err(Unreadable::NoObject);
        }
        if metadata.resource_version.parse::<u64>().is_err() {
            return Err(Unreadable::NoVersion);
        }
        Ok((metadata, rest))
    }
}

fn is_list_of<T: Trimmed>(api_version: &str, kind: &str) -> Result<(), Unreadable> {
    if api_version == T::KIND.api_version() && kind == T::KIND.list() {
        return Ok(());
    }
    Err(Unreadable::Kind {
        found: format!("{api_version} {kind}"),
        expected: T::KIND.list(),
    })
}

/// The head of a field (protobuf's encoding, "message structure").
struct Field {
    number: u64,
    has_length: bool,
    /// Bytes before the value.
    head: usize,
    /// Bytes of the value.
    length: u64,
}

impl Field {
    fn at(bytes: &[u8]) -> Result<Option<Self>, Unreadable> {
        let Some((key, key_length)) = varint(bytes)? else {
            return Ok(None);
        };
        let rest = &bytes[key_length..];
        let (head, length) = match key & 7 {
            0 => match varint(rest)? {
                Some((_, length)) => (0, length as u64),
                None => return Ok(None),
            },
            1 => (0, 8),
            2 => match varint(rest)? {
                Some((length, head)) => (head, length),
                None => return Ok(None),
            },
            5 => (0, 4),
            _ => return Err(Unreadable::NoObject),
        };
        Ok(Some(Self {
            number: key >> 3,
            has_length: key & 7 == 2,
            head: key_length + head,
            length,
        }))
    }

    const fn is(&self, number: u64) -> bool {
        self.has_length && self.number == number
    }
}

/// A number of up to ten bytes, and how many they are; none if not all have come.
fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, Unreadable> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() >= 10 {
        return Err(Unreadable::NoObject);
    }
    Ok(None)
}

/// Of so many objects of a list it is said why they cannot be read.
const TOLD: usize = 3;

/// Says which objects of a list cannot be read, and why.
pub(super) fn warn_of(kind: Kind, spoiled: &[Spoiled]) {
    for Spoiled { key, error } in spoiled.iter().take(TOLD) {
        let object = key.as_ref().map(ToString::to_string);
        tracing::warn!(
            kind = kind.name(),
            object = object.as_deref().unwrap_or("of a name that cannot be read"),
            %error,
            "an object cannot be read: it is left out, or stays as it was; see what wrote it"
        );
    }
    if spoiled.len() > TOLD {
        tracing::warn!(
            kind = kind.name(),
            objects = spoiled.len(),
            "so many objects cannot be read"
        );
    }
}

#[cfg(test)]
#[path = "list_tests.rs"]
mod tests;
