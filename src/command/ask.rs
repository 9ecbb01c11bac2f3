//! Asking the running agent.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::agent::local_api::{Envelope, FORMAT};

/// For so long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(50);

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum AskError {
    /// Nobody answers.
    #[error(
        "no agent answers at {0}: it does not run here, or with another --socket; explain and verify can do without it, \
         with --manifests or --kubeconfig"
    )]
    NoAgent(PathBuf),
    /// We may not ask.
    #[error("{0} may be opened by root only")]
    NotPermitted(PathBuf),
    /// It cannot be asked.
    #[error("cannot ask the agent at {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has not answered.
    #[error("the agent has not answered within {} s; its log may say why", PATIENCE.as_secs())]
    Silent,
    /// Its answer cannot be read.
    #[error(
        "the agent is of version {version} and answers in another format than this program, {}: ask with the program \
         that runs there, as in kubectl exec",
        env!("CARGO_PKG_VERSION")
    )]
    Version {
        /// Its version.
        version: String,
    },
    /// Its answer is none.
    #[error("the agent's answer cannot be read: {0}")]
    Garbled(String),
    /// It says why it has none.
    #[error("{0}")]
    Refused(String),
}

/// Asks, and returns the answer.
pub(super) async fn ask<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    parameters: &[(&str, &str)],
) -> Result<T, AskError> {
    let query = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters)
        .finish();
    let uri = format!("{path}?{query}");
    let body = timeout(PATIENCE, get(socket, &uri)).await;
    read(&body.map_err(|_| AskError::Silent)??)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, AskError> {
    let garbled = |error: serde_json::Error| AskError::Garbled(error.to_string());
    // Of another format, only what says so can be relied on.
    let envelope: Envelope<serde_json::Value> = serde_json::from_slice(body).map_err(garbled)?;
    if envelope.format != FORMAT {
        let version = envelope.version;
        return Err(AskError::Version { version });
    }
    match (envelope.answer, envelope.error) {
        (Some(answer), _) => serde_json::from_value(answer).map_err(garbled),
        (None, Some(error)) => Err(AskError::Refused(error)),
        (None, None) => Err(AskError::Garbled("it is empty".to_owned())),
    }
}

async fn get(socket: &Path, uri: &str) -> Result<Bytes, AskError> {
    let path = socket.to_owned();
    let io = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            AskError::NoAgent(path.clone())
        }
        io::ErrorKind::PermissionDenied => AskError::NotPermitted(path.clone()),
        _ => AskError::Io {
            path: path.clone(),
            source,
        },
    };
    let broken = |error: hyper::Error| io(io::Error::other(error));
    let stream = UnixStream::connect(socket).await.map_err(io)?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(broken)?;
    let driving = tokio::spawn(connection);
    let request = Request::get(uri)
        .header("host", "localhost")
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|error| io(io::Error::other(error)))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let body = response.into_body().collect().await.map_err(broken)?;
    driving.abort();
    Ok(body.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_of_another_format_says_is_not_guessed_at() {
        let body = br#"{"format":2,"version":"9.0.0","answer":{"differently":true}}"#;
        let error = read::<Vec<String>>(body).unwrap_err();
        assert!(matches!(&error, AskError::Version { version } if version == "9.0.0"));
        assert!(error.to_string().contains("9.0.0"), "{error}");
    }

    #[test]
    fn an_answer_that_is_none_is_said_to_be_so() {
        for body in [&b"<html>"[..], b"", b"{}", br#"{"format":1,"version":"0"}"#] {
            assert!(
                matches!(read::<u64>(body), Err(AskError::Garbled(_))),
                "{body:?}"
            );
        }
        let refused = br#"{"format":1,"version":"0","error":"not yet"}"#;
        assert!(matches!(read::<u64>(refused), Err(AskError::Refused(why)) if why == "not yet"));
    }
}
