//! A rolling update under load, in the steps in which the endpoint slices are written.

use std::net::TcpListener;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use super::*;
use crate::harness::tell;

/// How many pods are replaced.
const PODS: u8 = 20;
/// The old pods are from here on, and the new ones from there.
const OLD: u8 = 11;
const NEW: u8 = 51;
/// New connections a second, all clients together.
const RATE: u32 = 2_000;

/// A pod: a server in each family that accepts until it is told to go.
struct Pod {
    leave: Vec<Sender<()>>,
    servers: Vec<JoinHandle<()>>,
}

impl Pod {
    fn start(host: &Host, number: u8) -> Self {
        let mut pod = Self {
            leave: Vec::new(),
            servers: Vec::new(),
        };
        for net in tested() {
            let address = net.endpoint(number);
            let listener = host.run(move || TcpListener::bind(address).expect("a free port"));
            let waker = listener.try_clone().expect("a socket");
            let (leave, leaving) = channel();
            pod.leave.push(leave);
            pod.servers.push(std::thread::spawn(move || {
                use nix::poll::{PollFd, PollFlags, poll};
                use std::io::ErrorKind::WouldBlock;
                use std::os::fd::AsFd;
                waker.set_nonblocking(true).expect("a socket");
                // What has come is served before the socket is closed, as a pod that drains does.
                loop {
                    match waker.accept() {
                        Ok((connection, _)) => {
                            connection.set_nonblocking(false).expect("a socket");
                            tell(connection);
                        }
                        Err(error) if error.kind() == WouldBlock => {
                            if leaving.try_recv().is_ok() {
                                return;
                            }
                            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                            let _ = poll(&mut fds, 20_u8);
                        }
                        Err(error) => panic!("{address}: {error}"),
                    }
                }
            }));
        }
        pod
    }

    fn leave(self) {
        for leave in self.leave {
            leave.send(()).expect("a server");
        }
        for server in self.servers {
            server.join().expect("a server that ends well");
        }
    }
}

/// How a pod stands in its slice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Is {
    Starting,
    Ready,
    Terminating,
}

/// The Service and its slices with these pods.
fn state(pods: &BTreeMap<u8, Is>) -> Vec<Value> {
    let slice = |net: &Net| {
        let endpoints = pods.iter().map(|(number, is)| {
            let mut object = endpoint(&net.pod_ip(*number));
            object["nodeName"] = json!(NODE);
            object["conditions"] = json!({
                "ready": *is == Is::Ready,
                "serving": *is != Is::Starting,
                "terminating": *is == Is::Terminating,
            });
            object
        });
        slice_of("web", "TCP", endpoints.collect())
    };
    with(
        full_service("web", 10, NODE_PORT),
        BOTH.iter().map(slice).collect(),
    )
}

/// What the clients have seen so far.
#[derive(Default)]
struct Tally {
    reached: BTreeMap<SocketAddr, u32>,
    failed: Vec<String>,
}

/// Connects at a steady pace until told to stop.
fn load(target: SocketAddr, pause: Duration, stop: &AtomicBool, tally: &Mutex<Tally>) {
    let started = Instant::now();
    let mut due = started;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due += pause;
        let result = connect(None, target);
        let mut tally = tally.lock().expect("the tally");
        match result {
            Ok(seen) => *tally.reached.entry(seen.endpoint).or_default() += 1,
            Err(failure) => {
                let after = started.elapsed();
                let what = format!("{target}, {after:?} after the start: {failure:?}");
                tally.failed.push(what);
            }
        }
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_rolling_update_of_twenty_endpoints_under_two_thousand_connections_a_second_loses_none() {
    let world = World::new();
    let mut running: BTreeMap<u8, Pod> = (OLD..OLD + PODS)
        .map(|number| (number, Pod::start(&world.pods, number)))
        .collect();
    let mut pods: BTreeMap<u8, Is> = running.keys().map(|number| (*number, Is::Ready)).collect();
    let site = Site::in_world(world, state(&pods), &[]);

    let stop: Arc<AtomicBool> = Arc::default();
    let tally: Arc<Mutex<Tally>> = Arc::default();
    let mut targets = Vec::new();
    for net in tested() {
        let [cluster_ip, _, vip, _] = net.targets(10, NODE_PORT).map(|(_, target)| target);
        targets.extend([
            (&site.world.pod, cluster_ip),
            (&site.world.pod, cluster_ip),
            (&site.world.client, vip),
            (&site.world.client, vip),
        ]);
    }
    let pause = Duration::from_secs(1) * u32::try_from(targets.len()).expect("few") / RATE;
    let started = Instant::now();
    let clients: Vec<_> = targets
        .into_iter()
        .map(|(host, target)| {
            let (stop, tally) = (Arc::clone(&stop), Arc::clone(&tally));
            host.spawn(move || load(target, pause, &stop, &tally))
        })
        .collect();
    let are_reached = |numbers: std::ops::Range<u8>| {
        let tally = tally.lock().expect("the tally");
        let mut endpoints = BOTH
            .iter()
            .flat_map(|net| numbers.clone().map(|n| net.endpoint(n)));
        endpoints.all(|endpoint| tally.reached.contains_key(&endpoint))
    };
    eventually("all old pods are in use", || are_reached(OLD..OLD + PODS));

    for (old, new) in (OLD..OLD + PODS).zip(NEW..) {
        running.insert(new, Pod::start(&site.world.pods, new));
        pods.insert(new, Is::Starting);
        site.apply(state(&pods));
        pods.insert(new, Is::Ready);
        site.apply(state(&pods));
        pods.insert(old, Is::Terminating);
        site.apply(state(&pods));
        pods.remove(&old);
        site.apply(state(&pods));
        // What pointsman has removed may go, once nobody is in the middle of a handshake with it.
        eventually("no connection to it has only begun", || {
            BOTH.iter().all(|net| {
                ["SYN_SENT", "SYN_RECV"].iter().all(|state| {
                    let filter = format!("-r {} --state {state}", net.pod_ip(old));
                    let listed = format!(
                        "conntrack -L -p tcp -f {} {filter} 2>/dev/null",
                        net.name.to_lowercase()
                    );
                    site.world.node.try_sh(&listed).1.is_empty()
                })
            })
        });
        running.remove(&old).expect("a pod").leave();
    }
    let update = started.elapsed();
    eventually("all new pods are in use", || are_reached(NEW..NEW + PODS));
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("a client");
    }
    let elapsed = started.elapsed();

    let remaining: Vec<u8> = running.keys().copied().collect();
    assert_eq!(remaining, (NEW..NEW + PODS).collect::<Vec<_>>());
    let tally = tally.lock().expect("the tally");
    let made: u32 = tally.reached.values().sum();
    eprintln!(
        "rolling update of {PODS} endpoints in {update:?}: {made} connections in {elapsed:?}, {:.0} a second, {} failed",
        f64::from(made) / elapsed.as_secs_f64(),
        tally.failed.len(),
    );
    let failed = &tally.failed;
    assert!(failed.is_empty(), "{}: {failed:?}", failed.len());
    drop(tally);
    for pod in running.into_values() {
        pod.leave();
    }
}
