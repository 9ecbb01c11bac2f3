//! What the authors of Services may do to a node: each attack in an empty kernel.

use std::time::{Duration, Instant};

use crate::harness::Host;
use crate::hostile::{Attack, Tenant, attacks};
use crate::output::{Cell, Table};
use crate::whole::start;

/// Services of the baseline.
const PLAIN: u32 = 5_000;

/// What a number of syncs came to.
#[derive(Default)]
struct Sum {
    operations: usize,
    transactions: usize,
    largest: usize,
    longest: Duration,
    kernel: Duration,
    whole: Duration,
}

fn run(attack: Attack) -> Sum {
    Host::new().run(move || {
        let mut proxy = start();
        proxy.sync().expect("a first sync");
        let mut sum = Sum::default();
        for changes in std::iter::once(attack.load).chain(attack.changes) {
            proxy.take(changes);
            let started = Instant::now();
            let synced = proxy.sync().expect("a sync");
            sum.whole += started.elapsed();
            let applied = synced.applied;
            sum.operations += applied.operations;
            sum.transactions += applied.transactions;
            sum.largest = sum.largest.max(applied.largest);
            sum.longest = sum.longest.max(applied.longest);
            sum.kernel += applied.kernel;
            proxy.tidy();
        }
        sum
    })
}

/// Every attack, divided by a number where there is no time for it.
pub fn measure(divided_by: u32) -> Table {
    let mut table = Table::new(
        "Attacks by a Service's author",
        "Loaded, changed and taken away again, in an empty kernel. \"largest\" and \"longest\" are of one transaction; the ratio is\n\
         of the whole time for an operation to that of the first row, which is no attack.",
        &[
            "attack",
            "operations",
            "transactions",
            "largest",
            "longest",
            "kernel",
            "whole",
            "ratio",
        ],
    );
    let plain: Vec<Tenant> = (0..PLAIN / divided_by)
        .map(|index| Tenant::new(index, 1))
        .collect();
    let plain = Attack {
        name: "5,000 plain Services",
        load: plain.iter().flat_map(Tenant::objects).collect(),
        changes: vec![plain.iter().flat_map(Tenant::gone).collect()],
    };
    let mut baseline = None;
    for attack in std::iter::once(plain).chain(attacks(divided_by)) {
        let name = attack.name;
        let sum = run(attack);
        let each = sum.whole.as_secs_f64() / sum.operations.max(1) as f64;
        let baseline = *baseline.get_or_insert(each);
        table.row(vec![
            name.into(),
            Cell::Count(sum.operations),
            Cell::Count(sum.transactions),
            Cell::Count(sum.largest),
            sum.longest.into(),
            sum.kernel.into(),
            sum.whole.into(),
            Cell::Ratio(each / baseline),
        ]);
    }
    table
}
