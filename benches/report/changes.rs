//! Changes, one at a time and many at once: from the event in hand to the committed transaction.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use pointsman::model::Change;
use pointsman::proxy::Synced;

use crate::cluster::{Reader, Shape, service_gone};
use crate::harness::Host;
use crate::output::{Cell, Table, quantiles};
use crate::whole::Kernel;

/// Services that lose an endpoint when a node is drained.
const DRAINED: u32 = 1000;
/// Endpoints of the Service that is rolled out.
const ROLLED: u32 = 1000;

/// An empty table.
pub fn table() -> Table {
    Table::new(
        "Changes",
        "From the event in hand to the committed transaction, one transaction for each. The ratio is to the kernel's own\n\
         time for the same bytes; CPU is the process's, system calls included, for each change.",
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
    )
}

/// What was seen of one kind of change.
struct Samples {
    seen: Vec<(Duration, Synced)>,
    cpu: Duration,
}

struct Bench<'a> {
    shape: Shape,
    cluster: &'a str,
    proxy: Kernel,
    reader: Reader,
}

/// Measures changes to a cluster that is loaded; each of the quick ones so many times.
pub fn measure(
    host: &Host,
    shape: Shape,
    cluster: &str,
    proxy: Kernel,
    times: u32,
    mut table: Table,
) -> Table {
    let cluster = cluster.to_owned();
    host.run(move || {
        let mut bench = Bench {
            shape,
            cluster: &cluster,
            proxy,
            reader: Reader::default(),
        };
        bench.endpoints(times, &mut table);
        bench.services(times, &mut table);
        bench.drain(&mut table);
        bench.rolling_update(&mut table);
        table
    })
}

impl Bench<'_> {
    /// Services far apart, each only once.
    fn victim(&self, round: u32) -> u32 {
        round.wrapping_mul(7919) % self.shape.services
    }

    fn time(&mut self, changes: impl IntoIterator<Item = Vec<Change>>) -> Samples {
        let mut samples = Samples {
            seen: Vec::new(),
            cpu: Duration::ZERO,
        };
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

    fn report(&self, what: &str, samples: Samples, table: &mut Table) {
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
        table.row(vec![
            self.cluster.into(),
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
        ]);
    }

    /// The only slice of a Service, with these endpoints.
    fn slice(&mut self, service: u32, endpoints: impl Iterator<Item = u32>) -> Change {
        let text = self.shape.slice(service, 0, endpoints);
        self.reader.read(&text)
    }

    fn endpoints(&mut self, times: u32, table: &mut Table) {
        let all = self.shape.endpoints;
        let steps: [(&str, fn(u32) -> std::ops::Range<u32>); 3] = [
            ("endpoint replaced", |all| 1..all + 1),
            ("endpoint removed", |all| 1..all),
            ("endpoint added", |all| 0..all),
        ];
        for (what, endpoints) in steps {
            let changes: Vec<Vec<Change>> = (0..times)
                .map(|round| vec![self.slice(self.victim(round), endpoints(all))])
                .collect();
            let samples = self.time(changes);
            self.report(what, samples, table);
        }
    }

    fn services(&mut self, times: u32, table: &mut Table) {
        let victims: Vec<u32> = (0..times).map(|round| self.victim(round)).collect();
        let mut read = |affinity| -> Vec<Vec<Change>> {
            let texts = victims.iter().map(|index| Shape::service(*index, affinity));
            texts.map(|text| vec![self.reader.read(&text)]).collect()
        };
        let (shaped, back) = (read(Some(600)), read(None));
        let gone: Vec<Vec<Change>> = victims
            .iter()
            .map(|index| vec![service_gone(*index)])
            .collect();
        for (what, changes) in [
            ("Service re-shaped (affinity)", shaped),
            ("Service shaped back", back.clone()),
            ("Service removed", gone),
            ("Service added", back),
        ] {
            let samples = self.time(changes);
            self.report(what, samples, table);
        }
    }

    fn drain(&mut self, table: &mut Table) {
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
        let samples = self.time(both);
        self.report("node drained, and back: 1,000 endpoints", samples, table);
    }

    /// A Service of 1,000 endpoints, replaced one by one.
    fn rolling_update(&mut self, table: &mut Table) {
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
        self.time([first]);
        let samples = self.time(steps);
        self.report(
            "rolling update of 1,000 endpoints, each step",
            samples,
            table,
        );
    }
}

/// The CPU time of this process.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
