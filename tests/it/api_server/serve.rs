//! How the API server answers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use futures::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;

use super::selector::{Selector, query};
use super::{Answer, Format, Kind, Phase, Request, Shared, State, Wire, protobuf};

/// The media type of protobuf.
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves until it is told to stop; its connections end with it.
pub(super) fn run(
    address: SocketAddr,
    shared: &Arc<Shared>,
    tls: Option<TlsAcceptor>,
    stopped: oneshot::Receiver<()>,
    ready: &Sender<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option");
        // Whoever had it may still be on the way out.
        let mut patience = 100;
        while let Err(error) = socket.bind(address) {
            assert!(patience > 0, "no free port: {error}");
            patience -= 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let listener = socket.listen(64).expect("a listener");
        ready.send(()).expect("a maker");
        let accept = async {
            loop {
                let (connection, _) = listener.accept().await.expect("a connection");
                // As a real one does: an event does not wait for the acknowledgement of another.
                connection.set_nodelay(true).expect("an option");
                shared.state().connections += 1;
                let shared = Arc::clone(shared);
                let tls = tls.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&shared), request));
                    let http = auto::Builder::new(TokioExecutor::new());
                    match tls {
                        None => {
                            let connection = TokioIo::new(connection);
                            let _ = http.serve_connection(connection, service).await;
                        }
                        Some(tls) => {
                            if let Ok(connection) = tls.accept(connection).await {
                                let connection = TokioIo::new(connection);
                                let _ = http.serve_connection(connection, service).await;
                            }
                        }
                    }
                });
            }
        };
        tokio::select! {
            () = accept => {}
            _ = stopped => {}
        }
    });
}

async fn answer(
    shared: Arc<Shared>,
    incoming: hyper::Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let header = |name: &str| {
        let value = incoming.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let accept = header("accept").unwrap_or_default();
    let knows_protobuf = !shared.state().knows_only_json;
    let request = Request {
        format: if knows_protobuf && accept.contains(PROTOBUF) {
            Format::Protobuf
        } else {
            Format::Json
        },
        accept,
        accept_encoding: header("accept-encoding").unwrap_or_default(),
        method: incoming.method().to_string(),
        path: incoming.uri().path().to_owned(),
        query: query(incoming.uri().query().unwrap_or_default()),
        agent: header("user-agent").unwrap_or_default(),
    };
    shared.change(|state| state.requests.push(request.clone()));
    let is_events = request
        .path
        .starts_with("/apis/events.k8s.io/v1/namespaces/");
    if is_events && ["POST", "PATCH"].contains(&request.method.as_str()) {
        if shared.state().refuses_events {
            return Ok(refusal(
                Format::Json,
                403,
                "Forbidden",
                "as the test wishes",
            ));
        }
        let body = incoming.into_body().collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        let mut event: Value = serde_json::from_slice(&body).expect("an event");
        // An object without a namespace gets that of its path.
        if let Some(namespace) = request.path.split('/').nth(5)
            && event["metadata"].get("namespace").is_none()
        {
            event["metadata"]["namespace"] = json!(namespace);
        }
        let answer = whole(Format::Json, StatusCode::CREATED, &event);
        shared.change(|state| state.events.push(event));
        return Ok(answer);
    }
    for kind in Kind::ALL {
        if let Some(phase) = request.phase(kind)
            && request.method == "GET"
        {
            return Ok(objects(&shared, kind, phase, &request).await);
        }
    }
    Ok(refusal(request.format, 404, "NotFound", "no such path"))
}

/// Lists or watches.
async fn objects(
    shared: &Arc<Shared>,
    kind: Kind,
    phase: Phase,
    request: &Request,
) -> Response<Body> {
    let (rule, behaved) = {
        let mut state = shared.state();
        (state.rule(kind, phase), state.behaved)
    };
    let changed = shared.changed.subscribe();
    let format = request.format;
    match rule {
        Some(Answer::Refuse(code)) => {
            return refusal(format, code, reason(code), "as the test wishes");
        }
        Some(Answer::TooNew) => return too_new(format),
        Some(Answer::TooMany(seconds)) => {
            let mut response = refusal(format, 429, "TooManyRequests", "as the test wishes");
            response.headers_mut().insert("Retry-After", seconds.into());
            return response;
        }
        Some(Answer::Proxy(code)) => {
            let body = Bytes::from_static(b"<html>no healthy upstream</html>\n");
            let code = StatusCode::from_u16(code).expect("a status");
            return respond("text/html", code, full(body));
        }
        Some(Answer::Garbage) => {
            let body = Bytes::from_static(b"<html>a captive portal</html>\n");
            return respond("text/html", StatusCode::OK, full(body));
        }
        Some(Answer::Surprise) => {
            return whole(Format::Json, StatusCode::OK, &json!({"surprise": 1}));
        }
        Some(Answer::Silence) => wait(shared, &mut changed.clone(), behaved).await,
        Some(Answer::Stall | Answer::Break(_) | Answer::Slow) | None => {}
    }
    let Ok(selector) = Selector::of(request) else {
        return refusal(format, 400, "BadRequest", "an unknown selector");
    };
    let stalled = (rule == Some(Answer::Stall)).then_some(behaved);
    if phase == Phase::List {
        let listed = match stalled {
            // It may have changed until it goes on.
            Some(_) => Ok(Value::Null),
            None => list(&shared.state(), kind, &selector, request),
        };
        let listed = match listed {
            Ok(list) => list,
            Err(refused) => return *refused,
        };
        return answer_list(shared, kind, selector, request, (rule, stalled), listed);
    }
    let version = request.asks("resourceVersion").and_then(|v| v.parse().ok());
    let version = version.unwrap_or(0);
    if version < shared.state().oldest {
        return refusal(format, 410, "Expired", "too old resource version");
    }
    let watcher = Watcher {
        _open: Open::new(shared, kind),
        shared: Arc::clone(shared),
        kind,
        format,
        selector,
        changed,
        queue: VecDeque::new(),
        begin: Some(version),
        stalled,
        cursor: 0,
    };
    let events = stream::unfold(watcher, |mut watcher| async {
        let frame = watcher.next().await?;
        Some((frame, watcher))
    });
    let media_type = match format {
        Format::Json => "application/json",
        Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
    };
    respond(media_type, StatusCode::OK, StreamBody::new(events))
}

fn too_new(format: Format) -> Response<Body> {
    let mut status = failure(504, "Timeout", "Too large resource version");
    let cause = json!({"reason": "ResourceVersionTooLarge", "message": "too new"});
    status["details"] = json!({"causes": [cause], "retryAfterSeconds": 1});
    whole(format, StatusCode::GATEWAY_TIMEOUT, &status)
}

/// A list, compressed for whoever understands that, which may wait and may break.
fn answer_list(
    shared: &Arc<Shared>,
    kind: Kind,
    selector: Selector,
    request: &Request,
    (rule, stalled): (Option<Answer>, Option<u64>),
    listed: Value,
) -> Response<Body> {
    let zipped = request.accept_encoding.contains("gzip");
    let open = Open::new(shared, kind);
    let (shared, request) = (Arc::clone(shared), request.clone());
    let format = request.format;
    let pieces = stream::once(async move {
        let _open = open;
        let mut listed = listed;
        if let Some(behaved) = stalled {
            let mut changed = shared.changed.subscribe();
            stall(&shared, kind, &mut changed, behaved).await?;
            listed = list(&shared.state(), kind, &selector, &request).unwrap_or_default();
        }
        let count = listed["items"].as_array().map_or(0, Vec::len);
        let mut bytes = said(format, &listed);
        if zipped {
            let mut zip = GzEncoder::new(Vec::new(), Compression::fast());
            zip.write_all(&bytes)?;
            bytes = zip.finish()?;
        }
        let cut = match rule {
            Some(Answer::Slow) => true,
            Some(Answer::Break(most)) if most < count => {
                bytes.truncate(bytes.len() * most / count);
                true
            }
            _ => false,
        };
        Ok((bytes, cut))
    });
    let is_slow = rule == Some(Answer::Slow);
    let pieces = pieces.flat_map(move |piece: io::Result<(Vec<u8>, bool)>| {
        let frames = match piece {
            Err(error) => vec![Err(error)],
            Ok((bytes, cut)) => {
                // Pieces end anywhere.
                let size = if is_slow { bytes.len() / 12 } else { 1500 };
                let mut frames: Vec<_> = bytes
                    .chunks(size)
                    .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
                    .collect();
                frames.extend(cut.then(|| Err(io::ErrorKind::ConnectionReset.into())));
                frames
            }
        };
        stream::iter(frames)
    });
    let pieces = pieces.then(move |piece| async move {
        if is_slow {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        piece
    });
    let mut response = respond(media_type(format), StatusCode::OK, StreamBody::new(pieces));
    if zipped {
        let gzip = HeaderValue::from_static("gzip");
        response.headers_mut().insert("Content-Encoding", gzip);
    }
    response
}

/// Says nothing until the server is told to behave. Even one that says nothing can be cut off.
async fn stall(
    shared: &Shared,
    kind: Kind,
    changed: &mut watch::Receiver<u64>,
    behaved: u64,
) -> io::Result<()> {
    let start = shared.state().log.len();
    while shared.state().behaved == behaved {
        let cut = shared.state().log[start..]
            .iter()
            .any(|(of, wire)| *of == kind && matches!(wire, Wire::Break));
        if cut {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if changed.changed().await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Waits until the server is told to behave.
async fn wait(shared: &Shared, changed: &mut watch::Receiver<u64>, behaved: u64) {
    while shared.state().behaved == behaved {
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn list(
    state: &State,
    kind: Kind,
    selector: &Selector,
    request: &Request,
) -> Result<Value, Box<Response<Body>>> {
    let refusal = |code, reason, message| Box::new(refusal(request.format, code, reason, message));
    // A token is the version of the list and the name that the next page follows.
    let (version, after) = match request.asks("continue").map(|token| token.split_once(':')) {
        None => (state.version, None),
        Some(Some((version, after))) => (version.parse().unwrap_or(0), Some(after.to_owned())),
        Some(None) => return Err(refusal(400, "BadRequest", "no such token")),
    };
    if version < state.oldest {
        return Err(refusal(410, "Expired", "the token is too old"));
    }
    let least = request.asks("resourceVersion").map(str::parse::<u64>);
    if least.is_some_and(|least| least.is_ok_and(|least| least > state.version)) {
        return Err(Box::new(too_new(request.format)));
    }
    let asked = request.asks("limit").and_then(|limit| limit.parse().ok());
    let limit = asked.map_or(usize::MAX, |limit: usize| {
        limit.min(state.page.unwrap_or(limit))
    });
    let mut left = state
        .objects
        .iter()
        .filter(|((of, name), object)| {
            *of == kind
                && after.as_ref().is_none_or(|after| name > after)
                && selector.matches(object)
        })
        .peekable();
    let mut items = Vec::new();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    while let Some(((_, name), object)) = left.next() {
        let mut item = object.clone();
        // As in a real list, items do not say what they are.
        for field in ["kind", "apiVersion"] {
            item.as_object_mut().expect("an object").remove(field);
        }
        items.push(item);
        if items.len() == limit && left.peek().is_some() {
            metadata["continue"] = json!(format!("{version}:{name}"));
            break;
        }
    }
    Ok(
        json!({"kind": kind.list(), "apiVersion": kind.api_version(), "metadata": metadata, "items": items}),
    )
}

/// Counts an open watch.
struct Open(Arc<Shared>, Kind);

impl Open {
    fn new(shared: &Arc<Shared>, kind: Kind) -> Self {
        shared.change(|state| *state.open.entry(kind).or_default() += 1);
        Self(Arc::clone(shared), kind)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.change(|state| {
            if let Some(open) = state.open.get_mut(&self.1) {
                *open = open.saturating_sub(1);
            }
        });
    }
}

enum Out {
    Bytes(Vec<u8>),
    End,
    Break,
}

/// An open watch.
struct Watcher {
    shared: Arc<Shared>,
    kind: Kind,
    format: Format,
    selector: Selector,
    changed: watch::Receiver<u64>,
    queue: VecDeque<Out>,
    begin: Option<u64>,
    stalled: Option<u64>,
    /// How much of the log it has seen.
    cursor: usize,
    _open: Open,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, io::Error>> {
        if let Some(behaved) = self.stalled.take() {
            let (shared, mut changed) = (Arc::clone(&self.shared), self.changed.clone());
            if let Err(error) = stall(&shared, self.kind, &mut changed, behaved).await {
                return Some(Err(error));
            }
        }
        loop {
            match self.queue.pop_front() {
                Some(Out::Bytes(bytes)) => return Some(Ok(Frame::data(Bytes::from(bytes)))),
                Some(Out::Break) => return Some(Err(io::ErrorKind::ConnectionReset.into())),
                Some(Out::End) => return None,
                None => {}
            }
            self.changed.borrow_and_update();
            self.fill();
            if self.queue.is_empty() {
                self.changed.changed().await.ok()?;
            }
        }
    }

    fn fill(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state();
        if let Some(version) = self.begin.take() {
            for (kind, wire) in &state.log {
                if let Wire::Change { version: at, .. } = wire
                    && *kind == self.kind
                    && *at > version
                {
                    self.tell(wire);
                }
            }
            self.cursor = state.log.len();
            *state.begun.entry(self.kind).or_default() += 1;
        }
        for (kind, wire) in &state.log[self.cursor..] {
            let lost = matches!(wire, Wire::Change { lost: true, .. });
            if *kind == self.kind && !lost {
                self.tell(wire);
            }
        }
        self.cursor = state.log.len();
    }

    fn tell(&mut self, wire: &Wire) {
        let event = |what: &str, object: &Value| {
            let event = json!({"type": what, "object": object});
            Out::Bytes(event_bytes(self.format, &event))
        };
        let out = match wire {
            Wire::Raw(line) => {
                let event = serde_json::from_str(line).ok();
                let event = event.filter(|_| self.format == Format::Protobuf);
                let bytes = event.and_then(|event| protobuf::event(&event));
                Out::Bytes(bytes.unwrap_or_else(|| format!("{line}\n").into_bytes()))
            }
            Wire::Bytes(bytes) => Out::Bytes(bytes.clone()),
            Wire::Half(event) => {
                let mut bytes = event_bytes(self.format, event);
                bytes.truncate(bytes.len() / 2);
                self.queue.push_back(Out::Bytes(bytes));
                Out::End
            }
            Wire::Bookmark(version) => event("BOOKMARK", &bookmark(self.kind, *version)),
            Wire::End => Out::End,
            Wire::Break => Out::Break,
            Wire::Change {
                version,
                before,
                after,
                ..
            } => {
                let selected = |object: &Option<Value>| {
                    object
                        .clone()
                        .filter(|object| self.selector.matches(object))
                };
                match (selected(before), selected(after)) {
                    (None, None) => return,
                    (None, Some(after)) => event("ADDED", &after),
                    (Some(_), Some(after)) => event("MODIFIED", &after),
                    (Some(mut before), None) => {
                        before["metadata"]["resourceVersion"] = json!(version.to_string());
                        event("DELETED", &before)
                    }
                }
            }
        };
        self.queue.push_back(out);
    }
}

fn event_bytes(format: Format, event: &Value) -> Vec<u8> {
    match format {
        Format::Protobuf => protobuf::event(event).expect("an event about a kind that is watched"),
        // In a real server's order: it lets a client read the object without holding it back.
        Format::Json => {
            let (what, object) = (&event["type"], &event["object"]);
            format!("{{\"type\":{what},\"object\":{object}}}\n").into_bytes()
        }
    }
}

fn bookmark(kind: Kind, version: u64) -> Value {
    let metadata = json!({"resourceVersion": version.to_string()});
    json!({"kind": kind.name(), "apiVersion": "v1", "metadata": metadata})
}

const fn reason(code: u16) -> &'static str {
    match code {
        403 => "Forbidden",
        404 => "NotFound",
        410 => "Expired",
        422 => "Invalid",
        _ => "InternalError",
    }
}

/// A `Status`.
pub(super) fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}

fn refusal(format: Format, code: u16, reason: &str, message: &str) -> Response<Body> {
    let status = StatusCode::from_u16(code).expect("a code");
    whole(format, status, &failure(code, reason, message))
}

fn said(format: Format, value: &Value) -> Vec<u8> {
    match format {
        Format::Protobuf => protobuf::whole(value).expect("an object of a kind that is watched"),
        Format::Json => value.to_string().into_bytes(),
    }
}

fn whole(format: Format, status: StatusCode, value: &Value) -> Response<Body> {
    let bytes = Bytes::from(said(format, value));
    respond(media_type(format), status, full(bytes))
}

fn full(bytes: Bytes) -> UnsyncBoxBody<Bytes, io::Error> {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

const fn media_type(format: Format) -> &'static str {
    match format {
        Format::Protobuf => PROTOBUF,
        Format::Json => "application/json",
    }
}

fn respond<B>(media_type: &'static str, status: StatusCode, body: B) -> Response<Body>
where
    B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
{
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    let media_type = HeaderValue::from_static(media_type);
    response.headers_mut().insert("Content-Type", media_type);
    response
}
