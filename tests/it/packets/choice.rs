//! The choice among an exact list of endpoints, with real connections.

use super::*;

/// Services of 1 to 100 endpoints; each draws ten times as often as it has endpoints.
const MOST: u8 = 100;
const TIMES: u32 = 10;

/// What chi-squared with this many degrees of freedom exceeds with a probability of one in a
/// hundred million (Wilson and Hilferty's approximation).
fn critical(freedom: f64) -> f64 {
    const DEVIATIONS: f64 = 5.612;
    let part = 2.0 / (9.0 * freedom);
    freedom * (1.0 - part + DEVIATIONS * part.sqrt()).powi(3)
}

/// Pods by their numbers: 99 on the node, and one on the other.
fn pods(count: u8) -> Vec<u8> {
    let all = (1..100).chain([101]);
    all.take(usize::from(count)).collect()
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e7_the_choice_is_uniform_among_1_to_100_endpoints() {
    let objects = (1..=MOST).flat_map(|count| {
        let name = format!("of-{count}");
        let slices = slices(&name, "TCP", &pods(count));
        with(cluster_service(&name, count), slices)
    });
    let site = Site::new(objects.collect(), &[]);
    let runs: Vec<_> = BOTH
        .into_iter()
        .map(|net| {
            let family = net.name;
            let job = site.world.pod.spawn(move || {
                // Chi-squared of each Service.
                let mut statistics: Vec<(u8, f64)> = Vec::new();
                for count in 1..=MOST {
                    let target = at(&net.cluster_ip(count), 80);
                    let among = net.endpoints(&pods(count));
                    let mut reached: BTreeMap<SocketAddr, u32> = BTreeMap::new();
                    for _ in 0..u32::from(count) * TIMES {
                        let endpoint = connect(None, target).expect("a connection").endpoint;
                        assert!(among.contains(&endpoint), "{target} reached {endpoint}");
                        *reached.entry(endpoint).or_default() += 1;
                    }
                    let expected = f64::from(TIMES);
                    let statistic = among
                        .iter()
                        .map(|endpoint| {
                            let times = reached.get(endpoint).copied().unwrap_or_default();
                            (f64::from(times) - expected).powi(2) / expected
                        })
                        .sum();
                    statistics.push((count, statistic));
                }
                statistics
            });
            (family, job)
        })
        .collect();
    for (family, job) in runs {
        let statistics = job.join().expect("connections");
        for (count, statistic) in statistics.iter().filter(|(count, _)| *count > 1) {
            assert!(
                *statistic < critical(f64::from(*count - 1)),
                "{family}, {count} endpoints: {statistic}"
            );
        }
        // A little in every Service adds up.
        let sum: f64 = statistics.iter().map(|(_, statistic)| statistic).sum();
        let freedom: f64 = (1..=MOST).map(|count| f64::from(count - 1)).sum();
        println!("{family}: chi-squared {sum:.0} of {freedom} degrees of freedom");
        assert!(sum < critical(freedom), "{family}: {sum}");
    }
}
