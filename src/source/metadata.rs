//! What objects say of themselves, cut down to what is read of it.
//!
//! Most of it is labels and annotations that nobody here asks for, and they may be hundreds of kilobytes: an entry is
//! read by hand from protobuf, so that what those say takes no memory.

use std::borrow::Cow;
use std::fmt;

use prost::bytes::{Buf, BufMut};
use prost::encoding::{
    DecodeContext, WireType, bytes, decode_varint, encode_key, encode_varint, encoded_len_varint,
    key_len, skip_field, string,
};
use prost::{DecodeError, Message};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::absent::or_default;

/// A label that hands a Service to another proxy (`LabelServiceProxyName`).
pub const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// A label of slices that belong to a headless Service.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The label that names a slice's Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// A taint of a Node that the cluster autoscaler is about to remove.
pub const GOING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// The label that names a Node's zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// An annotation of a slice: when the change that led to it happened, RFC 3339.
pub const LAST_CHANGE_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// An annotation of a Service: which endpoint a connection goes to.
pub const ALGORITHM_ANNOTATION: &str = "pointsman.io/algorithm";
/// An annotation of a Service: whether endpoints that do not answer are passed over, `true` or `false`.
pub const EJECTION_ANNOTATION: &str = "pointsman.io/ejection";
/// An annotation of a slice: what its endpoints weigh.
pub const WEIGHT_ANNOTATION: &str = "service.cilium.io/weight";
/// An annotation of a slice: what single endpoints weigh, `ADDRESS=WEIGHT` with commas between.
pub const WEIGHTS_ANNOTATION: &str = "pointsman.io/weights";

/// The labels and annotations that are read.
const READ: [&str; 9] = [
    OTHER_PROXY_LABEL,
    HEADLESS_LABEL,
    SERVICE_NAME_LABEL,
    ZONE_LABEL,
    LAST_CHANGE_ANNOTATION,
    ALGORITHM_ANNOTATION,
    EJECTION_ANNOTATION,
    WEIGHT_ANNOTATION,
    WEIGHTS_ANNOTATION,
];

/// `metadata`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// The name.
    #[serde(deserialize_with = "or_default")]
    #[prost(string, tag = "1")]
    pub name: String,
    /// The namespace; empty for objects that have none.
    #[serde(deserialize_with = "or_default")]
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// Where in its history the object is.
    #[prost(string, optional, tag = "6")]
    pub resource_version: Option<String>,
    /// When it was made.
    #[prost(message, optional, tag = "8")]
    pub creation_timestamp: Option<Time>,
    /// Set on an object that is being deleted.
    #[prost(message, optional, tag = "9")]
    pub deletion_timestamp: Option<Time>,
    /// The annotations that are read, and others without their values until [`Self::trim`].
    #[serde(deserialize_with = "entries")]
    #[prost(message, repeated, tag = "12")]
    pub annotations: Entries,
    /// The labels, likewise.
    #[serde(deserialize_with = "entries")]
    #[prost(message, repeated, tag = "11")]
    pub labels: Entries,
}

impl Metadata {
    /// Forgets that there were labels and annotations that nobody reads.
    pub fn trim(&mut self) {
        for entries in [&mut self.annotations, &mut self.labels] {
            entries.retain(|entry| known(entry.name).is_some());
            entries.shrink_to(4);
        }
    }
}

/// Labels or annotations.
pub type Entries = Vec<Entry>;

/// The text of one of an object's labels or annotations. Nobody sees to it that what is stored of them is text.
#[must_use]
pub fn text_of<'a>(entries: &'a Entries, name: &str) -> Option<Cow<'a, str>> {
    // Of two the later one is right, as in any map of protobuf.
    let entry = entries.iter().rfind(|entry| entry.name == name)?;
    Some(String::from_utf8_lossy(&entry.value))
}

/// The name of those that are not read.
const FOREIGN: &str = "?";

/// A label or an annotation; without its value, if it is none that is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// One of those that are read, or none of them.
    pub name: &'static str,
    /// What it says.
    pub value: Vec<u8>,
}

impl Entry {
    /// One of those that are read.
    #[must_use]
    pub fn new(name: &str, value: &str) -> Option<Self> {
        let name = known(name)?;
        let value = value.as_bytes().to_vec();
        Some(Self { name, value })
    }
}

fn known(name: &str) -> Option<&'static str> {
    READ.into_iter().find(|known| *known == name)
}

/// What is made of a text of protobuf where it lies.
pub(super) fn text<T>(
    wire_type: WireType,
    buffer: &mut impl Buf,
    context: DecodeContext,
    make: impl FnOnce(&str) -> T,
) -> Result<T, DecodeError> {
    if wire_type == WireType::LengthDelimited
        && let Some(text) = in_one_piece(buffer.chunk())
    {
        let made = make(text);
        skip_field(wire_type, 1, buffer, context)?;
        return Ok(made);
    }
    // It lies in pieces, or this says what is wrong with it.
    let mut text = String::new();
    string::merge(wire_type, &mut text, buffer, context)?;
    Ok(make(&text))
}

fn in_one_piece(mut rest: &[u8]) -> Option<&str> {
    let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
    std::str::from_utf8(rest.get(..length)?).ok()
}

/// As a map of protobuf has it: field 1 is the name, field 2 the value. Go writes them in this order; a value that comes
/// first is kept, whatever its name will be.
impl Message for Entry {
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => {
                let name = text(wire_type, buffer, context, known)?;
                self.name = name.unwrap_or(FOREIGN);
                if name.is_none() {
                    self.value = Vec::new();
                }
                Ok(())
            }
            // A copy: a piece of the buffer would keep all of it.
            2 if self.name != FOREIGN => bytes::merge(wire_type, &mut self.value, buffer, context),
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encode_raw(&self, buffer: &mut impl BufMut) {
        encode_key(1, WireType::LengthDelimited, buffer);
        encode_varint(self.name.len() as u64, buffer);
        buffer.put_slice(self.name.as_bytes());
        bytes::encode(2, &self.value, buffer);
    }

    fn encoded_len(&self) -> usize {
        let length = self.name.len();
        key_len(1) + encoded_len_varint(length as u64) + length + bytes::encoded_len(2, &self.value)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The entries that are read.
fn entries<'de, D>(deserializer: D) -> Result<Entries, D::Error>
where
    D: Deserializer<'de>,
{
    struct Known;
    struct Name;

    impl<'de> DeserializeSeed<'de> for Name {
        type Value = Option<&'static str>;

        fn deserialize<D: Deserializer<'de>>(self, name: D) -> Result<Self::Value, D::Error> {
            name.deserialize_str(self)
        }
    }

    impl Visitor<'_> for Name {
        type Value = Option<&'static str>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a name")
        }

        fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
            Ok(known(name))
        }
    }

    impl<'de> Visitor<'de> for Known {
        type Value = Entries;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("names and texts")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Entries::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
            let mut entries = Entries::new();
            while let Some(name) = all.next_key_seed(Name)? {
                let Some(name) = name else {
                    all.next_value::<IgnoredAny>()?;
                    continue;
                };
                // In Go's maps, `null` is an empty text.
                let text = all.next_value::<Option<String>>()?;
                let value = text.unwrap_or_default().into_bytes();
                entries.push(Entry { name, value });
            }
            Ok(entries)
        }
    }

    deserializer.deserialize_any(Known)
}

/// A moment: in protobuf a number of seconds, in JSON a text, RFC 3339.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(from = "String")]
pub struct Time {
    /// Seconds since 1970; none if it was never set, as Go writes that. [`Time::WRONG`] for a text that is no time.
    #[prost(int64, optional, tag = "1")]
    pub seconds: Option<i64>,
}

impl Time {
    /// A text that is no time.
    pub const WRONG: i64 = i64::MIN;
}

impl From<String> for Time {
    fn from(text: String) -> Self {
        let time = text.parse().map(jiff::Timestamp::as_second);
        Self {
            seconds: Some(time.unwrap_or(Self::WRONG)),
        }
    }
}
