//! Endpoints that do not answer, because their node's link is down.

use std::sync::Mutex;
use std::time::Instant;

use super::*;
use crate::harness::eventually_within;

/// New connections a second, where the machine has the time.
const RATE: u32 = 300;
/// Whoever waits for longer has met an endpoint that does not answer.
const LONG: Duration = Duration::from_millis(700);

/// When a connection began, how long it took, and whether it came to be.
type Ended = (Duration, Duration, bool);

/// Clients that begin connections at a rate, each for itself.
struct Rush {
    stop: Arc<AtomicBool>,
    began: Instant,
    ended: Arc<Mutex<Vec<Ended>>>,
    clients: JoinHandle<()>,
}

impl Rush {
    fn start(host: &Host, targets: Vec<SocketAddr>) -> Self {
        let stop: Arc<AtomicBool> = Arc::default();
        let ended: Arc<Mutex<Vec<Ended>>> = Arc::default();
        let began = Instant::now();
        let (stopped, all) = (Arc::clone(&stop), Arc::clone(&ended));
        let clients = host.spawn(move || {
            let mut number: u32 = 0;
            let mut due = began.elapsed();
            let mut running = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let target = targets[number as usize % targets.len()];
                let all = Arc::clone(&all);
                running.push(std::thread::spawn(move || {
                    let start = began.elapsed();
                    let result = connect_within(None, target, Duration::from_secs(4));
                    let took = began.elapsed() - start;
                    all.lock().unwrap().push((start, took, result.is_ok()));
                }));
                number += 1;
                running.retain(|client| !client.is_finished());
                // What was missed is not made up for: all of it at once would wait for each other.
                due = (due + Duration::from_secs(1) / RATE).max(began.elapsed());
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
            for client in running {
                let _ = client.join();
            }
        });
        Self {
            stop,
            began,
            ended,
            clients,
        }
    }

    /// How many that began within a time have failed, or had to wait; and how many there were.
    fn bad(&self, from: Duration, to: Duration) -> (usize, usize, usize) {
        let ended = self.ended.lock().unwrap();
        let within = || {
            ended
                .iter()
                .filter(|(start, ..)| (from..to).contains(start))
        };
        let failed = within().filter(|(.., came)| !came).count();
        let waited = within()
            .filter(|(_, took, came)| *came && *took >= LONG)
            .count();
        (failed, waited, within().count())
    }

    /// When the last one began that failed or had to wait.
    fn last_bad(&self) -> Option<Duration> {
        let ended = self.ended.lock().unwrap();
        let bad = ended
            .iter()
            .filter(|(_, took, came)| !came || *took >= LONG);
        bad.map(|(start, ..)| *start).max()
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.join().expect("clients");
    }
}

/// Takes the other node's link down. Returns what brings it up again, and what was routed by it.
fn link_down(peer: &Host) -> String {
    peer.sh("sysctl -qw net.ipv6.conf.eth0.keep_addr_on_down=1");
    let routes = [("-4", "ip -4 route show"), ("-6", "ip -6 route show")]
        .into_iter()
        .flat_map(|(family, command)| {
            let routes = peer.sh(command);
            let routes = routes.lines().filter(|route| route.contains(" via "));
            let words = |route: &str| -> Vec<String> {
                route
                    .split_whitespace()
                    .take(3)
                    .map(str::to_owned)
                    .collect()
            };
            routes
                .map(|route| format!("ip {family} route replace {}", words(route).join(" ")))
                .collect::<Vec<_>>()
        });
    let up: Vec<String> = std::iter::once("ip link set eth0 up".to_owned())
        .chain(routes)
        .collect();
    peer.sh("ip link set eth0 down");
    up.join("\n")
}

fn site(ejects: &str) -> Site {
    let service = cluster_service("web", 10).set(
        "/metadata/annotations",
        json!({"pointsman.io/ejection": ejects}),
    );
    Site::new(
        with(service, slices("web", "TCP", &[11, 12, 13, 14, 111])),
        &[],
    )
}

fn targets() -> Vec<SocketAddr> {
    tested().map(|net| at(&net.cluster_ip(10), 80)).collect()
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn p7_an_endpoint_that_does_not_answer_is_passed_over_until_it_does() {
    let site = site("true");
    let families = targets().len() as f64;
    let node = &site.world.node;
    let ejected = || metric(node, "pointsman_ejected_endpoints");
    let rush = Rush::start(&site.world.pod, targets());
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(ejected(), 0.0, "nobody is to blame");
    let looking = || metric(node, "pointsman_connection_looks_seconds_total");
    let (at_first, measured) = (looking(), Instant::now());
    std::thread::sleep(Duration::from_secs(5));
    let share = (looking() - at_first) / measured.elapsed().as_secs_f64();
    let cut = rush.began.elapsed();
    let up = link_down(&site.world.peer);
    eventually("the endpoint is passed over", || ejected() == families);
    let out = rush.began.elapsed();
    let question = at(&V4.cluster_ip(10), 80).to_string();
    if without() != Some("IPv4") {
        let (_, text) = site.process.command("explain", &[&question]);
        assert!(text.contains("does not answer"), "{text}");
    }
    std::thread::sleep(Duration::from_secs(8));
    let mended = rush.began.elapsed();
    site.world.peer.sh(&up);
    eventually("it is used again", || ejected() == 0.0);
    let back = rush.began.elapsed();
    std::thread::sleep(Duration::from_secs(1));
    let last = rush
        .last_bad()
        .expect("somebody who began just when the link went down");
    let (failed, waited, all) = rush.bad(cut, mended);
    let (failed_later, waited_later, later) = rush.bad(out + LONG, mended);
    println!(
        "passed over {:.2} s after the link went down, used again {:.2} s after it came up; \
         the last connection that failed or waited began after {:.2} s; of {all} meanwhile {failed} failed and \
         {waited} waited; looking took {:.2} % of the time before",
        (out - cut).as_secs_f64(),
        (back - mended).as_secs_f64(),
        last.saturating_sub(cut).as_secs_f64(),
        share * 100.0,
    );
    rush.end();
    assert!(later > 0);
    assert_eq!(failed_later, 0, "none that began once it was passed over");
    // One in five would go on to meet it. On a machine that is busy some wait for a processor.
    assert!(
        waited_later * 10 <= later,
        "{waited_later} of {later} waited"
    );
    site.process.wait_for("the endpoint is used again");
    let pods = &site.world.pod;
    for target in targets() {
        let reached = pods.connect_many(&target.to_string(), 100);
        assert_eq!(reached.len(), 5, "{reached:?}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn p7_without_ejection_connections_go_on_to_meet_it() {
    let site = site("false");
    let rush = Rush::start(&site.world.pod, targets());
    std::thread::sleep(Duration::from_secs(1));
    link_down(&site.world.peer);
    let cut = rush.began.elapsed();
    eventually_within(
        Duration::from_secs(40),
        "a second in which some fail, long after",
        || {
            let (failed, waited, _) = rush.bad(cut + Duration::from_secs(3), rush.began.elapsed());
            failed + waited > 20
        },
    );
    assert_eq!(metric(&site.world.node, "pointsman_ejected_endpoints"), 0.0);
    rush.end();
}
