//! An API server for tests: objects that can be listed and watched over real HTTP, a record of
//! what was asked, and every misbehaviour that a client has to live with.
//!
//! It runs on a host of the harness, on loopback. What tests do to its objects lives here; how it
//! answers, in `serve`.

mod protobuf;
mod selector;
mod serve;
mod tls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use tls::Identity;

use crate::harness::{Host, eventually};

/// Where it listens on its host.
const ADDRESS: &str = "127.0.0.1:6443";

/// What it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Services,
    Slices,
    Nodes,
    ServiceCidrs,
}

impl Kind {
    pub const ALL: [Self; 4] = [
        Self::Services,
        Self::Slices,
        Self::Nodes,
        Self::ServiceCidrs,
    ];

    pub const fn path(self) -> &'static str {
        match self {
            Self::Services => "/api/v1/services",
            Self::Slices => "/apis/discovery.k8s.io/v1/endpointslices",
            Self::Nodes => "/api/v1/nodes",
            Self::ServiceCidrs => "/apis/networking.k8s.io/v1/servicecidrs",
        }
    }

    /// As lists of it are called.
    pub const fn list(self) -> &'static str {
        match self {
            Self::Services => "ServiceList",
            Self::Slices => "EndpointSliceList",
            Self::Nodes => "NodeList",
            Self::ServiceCidrs => "ServiceCIDRList",
        }
    }

    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Services | Self::Nodes => "v1",
            Self::Slices => "discovery.k8s.io/v1",
            Self::ServiceCidrs => "networking.k8s.io/v1",
        }
    }

    /// As one of it is called.
    pub fn name(self) -> &'static str {
        self.list().trim_end_matches("List")
    }

    fn of(object: &Value) -> Self {
        match object["kind"].as_str().expect("a kind") {
            "Service" => Self::Services,
            "EndpointSlice" => Self::Slices,
            "Node" => Self::Nodes,
            "ServiceCIDR" => Self::ServiceCidrs,
            other => panic!("{other} is not watched"),
        }
    }
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A list, or a page of one.
    List,
    /// A watch from a version on.
    Watch,
}

/// How to answer instead of well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A failure with this code.
    Refuse(u16),
    /// 504, because the version that was asked for is newer than what is known.
    TooNew,
    /// 429, and try again after so many seconds.
    TooMany(u64),
    /// Nothing at all, until [`ApiServer::behave`].
    Silence,
    /// The head of an answer and no more, until [`ApiServer::behave`].
    Stall,
    /// About so many objects of a list, and then the connection breaks.
    Break(usize),
    /// A failure with this code, of something on the way that is no API server.
    Proxy(u16),
    /// A list that takes seconds, and then the connection breaks.
    Slow,
    /// 200, and what follows is nothing that an API server says.
    Garbage,
    /// 200, and an object of JSON that is no list and no event.
    Surprise,
}

/// What it was asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub agent: String,
    pub accept: String,
    pub accept_encoding: String,
    /// The format of the answer.
    pub format: Format,
}

/// In which form it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Protobuf,
    Json,
}

impl Request {
    pub fn asks(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    /// What it is for, if it is about this kind.
    pub fn phase(&self, kind: Kind) -> Option<Phase> {
        if self.path != kind.path() {
            return None;
        }
        Some(match self.asks("watch") {
            None => Phase::List,
            Some(_) => Phase::Watch,
        })
    }
}

/// What goes over the open watches of a kind.
#[derive(Debug, Clone)]
enum Wire {
    /// An object changed. Open watches do not hear of it if it is lost.
    Change {
        version: u64,
        before: Option<Value>,
        after: Option<Value>,
        lost: bool,
    },
    /// This line; in protobuf where it is an event, and as it is otherwise.
    Raw(String),
    /// These bytes.
    Bytes(Vec<u8>),
    /// A bookmark of this version.
    Bookmark(u64),
    /// An event that ends in the middle, and the end.
    Half(Value),
    /// The end, as when the server has had enough.
    End,
    /// The end, as when a cable is cut.
    Break,
}

struct Rule {
    kind: Kind,
    phase: Phase,
    answer: Answer,
    left: usize,
}

#[derive(Default)]
struct State {
    version: u64,
    /// Versions before this one are forgotten.
    oldest: u64,
    objects: BTreeMap<(Kind, String), Value>,
    log: Vec<(Kind, Wire)>,
    rules: Vec<Rule>,
    /// How often it was told to behave.
    behaved: u64,
    /// Changes are not told to open watches.
    losing: bool,
    /// Watches that are open.
    open: BTreeMap<Kind, usize>,
    /// Watches that have begun to hear.
    begun: BTreeMap<Kind, usize>,
    page: Option<usize>,
    requests: Vec<Request>,
    events: Vec<Value>,
    refuses_events: bool,
    knows_only_json: bool,
    /// Connections that were made.
    connections: usize,
}

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the state")
    }

    /// Changes the state and tells everyone who waits.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.send_modify(|number| *number += 1);
        result
    }
}

pub struct ApiServer {
    shared: Arc<Shared>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    /// How it is reached, unless in clear.
    identity: Option<Identity>,
    directory: tempfile::TempDir,
}

impl ApiServer {
    /// A server with these objects, on a host.
    pub fn start(host: &Host, objects: Vec<Value>) -> Self {
        Self::start_as(host, objects, None)
    }

    /// The same, over TLS and whatever version of HTTP the client prefers.
    pub fn start_secure(host: &Host, objects: Vec<Value>) -> Self {
        Self::start_as(host, objects, Some(Identity::new()))
    }

    fn start_as(host: &Host, objects: Vec<Value>, identity: Option<Identity>) -> Self {
        let mut server = Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                changed: watch::Sender::new(0),
            }),
            running: None,
            identity,
            directory: tempfile::tempdir().expect("a directory"),
        };
        // As in a real cluster, no version is small.
        server.shared.state().version = 1000;
        for object in objects {
            server.put(object);
        }
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": match &server.identity {
                None => json!({"server": format!("http://{ADDRESS}")}),
                Some(identity) => {
                    let file = server.directory.path().join("ca.crt");
                    std::fs::write(&file, identity.certificate()).expect("a file");
                    json!({"server": format!("https://{ADDRESS}"), "certificate-authority": file})
                }
            }}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(server.kubeconfig(), config.to_string()).expect("a file");
        server.come_back(host);
        server
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// Listens again, with the same objects.
    pub fn come_back(&mut self, host: &Host) {
        assert!(self.running.is_none(), "it is there");
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = channel();
        let shared = Arc::clone(&self.shared);
        let address = ADDRESS.parse().expect("an address");
        let tls = self.identity.as_ref().map(Identity::acceptor);
        let thread = host.spawn(move || serve::run(address, &shared, tls, stopped, &ready));
        started.recv().expect("a server");
        self.running = Some((stop, thread));
    }

    /// Goes away: connections end, and new ones are refused.
    pub fn go_away(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            let _ = stop.send(());
            let _ = thread.join();
            self.shared.state().open.clear();
        }
    }

    /// Adds or replaces an object. Returns its version.
    pub fn put(&self, mut object: Value) -> u64 {
        let kind = Kind::of(&object);
        self.shared.change(|state| {
            state.version += 1;
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            let before = state.objects.insert((kind, name(&object)), object.clone());
            state.log(kind, before, Some(object))
        })
    }

    /// Deletes an object that was made like this one. Returns the version of its end.
    pub fn delete(&self, object: &Value) -> u64 {
        let kind = Kind::of(object);
        self.shared.change(|state| {
            state.version += 1;
            let before = state.objects.remove(&(kind, name(object)));
            assert!(before.is_some(), "no {kind:?} {}", name(object));
            state.log(kind, before, None)
        })
    }

    /// Changes objects without a word to open watches, and forgets the versions before.
    pub fn lose(&self, changes: impl FnOnce(&Self)) {
        self.shared.state().losing = true;
        changes(self);
        let mut state = self.shared.state();
        state.losing = false;
        state.oldest = state.version;
    }

    /// Has these objects, and a version that has been before, as when its store is restored. Open watches hear nothing.
    pub fn restore(&self, objects: Vec<Value>, version: u64) {
        self.shared.change(|state| {
            state.version = version;
            state.objects.clear();
            for mut object in objects {
                object["metadata"]["resourceVersion"] = json!(version.to_string());
                let key = (Kind::of(&object), name(&object));
                state.objects.insert(key, object);
            }
        });
    }

    /// Forgets all older versions: whoever wants to go on from one has to list again.
    pub fn forget_history(&self) {
        let mut state = self.shared.state();
        state.oldest = state.version;
        // Nobody watches, so nobody is in the middle of it.
        if self.running.is_none() {
            state.log.clear();
        }
    }

    /// All objects.
    pub fn objects(&self) -> Vec<Value> {
        self.shared.state().objects.values().cloned().collect()
    }

    pub fn version(&self) -> u64 {
        self.shared.state().version
    }

    /// The events that were written.
    pub fn events(&self) -> Vec<Value> {
        self.shared.state().events.clone()
    }

    /// How many connections have been made.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// The requests about one kind and for one purpose.
    pub fn requests_for(&self, kind: Kind, phase: Phase) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|request| request.phase(kind) == Some(phase));
        requests
    }

    /// Answers badly, so many times.
    pub fn misbehave(&self, kind: Kind, phase: Phase, answer: Answer, times: usize) {
        self.shared.state().rules.push(Rule {
            kind,
            phase,
            answer,
            left: times,
        });
    }

    /// Answers well again, to those who still wait too.
    pub fn behave(&self) {
        self.shared.change(|state| {
            state.rules.clear();
            state.behaved += 1;
        });
    }

    /// Whether it has misbehaved as often as it was asked to.
    pub fn has_misbehaved(&self) -> bool {
        let state = self.shared.state();
        state.rules.iter().all(|rule| rule.left == 0)
    }

    /// Speaks JSON from now on, whatever is asked for.
    pub fn speak_json(&self) {
        self.shared.state().knows_only_json = true;
    }

    /// Speaks protobuf again with whoever understands it.
    pub fn speak_protobuf(&self) {
        self.shared.state().knows_only_json = false;
    }

    /// Takes no events any more.
    pub fn refuse_events(&self) {
        self.shared.state().refuses_events = true;
    }

    /// Gives no more than so many objects in a page, whatever is asked.
    pub fn limit_pages(&self, objects: usize) {
        self.shared.state().page = Some(objects);
    }

    /// Sends a line to whoever watches this kind.
    pub fn say(&self, kind: Kind, line: impl Into<String>) {
        self.wire(kind, Wire::Raw(line.into()));
    }

    /// Sends bytes to whoever watches this kind.
    pub fn send(&self, kind: Kind, bytes: impl Into<Vec<u8>>) {
        self.wire(kind, Wire::Bytes(bytes.into()));
    }

    /// The bytes of an event in protobuf.
    pub fn in_protobuf(event: &Value) -> Vec<u8> {
        protobuf::event(event).expect("an event about a kind that is watched")
    }

    /// Tells whoever watches this kind that the version is too old.
    pub fn say_gone(&self, kind: Kind) {
        let status = serve::failure(410, "Expired", "too old resource version");
        self.say(kind, json!({"type": "ERROR", "object": status}).to_string());
    }

    /// Sends a bookmark to whoever watches this kind.
    pub fn bookmark(&self, kind: Kind) {
        let version = self.version();
        self.wire(kind, Wire::Bookmark(version));
    }

    /// Ends the watches of this kind, as servers do every few minutes.
    pub fn end(&self, kind: Kind) {
        self.wire(kind, Wire::End);
    }

    /// Ends the watches of this kind in the middle of an event about an object.
    pub fn end_in_the_middle(&self, object: &Value) {
        let event = json!({"type": "MODIFIED", "object": object});
        self.wire(Kind::of(object), Wire::Half(event));
    }

    /// Breaks the connections of the watches of this kind.
    pub fn cut(&self, kind: Kind) {
        self.wire(kind, Wire::Break);
    }

    /// How many lists and watches of this kind are open.
    pub fn open(&self, kind: Kind) -> usize {
        self.shared.state().open.get(&kind).copied().unwrap_or(0)
    }

    /// How many watches of this kind have begun to hear what happens.
    pub fn begun(&self, kind: Kind) -> usize {
        self.shared.state().begun.get(&kind).copied().unwrap_or(0)
    }

    /// Waits until this kind is watched.
    pub fn wait_for_watch(&self, kind: Kind) {
        eventually(&format!("{kind:?} are watched"), || self.open(kind) > 0);
    }

    /// Waits until a watch of this kind hears what happens from now on.
    pub fn wait_until_heard(&self, kind: Kind) {
        eventually(&format!("a watch of {kind:?} hears"), || {
            self.begun(kind) > 0
        });
    }

    fn wire(&self, kind: Kind, wire: Wire) {
        self.shared.change(|state| state.log.push((kind, wire)));
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.go_away();
    }
}

impl State {
    fn log(&mut self, kind: Kind, before: Option<Value>, after: Option<Value>) -> u64 {
        let change = Wire::Change {
            version: self.version,
            before,
            after,
            lost: self.losing,
        };
        self.log.push((kind, change));
        self.version
    }

    /// The misbehaviour that is due for a request.
    fn rule(&mut self, kind: Kind, phase: Phase) -> Option<Answer> {
        let rule = self
            .rules
            .iter_mut()
            .find(|rule| rule.kind == kind && rule.phase == phase && rule.left > 0)?;
        rule.left -= 1;
        Some(rule.answer)
    }
}

fn name(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}
