//! `make bench`: what pointsman costs at scale, beside the alternatives, as one report.
//!
//! As root; every measurement has network namespaces of its own. Every figure stands beside a
//! baseline that was taken in the same run: machines differ, and a machine differs from itself.
//! Without cargo's `--bench`, as under `cargo test`, everything is done once on small clusters, to
//! see that it works.
//!
//! `--json PATH` writes the figures there too. `whole`, `iptables`, `attacks`, `live`, `observe`, `path`, `counting` and `algorithms` measure that
//! part alone: whole states and changes, the same in iptables mode, what hostile Services do, the program
//! beside an API server, what questions cost that it answers, the data path, of it only what counting costs. `--beside PROGRAM` has
//! another program measured in the data path too: it is started in the network namespace of a node
//! with the path of a file of objects, one in a line as JSON, and prints a line once it serves them.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a benchmark ends where it fails"
)]

mod algorithms;
#[path = "../../tests/it/api_server/mod.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod api_server;
mod attacks;
mod bare;
mod changes;
mod cluster;
#[path = "../../tests/it/harness.rs"]
mod harness;
#[path = "../../tests/it/hostile.rs"]
mod hostile;
mod iptables;
mod live;
#[path = "../../tests/it/objects.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod objects;
mod observe;
mod output;
mod traffic;
mod whole;

use cluster::Shape;
use live::Effort;
use output::{Report, Table};

/// How much is measured.
struct Plan {
    /// Clusters, and whether changes are measured in them.
    whole: &'static [(u32, u32, bool)],
    /// Changes of each kind.
    changes: u32,
    /// Services in which one endpoint is replaced.
    large: &'static [Shape],
    live: &'static [(u32, u32, Effort)],
    /// In iptables mode: clusters, and changes.
    iptables: &'static [(Shape, u32)],
    /// Of which clusters questions are asked, and how often each.
    observe: &'static [(Shape, usize)],
    traffic: &'static [u32],
    /// By what attacks are divided.
    attacks: u32,
    /// Turns of a hundred connections and round trips each.
    turns: usize,
}

const FULL: Plan = Plan {
    whole: &[
        (1_000, 10, true),
        (5_000, 10, false),
        (20_000, 10, true),
        (50_000, 10, false),
        (100_000, 10, true),
        (5_000, 50, false),
        (44_000, 1, false),
        (1, 100_000, false),
    ],
    changes: 500,
    large: &[
        shape(10_000, 10),
        shape(100, 1_000),
        shape(1, 100_000),
        shape(1, 10),
    ],
    live: &[
        (
            0,
            10,
            Effort {
                seconds: 0,
                churn: false,
            },
        ),
        (
            1_000,
            10,
            Effort {
                seconds: 0,
                churn: false,
            },
        ),
        (
            20_000,
            10,
            Effort {
                seconds: 60,
                churn: true,
            },
        ),
    ],
    iptables: &[
        (shape(1_000, 10), 50),
        (shape(5_000, 10), 20),
        (shape(20_000, 10), 9),
    ],
    observe: &[(shape(20_000, 10), 100)],
    traffic: &[1_000, 5_000],
    attacks: 1,
    turns: 100,
};

const SMALL: Plan = Plan {
    whole: &[(50, 3, true), (1, 300, false)],
    changes: 10,
    large: &[shape(30, 10), shape(1, 300)],
    live: &[
        (
            0,
            3,
            Effort {
                seconds: 0,
                churn: false,
            },
        ),
        (
            500,
            3,
            Effort {
                seconds: 1,
                churn: false,
            },
        ),
    ],
    iptables: &[(shape(50, 3), 3)],
    observe: &[(shape(50, 3), 2)],
    traffic: &[10],
    attacks: 100,
    turns: 1,
};

const fn shape(services: u32, endpoints: u32) -> Shape {
    Shape {
        services,
        endpoints,
    }
}

const PARTS: [&str; 8] = [
    "whole",
    "iptables",
    "attacks",
    "live",
    "observe",
    "path",
    "counting",
    "algorithms",
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if cfg!(no_root) {
        println!("ignored: it needs root");
        std::process::exit(i32::from(has("--bench")));
    }
    let plan = if has("--bench") { FULL } else { SMALL };
    let parts: Vec<&str> = PARTS.into_iter().filter(|part| has(part)).collect();
    let value_of = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        Some(arguments.get(at + 1).expect("a value").as_str())
    };
    let parts = if parts.is_empty() { &PARTS[..] } else { &parts };
    let report = run(&plan, parts, value_of("--beside"));
    println!("{}", report.text());
    if let Some(path) = value_of("--json") {
        std::fs::write(path, report.json()).expect("the file for the figures");
    }
}

fn name(shape: Shape) -> String {
    let Shape {
        services,
        endpoints,
    } = shape;
    format!("{services} x {endpoints}")
}

fn run(plan: &Plan, parts: &[&str], another: Option<&str>) -> Report {
    let of = |part| parts.contains(&part);
    let mut report = Report::new();
    let mut wholes = whole::Tables::new();
    let mut loaded = Vec::new();
    let clusters = plan.whole.iter().filter(|_| of("whole"));
    for (services, endpoints, changes) in clusters {
        let shape = Shape {
            services: *services,
            endpoints: *endpoints,
        };
        let (host, proxy) = whole::measure(shape, &name(shape), &mut wholes);
        if *changes {
            loaded.push(changes::Loaded {
                shape,
                name: name(shape),
                proxy,
                host,
            });
        }
    }
    let changed = changes::measure(loaded, plan);
    let mut by_iptables = iptables::table();
    for (shape, changes) in plan.iptables.iter().filter(|_| of("iptables")) {
        iptables::measure(*shape, &name(*shape), *changes, &mut by_iptables);
    }
    let attacks = of("attacks").then(|| attacks::measure(plan.attacks));
    let mut lives = live::Tables::new();
    let mut empty = 0;
    let clusters = plan.live.iter().filter(|_| of("live"));
    for (services, endpoints, effort) in clusters {
        let shape = Shape {
            services: *services,
            endpoints: *endpoints,
        };
        let resident = live::measure(shape, &name(shape), empty, *effort, &mut lives);
        if *services == 0 {
            empty = resident;
        }
    }
    let mut questions = observe::table();
    for (shape, times) in plan.observe.iter().filter(|_| of("observe")) {
        observe::measure(*shape, &name(*shape), *times, &mut questions);
    }
    let mut paths = traffic::Tables::new();
    if of("path") {
        traffic::measure(plan.traffic, plan.turns, another, &mut paths);
    }
    if of("path") || of("counting") {
        traffic::measure_counting(plan.traffic, 4 * plan.turns, &mut paths.counted);
    }
    let mut by_algorithm = algorithms::table();
    for services in plan.traffic.iter().filter(|_| of("algorithms")) {
        algorithms::measure(*services, 4 * plan.turns, &mut by_algorithm);
    }
    let tables = vec![
        wholes.whole,
        wholes.stages,
        changed.each,
        changed.growth,
        changed.large,
        lives.steady,
        lives.memory,
        wholes.restart,
        by_iptables,
        questions,
        paths.connections,
        paths.counted,
        by_algorithm,
        paths.flows,
    ];
    let tables = tables.into_iter().chain(attacks);
    report.tables = tables.filter(Table::has_rows).collect();
    report
}
