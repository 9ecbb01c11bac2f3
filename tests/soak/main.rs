//! Hours of everything at once: `make soak`.
//!
//! The program follows an API server whose objects change by chance, while the server goes and comes,
//! watches break, the program is killed and started, and somebody tampers with its tables. Meanwhile
//! traffic goes through Services that stay up. None of it may fail but within a short time after a
//! tampering (`traffic::WINDOW`); at the end the kernel has what the objects say, and the program is as
//! large as it was.
//!
//! `SOAK_SECONDS` says for how long, `SOAK_SEED` repeats a sequence; how its steps fall in with what the
//! program does at the time is not repeated.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics is a test that fails"
)]

#[path = "../it/api_server/mod.rs"]
#[allow(dead_code, reason = "not all of its misbehaviour is of use here")]
mod api_server;
mod changes;
mod cluster;
mod dice;
#[path = "../it/harness.rs"]
mod harness;
#[path = "../it/objects.rs"]
#[allow(dead_code, reason = "not all objects are of use here")]
mod objects;
mod program;
#[path = "../it/programmed.rs"]
#[allow(dead_code, reason = "flags are always given here")]
mod programmed;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use api_server::ApiServer;
use changes::Changes;
use dice::Dice;
use harness::{Host, Servers, World, get};
use program::{FLAGS, Figures, Program};
use programmed::{Elements, difference, elements, wanted_with, without_slots};
use serde_json::{Value, json};
use traffic::{Traffic, WINDOW};

/// How long a plain `cargo test` takes it.
const SHORT: u64 = 20;
/// How long the kernel may take to have what the objects say once nothing changes: a watch that has
/// failed often is tried again after half a minute.
const CALM: Duration = Duration::from_secs(60);
/// How much larger the program may be at the end: what its allocator keeps of the largest moment, and
/// that is not the same at each.
const GROWTH: (u64, u64) = (10, 4096);
/// How many descriptors more it may have: connections to the API server that are not closed yet.
const SPARE: usize = 4;

fn main() -> ExitCode {
    if cfg!(no_namespaces) {
        println!("ignored: it needs root, or user namespaces");
        return ExitCode::SUCCESS;
    }
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name} is a number")),
        )
    };
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = number("SOAK_SEED").unwrap_or_else(|| since.expect("a time after 1970").as_secs());
    let duration = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(SHORT));
    println!("soak: {} s, SOAK_SEED={seed}", duration.as_secs());
    soak(seed, duration)
}

fn soak(seed: u64, duration: Duration) -> ExitCode {
    let world = World::new();
    let plan = Arc::new(cluster::plan());
    let _udp = Servers::udp(&world.pods, &cluster::udp_endpoints());
    traffic::serve(&world.pods, 8080);
    let server = ApiServer::start(&world.node, cluster::steady());
    let mut faults = Vec::new();
    let program = Program::start(&world.node, &server);
    calm("the beginning", &world.node, &server, &mut faults);
    let traffic = Traffic::start(&world, &plan);
    let mut changes = Changes::new(Dice(seed), server, program, Arc::clone(&traffic.tally));

    let begun = Instant::now();
    // The process that is there after two fifths stays until the end, so that what it keeps shows.
    changes.until(&world.node, begun + duration * 4 / 10, true);
    changes.until(&world.node, begun + duration / 2, false);
    let start = settled(&mut changes, &world.node, "half of it", &mut faults);
    changes.until(&world.node, begun + duration, false);
    let end = settled(&mut changes, &world.node, "the end", &mut faults);

    let tally = traffic.stop();
    let took = begun.elapsed();
    compare(&start, &end, &mut faults);
    let (done, program) = changes.finish(&world.node, &mut faults);
    faults.append(&mut tally.lost.lock().expect("the losses"));
    let count = |of: &std::sync::atomic::AtomicUsize| of.load(Ordering::Relaxed).to_string();
    let mut rows = vec![("duration, s".to_owned(), took.as_secs().to_string())];
    rows.extend(
        done.iter()
            .map(|(what, times)| ((*what).to_owned(), times.to_string())),
    );
    rows.extend([
        ("short connections".to_owned(), count(&tally.connections)),
        ("of them slow".to_owned(), count(&tally.slow)),
        ("echoes of long ones".to_owned(), count(&tally.echoes)),
        ("datagrams".to_owned(), count(&tally.datagrams)),
        (
            format!("failed within {} s of a tampering", WINDOW.as_secs()),
            count(&tally.excused),
        ),
        (
            "resident, kB: half, end".to_owned(),
            format!("{}, {}", start.resident, end.resident),
        ),
        (
            "descriptors".to_owned(),
            format!("{}, {}", start.descriptors, end.descriptors),
        ),
        (
            "threads".to_owned(),
            format!("{}, {}", start.threads, end.threads),
        ),
        ("syncs".to_owned(), program.syncs.to_string()),
        (
            "errors that tampering explains".to_owned(),
            program.explained.to_string(),
        ),
        ("what was wrong".to_owned(), faults.len().to_string()),
    ]);
    for (what, figure) in rows {
        println!("  {what:40} {figure}");
    }
    if faults.is_empty() {
        return ExitCode::SUCCESS;
    }
    for fault in faults.iter().take(40) {
        println!("WRONG: {fault}");
    }
    println!(
        "again: SOAK_SECONDS={} SOAK_SEED={seed}",
        duration.as_secs()
    );
    ExitCode::FAILURE
}

/// Leaves nothing but the Services that stay, waits until that is programmed, and measures.
fn settled(changes: &mut Changes, node: &Host, when: &str, faults: &mut Vec<String>) -> Figures {
    changes.settle(node);
    // What is there now, with all that chance has made, and then without.
    calm(
        &format!("{when}, with all Services"),
        node,
        &changes.server,
        faults,
    );
    changes.clear();
    calm(when, node, &changes.server, faults);
    let health = get(node, "127.0.0.1:10256", "/healthz").map(|reply| reply.code);
    if health != Some(200) {
        faults.push(format!("{when}: /healthz answers {health:?}"));
    }
    changes.program.figures()
}

/// Waits until the kernel has what the objects say.
fn calm(when: &str, node: &Host, server: &ApiServer, faults: &mut Vec<String>) {
    let wanted = objective(wanted_with(node, server.objects(), &FLAGS));
    let deadline = Instant::now() + CALM;
    loop {
        let found = objective(without_slots(elements(node)));
        if found == wanted {
            return;
        }
        if Instant::now() > deadline {
            let [missing, more] = [difference(&wanted, &found), difference(&found, &wanted)];
            faults.push(format!("{when}: missing {missing:#?}, unwanted {more:#?}"));
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Without what clients did, and the numbers that depend on what was there before.
fn objective(elements: Elements) -> Elements {
    let no_clients = elements
        .into_iter()
        .filter(|(name, _)| !name.ends_with(" affinity"));
    no_clients
        .map(|(name, of_set)| (name.clone(), numberless(&name, of_set)))
        .collect()
}

fn numberless(name: &str, of_set: BTreeSet<String>) -> BTreeSet<String> {
    let parse = |text: &String| serde_json::from_str::<Value>(text).expect("JSON");
    if name.contains(" affinity-") {
        // How many places and ids each destination has, of either list.
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for mut element in of_set.iter().map(parse) {
            let key = element[0]["concat"].as_array_mut().expect("a key");
            let number = key.pop().expect("a number").to_string();
            let of = format!("{key:?} {}", &number[..2]);
            *counts.entry(of).or_default() += 1;
        }
        return counts
            .into_iter()
            .map(|(of, count)| format!("{of} {count}"))
            .collect();
    }
    if name.contains(" service-i") || name.contains(" service-n") || name.contains("-local-") {
        // A shape says which class of affinity: the first that came is the first.
        let classless = |mut element: Value| {
            let shape = element[1].as_str().expect("a shape").to_owned();
            if &shape[2..4] != "00" {
                element[1] = json!(format!("{}..{}", &shape[..2], &shape[4..]));
            }
            element.to_string()
        };
        return of_set.iter().map(parse).map(classless).collect();
    }
    of_set
}

fn compare(start: &Figures, end: &Figures, faults: &mut Vec<String>) {
    let (percent, more) = GROWTH;
    if start.process != end.process {
        faults.push("the program did not live through the second half".to_owned());
    }
    if end.resident > start.resident + start.resident * percent / 100 + more {
        faults.push(format!("{} kB became {} kB", start.resident, end.resident));
    }
    if end.descriptors > start.descriptors + SPARE {
        faults.push(format!(
            "{} descriptors became {}",
            start.descriptors, end.descriptors
        ));
    }
    if end.threads > start.threads {
        faults.push(format!("{} threads became {}", start.threads, end.threads));
    }
}
