//! What cannot be read of an answer.

use thiserror::Error;

/// Something that an API server does not say.
#[derive(Debug, Error)]
pub(super) enum Unreadable {
    /// Neither protobuf nor JSON.
    #[error("it is {0:?}, not an API server's; check the server's address and what is on the way")]
    Format(String),
    /// Compressed in another way than was asked for.
    #[error("it is compressed by {0:?}, which was not asked for")]
    Encoding(String),
    /// Compressed, and damaged.
    #[error("it cannot be decompressed: {0}")]
    Zip(String),
    /// No JSON, or not of the right shape.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// No protobuf, or not of the right shape.
    #[error(transparent)]
    Protobuf(#[from] prost::DecodeError),
    /// Protobuf without what every object begins with.
    #[error("it is no object in protobuf")]
    NoObject,
    /// Another object than the one that was asked for.
    #[error("it speaks of {found:?} where {expected} was asked for")]
    Kind {
        /// What came.
        found: String,
        /// What should have come.
        expected: &'static str,
    },
    /// A kind of event that there is none of.
    #[error("{0:?} is no kind of event")]
    Event(String),
    /// A list or an object that does not say how old it is.
    #[error("it has no resourceVersion")]
    NoVersion,
    /// An object that does not say who it is.
    #[error("an object has no name")]
    NoName,
    /// More objects, or pages of them, than a cluster has.
    #[error("it has no end")]
    Endless,
    /// A single object, or event, of more bytes than are read.
    #[error("an object of {0} bytes is longer than any can be")]
    TooLong(u64),
    /// A list that ended too early.
    #[error("it ends in the middle")]
    Half,
}
