//! Shows pointsman at work, and checks it: `make demo`.
//!
//! A node, its pods, another node and a client outside are network namespaces of this process.
//! pointsman programs the node with the online shop of `manifests/demo`, and real requests go
//! through every Service: while pointsman follows a rolling update, after it has stopped, and
//! until it has cleaned up. Whatever differs from what the manifests say makes the demo fail.
//! The machine's own network is never touched.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a demo that cannot go on ends at once, with a message"
)]

mod cluster;
#[path = "../../tests/it/harness.rs"]
mod harness;
mod http;
mod requests;
mod table;
mod trips;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cluster::{Endpoint, Service, Via};
use harness::{Failure, Host, Pointsman, Seen, Servers, World, eventually, pointsman};
use requests::{Load, Origin, send};
use trips::{HEADER, trips};

/// The manifests, as the repository has them.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/demo");
/// The manifest that the demo changes, in a copy.
const SHOP: &str = "shop.yaml";
/// The Service whose pods are replaced.
const FRONTEND: &str = "frontend";
/// How long requests go on before, between and after the steps of a rolling update.
const STEP: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("the demo makes network namespaces: run it as root");
        return ExitCode::FAILURE;
    }
    let started = Instant::now();
    let mut demo = Demo::new();
    demo.before();
    let process = demo.start();
    demo.every_service();
    demo.rolling_update(&process);
    demo.without_process(process);
    demo.cleanup();
    let code = demo.verdict(started.elapsed());
    println!(
        "\nTo look at the rules:\n  target/release/pointsman --manifests manifests/demo \
         --hostname-override {} --cluster-cidr {} --dry-run",
        harness::NODE,
        harness::CLUSTER_CIDR
    );
    code
}

fn title(text: &str) {
    println!("\n{text}");
}

/// The surroundings, the manifests, and what was not as it should be.
struct Demo {
    world: World,
    _udp_servers: Servers,
    manifests: tempfile::TempDir,
    services: Vec<Service>,
    unexpected: Vec<String>,
}

impl Demo {
    /// Makes namespaces and servers, and copies the manifests.
    fn new() -> Self {
        let manifests = tempfile::tempdir().expect("a directory");
        for file in cluster::files(Path::new(MANIFESTS)) {
            let name = file.file_name().expect("a file name");
            std::fs::copy(&file, manifests.path().join(name)).expect("a copy");
        }
        let services = cluster::services(manifests.path());
        let world = World::new();
        let endpoints = |is_udp| {
            services
                .iter()
                .filter(move |service| service.is_udp == is_udp)
                .flat_map(|service| &service.endpoints)
                .map(|endpoint| endpoint.address)
        };
        let ports: BTreeSet<u16> = endpoints(false).map(|address| address.port()).collect();
        http::serve(&world.pods, ports.iter().copied());
        http::serve(&world.peer, ports.iter().copied());
        let udp: Vec<SocketAddr> = endpoints(true).collect();
        let udp_servers = Servers::udp(&world.pods, &udp);
        Self {
            world,
            _udp_servers: udp_servers,
            manifests,
            services,
            unexpected: Vec::new(),
        }
    }

    /// Says what is so, and remembers if it should not be.
    fn check(&mut self, is_so: bool, what: &str) {
        println!("  {} {what}", if is_so { "ok  " } else { "FAIL" });
        if !is_so {
            self.unexpected.push(what.to_owned());
        }
    }

    fn service(&self, name: &str) -> &Service {
        self.services
            .iter()
            .find(|service| service.name == name)
            .unwrap_or_else(|| panic!("no Service {name} in the manifests"))
    }

    /// A request to a `NodePort` is answered by nobody.
    fn node_port_is_closed(&self) -> bool {
        let frontend = self.service(FRONTEND);
        let destination = frontend.destination(Via::NodePort, true);
        send(&self.world, frontend, destination, Origin::Outside, 1).failures == [Failure::Refused]
    }

    fn before(&mut self) {
        title("Without pointsman");
        self.check(is_empty(&self.world.node), "the node has no nftables rules");
        self.check(
            self.node_port_is_closed(),
            "the frontend's NodePort is closed",
        );
    }

    fn start(&mut self) -> Pointsman {
        title("pointsman starts on the node");
        let path = self.manifests.path().to_str().expect("a path in UTF-8");
        let process = Pointsman::start(&self.world.node, &["--manifests", path, "-v", "2"]);
        let log = process.log();
        print!("{}", indent(&log));
        self.check(
            !log.contains("WARN"),
            "the manifests are taken without a warning",
        );
        process
    }

    fn every_service(&mut self) {
        title("The pods behind the Services");
        print_endpoints(&self.services);
        title("Requests through every Service (HTTP; datagrams to dns)");
        let mut rows = Vec::new();
        let mut wrong = Vec::new();
        for trip in trips(&self.services) {
            let answers = trip.send(&self.world, trip.requests());
            rows.push(trip.row(&answers));
            if let Err(problem) = trip.check(&answers) {
                wrong.push(problem);
            }
        }
        table::print(HEADER, &rows);
        for problem in &wrong {
            self.check(false, problem);
        }
        self.check(
            wrong.is_empty(),
            "every request reached a right endpoint, and every endpoint was reached",
        );
    }

    /// Replaces the frontend's pods, one after another, while requests keep coming.
    fn rolling_update(&mut self, process: &Pointsman) {
        title("A rolling update of the frontend's pods, while clients keep sending requests");
        let load = Load::start(&self.world, &self.frontend_clients());
        std::thread::sleep(STEP);
        let mut gone_since: BTreeMap<SocketAddr, Instant> = BTreeMap::new();
        for (step, replaced) in by_pod(&self.service(FRONTEND).endpoints)
            .values()
            .enumerate()
        {
            let started = Instant::now();
            let syncs = count_syncs(process);
            let new_pod = self.replace_pod(replaced, step + 1);
            eventually("another sync", || count_syncs(process) > syncs);
            let old_pod = replaced.first().map_or("", Endpoint::short_name);
            println!(
                "  pod {old_pod} gives way to {new_pod}: programmed {} ms after the file changed",
                started.elapsed().as_millis()
            );
            gone_since.extend(replaced.iter().map(|old| (old.address, Instant::now())));
            std::thread::sleep(STEP);
        }
        let requests = load.stop();
        self.services = cluster::services(self.manifests.path());
        let outcomes: Vec<_> = requests.iter().map(|request| &request.answer).collect();
        let failed = outcomes.iter().filter(|answer| answer.is_err()).count();
        let late = requests
            .iter()
            .filter(|request| {
                request.answer.is_ok_and(|seen| {
                    gone_since
                        .get(&seen.endpoint)
                        .is_some_and(|gone| request.started > *gone)
                })
            })
            .count();
        let reached: BTreeSet<SocketAddr> = outcomes
            .iter()
            .filter_map(|answer| answer.as_ref().ok())
            .map(|seen: &Seen| seen.endpoint)
            .collect();
        let new_are_reached = self
            .service(FRONTEND)
            .endpoints
            .iter()
            .all(|endpoint| reached.contains(&endpoint.address));
        self.check(
            failed == 0 && requests.len() > 100,
            &format!(
                "{} requests during the update, {failed} failed",
                requests.len()
            ),
        );
        self.check(
            late == 0,
            &format!("{late} requests reached a pod after it had been replaced"),
        );
        self.check(
            new_are_reached,
            "every new pod was reached, in both families",
        );
    }

    fn frontend_clients(&self) -> Vec<(Origin, SocketAddr)> {
        let frontend = self.service(FRONTEND);
        trips(std::slice::from_ref(frontend))
            .iter()
            .map(|trip| (trip.from, trip.destination.address))
            .collect()
    }

    /// Gives a pod a successor with other addresses. Returns the successor's short name.
    fn replace_pod(&self, old: &[Endpoint], number: usize) -> String {
        let path = self.manifests.path().join(SHOP);
        let mut text = std::fs::read_to_string(&path).expect("the shop's manifest");
        let new_name = format!("new{number}");
        for endpoint in old {
            let address = endpoint.address.ip();
            let (old_line, new_line) = (
                format!("- {address}\n"),
                format!("- {}\n", successor(address)),
            );
            assert!(text.contains(&old_line), "{address} is in the manifest");
            text = text.replace(&old_line, &new_line);
            let new_pod = endpoint.pod.replace(endpoint.short_name(), &new_name);
            text = text.replace(&endpoint.pod, &new_pod);
        }
        // In one step, as careful editors do; hidden files are not manifests.
        let hidden = self.manifests.path().join(".shop.new");
        std::fs::write(&hidden, text).expect("a file");
        std::fs::rename(&hidden, &path).expect("a file");
        new_name
    }

    fn without_process(&mut self, process: Pointsman) {
        title("pointsman is asked to stop (SIGTERM)");
        let code = process.terminate();
        self.check(code == Some(0), "it ended with success");
        self.check(!is_empty(&self.world.node), "its rules are still there");
        let mut sent = 0;
        let mut wrong = Vec::new();
        for trip in trips(&self.services) {
            sent += trip.requests();
            let answers = trip.send(&self.world, trip.requests());
            wrong.extend(trip.check(&answers).err());
        }
        self.check(
            wrong.is_empty(),
            &format!("{sent} requests through all Services without it: all as before"),
        );
        for problem in &wrong {
            self.check(false, problem);
        }
    }

    fn cleanup(&mut self) {
        title("pointsman --cleanup");
        let (code, output, log) = pointsman(&self.world.node, &["--cleanup"]);
        print!("{}{}", indent(&output), indent(&log));
        self.check(code == Some(0), "it ended with success");
        self.check(is_empty(&self.world.node), "nft list ruleset: empty");
        self.check(
            self.node_port_is_closed(),
            "the frontend's NodePort is closed again",
        );
    }

    fn verdict(&self, took: Duration) -> ExitCode {
        println!();
        if self.unexpected.is_empty() {
            println!("The demo succeeded in {:.1} s.", took.as_secs_f32());
            return ExitCode::SUCCESS;
        }
        println!("The demo failed:");
        for what in &self.unexpected {
            println!("  {what}");
        }
        ExitCode::FAILURE
    }
}

fn by_pod(endpoints: &[Endpoint]) -> BTreeMap<IpAddr, Vec<Endpoint>> {
    // Ordered by IPv4 address, which every pod of the shop has.
    let mut pods: BTreeMap<&str, Vec<Endpoint>> = BTreeMap::new();
    for endpoint in endpoints {
        pods.entry(&endpoint.pod)
            .or_default()
            .push(endpoint.clone());
    }
    pods.into_values()
        .map(|mut pod| {
            pod.sort_by_key(|endpoint| endpoint.address);
            (pod[0].address.ip(), pod)
        })
        .collect()
}

fn print_endpoints(services: &[Service]) {
    let mut rows = Vec::new();
    for service in services {
        for pod in by_pod(&service.endpoints).values() {
            let addresses: Vec<String> = pod
                .iter()
                .map(|endpoint| endpoint.address.to_string())
                .collect();
            rows.push([
                service.name.clone(),
                pod[0].short_name().to_owned(),
                pod[0].node.clone(),
                addresses.join(" "),
            ]);
        }
    }
    table::print(["SERVICE", "POD", "NODE", "ENDPOINTS"], &rows);
}

/// The address of the pod that comes after the one with this address, on the same node.
fn successor(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [a, b, c, d + 100].into()
        }
        IpAddr::V6(v6) => {
            let mut segments = v6.segments();
            segments[7] += 0x100;
            segments.into()
        }
    }
}

fn count_syncs(process: &Pointsman) -> usize {
    process.log().matches("synced").count()
}

fn is_empty(node: &Host) -> bool {
    node.ruleset().trim().is_empty()
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
