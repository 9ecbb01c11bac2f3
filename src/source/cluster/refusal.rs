//! What an API server says when it refuses.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, RETRY_AFTER};
use http::{Response, StatusCode};
use kube::client::Body;
use prost::Message;
use thiserror::Error;
use tokio::time::Instant;

use super::answer::more;
use super::formats::Format;
use super::wire::{Status, unknown};

/// The most bytes of a refusal that are read.
const MOST_BYTES: usize = 64 << 10;
/// The longest that a server may ask to be left alone.
const MOST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Of which cause a version that the server has not heard of yet is a refusal (`CauseTypeResourceVersionTooLarge` of
/// `meta/v1`).
const TOO_NEW: &str = "ResourceVersionTooLarge";

/// A refusal.
#[derive(Debug, Error)]
#[error("refused: {message} ({code} {reason})")]
pub(super) struct Refusal {
    /// An HTTP status.
    pub(super) code: u16,
    /// The API's word for it, such as `Expired`.
    reason: String,
    /// For people.
    message: String,
    /// For so long it does not want to be asked again.
    pub(super) retry_after: Duration,
    /// The version that was asked for is newer than what the server knows.
    pub(super) is_too_new: bool,
    /// An API server said it, and not something on the way.
    pub(super) is_of_the_api: bool,
}

impl Refusal {
    /// Reads what comes instead of an answer.
    pub(super) async fn read(response: Response<Body>, patience: Duration) -> Self {
        let (head, mut body) = response.into_parts();
        let retry_after = head.headers.get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        let mut said = Vec::new();
        let deadline = Instant::now() + patience;
        while let Ok(Some(bytes)) = more(&mut body, deadline).await {
            said.extend_from_slice(&bytes[..bytes.len().min(MOST_BYTES - said.len())]);
            if said.len() == MOST_BYTES {
                break;
            }
        }
        let said = Bytes::from(said);
        let is_plain = head.headers.get(CONTENT_ENCODING).is_none();
        let status = match Format::of(&head.headers) {
            Ok(Format::Json) => serde_json::from_slice(&said).ok(),
            Ok(Format::Protobuf) => unknown(said.clone())
                .ok()
                .and_then(|object| Status::decode(object.raw).ok()),
            Err(_) => None,
        };
        let is_of_the_api = status.is_some();
        let status = status.unwrap_or_else(|| Status {
            message: match is_plain {
                true => String::from_utf8_lossy(&said).chars().take(200).collect(),
                false => String::new(),
            },
            ..Status::default()
        });
        Self {
            retry_after: Duration::from_secs(retry_after.unwrap_or(0)).min(MOST_RETRY_AFTER),
            is_of_the_api,
            ..Self::of(status, head.status)
        }
    }

    /// What a `Status` says that came with an HTTP status.
    pub(super) fn of(status: Status, head: StatusCode) -> Self {
        let code = u16::try_from(status.code).unwrap_or_default();
        let mut causes = status.details.causes.iter();
        Self {
            code: if code == 0 { head.as_u16() } else { code },
            retry_after: Duration::ZERO,
            is_too_new: causes.any(|cause| cause.reason == TOO_NEW),
            is_of_the_api: true,
            reason: status.reason,
            message: status.message,
        }
    }
}
