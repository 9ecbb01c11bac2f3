//! `make bench`: what pointsman costs at scale, beside the alternatives, as one report.
//!
//! As root; every measurement has network namespaces of its own. Every figure stands beside a
//! baseline that was taken in the same run: machines differ, and a machine differs from itself.
//! Without cargo's `--bench`, as under `cargo test`, everything is done once on small clusters, to
//! see that it works.
//!
//! `--json PATH` writes the figures there too. `whole`, `live` and `path` measure that part alone:
//! whole states and changes, the program beside an API server, the data path.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a benchmark ends where it fails"
)]

#[path = "../../tests/it/api_server/mod.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod api_server;
mod bare;
mod changes;
mod cluster;
#[path = "../../tests/it/harness.rs"]
mod harness;
mod live;
#[path = "../../tests/it/objects.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod objects;
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
    live: &'static [(u32, u32, Effort)],
    traffic: &'static [u32],
    connections: usize,
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
    traffic: &[100, 20_000],
    connections: 10_000,
};

const SMALL: Plan = Plan {
    whole: &[(50, 3, true), (1, 300, false)],
    changes: 10,
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
    traffic: &[10],
    connections: 100,
};

const PARTS: [&str; 3] = ["whole", "live", "path"];

fn main() {
    if !harness::have_root("the benchmark") {
        return;
    }
    let arguments: Vec<String> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let plan = if has("--bench") { FULL } else { SMALL };
    let parts: Vec<&str> = PARTS.into_iter().filter(|part| has(part)).collect();
    let report = run(&plan, if parts.is_empty() { &PARTS } else { &parts });
    println!("{}", report.text());
    if let Some(at) = arguments.iter().position(|argument| argument == "--json") {
        let path = arguments.get(at + 1).expect("a path after --json");
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

fn run(plan: &Plan, parts: &[&str]) -> Report {
    let of = |part| parts.contains(&part);
    let mut report = Report::new();
    let mut wholes = whole::Tables::new();
    let mut changed = changes::table();
    let clusters = plan.whole.iter().filter(|_| of("whole"));
    for (services, endpoints, changes) in clusters {
        let shape = Shape {
            services: *services,
            endpoints: *endpoints,
        };
        let (host, proxy) = whole::measure(shape, &name(shape), &mut wholes);
        if *changes {
            changed = changes::measure(&host, shape, &name(shape), proxy, plan.changes, changed);
        }
    }
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
    let mut path = traffic::table();
    for services in plan.traffic.iter().filter(|_| of("path")) {
        traffic::measure(*services, plan.connections, &mut path);
    }
    let tables = vec![
        wholes.whole,
        wholes.stages,
        changed,
        lives.steady,
        lives.memory,
        wholes.restart,
        path,
    ];
    report.tables = tables.into_iter().filter(Table::has_rows).collect();
    report
}
