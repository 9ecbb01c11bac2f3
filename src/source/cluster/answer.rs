//! An answer, as its bytes come in.

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_ENCODING;
use http_body_util::BodyExt;
use kube::client::Body;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use super::formats::Format;
use super::unreadable::Unreadable;

/// How an answer may be encoded (RFC 9110, 8.4.1).
pub(super) const ZIP: &str = "gzip";
pub(super) const PLAIN: &str = "identity";

/// Why an answer did not come to its end.
#[derive(Debug, Error)]
pub(super) enum Halt {
    /// It broke off.
    #[error("the answer broke off: {0}")]
    Broken(#[source] kube::Error),
    /// It went no further.
    #[error("the answer has gone no further for too long")]
    Stalled,
}

/// What the server says.
pub(super) struct Answer {
    pub(super) format: Format,
    pub(super) zipped: bool,
    body: Body,
}

impl Answer {
    /// What has been said in an encoding that was asked for, or in none.
    pub(super) fn new(response: Response<Body>, asked: &str) -> Result<Self, Unreadable> {
        let (head, body) = response.into_parts();
        let format = Format::of(&head.headers)?;
        let zipped = match head.headers.get(CONTENT_ENCODING) {
            None => false,
            Some(is) => {
                let text = String::from_utf8_lossy(is.as_bytes());
                let zipped = text.eq_ignore_ascii_case(ZIP);
                let was_asked = text.eq_ignore_ascii_case(PLAIN) || (zipped && asked == ZIP);
                if !was_asked {
                    return Err(Unreadable::Encoding(text.into_owned()));
                }
                zipped
            }
        };
        Ok(Self {
            format,
            zipped,
            body,
        })
    }

    /// The next bytes; none at the end.
    pub(super) async fn more(&mut self, deadline: Instant) -> Result<Option<Bytes>, Halt> {
        more(&mut self.body, deadline).await
    }
}

/// The next bytes of a body; none at its end.
pub(super) async fn more(body: &mut Body, deadline: Instant) -> Result<Option<Bytes>, Halt> {
    loop {
        let frame = match timeout_at(deadline, body.frame()).await {
            Err(_) => return Err(Halt::Stalled),
            Ok(None) => return Ok(None),
            Ok(Some(frame)) => frame.map_err(Halt::Broken)?,
        };
        // What is no data is trailers.
        if let Ok(bytes) = frame.into_data() {
            return Ok(Some(bytes));
        }
    }
}
