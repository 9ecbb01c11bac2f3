//! What the API server puts around objects in protobuf (`generated.proto` of `apimachinery`'s `meta/v1` and
//! `runtime`), cut down to what is read.

use bytes::Bytes;
use prost::Message;
use serde::Deserialize;

use super::unreadable::Unreadable;
use crate::source::absent::or_default;

/// Every object begins with it, and so does every list (`serializer/protobuf` of `apimachinery`).
pub(super) const MAGIC: [u8; 4] = *b"k8s\0";

/// `meta/v1` `WatchEvent`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct WatchEvent {
    #[prost(string, tag = "1")]
    pub(super) type_: String,
    #[prost(message, required, tag = "2")]
    pub(super) object: RawExtension,
}

/// `runtime` `RawExtension`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct RawExtension {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) raw: Bytes,
}

/// `runtime` `Unknown`: an object, and what it is.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct Unknown {
    #[prost(message, required, tag = "1")]
    pub(super) type_meta: TypeMeta,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) raw: Bytes,
}

/// `runtime` `TypeMeta`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct TypeMeta {
    #[prost(string, tag = "1")]
    pub(super) api_version: String,
    #[prost(string, tag = "2")]
    pub(super) kind: String,
}

/// `meta/v1` `ListMeta`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    /// The version of the list.
    #[prost(string, tag = "2")]
    pub(super) resource_version: String,
    /// What the next page is asked for with; empty if there is none.
    #[prost(string, tag = "3")]
    pub(super) r#continue: String,
}

/// `meta/v1` `Status`: why something was refused.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    #[prost(string, tag = "3")]
    pub(super) message: String,
    #[prost(string, tag = "4")]
    pub(super) reason: String,
    #[serde(deserialize_with = "or_default")]
    #[prost(message, required, tag = "5")]
    pub(super) details: StatusDetails,
    /// An HTTP status.
    #[prost(int32, tag = "6")]
    pub(super) code: i32,
}

/// `meta/v1` `StatusDetails`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
pub(super) struct StatusDetails {
    #[serde(deserialize_with = "or_default")]
    #[prost(message, repeated, tag = "4")]
    pub(super) causes: Vec<StatusCause>,
}

/// `meta/v1` `StatusCause`.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
pub(super) struct StatusCause {
    #[prost(string, tag = "1")]
    pub(super) reason: String,
}

/// An object that says what it is.
pub(super) fn unknown(bytes: Bytes) -> Result<Unknown, Unreadable> {
    let Some(rest) = bytes.strip_prefix(&MAGIC) else {
        return Err(Unreadable::NoObject);
    };
    Ok(Unknown::decode(bytes.slice_ref(rest))?)
}
