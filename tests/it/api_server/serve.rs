//! How the API server answers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use super::selector::{Selector, query};
use super::{Answer, Kind, Phase, Request, Shared, State, Wire};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves until it is told to stop; its connections end with it.
pub(super) fn run(
    address: SocketAddr,
    shared: &Arc<Shared>,
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
        socket.bind(address).expect("a free port");
        let listener = socket.listen(64).expect("a listener");
        ready.send(()).expect("a maker");
        let accept = async {
            loop {
                let (connection, _) = listener.accept().await.expect("a connection");
                // As a real one does: an event does not wait for the acknowledgement of another.
                connection.set_nodelay(true).expect("an option");
                let shared = Arc::clone(shared);
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&shared), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(connection), service)
                        .await;
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
    let request = Request {
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
            return Ok(refusal(403, "Forbidden", "as the test wishes"));
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
        let answer = whole(StatusCode::CREATED, &event);
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
    Ok(refusal(404, "NotFound", "no such path"))
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
    match rule {
        Some(Answer::Refuse(code)) => return refusal(code, reason(code), "as the test wishes"),
        Some(Answer::TooMany(seconds)) => {
            let mut response = refusal(429, "TooManyRequests", "as the test wishes");
            response.headers_mut().insert("Retry-After", seconds.into());
            return response;
        }
        Some(Answer::Garbage) => {
            let body = Full::new(Bytes::from_static(b"<html>a captive portal</html>\n"));
            return respond(StatusCode::OK, body.map_err(|never| match never {}));
        }
        Some(Answer::Silence) => wait(shared, &mut changed.clone(), behaved).await,
        Some(Answer::Stall | Answer::Break(_)) | None => {}
    }
    let Ok(selector) = Selector::of(request) else {
        return refusal(400, "BadRequest", "an unknown selector");
    };
    if phase == Phase::List {
        return list(&shared.state(), kind, &selector, request);
    }
    let version = request.asks("resourceVersion").and_then(|v| v.parse().ok());
    let version = version.unwrap_or(0);
    if phase == Phase::Watch && version < shared.state().oldest {
        return refusal(410, "Expired", "too old resource version");
    }
    let watcher = Watcher {
        _open: Open::new(shared, kind),
        shared: Arc::clone(shared),
        kind,
        selector,
        changed,
        queue: VecDeque::new(),
        begin: Some((phase, version, rule)),
        stalled: (rule == Some(Answer::Stall)).then_some(behaved),
        cursor: 0,
    };
    let lines = stream::unfold(watcher, |mut watcher| async {
        let frame = watcher.next().await?;
        Some((frame, watcher))
    });
    respond(StatusCode::OK, StreamBody::new(lines))
}

/// Waits until the server is told to behave.
async fn wait(shared: &Shared, changed: &mut watch::Receiver<u64>, behaved: u64) {
    while shared.state().behaved == behaved {
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn list(state: &State, kind: Kind, selector: &Selector, request: &Request) -> Response<Body> {
    // A token is the version of the list and the name that the next page follows.
    let (version, after) = match request.asks("continue").map(|token| token.split_once(':')) {
        None => (state.version, None),
        Some(Some((version, after))) => (version.parse().unwrap_or(0), Some(after.to_owned())),
        Some(None) => return refusal(400, "BadRequest", "no such token"),
    };
    if version < state.oldest {
        return refusal(410, "Expired", "the token is too old");
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
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items});
    whole(StatusCode::OK, &list)
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
    Text(String),
    End,
    Break,
}

/// An open watch.
struct Watcher {
    shared: Arc<Shared>,
    kind: Kind,
    selector: Selector,
    changed: watch::Receiver<u64>,
    queue: VecDeque<Out>,
    begin: Option<(Phase, u64, Option<Answer>)>,
    stalled: Option<u64>,
    /// How much of the log it has seen.
    cursor: usize,
    _open: Open,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, io::Error>> {
        if let Some(behaved) = self.stalled {
            let mut changed = self.changed.clone();
            let shared = Arc::clone(&self.shared);
            // Even one that says nothing can be cut off.
            let start = shared.state().log.len();
            while shared.state().behaved == behaved {
                let cut = shared.state().log[start..]
                    .iter()
                    .any(|(kind, wire)| *kind == self.kind && matches!(wire, Wire::Break));
                if cut {
                    return Some(Err(io::ErrorKind::ConnectionReset.into()));
                }
                changed.changed().await.ok()?;
            }
            self.stalled = None;
        }
        loop {
            match self.queue.pop_front() {
                Some(Out::Text(text)) => return Some(Ok(Frame::data(Bytes::from(text)))),
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
        let state = shared.state();
        if let Some((phase, version, rule)) = self.begin.take() {
            match phase {
                Phase::Stream => self.stream_list(&state, rule),
                _ => {
                    for (kind, wire) in &state.log {
                        if let Wire::Change { version: at, .. } = wire
                            && *kind == self.kind
                            && *at > version
                        {
                            self.tell(wire);
                        }
                    }
                }
            }
            self.cursor = state.log.len();
        }
        for (kind, wire) in &state.log[self.cursor..] {
            let lost = matches!(wire, Wire::Change { lost: true, .. });
            if *kind == self.kind && !lost {
                self.tell(wire);
            }
        }
        self.cursor = state.log.len();
    }

    fn stream_list(&mut self, state: &State, rule: Option<Answer>) {
        let most = match rule {
            Some(Answer::Break(most)) => most,
            _ => usize::MAX,
        };
        for ((kind, _), object) in &state.objects {
            if *kind == self.kind && self.selector.matches(object) {
                self.queue.push_back(event("ADDED", object));
            }
        }
        if self.queue.len() > most {
            self.queue.truncate(most);
            self.queue.push_back(Out::Break);
            return;
        }
        let mut bookmark = bookmark(state.version);
        bookmark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        self.queue.push_back(event("BOOKMARK", &bookmark));
    }

    fn tell(&mut self, wire: &Wire) {
        let out = match wire {
            Wire::Raw(line) => Out::Text(format!("{line}\n")),
            Wire::Half(text) => {
                self.queue.push_back(Out::Text(text.clone()));
                Out::End
            }
            Wire::Bookmark(version) => event("BOOKMARK", &bookmark(*version)),
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

fn event(what: &str, object: &Value) -> Out {
    // In a real server's order: it lets a client read the object without holding it back.
    Out::Text(format!("{{\"type\":\"{what}\",\"object\":{object}}}\n"))
}

fn bookmark(version: u64) -> Value {
    json!({"kind": "X", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}})
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

fn refusal(code: u16, reason: &str, message: &str) -> Response<Body> {
    let status = StatusCode::from_u16(code).expect("a code");
    whole(status, &failure(code, reason, message))
}

fn whole(status: StatusCode, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string()));
    respond(status, body.map_err(|never| match never {}))
}

fn respond<B>(status: StatusCode, body: B) -> Response<Body>
where
    B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
{
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert("Content-Type", json);
    response
}
