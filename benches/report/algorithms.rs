//! What a new connection costs by each algorithm, beside chance.

use std::net::SocketAddr;
use std::time::Duration;

use pointsman::source::convert::Converter;
use serde_json::json;

use crate::cluster::Shape;
use crate::harness::{NODE, World};
use crate::objects::{node, service, slice};
use crate::output::{Cell, Table, quantiles};
use crate::traffic::{connect, from, precise, serve, spread};
use crate::whole;

/// Services by what their annotation says, and whether endpoints weigh differently.
const WAYS: [(&str, &str, bool); 8] = [
    ("random", "random", false),
    ("random, once more", "random", false),
    ("random by weight (and lc, sed, nq)", "random", true),
    ("rr", "rr", false),
    ("rr by weight", "rr", true),
    ("sh", "sh", false),
    ("dh", "dh", false),
    ("maglev", "maglev", false),
];

/// An empty table of this part.
pub fn table() -> Table {
    Table::new(
        "Algorithms",
        "TCP through a ClusterIP of 10 endpoints, one Service for each algorithm on the same node, turn by turn. \"over random\" is\n\
         the difference of the medians; the second row is the same as the first, and shows the noise.",
        &[
            "node",
            "algorithm",
            "times",
            "median",
            "quartiles",
            "over random",
        ],
    )
}

/// Measures them on a node with so many other Services.
pub fn measure(services: u32, turns: usize, table: &mut Table) {
    let world = World::new();
    serve(&world);
    let fill = Shape {
        services,
        endpoints: 10,
    };
    let kernel = world.node.run(move || {
        let mut proxy = whole::start();
        let mut converter = Converter::new(NODE);
        let mut this_node = node();
        this_node["status"]["addresses"] = json!([{"type": "InternalIP", "address": "192.0.2.1"}]);
        let mut changes = vec![converter.node(&from(this_node))];
        for (number, (_, algorithm, weighs)) in (10u8..).zip(WAYS) {
            let name = format!("way-{number}");
            let service = service(&name, &[&format!("10.96.0.{number}")]);
            let annotations = json!({"pointsman.io/algorithm": algorithm});
            let service = service.set("/metadata/annotations", annotations).0;
            let pods: Vec<String> = (10..20).map(|last| format!("10.244.1.{last}")).collect();
            let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
            let mut slice = slice(&name, "TCP", &pods);
            if weighs {
                let weights = "10.244.1.10=7, 10.244.1.11=3";
                slice["metadata"]["annotations"] = json!({"pointsman.io/weights": weights});
            }
            changes.push(converter.service(&from(service)));
            changes.push(converter.endpoint_slice(&from(slice)));
        }
        assert!(converter.take_warnings().is_empty());
        proxy.take(changes.into_iter().flatten());
        proxy.take(fill.changes().0);
        proxy.sync().expect("a sync");
        proxy
    });
    let mut times: [Vec<Duration>; WAYS.len()] = Default::default();
    // The first turn fills the caches.
    for turn in 0..=turns {
        for (number, times) in (10u8..).zip(&mut times) {
            let target = SocketAddr::new([10, 96, 0, number].into(), 80);
            let seen = world.pod.run(move || connect(target));
            if turn > 0 {
                times.extend(seen);
            }
        }
    }
    drop(kernel);
    let random = quantiles(times[0].clone()).0.as_secs_f64();
    for ((name, ..), times) in WAYS.iter().zip(times) {
        let median = quantiles(times.clone()).0;
        let over = (median.as_secs_f64() - random) * 1e6;
        table.row(vec![
            format!("pointsman, {services} Services").into(),
            (*name).into(),
            Cell::Count(times.len()),
            precise(median),
            spread(&times),
            Cell::Text(format!("{over:+.3} µs")),
        ]);
    }
}
