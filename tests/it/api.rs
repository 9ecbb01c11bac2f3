//! The proxy beside an API server that is good, bad or gone; what it serves and what it tells.
//! Numbers at the front of test names are those of `docs/semantics.md`.

mod events;
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

use crate::api_server::{Answer, ApiServer, Kind, Phase};
use crate::harness::{Host, METRICS, Pointsman, Reply, World, eventually, get, metric, pointsman};
use crate::objects::{Manifests, endpoint, node, service, service_cidr, slice, slice_of};

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

/// The elements of our sets and maps, as nft lists them.
type Elements = BTreeMap<String, BTreeSet<String>>;

/// Every element in the kernel, with its slot if it has one.
fn elements(host: &Host) -> Elements {
    let listed = host.sh("nft -j list ruleset 2>/dev/null");
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let mut elements = Elements::new();
    for object in listed["nftables"].as_array().expect("a list") {
        let Some(set) = object.get("set").or_else(|| object.get("map")) else {
            continue;
        };
        if set["table"] != "pointsman" {
            continue;
        }
        let name = format!("{} {}", set["family"], set["name"]).replace('"', "");
        let of_set = elements.entry(name).or_default();
        for element in set["elem"].as_array().into_iter().flatten() {
            of_set.insert(element.to_string());
        }
    }
    elements
}

/// The same without slots, which depend on what was there before; only which of the two lists
/// of a destination they are of.
fn without_slots(elements: Elements) -> Elements {
    let without = |(name, of_set): (String, BTreeSet<String>)| {
        let of_set = if name.ends_with("endpoints") {
            of_set.iter().map(|element| without_slot(element)).collect()
        } else {
            of_set
        };
        (name, of_set)
    };
    elements.into_iter().map(without).collect()
}

fn without_slot(element: &str) -> String {
    let mut element: Value = serde_json::from_str(element).expect("JSON");
    let key = element[0]["concat"].as_array_mut().expect("a key");
    // A place or an id: c and e are of the primary list, d and f of the local one.
    let number = key.pop().expect("a number").to_string();
    key.push(json!(number.trim_matches('"').get(..1)));
    element.to_string()
}

/// What a dry run says of the same objects in files, loaded by nft.
fn wanted(host: &Host, objects: Vec<Value>) -> Elements {
    let manifests = Manifests::new(objects);
    manifests.write("base.json", Vec::new());
    let arguments = ["--manifests", manifests.path(), "--dry-run"];
    let (code, text, log) = pointsman(host, &arguments);
    assert_eq!(code, Some(0), "{log}");
    let other = Host::new();
    let (ok, said) = other.sh_with_input("nft -f -", &text);
    assert!(ok, "{said}");
    without_slots(elements(&other))
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

/// The first few elements that one has and the other has not.
fn difference(one: &Elements, other: &Elements) -> Vec<String> {
    let of_set = |(name, of_set): (&String, &BTreeSet<String>)| {
        let known = other.get(name).cloned().unwrap_or_default();
        let more = of_set.difference(&known);
        more.map(|element| format!("{name}: {element}"))
            .collect::<Vec<_>>()
    };
    one.iter().flat_map(of_set).take(10).collect()
}

/// The elements that mention an address.
fn mentioning(elements: &Elements, address: &str) -> BTreeSet<String> {
    let quoted = format!("\"{address}\"");
    let all = elements.values().flatten();
    all.filter(|element| element.contains(&quoted))
        .cloned()
        .collect()
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
