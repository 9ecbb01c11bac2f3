//! The proxy beside an API server that is good, bad or gone; what it serves and what it tells.
//! Numbers at the front of test names are those of `docs/semantics.md`.

mod events;
mod formats;
mod health;
mod lifecycle;
mod metrics;
mod misbehaviour;
mod node;
mod outage;
mod stalls;
mod startup;
mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::api_server::{Answer, ApiServer, Format, Kind, Phase};
use crate::harness::{Host, METRICS, Pointsman, Reply, World, eventually, get, metric, pointsman};
use crate::objects::{endpoint, node, service, service_cidr, slice, slice_of};
use crate::programmed::{Elements, difference, elements, wanted, without_slots};

/// Where health is served.
const HEALTH: &str = "127.0.0.1:10256";

/// A Service and its slice.
fn web(name: &str, number: u8, pods: &[u8]) -> [Value; 2] {
    let pods: Vec<String> = pods.iter().map(|pod| format!("10.244.1.{pod}")).collect();
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    [
        service(name, &[&format!("10.96.0.{number}")]).0,
        slice(name, "TCP", &pods),
    ]
}

/// The node and the service ranges, with these objects.
fn cluster(objects: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let mut all = vec![node(), service_cidr()];
    all.extend(objects);
    all
}

/// The flags that lead to a server.
fn flags<'a>(kubeconfig: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let cidr = ["--cluster-cidr", crate::harness::CLUSTER_CIDR];
    [&["--kubeconfig", kubeconfig], &cidr[..], more].concat()
}

/// Starts the proxy and waits for its first sync.
fn start(host: &Host, server: &ApiServer) -> Pointsman {
    start_with(host, server, &[])
}

fn start_with(host: &Host, server: &ApiServer, more: &[&str]) -> Pointsman {
    let process = launch(host, server, more);
    process.wait_for("synced");
    process
}

/// Starts the proxy and leaves it to itself.
fn launch(host: &Host, server: &ApiServer, more: &[&str]) -> Pointsman {
    let kubeconfig = server.kubeconfig();
    let kubeconfig = kubeconfig.to_str().expect("a path");
    Pointsman::launch(host, &flags(kubeconfig, more))
}

/// Waits until the kernel has what the server's objects say, no more and no less.
fn in_step(what: &str, host: &Host, server: &ApiServer) {
    let wanted = wanted(host, server.objects());
    let mut found = Elements::new();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually(what, || {
            found = without_slots(elements(host));
            found == wanted
        });
    }));
    if outcome.is_err() {
        let missing = difference(&wanted, &found);
        let unwanted = difference(&found, &wanted);
        panic!("{what}: never in step\nmissing: {missing:#?}\nunwanted: {unwanted:#?}");
    }
}

/// The elements that mention an address.
fn mentioning(elements: &Elements, address: &str) -> BTreeSet<String> {
    let is_it = |element: &&String| {
        let mut found = element.match_indices(address);
        found.any(|(at, _)| {
            let after = element.get(at + address.len()..).unwrap_or_default();
            let before = element.get(..at).unwrap_or_default();
            !after.starts_with(|next: char| next.is_ascii_hexdigit())
                && !before.ends_with(|last: char| last.is_ascii_hexdigit() || last == '.')
        })
    };
    let all = elements.values().flatten();
    all.filter(is_it).cloned().collect()
}

/// The code that a path of the health port answers with.
fn health(host: &Host, path: &str) -> Option<u16> {
    get(host, HEALTH, path).map(|reply| reply.code)
}

/// Waits until a path of the health port answers with a code.
fn wait_for_health(host: &Host, path: &str, code: u16) {
    eventually(&format!("{path} answers {code}"), || {
        health(host, path) == Some(code)
    });
}
