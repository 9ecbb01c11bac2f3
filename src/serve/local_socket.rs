//! The socket that this node's administrators ask at: HTTP over a Unix socket that only root may open.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// So many may ask at once; others wait.
const MOST_CONNECTIONS: usize = 8;
/// For so long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// For so long an answer may take, with its reading by the client.
const MOST_TIME: Duration = Duration::from_secs(60);
/// For so long nothing is accepted when there are no descriptors left.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// The socket cannot be had.
#[derive(Debug, Error)]
pub enum SocketPathError {
    /// Another process answers there.
    #[error("another process answers at {0}: give --socket another path, or stop it")]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{0} is no socket; give --socket another path")]
    NotASocket(PathBuf),
    /// It cannot be made.
    #[error(
        "cannot listen at {path}: {source}; --socket gives another path, and --socket= does without"
    )]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The socket, which goes with this value.
#[derive(Debug)]
pub struct Listening {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens at a path, of which the directory is made if it is not there. What a process that has ended has left
/// gives way.
///
/// # Errors
///
/// If it cannot be had.
pub async fn listen(path: &Path) -> Result<Listening, SocketPathError> {
    let failed = |source| SocketPathError::Io {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path.parent() {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(directory).map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Err(_) => {}
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketPathError::NotASocket(path.to_owned()));
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err(SocketPathError::InUse(path.to_owned()));
        }
        Ok(_) => fs::remove_file(path).map_err(failed)?,
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let listening = Listening {
        listener,
        path: path.to_owned(),
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listening)
}

/// Answers with JSON until `stop`.
pub async fn serve<A, F>(listening: Listening, answer: A, stop: impl Future<Output = ()>)
where
    A: Fn(Uri) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = (StatusCode, Vec<u8>)> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => return,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (listening.listener.accept().await, place)
            } => accepted,
        };
        while connections.try_join_next().is_some() {}
        let (stream, place) = match accepted {
            (Ok((stream, _)), place) => (stream, place),
            (Err(_), _) => {
                tokio::time::sleep(EXHAUSTED).await;
                continue;
            }
        };
        let answer = answer.clone();
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(request.uri().clone());
                async move {
                    let (code, body) = answer.await;
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    *response.status_mut() = code;
                    let json = HeaderValue::from_static("application/json");
                    response.headers_mut().insert(CONTENT_TYPE, json);
                    Ok::<_, Infallible>(response)
                }
            });
            // A client that goes away early is no error of ours.
            let connection = hyper::server::conn::http1::Builder::new()
                .keep_alive(false)
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            // One that does not read its answer gives up its place.
            let _ = tokio::time::timeout(MOST_TIME, connection).await;
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(path: &Path) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        let request = b"GET /v1/status?a=b HTTP/1.1\r\nhost: here\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn only_the_owner_may_ask_and_what_has_ended_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/deep/pointsman.sock");
        let listening = listen(&path).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let answer = |uri: Uri| async move { (StatusCode::OK, uri.to_string().into_bytes()) };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stop_it = async { _ = stopped.await };
        let server = serve(listening, answer, stop_it);
        let client = async {
            assert!(ask(&path).await.ends_with("/v1/status?a=b"));
            let second = listen(&path).await;
            assert!(matches!(second, Err(SocketPathError::InUse(_))));
            drop(stop);
        };
        tokio::join!(server, client);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_a_dead_process_has_left_gives_way_and_files_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pointsman.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(listen(&path).await.unwrap());
        fs::write(&path, "mine").unwrap();
        assert!(matches!(
            listen(&path).await,
            Err(SocketPathError::NotASocket(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
