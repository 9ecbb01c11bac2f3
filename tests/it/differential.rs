//! Clusters made by chance, programmed by both backends: real packets see the same. What they ought to see is
//! what `policies` is about; here nobody says it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    CLUSTER_CIDR, Failure, Host, NODE, Pointsman, Servers, World, connect_within,
};
use crate::objects::{Manifests, endpoint, node, service, slice_of};

/// How many Services a cluster has: their endpoints have addresses of their own.
const SERVICES: u8 = 24;
/// How often each destination is connected to: each of two endpoints is met but for one time in billions.
const TIMES: usize = 32;

/// A kernel refuses so many connections at once, by ICMP, and so many a second: the third SYN is sent after
/// three seconds.
const PATIENCE: Duration = Duration::from_millis(3500);

/// A Service by chance, and what can be connected to of it.
fn any_service(chance: &mut fastrand::Rng, number: u8) -> (Vec<Value>, Vec<String>, bool) {
    let name = format!("any-{number}");
    let cluster_ip = format!("10.96.1.{number}");
    let mut made = service(&name, &[&cluster_ip]);
    let mut targets = vec![format!("{cluster_ip}:80"), format!("{cluster_ip}:81")];
    let often = |chance: &mut fastrand::Rng| chance.u8(..3) > 0;
    let seldom = |chance: &mut fastrand::Rng| chance.u8(..4) == 0;
    if often(chance) {
        let port = 31_000 + u16::from(number);
        made = made.node_port(port);
        targets.push(format!("192.0.2.1:{port}"));
        targets.push(format!("198.51.100.1:{port}"));
    }
    if often(chance) {
        // Now and then that of another one.
        let other = if seldom(chance) { number / 2 } else { number };
        let vip = format!("203.0.113.{}", 100 + other);
        made = made.vips(&[&vip]);
        targets.push(format!("{vip}:80"));
        if seldom(chance) {
            let ranges = [
                json!(["192.0.2.0/24"]),
                json!(["10.244.0.0/16", "198.51.100.2/32"]),
            ];
            let ranges = ranges[chance.usize(..2)].clone();
            made = made.set("/spec/loadBalancerSourceRanges", ranges);
        }
    }
    if seldom(chance) {
        let external = format!("203.0.113.{}", 200 + number);
        made = made.external_ips(&[&external]);
        targets.push(format!("{external}:80"));
    }
    if often(chance) && targets.len() > 2 {
        made = made.set("/spec/externalTrafficPolicy", json!("Local"));
    }
    if seldom(chance) {
        made = made.set("/spec/internalTrafficPolicy", json!("Local"));
    }
    let remembers = seldom(chance);
    if remembers {
        made = made.affinity(600);
    }
    let endpoints = (0..chance.u8(..8).min(2)).map(|index| {
        let is_here = chance.bool();
        let network = if is_here { 1 } else { 2 };
        let mut made = endpoint(&format!("10.244.{network}.{}", 10 + 3 * number + index));
        made["nodeName"] = if is_here { NODE } else { "node-2" }.into();
        let (ready, serving, terminating) = match chance.u8(..6) {
            0 => (false, true, true),
            1 => (false, false, false),
            _ => (true, true, false),
        };
        made["conditions"] =
            json!({"ready": ready, "serving": serving, "terminating": terminating});
        made
    });
    let slice = slice_of(&name, "TCP", endpoints.collect());
    (vec![made.0, slice], targets, remembers)
}

/// What a source sees of a destination.
fn see(target: SocketAddr, remembers: bool) -> String {
    let mut seen = BTreeSet::new();
    let mut sources = BTreeSet::new();
    if remembers {
        // iptables mode remembers a client for all addresses of a Service's port together: the first
        // connections to several of them at once may end at several endpoints.
        let _ = connect_within(None, target, PATIENCE);
        std::thread::sleep(Duration::from_millis(500));
    }
    for _ in 0..TIMES {
        match connect_within(None, target, PATIENCE) {
            Ok(answer) => {
                seen.insert(answer.endpoint);
                sources.insert(answer.source);
            }
            // It is the same every time, and takes long.
            Err(Failure::TimedOut) if seen.is_empty() => return "nothing".to_owned(),
            Err(failure) => return format!("{failure:?} after {seen:?}"),
        }
    }
    // Which one is remembered is up to chance.
    if remembers {
        // And with it by which of its addresses the node reaches it.
        let node = ["192.0.2.1", "198.51.100.1"].map(|address| address.parse().unwrap());
        let masqueraded = sources.iter().all(|source| node.contains(source));
        return format!("{} endpoints, masqueraded: {masqueraded}", seen.len());
    }
    format!("{seen:?}, from {sources:?}")
}

/// What all sources see of all destinations, in one mode.
fn experience(
    objects: &[Value],
    targets: &[(String, bool)],
    mode: &[&str],
    prepare: impl Fn(&Host),
) -> BTreeMap<String, String> {
    let world = World::new();
    prepare(&world.node);
    let _here = Servers::tcp(&world.pods, &[8080]);
    let _elsewhere = Servers::tcp(&world.peer, &[8080]);
    let manifests = Manifests::new(objects.to_vec());
    let pods = [
        "--cluster-cidr",
        CLUSTER_CIDR,
        "--nodeport-addresses",
        "192.0.2.0/24",
    ];
    let arguments = [&["--manifests", manifests.path()], &pods[..], mode].concat();
    let _process = Pointsman::start_without_cidr(&world.node, &arguments);
    let sources: [(&str, &Host); 4] = [
        ("pod", &world.pod),
        ("host", &world.node),
        ("client", &world.client),
        ("peer", &world.peer),
    ];
    let mut seen = BTreeMap::new();
    for some in sources.chunks(2) {
        let mut running: Vec<(String, JoinHandle<String>)> = Vec::new();
        for (name, host) in some {
            for (target, remembers) in targets {
                let (to, remembers) = (target.parse().unwrap(), *remembers);
                let thread = host.spawn(move || see(to, remembers));
                running.push((format!("{name} to {target}"), thread));
            }
        }
        let ended = running.into_iter();
        seen.extend(ended.map(|(what, thread)| (what, thread.join().unwrap())));
    }
    seen
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn packets_experience_the_same_whatever_programs_the_rules() {
    for seed in [1, 2] {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut objects = vec![node()];
        let mut targets = BTreeMap::new();
        for number in 1..=SERVICES {
            let (made, those, remembers) = any_service(&mut chance, number);
            objects.extend(made);
            for target in those {
                *targets.entry(target).or_insert(false) |= remembers;
            }
        }
        let targets: Vec<(String, bool)> = targets.into_iter().collect();
        let nftables = experience(&objects, &targets, &["--proxy-mode", "nftables"], |_| {});
        let served = nftables
            .values()
            .filter(|seen| seen.contains("endpoints") || seen.contains("8080"))
            .count();
        assert!(
            served > nftables.len() / 4,
            "{served} of {}",
            nftables.len()
        );
        for variant in ["nft", "legacy"] {
            let iptables = experience(&objects, &targets, &["--proxy-mode", "iptables"], |node| {
                node.sh(&format!(
                    "iptables-{variant} -t mangle -N KUBE-IPTABLES-HINT || true"
                ));
            });
            let differs = |(what, seen): &(&String, &String)| iptables.get(*what) != Some(*seen);
            let differences: Vec<String> = nftables
                .iter()
                .filter(differs)
                .map(|(what, seen)| format!("{what}: {seen}, but {:?}", iptables.get(what)))
                .collect();
            assert!(
                differences.is_empty(),
                "seed {seed}, {variant}, {} of {}:\n{}",
                differences.len(),
                nftables.len(),
                differences.join("\n")
            );
        }
    }
}
