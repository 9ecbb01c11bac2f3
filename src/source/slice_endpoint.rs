//! An endpoint of a slice, of which a cluster may have hundreds of thousands: read by hand from protobuf, so that it
//! takes no more memory than what is read of it.

use compact_str::CompactString;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, message, skip_field};
use prost::{DecodeError, Message};
use serde::{Deserialize, Deserializer};

use super::absent::or_default;
use super::fields::{Part, encode_text, encoded_text_len, messages, text};

/// One of a slice's endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct Endpoint {
    /// The first of its addresses, which are "fungible" (`discovery.k8s.io/v1`); empty if it has none.
    #[serde(rename = "addresses", deserialize_with = "first")]
    pub address: Option<CompactString>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Conditions,
    #[serde(deserialize_with = "short")]
    pub node_name: Option<CompactString>,
    pub hints: Option<Hints>,
}

fn first<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<CompactString>, D::Error> {
    let all: Vec<String> = or_default(deserializer)?;
    Ok(all.into_iter().next().map(CompactString::from))
}

fn short<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<CompactString>, D::Error> {
    let text: Option<String> = or_default(deserializer)?;
    Ok(text.map(CompactString::from))
}

messages! {
    Hints {
        1: for_zones,
        2: for_nodes,
    }
    ForName {
        1: name,
    }
}

impl Part for Endpoint {}

impl Message for Endpoint {
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 if self.address.is_none() => {
                let address = text(wire_type, buffer, context, |text| CompactString::new(text))?;
                self.address = Some(address);
                Ok(())
            }
            2 => message::merge(wire_type, &mut self.conditions, buffer, context),
            6 => {
                let name = text(wire_type, buffer, context, |text| CompactString::new(text))?;
                self.node_name = Some(name);
                Ok(())
            }
            8 => {
                let hints = self.hints.get_or_insert_default();
                message::merge(wire_type, hints, buffer, context)
            }
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encode_raw(&self, buffer: &mut impl BufMut) {
        if let Some(address) = &self.address {
            encode_text(1, address, buffer);
        }
        message::encode(2, &self.conditions, buffer);
        if let Some(name) = &self.node_name {
            encode_text(6, name, buffer);
        }
        if let Some(hints) = &self.hints {
            message::encode(8, hints, buffer);
        }
    }

    fn encoded_len(&self) -> usize {
        let text = |tag, text: &Option<CompactString>| {
            let text = text.as_ref();
            text.map_or(0, |text| encoded_text_len(tag, text))
        };
        let hints = self.hints.as_ref();
        text(1, &self.address)
            + message::encoded_len(2, &self.conditions)
            + text(6, &self.node_name)
            + hints.map_or(0, |hints| message::encoded_len(8, hints))
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// An endpoint's conditions.
#[derive(Clone, Copy, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct Conditions {
    #[prost(bool, optional, tag = "1")]
    pub ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    pub terminating: Option<bool>,
}

/// An endpoint's topology hints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct Hints {
    #[serde(deserialize_with = "or_default")]
    pub for_zones: Vec<ForName>,
    #[serde(deserialize_with = "or_default")]
    pub for_nodes: Vec<ForName>,
}

/// A zone or a node that a hint names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the API's")]
pub struct ForName {
    #[serde(deserialize_with = "or_default")]
    pub name: CompactString,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_reads_back_as_it_was_written_from_one_piece_and_from_many() {
        let long = "2001:0db8:0000:0000:0000:0000:0000:0001";
        for (address, node_name) in [
            (None, None),
            (Some(""), Some("")),
            (Some("10.0.0.1"), Some("node-1")),
            (
                Some(long),
                Some("a-node-of-a-name-that-is-longer-than-most.example"),
            ),
        ] {
            let zone = ForName { name: "a".into() };
            let hints = Hints {
                for_zones: vec![zone],
                for_nodes: Vec::new(),
            };
            let endpoint = Endpoint {
                address: address.map(CompactString::from),
                conditions: Conditions {
                    ready: Some(true),
                    serving: None,
                    terminating: Some(false),
                },
                node_name: node_name.map(CompactString::from),
                hints: Some(hints),
            };
            let bytes = endpoint.encode_to_vec();
            assert_eq!(bytes.len(), endpoint.encoded_len());
            assert_eq!(Endpoint::decode(bytes.as_slice()).unwrap(), endpoint);
            for at in 0..bytes.len() {
                let (head, tail) = bytes.split_at(at);
                assert_eq!(
                    Endpoint::decode(head.chain(tail)).unwrap(),
                    endpoint,
                    "{at}"
                );
            }
        }
    }

    #[test]
    fn of_several_addresses_the_first_counts() {
        let bytes = b"\x0a\x08\x31\x30.0.0.1\x0a\x0810.0.0.2";
        let endpoint = Endpoint::decode(bytes.as_slice()).unwrap();
        assert_eq!(endpoint.address.as_deref(), Some("10.0.0.1"));
    }

    #[test]
    fn text_that_is_none_is_said() {
        let bytes = b"\x0a\x02\xff\xfe";
        let error = Endpoint::decode(bytes.as_slice()).unwrap_err();
        assert!(error.to_string().contains("UTF-8"), "{error}");
        let bytes = b"\x0a\x7fshort";
        assert!(Endpoint::decode(bytes.as_slice()).is_err());
    }
}
