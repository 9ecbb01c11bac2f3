//! A list, object by object as its bytes come in.
//!
//! Of protobuf no more than one object is held at a time: `k8s\0`, an `Unknown`, and in its `raw` the list,
//! whose field 1 is a `ListMeta` and whose fields 2 are the objects. JSON is read when all of it is there.

use std::marker::PhantomData;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use serde::Deserialize;

use super::formats::Format;
use super::frames::within;
use super::resource::Trimmed;
use super::trouble::Unreadable;
use super::wire::{ListMeta, MAGIC, TypeMeta};

/// The most bytes of a list in JSON: it is held as a whole.
const MOST_JSON: usize = 512 << 20;

/// Where in a list in protobuf one is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Before everything.
    Magic,
    /// Between the fields of the `Unknown`.
    Envelope,
    /// Between the fields of the list, of which so many bytes are still to come.
    List(u64),
}

/// A list under way.
#[derive(Debug)]
pub(super) struct Listing<T> {
    format: Format,
    buffer: BytesMut,
    place: Place,
    metadata: ListMeta,
    objects: PhantomData<T>,
}

/// A list in JSON.
#[derive(Deserialize)]
#[serde(bound = "T: Trimmed")]
struct Whole<T> {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: ListMeta,
    items: Option<Vec<T>>,
}

impl<T: Trimmed> Listing<T> {
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            buffer: BytesMut::new(),
            place: Place::Magic,
            metadata: ListMeta::default(),
            objects: PhantomData,
        }
    }

    /// More has come.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Unreadable> {
        if self.format == Format::Json && self.buffer.len() + bytes.len() > MOST_JSON {
            return Err(Unreadable::TooLong(MOST_JSON as u64));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next object, if all of it has come.
    pub(super) fn next(&mut self) -> Result<Option<T>, Unreadable> {
        if self.format == Format::Json {
            return Ok(None);
        }
        loop {
            match self.place {
                Place::Magic => {
                    let Some(begin) = self.buffer.first_chunk::<4>() else {
                        return Ok(None);
                    };
                    if *begin != MAGIC {
                        return Err(Unreadable::NoObject);
                    }
                    self.buffer.advance(MAGIC.len());
                    self.place = Place::Envelope;
                }
                Place::List(0) => self.place = Place::Envelope,
                Place::Envelope => {
                    let Some(field) = Field::at(&self.buffer)? else {
                        return Ok(None);
                    };
                    if field.is(2) {
                        self.buffer.advance(field.head);
                        self.place = Place::List(field.length);
                        continue;
                    }
                    let Some(value) = self.take(&field)? else {
                        return Ok(None);
                    };
                    if field.is(1) {
                        is_list_of::<T>(&TypeMeta::decode(value)?.kind)?;
                    }
                }
                Place::List(left) => {
                    let Some(field) = Field::at(&self.buffer)? else {
                        return Ok(None);
                    };
                    let size = field.head as u64 + field.length;
                    let left = left.checked_sub(size).ok_or(Unreadable::Half)?;
                    let Some(value) = self.take(&field)? else {
                        return Ok(None);
                    };
                    self.place = Place::List(left);
                    if field.is(1) {
                        self.metadata = ListMeta::decode(value)?;
                    } else if field.is(2) {
                        return Ok(Some(T::decode(value)?));
                    }
                }
            }
        }
    }

    /// All has come: what the list says of itself, and the objects that have not been taken.
    pub(super) fn end(self) -> Result<(ListMeta, Vec<T>), Unreadable> {
        let (metadata, rest) = match (self.format, self.place) {
            (Format::Protobuf, Place::Envelope | Place::List(0)) if self.buffer.is_empty() => {
                (self.metadata, Vec::new())
            }
            (Format::Protobuf, _) => return Err(Unreadable::Half),
            (Format::Json, _) => {
                let whole: Whole<T> = serde_json::from_slice(&self.buffer)?;
                is_list_of::<T>(&whole.kind)?;
                (whole.metadata, whole.items.unwrap_or_default())
            }
        };
        // Something that is no list at all must not pass for an empty one.
        if metadata.resource_version.is_empty() {
            return Err(Unreadable::NoVersion);
        }
        Ok((metadata, rest))
    }

    /// A field's value, if all of it has come.
    fn take(&mut self, field: &Field) -> Result<Option<Bytes>, Unreadable> {
        let length = within(field.length)?;
        if self.buffer.len() - field.head < length {
            return Ok(None);
        }
        self.buffer.advance(field.head);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

fn is_list_of<T: Trimmed>(kind: &str) -> Result<(), Unreadable> {
    let of = kind.strip_suffix("List");
    if of.is_some_and(|of| of.is_empty() || of == T::KIND.name()) {
        return Ok(());
    }
    Err(Unreadable::Kind {
        found: kind.to_owned(),
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

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
