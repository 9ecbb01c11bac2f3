//! The whole state: from objects to rules, stage by stage; and a restart on top of it.

use std::time::{Duration, Instant};

use pointsman::agent::reconciler::{Desired, Proxy};
use pointsman::core::compile::{NodePortAddresses, compile_cluster, compile_known};
use pointsman::core::diff::Engine;
use pointsman::core::model::{Change, Dirty, Family, Node, State};
use pointsman::dataplane::Options;
use pointsman::dataplane::nftables::{Encoder, Nftables, render};

use crate::bare;
use crate::cluster::Shape;
use crate::harness::{Host, NODE};
use crate::output::{Cell, Table};

/// A proxy whose kernel is the host's.
pub type Kernel = Proxy<Nftables>;

/// Up to so many endpoints `nft -f` is worth waiting for.
const NFT: u32 = 250_000;
/// Up to so many Services a chain for each of them is.
const CHAINS: u32 = 5_000;
/// Operations in one transaction, as the backend has it.
const AT_ONCE: usize = 1 << 15;

/// IPv4 only, like the clusters.
pub fn program() -> Options {
    Options {
        families: vec![Family::V4],
        ..Options::default()
    }
}

/// A proxy that has adopted what the current namespace holds.
pub fn start() -> Kernel {
    let backend = Nftables::connect(program()).expect("nftables");
    let desired = Desired::new(Node::named(NODE), NodePortAddresses::Primary);
    Proxy::start(desired, backend).expect("the kernel's state")
}

/// The tables of this part.
pub struct Tables {
    /// The whole state.
    pub whole: Table,
    /// Where its time goes.
    pub stages: Table,
    /// A restart.
    pub restart: Table,
}

impl Tables {
    /// Empty ones.
    pub fn new() -> Self {
        Self {
            whole: Table::new(
                "Whole state",
                "From objects in memory to rules in an empty kernel: compile, diff, encode, send. \"bytes bare\" is the kernel's\n\
                 own time for the same bytes; nft -f loads the same ruleset as text, and a layout with a chain for each Service.\n\
                 Medians of five; one run above 250,000 endpoints, where nft is left out.",
                &[
                    "cluster",
                    "operations",
                    "sent",
                    "whole",
                    "bytes bare",
                    "ratio",
                    "longest",
                    "nft -f",
                    "ratio",
                    "chains",
                    "ratio",
                ],
            ),
            stages: Table::new(
                "Stages",
                "Where the time of the whole state goes. Convert is JSON to model, which happens as objects arrive; state takes the\n\
                 model in.",
                &[
                    "cluster", "JSON", "convert", "state", "compile", "diff", "encode", "kernel",
                ],
            ),
            restart: Table::new(
                "Restart",
                "A new process over the same kernel and the same objects: what is there is read, compared, and nothing is sent.",
                &[
                    "cluster",
                    "read",
                    "compile, compare",
                    "operations sent",
                    "over whole state",
                ],
            ),
        }
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Measures one cluster. Returns the host that holds it.
pub fn measure(shape: Shape, name: &str, tables: &mut Tables) -> (Host, Kernel) {
    let (changes, bytes, converting) = shape.changes();
    let big = shape.all_endpoints() > NFT;
    let stages = Stages::of(&changes);
    let mut host = Host::new();
    let mut rounds = Vec::new();
    let mut bares = Vec::new();
    for _ in 0..if big { 1 } else { 5 } {
        bares.push(bare::send(&Host::new(), stages.transactions.clone()));
        settle(shape);
        host = Host::new();
        let changes = changes.clone();
        let (whole, synced) = host.run(move || {
            let mut proxy = start();
            proxy.take(changes);
            let started = Instant::now();
            let synced = proxy.sync().expect("a sync");
            (started.elapsed(), synced)
        });
        rounds.push((whole, synced.applied));
    }
    rounds.sort_unstable_by_key(|(whole, _)| *whole);
    let (whole, applied) = rounds[rounds.len() / 2];
    let bare = median(bares);
    let ratio = |time: Duration, to: Duration| Cell::Ratio(time.as_secs_f64() / to.as_secs_f64());
    let nft = (!big).then(|| bare::nft(&Host::new(), &stages.ruleset));
    let chains = (shape.services <= CHAINS && shape.services > 1)
        .then(|| bare::nft(&Host::new(), &bare::chain_per_service(shape)));
    tables.whole.row(vec![
        name.into(),
        Cell::Count(applied.operations),
        Cell::Bytes(applied.bytes),
        whole.into(),
        bare.into(),
        ratio(whole, bare),
        applied.longest.into(),
        nft.into(),
        nft.map_or(Cell::None, |nft| ratio(nft, whole)),
        chains.into(),
        chains.map_or(Cell::None, |chains| ratio(chains, whole)),
    ]);
    tables.stages.row(vec![
        name.into(),
        Cell::Bytes(bytes),
        converting.into(),
        stages.state.into(),
        stages.compile.into(),
        stages.diff.into(),
        stages.encode.into(),
        applied.kernel.into(),
    ]);
    let (proxy, read, compare, operations) = host.run(move || {
        let started = Instant::now();
        let mut proxy = start();
        let read = started.elapsed();
        proxy.take(changes);
        let started = Instant::now();
        let synced = proxy.sync().expect("a sync");
        (proxy, read, started.elapsed(), synced.applied.operations)
    });
    assert_eq!(operations, 0, "a restart sends nothing");
    tables.restart.row(vec![
        name.into(),
        read.into(),
        compare.into(),
        Cell::Count(operations),
        ratio(read + compare, whole),
    ]);
    (host, proxy)
}

/// Gives the kernel time to free what the last round left behind, off everybody's way.
fn settle(shape: Shape) {
    std::thread::sleep(Duration::from_micros(u64::from(shape.all_endpoints())));
}

/// The stages, each on its own and without a kernel.
struct Stages {
    state: Duration,
    compile: Duration,
    diff: Duration,
    encode: Duration,
    transactions: Vec<Vec<u8>>,
    ruleset: String,
}

impl Stages {
    fn of(changes: &[Change]) -> Self {
        let changes = changes.to_vec();
        let started = Instant::now();
        let mut state = State::new(Node::named(NODE));
        for change in changes {
            state.apply(change);
        }
        let dirty = state.take_dirty();
        let taken = started.elapsed();

        let started = Instant::now();
        let compiled: Vec<_> = dirty
            .into_iter()
            .map(|Dirty { owner, .. }| {
                let compiled = match owner.service().and_then(|id| state.service(id)) {
                    Some(known) => compile_known(known, state.node()),
                    None => compile_cluster(&state, &NodePortAddresses::Primary),
                };
                (owner, compiled)
            })
            .collect();
        let compile = started.elapsed();

        let mut engine = Engine::default();
        let mut encoder = Encoder::new(program());
        let mut transactions = Vec::new();
        let started = Instant::now();
        for (owner, compiled) in compiled {
            engine.update(owner, Some(compiled));
        }
        let mut diff = started.elapsed();
        let mut encode = Duration::ZERO;
        while !engine.is_settled() {
            let started = Instant::now();
            let pending = engine.pending_up_to(AT_ONCE);
            diff += started.elapsed();
            let started = Instant::now();
            transactions.push(encoder.transaction(pending.delta()));
            encode += started.elapsed();
            let started = Instant::now();
            engine.commit(pending);
            diff += started.elapsed();
        }
        Self {
            state: taken,
            compile,
            diff,
            encode,
            transactions,
            ruleset: render(&program(), &engine.wanted_entries()),
        }
    }
}
