//! When the kernel refuses, and when the ranges of Services change.

use std::process::{Child, Command, Stdio};

use super::*;

/// Somebody who owns a table of our name: while it lives, the kernel lets nobody else change it.
/// The table goes when its owner does.
struct Usurper(Child);

impl Usurper {
    fn seize(node: &Host) -> Self {
        let mut child = node.run(|| {
            Command::new("nft")
                .arg("-i")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("nft")
        });
        let command = "add table ip pointsman; delete table ip pointsman; \
                       add table ip pointsman { flags owner; }\n";
        let stdin = child.stdin.as_mut().expect("a pipe");
        stdin.write_all(command.as_bytes()).expect("nft");
        eventually("the table has an owner", || {
            node.ruleset().contains("flags owner")
        });
        Self(child)
    }

    fn give_up(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("an end");
    }
}

impl Drop for Usurper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn served(site: &Site, number: u8, pod: u8) {
    let mut attempts = Attempts::default();
    for net in BOTH {
        for (source, host) in sources(&site.world) {
            let target = at(&net.cluster_ip(number), 80);
            let name = format!("{source} to {target}");
            attempts.served(name, host, target, net.endpoints(&[pod]));
        }
    }
    attempts.check();
}

fn web() -> Vec<Value> {
    with(cluster_service("web", 10), slices("web", "TCP", &[11]))
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_g4_n_g5_a_failed_first_sync_is_tried_again_with_growing_pauses_until_it_succeeds() {
    let world = World::new();
    Servers::tcp(&world.pods, &[8080]);
    let manifests = Manifests::new(web());
    let usurper = Usurper::seize(&world.node);
    let arguments = [
        "--cluster-cidr",
        crate::harness::CLUSTER_CIDR,
        "--manifests",
    ];
    let process = Pointsman::launch(&world.node, &[&arguments[..], &[manifests.path()]].concat());
    for pause in ["100ms", "200ms", "400ms", "800ms"] {
        process.wait_for(&format!("retry={pause}"));
    }
    assert!(!process.log().contains("synced"), "{}", process.log());
    usurper.give_up();
    process.wait_for("synced");
    let site = Site {
        process,
        manifests,
        world,
    };
    served(&site, 10, 11);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_g4_a_failed_sync_is_tried_again_with_all_that_has_come_since() {
    let site = Site::new(web(), &[]);
    served(&site, 10, 11);
    let usurper = Usurper::seize(&site.world.node);
    site.process.wait_for("retry=100ms");
    let late = with(cluster_service("late", 20), slices("late", "TCP", &[12]));
    site.manifests.write("objects.json", [web(), late].concat());
    site.process.wait_for("retry=200ms");
    usurper.give_up();
    eventually("both Services are programmed", || {
        let ruleset = site.world.node.ruleset();
        ["default/web", "default/late"]
            .iter()
            .all(|name| ruleset.matches(name).count() >= 2)
    });
    served(&site, 10, 11);
    served(&site, 20, 12);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_g10_packets_to_a_new_service_cidr_are_dropped_at_once_and_no_longer_when_it_goes() {
    // Ranges of addresses that the other node answers at, until they are the cluster's.
    let ranges = ["10.97.0.0/16", "fd00:97::/112"];
    let targets = ["10.97.0.9", "fd00:97::9"].map(|address| at(address, 8080));
    let site = Site::new(web(), &[]);
    for range in ranges {
        site.world
            .peer
            .sh(&format!("ip route add local {range} dev lo"));
    }
    let expect = |dropped: bool| {
        let mut attempts = Attempts::default();
        for target in targets {
            let name = format!("to {target}");
            if dropped {
                attempts.dropped(name, &site.world.client, target);
            } else {
                attempts.served(name, &site.world.client, target, [target].into());
            }
        }
        attempts.check();
    };
    let known = || {
        let ruleset = site.world.node.ruleset();
        ranges.map(|range| ruleset.contains(range))
    };
    expect(false);
    let mut more = service_cidr();
    more["metadata"]["name"] = json!("more");
    more["spec"]["cidrs"] = json!(ranges);
    site.manifests.write("more.json", vec![more]);
    eventually("the ranges are in force", || known() == [true, true]);
    expect(true);
    site.manifests.write("more.json", vec![]);
    eventually("the ranges are gone", || known() == [false, false]);
    expect(false);
}
