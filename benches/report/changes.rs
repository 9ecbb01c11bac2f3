//! Changes, one at a time and many at once: from the event in hand to the committed transaction.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use pointsman::agent::reconciler::Synced;
use pointsman::core::model::Change;

use crate::Plan;
use crate::cluster::{Reader, Shape, service_gone};
use crate::harness::Host;
use crate::output::{Cell, Table, quantiles};
use crate::whole::Kernel;

/// Services that lose an endpoint when a node is drained.
const DRAINED: u32 = 1000;
/// Endpoints of the Service that is rolled out.
const ROLLED: u32 = 1000;

/// The tables of this part.
pub struct Tables {
    /// Each kind of change in each cluster.
    pub each: Table,
    /// How its cost grows with the cluster.
    pub growth: Table,
    /// One endpoint of Services of different sizes.
    pub large: Table,
}

impl Tables {
    /// Empty ones.
    pub fn new() -> Self {
        Self {
            each: Table::new(
                "Changes",
                "From the event in hand to the committed transaction, one transaction for each; the clusters take turns. The ratio\n\
                 is to the kernel's own time for the same bytes; CPU is the process's, system calls included, for each change.",
                &[
                    "cluster",
                    "change",
                    "times",
                    "operations",
                    "bytes",
                    "median",
                    "p99",
                    "kernel med.",
                    "kernel p99",
                    "ratio",
                    "CPU",
                ],
            ),
            growth: Table::new(
                "How changes grow with the cluster",
                "The medians of the table above, and each cluster's over the first one's.",
                &["change", "cluster", "median", "over the first"],
            ),
            large: Table::new(
                "One endpoint replaced, by the size of its Service",
                "Rows with as many endpoints in all find as little of them in the CPU's caches. \"own\" is the time outside\n\
                 the kernel, and what the ratio is of: to that of the first row.",
                &[
                    "Services",
                    "endpoints of each",
                    "times",
                    "operations",
                    "median",
                    "p99",
                    "kernel med.",
                    "own med.",
                    "ratio",
                ],
            ),
        }
    }
}

/// What was seen of one kind of change.
#[derive(Default)]
struct Samples {
    seen: Vec<(Duration, Synced)>,
    cpu: Duration,
}

/// A cluster that is loaded.
pub struct Loaded {
    /// Its size.
    pub shape: Shape,
    /// What it is called.
    pub name: String,
    /// What has loaded it.
    pub proxy: Kernel,
    /// Whose kernel it is.
    pub host: Host,
}

struct Bench {
    shape: Shape,
    cluster: String,
    proxy: Kernel,
    reader: Reader,
    // Until the measurement ends.
    _host: Host,
}

/// One kind of change, a number of times.
struct Kind {
    what: &'static str,
    /// What comes before and is not measured.
    before: Vec<Change>,
    changes: Vec<Vec<Change>>,
}

impl Kind {
    fn new(what: &'static str, changes: Vec<Vec<Change>>) -> Self {
        Self {
            what,
            before: Vec::new(),
            changes,
        }
    }
}

/// Into how many parts the changes of a kind are divided, so that clusters take turns: a machine
/// differs from itself a minute later.
const TURNS: usize = 10;

/// Measures changes to clusters.
pub fn measure(clusters: Vec<Loaded>, plan: &Plan) -> Tables {
    let mut tables = Tables::new();
    let benches = clusters.into_iter().map(|loaded| Bench {
        shape: loaded.shape,
        cluster: loaded.name,
        proxy: loaded.proxy,
        reader: Reader::default(),
        _host: loaded.host,
    });
    let mut benches: Vec<Bench> = benches.collect();
    let mut rows: Vec<Vec<_>> = benches.iter().map(|_| Vec::new()).collect();
    let kinds: Vec<Vec<Kind>> = benches
        .iter_mut()
        .map(|bench| bench.kinds(plan.changes))
        .collect();
    let mut kinds: Vec<_> = kinds.into_iter().map(Vec::into_iter).collect();
    loop {
        let of_each: Vec<Kind> = kinds.iter_mut().filter_map(Iterator::next).collect();
        let Some(what) = of_each.first().map(|kind| kind.what) else {
            break;
        };
        let seen = turns(&mut benches, of_each);
        let mut first = None;
        for ((bench, samples), rows) in benches.iter().zip(seen).zip(&mut rows) {
            let (row, median) = bench.row(what, samples);
            rows.push(row);
            let first = *first.get_or_insert(median.as_secs_f64());
            tables.growth.row(vec![
                what.into(),
                bench.cluster.clone().into(),
                median.into(),
                Cell::Ratio(median.as_secs_f64() / first),
            ]);
        }
    }
    for row in rows.into_iter().flatten() {
        tables.each.row(row);
    }
    // In one cluster: it is the Service's size that counts.
    if let Some(bench) = benches.first_mut() {
        bench.large(plan.large, plan.changes, &mut tables.large);
    }
    tables
}

/// Makes the changes of one kind, some in each cluster and then some more.
fn turns(benches: &mut [Bench], kinds: Vec<Kind>) -> Vec<Samples> {
    let mut left = Vec::new();
    for (bench, kind) in benches.iter_mut().zip(kinds) {
        if !kind.before.is_empty() {
            bench.time([kind.before]);
        }
        let each = kind.changes.len().div_ceil(TURNS);
        left.push((each, kind.changes.into_iter(), Samples::default()));
    }
    for _ in 0..TURNS {
        for (bench, (each, changes, samples)) in benches.iter_mut().zip(&mut left) {
            let some = bench.time(changes.take(*each));
            samples.seen.extend(some.seen);
            samples.cpu += some.cpu;
        }
    }
    left.into_iter().map(|(.., samples)| samples).collect()
}

impl Bench {
    /// Services far apart, each only once.
    fn victim(&self, round: u32) -> u32 {
        round.wrapping_mul(7919) % self.shape.services
    }

    fn time(&mut self, changes: impl IntoIterator<Item = Vec<Change>>) -> Samples {
        let mut samples = Samples::default();
        for change in changes {
            let cpu = cpu();
            let started = Instant::now();
            self.proxy.take(change);
            let synced = self.proxy.sync().expect("a sync");
            samples.seen.push((started.elapsed(), synced));
            samples.cpu += self::cpu() - cpu;
            // As the sync loop does in quiet moments, but off the clock: chains that nobody has
            // any more are taken away.
            self.proxy.tidy();
        }
        samples
    }

    /// Its changes, kind by kind, in the order in which they have to be.
    fn kinds(&mut self, times: u32) -> Vec<Kind> {
        let mut kinds = self.endpoints(times);
        kinds.extend(self.services(times));
        kinds.push(self.drain());
        kinds.push(self.rolling_update());
        kinds
    }

    fn row(&self, what: &str, samples: Samples) -> (Vec<Cell>, Duration) {
        let times = samples.seen.len();
        let most = |of: fn(&Synced) -> usize| {
            let each = samples.seen.iter().map(|(_, synced)| of(synced));
            each.max().unwrap_or_default()
        };
        let operations = most(|synced| synced.applied.operations);
        let bytes = most(|synced| synced.applied.bytes);
        let (whole, kernel): (Vec<Duration>, Vec<Duration>) = samples
            .seen
            .into_iter()
            .map(|(whole, synced)| (whole, synced.applied.kernel))
            .unzip();
        let (median, p99) = quantiles(whole);
        let (kernel_median, kernel_p99) = quantiles(kernel);
        let row = vec![
            self.cluster.clone().into(),
            what.into(),
            Cell::Count(times),
            Cell::Count(operations),
            Cell::Bytes(bytes),
            median.into(),
            p99.into(),
            kernel_median.into(),
            kernel_p99.into(),
            Cell::Ratio(median.as_secs_f64() / kernel_median.as_secs_f64()),
            (samples.cpu / u32::try_from(times).unwrap_or(1).max(1)).into(),
        ];
        (row, median)
    }

    /// The only slice of a Service, with these endpoints.
    fn slice(&mut self, service: u32, endpoints: impl Iterator<Item = u32>) -> Change {
        let text = self.shape.slice(service, 0, endpoints);
        self.reader.read(&text)
    }

    fn endpoints(&mut self, times: u32) -> Vec<Kind> {
        let all = self.shape.endpoints;
        let steps: [(_, fn(u32) -> std::ops::Range<u32>); 3] = [
            ("endpoint replaced", |all| 1..all + 1),
            ("endpoint removed", |all| 1..all),
            ("endpoint added", |all| 0..all),
        ];
        let kinds = steps.into_iter().map(|(what, endpoints)| {
            let changes =
                (0..times).map(|round| vec![self.slice(self.victim(round), endpoints(all))]);
            Kind::new(what, changes.collect())
        });
        kinds.collect()
    }

    fn services(&mut self, times: u32) -> Vec<Kind> {
        let all = self.shape.endpoints;
        let victims: Vec<u32> = (0..times).map(|round| self.victim(round)).collect();
        let mut service = |of: &dyn Fn(u32) -> String| -> Vec<Vec<Change>> {
            let texts = victims.iter().map(|index| of(*index));
            texts.map(|text| vec![self.reader.read(&text)]).collect()
        };
        let shaped = service(&|index| Shape::service(index, Some(600)));
        let local = service(&|index| {
            let policy = (
                r#""internalTrafficPolicy":"Cluster""#,
                r#""internalTrafficPolicy":"Local""#,
            );
            Shape::service(index, None).replace(policy.0, policy.1)
        });
        let plain = service(&|index| Shape::service(index, None));
        let gone: Vec<Vec<Change>> = victims
            .iter()
            .map(|index| vec![service_gone(*index)])
            .collect();
        let mut slices = |endpoints: std::ops::Range<u32>| -> Vec<Vec<Change>> {
            let slices = victims.iter();
            slices
                .map(|index| {
                    let text = self.shape.slice(*index, 0, endpoints.clone());
                    vec![self.reader.read(&text)]
                })
                .collect()
        };
        let (few, more, as_before) = (slices(0..4), slices(0..9), slices(0..all));
        [
            ("Service re-shaped: affinity on", shaped),
            ("Service re-shaped: affinity off", plain.clone()),
            ("Service re-shaped: policy Local", local),
            ("Service re-shaped: policy Cluster", plain.clone()),
            ("Service re-shaped: to 4 endpoints", few),
            ("Service re-shaped: from 4 to 9 endpoints", more),
            ("Service re-shaped: back to all endpoints", as_before),
            ("Service removed", gone),
            ("Service added", plain),
        ]
        .map(|(what, changes)| Kind::new(what, changes))
        .into()
    }

    /// One endpoint replaced in Services of different sizes, somewhere among all endpoints of the row.
    fn large(&mut self, shapes: &[Shape], times: u32, table: &mut Table) {
        let mut baseline = None;
        let mut first = self.shape.services;
        for shape in shapes {
            first += 1;
            let mut load = Vec::new();
            for service in 0..shape.services {
                load.push(self.reader.read(&Shape::service(first + service, None)));
                for (part, endpoints) in shape.parts() {
                    let text = shape.slice_of(first + service, service, part, endpoints);
                    load.push(self.reader.read(&text));
                }
            }
            self.time([load]);
            let all = shape.all_endpoints();
            // Which endpoint is at each place: each has as many again in reserve.
            let mut now: Vec<u32> = (0..all).map(|place| place % shape.endpoints).collect();
            let steps: Vec<Vec<Change>> = (0..times)
                .map(|round| {
                    let place = round.wrapping_mul(7919) % all;
                    let (service, place) = (place / shape.endpoints, place % shape.endpoints);
                    let from = (service * shape.endpoints) as usize;
                    let known = &mut now[from + place as usize];
                    *known = (*known + shape.endpoints) % (2 * shape.endpoints);
                    let mut parts = shape.parts();
                    let (part, all) = parts
                        .find(|(_, all)| all.contains(&place))
                        .expect("a slice");
                    let all = all.map(|place| now[from + place as usize]);
                    let text = shape.slice_of(first + service, service, part, all);
                    vec![self.reader.read(&text)]
                })
                .collect();
            let samples = self.time(steps);
            let gone = (0..shape.services).map(|service| service_gone(first + service));
            self.time([gone.collect()]);
            first += shape.services;
            let operations = samples.seen.iter().map(|(_, seen)| seen.applied.operations);
            let operations = operations.max().unwrap_or_default();
            let (whole, kernel): (Vec<Duration>, Vec<Duration>) = samples
                .seen
                .into_iter()
                .map(|(whole, synced)| (whole, synced.applied.kernel))
                .unzip();
            let own = whole.iter().zip(&kernel);
            let own = own.map(|(whole, kernel)| whole.saturating_sub(*kernel));
            let (own, _) = quantiles(own.collect());
            let baseline = *baseline.get_or_insert(own.as_secs_f64());
            let (median, p99) = quantiles(whole);
            table.row(vec![
                Cell::Count(shape.services as usize),
                Cell::Count(shape.endpoints as usize),
                Cell::Count(times as usize),
                Cell::Count(operations),
                median.into(),
                p99.into(),
                quantiles(kernel).0.into(),
                own.into(),
                Cell::Ratio(own.as_secs_f64() / baseline),
            ]);
        }
    }

    fn drain(&mut self) -> Kind {
        let all = self.shape.endpoints;
        let victims: Vec<u32> = (0..DRAINED.min(self.shape.services)).collect();
        let mut both = Vec::new();
        for _ in 0..5 {
            for endpoints in [1..all, 0..all] {
                let slices = victims.iter();
                both.push(
                    slices
                        .map(|index| self.slice(*index, endpoints.clone()))
                        .collect(),
                );
            }
        }
        Kind::new("node drained, and back: 1,000 endpoints", both)
    }

    /// A Service of 1,000 endpoints, replaced one by one.
    fn rolling_update(&mut self) -> Kind {
        let index = self.shape.services;
        let shape = Shape {
            services: 1,
            endpoints: ROLLED,
        };
        let mut read = |text: String| self.reader.read(&text);
        let mut first = vec![read(Shape::service(index, None))];
        first.extend(
            shape
                .parts()
                .map(|(part, endpoints)| read(shape.slice(index, part, endpoints))),
        );
        // Where each place of the Service has got to: the new endpoint is there, or the old one.
        let steps: Vec<Vec<Change>> = (0..ROLLED)
            .map(|step| {
                let (part, endpoints) = shape.parts().nth(step as usize / 100).expect("a slice");
                let now = endpoints.map(|place| if place <= step { place + ROLLED } else { place });
                vec![read(shape.slice(index, part, now))]
            })
            .collect();
        Kind {
            what: "rolling update of 1,000 endpoints, each step",
            before: first,
            changes: steps,
        }
    }
}

/// The CPU time of this process.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
