//! When the kernel refuses, and when the ranges of Services change.

use super::*;

fn served(site: &Site, number: u8, pod: u8) {
    served_in(site, &tested().collect::<Vec<_>>(), number, pod);
}

fn served_in<'a>(site: &Site, nets: impl IntoIterator<Item = &'a Net>, number: u8, pod: u8) {
    let mut attempts = Attempts::default();
    for net in nets {
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
    let usurper = Usurper::seize(&world.node, &["ip", "ip6"]);
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
    let usurper = Usurper::seize(&site.world.node, &["ip", "ip6"]);
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
fn a_family_whose_rules_are_refused_leaves_the_other_alone_and_is_served_when_they_no_longer_are() {
    for (refused, table, other) in [(V6, "ip6", V4), (V4, "ip", V6)] {
        let world = World::new();
        for host in [&world.pods, &world.peer] {
            Servers::tcp(host, &[8080]);
        }
        let usurper = Usurper::seize(&world.node, &[table]);
        let site = Site::in_world(world, web(), &[]);
        served_in(&site, [&other], 10, 11);
        site.process
            .wait_for(&format!("rules of {} cannot be programmed", refused.name));
        // What comes meanwhile is programmed where it can be.
        let late = with(cluster_service("late", 20), slices("late", "TCP", &[12]));
        site.manifests.write("objects.json", [web(), late].concat());
        eventually("the late Service is programmed", || {
            site.world.node.ruleset().contains("default/late")
        });
        served_in(&site, [&other], 20, 12);
        usurper.give_up();
        eventually("the family is served", || {
            let ruleset = site
                .world
                .node
                .sh(&format!("nft list table {table} pointsman || true"));
            ruleset.contains("default/late")
        });
        served_in(&site, [&refused, &other], 20, 12);
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_node_whose_ipv6_is_off_serves_ipv4_and_ipv6_as_soon_as_it_is_on() {
    let off = |host: &Host, value: u8| {
        host.sh(&format!(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6={value}"
        ));
    };
    let world = World::new();
    for host in [&world.pods, &world.peer] {
        Servers::tcp(host, &[8080]);
    }
    off(&world.node, 1);
    let site = Site::in_world(world, web(), &[]);
    served_in(&site, [&V4], 10, 11);
    let log = site.process.log();
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert!(log.contains("IPv6 is switched off"), "{log}");
    off(&site.world.node, 0);
    // Addresses and routes went with it.
    site.world.give_ipv6();
    served_in(&site, [&V4, &V6], 10, 11);
    let (code, _, log) = pointsman(&site.world.node, &["--cleanup"]);
    assert_eq!(code, Some(0), "{log}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn cleanup_on_a_node_whose_ipv6_is_off_leaves_nothing() {
    let node = Host::new();
    let manifests = Manifests::new(web());
    drop(Pointsman::start(&node, &["--manifests", manifests.path()]));
    node.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let (code, _, log) = pointsman(&node, &["--cleanup"]);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(node.ruleset(), "");
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
