//! What objects say of themselves, cut down to what is read of it.
//!
//! Most of it is labels and annotations that nobody here asks for, and they may be hundreds of kilobytes: an entry is
//! read by hand from protobuf, so that what those say takes no memory.

use std::fmt;

use compact_str::CompactString;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, message, skip_field};
use prost::{DecodeError, Message};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::absent::or_default;
use super::fields::{Field, Part, encode_text, encoded_text_len, lossy_text, messages, text};

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
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// The name.
    #[serde(deserialize_with = "or_default")]
    pub name: CompactString,
    /// The namespace; empty for objects that have none.
    #[serde(deserialize_with = "or_default")]
    pub namespace: CompactString,
    /// Where in its history the object is.
    pub resource_version: Option<CompactString>,
    /// When it was made.
    pub creation_timestamp: Option<Time>,
    /// Set on an object that is being deleted.
    pub deletion_timestamp: Option<Time>,
    /// The annotations that are read.
    #[serde(deserialize_with = "entries")]
    pub annotations: Entries,
    /// The labels, likewise.
    #[serde(deserialize_with = "entries")]
    pub labels: Entries,
}

messages! {
    Metadata {
        1: name,
        3: namespace,
        6: resource_version,
        8: creation_timestamp,
        9: deletion_timestamp,
        12: annotations,
        11: labels,
    }
}

/// Labels or annotations: those that are read, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries(Vec<Entry>);

impl Entries {
    /// The text of the one with this name.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        let entry = self.0.iter().find(|entry| entry.name == name)?;
        Some(&entry.value)
    }

    /// Takes one if it is read. Of two with one name the later one is right, as in any map of protobuf and of JSON.
    fn take(&mut self, entry: Entry) {
        if !READ.contains(&entry.name) {
            return;
        }
        match self.0.iter_mut().find(|known| known.name == entry.name) {
            Some(known) => *known = entry,
            None => self.0.push(entry),
        }
    }
}

impl Field for Entries {
    fn merge(
        &mut self,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        let mut entry = Entry::default();
        message::merge(wire_type, &mut entry, buffer, context)?;
        self.take(entry);
        Ok(())
    }

    fn encode(&self, tag: u32, buffer: &mut impl BufMut) {
        message::encode_repeated(tag, &self.0, buffer);
    }

    fn encoded_len(&self, tag: u32) -> usize {
        message::encoded_len_repeated(tag, &self.0)
    }
}

/// The name of those that are not read.
const FOREIGN: &str = "?";

/// A label or an annotation; without its value, if it is none that is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    name: &'static str,
    value: CompactString,
}

fn known(name: &str) -> Option<&'static str> {
    READ.into_iter().find(|known| *known == name)
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
                self.name = text(wire_type, buffer, context, known)?.unwrap_or(FOREIGN);
                if self.name == FOREIGN {
                    self.value = CompactString::default();
                }
                Ok(())
            }
            // Nobody sees to it that what is stored of annotations is text.
            2 if self.name != FOREIGN => {
                self.value = lossy_text(wire_type, buffer, context)?;
                Ok(())
            }
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encode_raw(&self, buffer: &mut impl BufMut) {
        encode_text(1, self.name, buffer);
        encode_text(2, &self.value, buffer);
    }

    fn encoded_len(&self) -> usize {
        encoded_text_len(1, self.name) + encoded_text_len(2, &self.value)
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
            Ok(Entries::default())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
            let mut entries = Entries::default();
            while let Some(name) = all.next_key_seed(Name)? {
                let Some(name) = name else {
                    all.next_value::<IgnoredAny>()?;
                    continue;
                };
                // In Go's maps, `null` is an empty text.
                let text = all.next_value::<Option<String>>()?;
                let value = CompactString::from(text.unwrap_or_default());
                entries.take(Entry { name, value });
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

impl Part for Time {}

impl From<String> for Time {
    fn from(text: String) -> Self {
        let time = text.parse().map(jiff::Timestamp::as_second);
        Self {
            seconds: Some(time.unwrap_or(Self::WRONG)),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::encoding::string;

    use super::*;

    /// A label, its texts in this order.
    fn label(texts: [(u32, &str); 2]) -> Vec<u8> {
        let mut entry = Vec::new();
        for (tag, text) in texts {
            string::encode(tag, &text.to_owned(), &mut entry);
        }
        let mut field = Vec::new();
        prost::encoding::bytes::encode(11, &entry, &mut field);
        field
    }

    #[test]
    fn labels_that_are_read_are_kept_once_and_of_others_nothing_from_one_piece_and_from_many() {
        let entry = |name, value| label([(1, name), (2, value)]);
        let bytes = [
            entry("app", "web"),
            entry(SERVICE_NAME_LABEL, "old"),
            entry("other", &"x".repeat(100_000)),
            entry(SERVICE_NAME_LABEL, "web"),
        ]
        .concat();
        for at in (0..60).chain(bytes.len() - 60..bytes.len()) {
            let (head, tail) = bytes.split_at(at);
            let metadata = Metadata::decode(head.chain(tail)).unwrap();
            assert_eq!(metadata.labels.0.len(), 1);
            let found = metadata.labels.text(SERVICE_NAME_LABEL);
            assert_eq!(found, Some("web"), "{at}");
            let again = Metadata::decode(metadata.encode_to_vec().as_slice());
            assert_eq!(again.unwrap(), metadata);
        }
    }

    #[test]
    fn a_label_s_value_may_come_before_its_name() {
        for (name, found) in [(SERVICE_NAME_LABEL, Some("web")), ("app", None)] {
            let bytes = label([(2, "web"), (1, name)]);
            let metadata = Metadata::decode(bytes.as_slice()).unwrap();
            assert_eq!(metadata.labels.text(name), found);
        }
    }

    #[test]
    fn null_is_an_empty_label_and_of_labels_that_nobody_reads_the_kind_does_not_matter() {
        let json = r#"{"labels": {"service.kubernetes.io/headless": null, "version": 2}}"#;
        let metadata: Metadata = serde_json::from_str(json).unwrap();
        let found = metadata.labels.text(HEADLESS_LABEL);
        assert_eq!(found, Some(""));
        let json = r#"{"labels": {"kubernetes.io/service-name": 2}}"#;
        assert!(serde_json::from_str::<Metadata>(json).is_err());
    }
}
