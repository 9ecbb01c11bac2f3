//! iptables mode by either variant: whole, one change, a restart; beside the bare tool with the same text.

use std::time::{Duration, Instant};

use pointsman::agent::reconciler::{Desired, Proxy};
use pointsman::core::compile::NodePortAddresses;
use pointsman::core::model::Node;
use pointsman::dataplane::Backend;
use pointsman::dataplane::iptables::{Iptables, render};

use crate::bare;
use crate::cluster::{Reader, Shape};
use crate::harness::{Host, NODE};
use crate::output::{Cell, Table};
use crate::whole::program;

/// The variants of the tools.
pub const VARIANTS: [&str; 2] = ["nft", "legacy"];

/// A proxy whose rules are written by the variant that a host uses.
pub type Kernel = Proxy<Iptables>;

/// Whether this kernel has a variant.
pub fn has(variant: &str) -> bool {
    Host::new()
        .try_sh(&format!("iptables-{variant}-save -t nat"))
        .0
}

/// Has a host use a variant, as the kubelet says it.
pub fn hint(host: &Host, variant: &str) {
    host.sh(&format!(
        "iptables-{variant} -w -t mangle -N KUBE-IPTABLES-HINT"
    ));
}

/// A proxy that has read what the current namespace holds.
pub fn start() -> Kernel {
    let backend = Iptables::open(program()).expect("iptables");
    let desired = Desired::new(Node::named(NODE), NodePortAddresses::Primary);
    Proxy::start(desired, backend).expect("the kernel's state")
}

/// An empty table of this part.
pub fn table() -> Table {
    Table::new(
        "iptables mode",
        "From objects in memory to rules; \"bare\" is iptables-restore with the same text. A change is one endpoint replaced;\n\
         \"bare\" beside it is iptables-restore with one rule in an own chain, and what that costs is the tool's and the kernel's.\n\
         Medians. A restart reads, compares, and sends nothing.",
        &[
            "cluster", "variant", "rules", "whole", "bare", "ratio", "changes", "change", "bare",
            "ratio", "restart",
        ],
    )
}

fn timed(job: impl FnOnce()) -> Duration {
    let started = Instant::now();
    job();
    started.elapsed()
}

/// Measures one cluster, with so many changes.
pub fn measure(shape: Shape, name: &str, changes: u32, table: &mut Table) {
    for variant in VARIANTS.into_iter().filter(|variant| has(variant)) {
        let host = Host::new();
        hint(&host, variant);
        let (all, ..) = shape.changes();
        let load = all.clone();
        let (mut proxy, whole, text) = host.run(move || {
            let mut proxy = start();
            proxy.take(load);
            let whole = timed(|| {
                let _ = proxy.sync().expect("a sync");
            });
            let entries = proxy.desired().engine().wanted_entries();
            let text = render(&program(), &entries);
            (proxy, whole, text)
        });
        let restore = format!("iptables-{variant}-restore --noflush");
        let empty = Host::new();
        let bare = timed(|| bare::restore(&empty, &restore, &text));
        drop(empty);

        let replaced = |round: u32| {
            let service = round.wrapping_mul(2_654_435_761) % shape.services;
            let others = 1..shape.endpoints.min(100);
            Reader::default().read(&shape.slice(
                service,
                0,
                others.chain([shape.endpoints + round]),
            ))
        };
        let changed: Vec<_> = (0..changes).map(replaced).collect();
        let mut times: Vec<Duration> = host.run(move || {
            let one = |change| {
                proxy.take([change]);
                timed(|| {
                    let _ = proxy.sync().expect("a sync");
                })
            };
            changed.into_iter().map(one).collect()
        });
        let one_rule = "*nat\n:OTHER - [0:0]\n-A OTHER -j RETURN\nCOMMIT\n";
        let mut bares: Vec<Duration> = (0..changes)
            .map(|_| timed(|| bare::restore(&host, &restore, one_rule)))
            .collect();
        times.sort_unstable();
        bares.sort_unstable();
        let (change, bare_change) = (times[times.len() / 2], bares[bares.len() / 2]);

        // Objects that are as they were: what was changed is changed back by it.
        let back = all.clone();
        host.run(move || {
            let mut proxy = start();
            proxy.take(back);
            proxy.sync().expect("a sync");
        });
        let (restart, operations) = host.run(move || {
            let started = Instant::now();
            let mut proxy = start();
            proxy.take(all);
            let synced = proxy.sync().expect("a sync");
            (started.elapsed(), synced.applied.operations)
        });
        assert_eq!(operations, 0, "a restart sends nothing");
        let ratio =
            |time: Duration, to: Duration| Cell::Ratio(time.as_secs_f64() / to.as_secs_f64());
        table.row(vec![
            name.into(),
            variant.into(),
            Cell::Count(text.lines().count()),
            whole.into(),
            bare.into(),
            ratio(whole, bare),
            Cell::Count(changes as usize),
            change.into(),
            bare_change.into(),
            ratio(change, bare_change),
            restart.into(),
        ]);
    }
}
