//! The program and its data in a real kernel: loaded by netlink and by nft, adopted, repaired.
//! Numbers at the front of test names are those of `docs/semantics.md`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{CLUSTER_CIDR, Host, NODE, Pointsman, eventually, pointsman};
use crate::objects::{Manifests, Service, endpoint, service, slice, slice_of};

/// Services of every shape that has elements of its own.
fn every_shape() -> Vec<Value> {
    let dual = |last: u8| [format!("10.96.0.{last}"), format!("fd00:96::{last}")];
    let named = |name: &str, last: u8| {
        let [v4, v6] = dual(last);
        service(name, &[&v4, &v6])
    };
    let local = |address: &str| {
        let mut endpoint = endpoint(address);
        endpoint["nodeName"] = json!(NODE);
        endpoint
    };
    let mut objects = vec![
        named("plain", 1).0,
        named("many", 2)
            .external_ips(&["203.0.113.2", "2001:db8:113::2"])
            .node_port(30002)
            .0,
        named("balanced", 3)
            .vips(&["203.0.113.3", "2001:db8:113::3"])
            .set("/spec/ports/0/nodePort", json!(30003))
            .set("/spec/externalTrafficPolicy", json!("Local"))
            .set(
                "/spec/loadBalancerSourceRanges",
                json!([
                    "10.0.0.0/8",
                    "192.0.2.0/24",
                    "192.0.2.7/32",
                    "fd00::/8",
                    "2001:db8::/32"
                ]),
            )
            .0,
        named("empty", 4).node_port(30004).vips(&["203.0.113.4"]).0,
        named("inside", 5)
            .set("/spec/internalTrafficPolicy", json!("Local"))
            .0,
        named("datagrams", 6).udp().node_port(30006).0,
        named("outside-only", 7)
            .vips(&["203.0.113.7", "2001:db8:113::7"])
            .set("/spec/externalTrafficPolicy", json!("Local"))
            .0,
        slice("plain", "TCP", &["10.244.1.1"]),
        slice("plain", "TCP", &["fd00:244:0:1::1"]),
        slice("many", "TCP", &["10.244.1.1", "10.244.1.2", "10.244.2.3"]),
        slice("many", "TCP", &["fd00:244:0:1::1", "fd00:244:0:1::2"]),
        slice_of(
            "balanced",
            "TCP",
            vec![local("10.244.1.1"), endpoint("10.244.2.2")],
        ),
        slice_of(
            "balanced",
            "TCP",
            vec![local("fd00:244:0:1::1"), endpoint("fd00:244:0:2::2")],
        ),
        slice("inside", "TCP", &["10.244.2.2"]),
        slice("datagrams", "UDP", &["10.244.1.1"]),
        slice("outside-only", "TCP", &["10.244.2.2"]),
        slice("outside-only", "TCP", &["fd00:244:0:2::2"]),
    ];
    objects.extend([
        named("sticky", 8)
            .affinity(600)
            .vips(&["203.0.113.8"])
            .set("/spec/ports/0/nodePort", json!(30008))
            .set("/spec/externalTrafficPolicy", json!("Local"))
            .0,
        slice_of(
            "sticky",
            "TCP",
            vec![local("10.244.1.1"), endpoint("10.244.2.2")],
        ),
        slice("sticky", "TCP", &["fd00:244:0:1::1", "fd00:244:0:1::2"]),
    ]);
    // By every algorithm, with clients that are remembered and not, and with weights.
    let ways = [
        ("turns", "rr", ""),
        ("uneven-turns", "rr", "10.244.1.1=2, fd00:244:0:1::1=3"),
        ("hashed", "sh", ""),
        ("by-destination", "dh", "10.244.1.2=5"),
        ("table", "maglev", ""),
        ("canary", "random", "10.244.1.1=9, fd00:244:0:1::2=0"),
    ];
    for (number, (name, algorithm, weights)) in (9..).zip(ways) {
        let annotations = json!({"pointsman.io/algorithm": algorithm});
        let of_this_way =
            |service: Service| service.set("/metadata/annotations", annotations.clone()).0;
        objects.push(of_this_way(named(name, number)));
        let remembered = format!("{name}-remembered");
        objects.push(of_this_way(named(&remembered, number + 20).affinity(600)));
        for service in [name, &remembered] {
            for addresses in [
                ["10.244.1.1", "10.244.1.2", "10.244.2.3"],
                ["fd00:244:0:1::1", "fd00:244:0:1::2", "fd00:244:0:2::3"],
            ] {
                let mut slice = slice(service, "TCP", &addresses);
                slice["metadata"]["annotations"] = json!({"pointsman.io/weights": weights});
                objects.push(slice);
            }
        }
    }
    objects
}

type Blocks = BTreeMap<String, String>;

fn once(host: &Host, manifests: &Manifests) {
    let (code, _, log) = pointsman(host, &["--manifests", manifests.path(), "--once"]);
    assert_eq!(code, Some(0), "{log}");
}

fn dry_run(manifests: &Manifests, more: &[&str]) -> String {
    let host = Host::new();
    let mut arguments = vec!["--manifests", manifests.path(), "--dry-run"];
    arguments.extend(more);
    let (code, text, log) = pointsman(&host, &arguments);
    assert_eq!(code, Some(0), "{log}");
    text
}

fn nft_load(host: &Host, text: &str) {
    let (ok, output) = host.sh_with_input("nft -f -", text);
    assert!(ok, "{output}");
}

/// A ruleset by its blocks, with each set's elements sorted: the kernel lists chains and ranges
/// in the order of their creation.
fn blocks(ruleset: &str) -> Blocks {
    let mut blocks = BTreeMap::new();
    let mut table = String::new();
    let mut block = String::new();
    for line in ruleset.lines() {
        if line.starts_with("table ") {
            table = line.to_owned();
        } else if line.starts_with('\t') && !line.starts_with("\t\t") && line.ends_with('{') {
            block = format!("{table} {line}");
            blocks.insert(block.clone(), String::new());
        } else if let Some(text) = blocks.get_mut(&block) {
            text.push_str(line);
            text.push('\n');
        }
    }
    for text in blocks.values_mut() {
        if let Some((head, elements)) = text.clone().split_once("elements = {") {
            let mut elements: Vec<&str> = elements
                .trim_end_matches(|c: char| c.is_whitespace() || c == '}')
                .split(',')
                .map(str::trim)
                .collect();
            elements.sort_unstable();
            *text = format!("{head}{}", elements.join("\n"));
        }
    }
    blocks
}

/// Fails with the blocks that differ, and those alone.
fn assert_same(found: &Blocks, wanted: &Blocks, when: &str) {
    let differs =
        |(name, text): &(&String, &String), other: &Blocks| other.get(*name) != Some(*text);
    let unexpected: Vec<_> = found
        .iter()
        .filter(|block| differs(block, wanted))
        .collect();
    let missing: Vec<_> = wanted
        .iter()
        .filter(|block| differs(block, found))
        .collect();
    assert!(
        unexpected.is_empty() && missing.is_empty(),
        "{when}\nfound: {unexpected:#?}\nwanted: {missing:#?}"
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn netlink_and_text_make_the_same_ruleset() {
    let manifests = Manifests::new(every_shape());
    for flags in [
        &[][..],
        &["--masquerade-all"],
        &["--nodeport-addresses", "0.0.0.0/0,::/0"],
        &["--nodeport-addresses="],
        &[
            "--detect-local-mode",
            "BridgeInterface",
            "--pod-bridge-interface",
            "cni0",
        ],
        &[
            "--detect-local-mode",
            "InterfaceNamePrefix",
            "--pod-interface-name-prefix",
            "veth",
        ],
        &["--detect-local-mode", "NodeCIDR"],
    ] {
        let by_netlink = Host::new();
        let mut arguments = vec!["--manifests", manifests.path(), "--once"];
        arguments.extend(flags);
        let (code, _, log) = pointsman(&by_netlink, &arguments);
        assert_eq!(code, Some(0), "{log}");
        let by_text = Host::new();
        nft_load(&by_text, &dry_run(&manifests, flags));
        assert_same(
            &blocks(&by_netlink.ruleset()),
            &blocks(&by_text.ruleset()),
            &format!("{flags:?}"),
        );
        assert!(
            blocks(&by_text.ruleset()).len() > 60,
            "both families are there"
        );
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn nft_lists_the_rules_that_remember_readably() {
    let manifests = Manifests::new(every_shape());
    let host = Host::new();
    once(&host, &manifests);
    let listed = host.ruleset();
    assert!(listed.contains("update @affinity { ip saddr . ip daddr . meta l4proto . th dport timeout 10m : meta priority } return"));
    assert!(listed.contains("timeout 10m : meta priority } return"));
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_restart_with_nothing_changed_sends_nothing() {
    let manifests = Manifests::new(every_shape());
    let host = Host::new();
    once(&host, &manifests);
    let before = host.sh("nft -a list ruleset");
    // nft monitor prints to a file, which stays empty unless something is sent.
    let monitored = host.sh(&format!(
        "nft monitor > /tmp/pointsman-monitor-$$ & monitor=$!
         file=/tmp/pointsman-monitor-$$
         nft add table ip probe; for i in $(seq 200); do grep -q probe $file && break; sleep 0.02; done
         {} --manifests {} --hostname-override {NODE} --cluster-cidr {CLUSTER_CIDR} --conntrack-max-per-core 0 --once 2>&1
         nft add table ip probe2; for i in $(seq 200); do grep -q probe2 $file && break; sleep 0.02; done
         kill $monitor; cat $file; rm $file; nft delete table ip probe; nft delete table ip probe2",
        crate::harness::BINARY.display(),
        manifests.path(),
    ));
    let sent: Vec<&str> = monitored
        .lines()
        .filter(|line| {
            let ours = line.contains("pointsman") && !line.contains("INFO");
            ours || line.starts_with("add element") || line.starts_with("delete")
        })
        .collect();
    assert!(
        monitored.contains("probe2"),
        "the monitor worked: {monitored}"
    );
    assert_eq!(sent, Vec::<&str>::new(), "{monitored}");
    assert_eq!(host.sh("nft -a list ruleset"), before, "no handle moved");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_ruleset_loaded_as_text_is_adopted_as_ours() {
    let manifests = Manifests::new(every_shape());
    let host = Host::new();
    nft_load(&host, &dry_run(&manifests, &[]));
    let before = host.sh("nft -a list ruleset");
    once(&host, &manifests);
    assert_eq!(host.sh("nft -a list ruleset"), before);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn rules_for_loopback_are_the_same_as_text_and_as_messages() {
    let manifests = Manifests::new(every_shape());
    let localhost = ["--nodeport-addresses", "primary,localhost"];
    let host = Host::new();
    nft_load(&host, &dry_run(&manifests, &localhost));
    let before = host.sh("nft -a list ruleset");
    assert_eq!(before.matches("jump on-loopback").count(), 2, "{before}");
    let arguments = [
        "--manifests",
        manifests.path(),
        "--once",
        localhost[0],
        localhost[1],
    ];
    let cidr = ["--cluster-cidr", CLUSTER_CIDR];
    let (code, _, log) = pointsman(&host, &[&arguments[..], &cidr].concat());
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(
        host.sh("nft -a list ruleset"),
        before,
        "adopted, no handle moved"
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn whatever_was_tampered_with_is_put_right_by_the_next_start() {
    let manifests = Manifests::new(every_shape());
    let host = Host::new();
    once(&host, &manifests);
    let wanted = blocks(&host.ruleset());
    for command in TAMPERING {
        host.sh(command);
        once(&host, &manifests);
        let ruleset = host.ruleset();
        assert_same(&blocks(&ruleset), &wanted, command);
        assert!(!ruleset.contains("dormant"), "{command}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_g6_whatever_is_tampered_with_while_it_runs_is_put_right_by_itself() {
    let nodes = 5;
    std::thread::scope(|scope| {
        for node in 0..nodes {
            let commands = TAMPERING.iter().skip(node).step_by(nodes);
            scope.spawn(move || tamper(commands.copied()));
        }
    });
}

fn tamper(commands: impl Iterator<Item = &'static str>) {
    let manifests = Manifests::new(every_shape());
    let host = Host::new();
    let process = Pointsman::start(&host, &["--manifests", manifests.path()]);
    let wanted = blocks(&host.ruleset());
    eventually("the watch has begun", || {
        host.sh("cat /proc/*/task/*/comm 2>/dev/null || true")
            .contains("nftables-watch")
    });
    for command in commands {
        host.sh(command);
        eventually(command, || {
            let ruleset = host.ruleset();
            blocks(&ruleset) == wanted && !ruleset.contains("dormant")
        });
    }
    host.sh("nft add table ip theirs; nft add chain ip theirs mine; nft delete table ip theirs");
    let before = process.log().matches("somebody else").count();
    assert!(before > 0);
    manifests.write("more.json", vec![service("more", &["10.96.0.90"]).0]);
    eventually("a change of the cluster", || {
        host.ruleset().contains("default/more")
    });
    assert_eq!(
        process.log().matches("somebody else").count(),
        before,
        "neither others' tables nor our own changes are interference"
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_g6_who_changes_our_tables_all_the_time_is_named_and_each_change_is_repaired_at_once() {
    let manifests = Manifests::new(every_shape());
    let host = Host::new();
    let process = Pointsman::start(&host, &["--manifests", manifests.path()]);
    let wanted = blocks(&host.ruleset());
    let times = 40;
    for _ in 0..times {
        host.sh("nft flush set ip pointsman cluster-ips");
        eventually("it is repaired", || blocks(&host.ruleset()) == wanted);
    }
    let log = process.log();
    assert!(log.contains("by=\"nft (pid "), "{log}");
    let lines = log.matches("somebody else").count();
    assert!(
        (1..=times).contains(&lines),
        "{lines} lines for {times} changes"
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn n_g6_a_repair_that_has_to_wait_is_not_forgotten_when_a_change_comes_first() {
    let manifests = Manifests::new(every_shape());
    let host = Host::new();
    let process = Pointsman::start(&host, &["--manifests", manifests.path()]);
    eventually("the watch has begun", || {
        host.sh("cat /proc/*/task/*/comm 2>/dev/null || true")
            .contains("nftables-watch")
    });
    let tamper = "nft flush set ip pointsman cluster-ips";
    let wanted = blocks(&host.ruleset());
    host.sh(tamper);
    eventually("the first is put right", || {
        blocks(&host.ruleset()) == wanted
    });
    // The second comes too soon after it, and then something else is to be done.
    host.sh(tamper);
    manifests.write("more.json", vec![service("more", &["10.96.0.90"]).0]);
    eventually("a change of the cluster", || {
        host.ruleset().contains("default/more")
    });
    let from_nothing = Host::new();
    once(&from_nothing, &manifests);
    let wanted = blocks(&from_nothing.ruleset());
    eventually("the second is put right too", || {
        blocks(&host.ruleset()) == wanted
    });
    drop(process);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e17_one_table_in_each_family_hooks_in_where_kube_proxys_does() {
    let host = Host::new();
    once(&host, &Manifests::new(every_shape()));
    let list = |what: &str| -> Vec<Value> {
        let listed = host.sh(&format!("nft -j list {what} 2>/dev/null"));
        let listed: Value = serde_json::from_str(&listed).unwrap();
        listed["nftables"].as_array().unwrap().clone()
    };
    let (listed_tables, listed) = (list("tables"), list("chains"));
    let mut tables: Vec<(&str, &str)> = listed_tables
        .iter()
        .filter_map(|object| object.get("table"))
        .map(|table| {
            let text = |field: &str| table[field].as_str().unwrap();
            (text("family"), text("name"))
        })
        .collect();
    tables.sort_unstable();
    assert_eq!(tables, [("ip", "pointsman"), ("ip6", "pointsman")]);
    for family in ["ip", "ip6"] {
        let mut hooks: Vec<(&str, &str, i64)> = listed
            .iter()
            .filter_map(|object| object.get("chain"))
            .filter(|chain| chain["family"] == family)
            .filter_map(|chain| {
                let hook = chain.get("hook")?.as_str()?;
                Some((hook, chain["type"].as_str()?, chain["prio"].as_i64()?))
            })
            .collect();
        hooks.sort_unstable();
        assert_eq!(
            hooks,
            [
                // Source ranges, the choice of an endpoint, refusals.
                ("output", "nat", -110),
                ("output", "nat", -100),
                ("output", "nat", -90),
                ("postrouting", "nat", 90),
                ("prerouting", "nat", -110),
                ("prerouting", "nat", -100),
                ("prerouting", "nat", -90),
            ],
            "{family}"
        );
    }
}

/// What somebody might do to our tables, by mistake or on purpose.
const TAMPERING: &[&str] = &[
    "nft delete element ip pointsman endpoints '{ 10.96.0.2 . tcp . 80 . c000:1 }'",
    "nft add element ip pointsman endpoints '{ 10.96.0.2 . tcp . 80 . c000:7 : 10.244.1.9 . 8080 }'",
    "nft delete element ip pointsman service-ips '{ 10.96.0.1 . tcp . 80 }'",
    "nft add element ip pointsman service-ips '{ 10.96.0.99 . tcp . 80 : 8600:0 }'",
    "nft add element ip pointsman service-ips '{ 10.96.0.98 . tcp . 80 : 1:7 }'",
    "nft add element ip pointsman no-endpoints-ips '{ 10.96.0.1 . tcp . 80 }'",
    "nft flush set ip pointsman cluster-ips",
    "nft add element ip pointsman service-cidrs '{ 172.16.0.0/12 }'",
    "nft add element ip pointsman service-cidrs '{ 172.16.0.5-172.16.0.9 }'",
    "nft flush chain ip pointsman check-source",
    "nft delete element ip pointsman draws '{ 0:2 }'",
    "nft 'delete element ip pointsman draws { 0:2 }; delete chain ip pointsman draw-2'",
    "nft delete element ip pointsman routes '{ 8600:0 }' || nft flush map ip pointsman routes",
    "nft add rule ip6 pointsman check-source meta priority set 8f00:20 return",
    "nft delete element ip pointsman allowed-sources '{ 203.0.113.3 . tcp . 80 . 10.0.0.0 . 8f00:8 }'",
    "nft add element ip6 pointsman hairpin '{ fd00::1 . fd00::2 . tcp . 1 }'",
    "nft add rule ip pointsman services accept",
    "nft insert rule ip6 pointsman lb drop",
    "nft add chain ip pointsman mine",
    "nft add set ip pointsman mine '{ type ipv4_addr; }'",
    "nft delete table ip6 pointsman",
    "nft flush ruleset",
    "nft add table ip pointsman '{ flags dormant; }'",
];

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn nobody_is_warned_of_a_contest_that_the_same_change_ends_nor_of_affinity_that_ends() {
    let shared = ["203.0.113.9"];
    let younger = || service("a", &["10.96.0.1"]).created("2024-01-02T00:00:00Z");
    let older = || service("b", &["10.96.0.2"]).created("2024-01-01T00:00:00Z");
    let manifests = Manifests::new(vec![
        younger().affinity(60).0,
        older().external_ips(&shared).affinity(60).0,
        slice("a", "TCP", &["10.244.1.1"]),
        slice("b", "TCP", &["10.244.1.1"]),
    ]);
    let host = Host::new();
    host.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let process = Pointsman::start(&host, &["--manifests", manifests.path()]);
    // What the one has goes to the other as it goes itself.
    manifests.write(
        "objects.json",
        vec![
            younger().external_ips(&shared).0,
            slice("a", "TCP", &["10.244.1.1"]),
        ],
    );
    eventually("the address has changed hands", || {
        let ruleset = host.ruleset();
        !ruleset.contains("default/b") && ruleset.contains("203.0.113.9")
    });
    let log = process.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert!(
        warnings
            .iter()
            .all(|line| line.contains("there is no Node")),
        "{warnings:?}"
    );
    // Where there is one it is told.
    manifests.write("more.json", vec![older().external_ips(&shared).0]);
    process.wait_for("two Services claim one address");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn cleanup_removes_what_is_ours_and_nothing_else() {
    let host = Host::new();
    host.sh("nft add table inet theirs; nft add chain inet theirs input '{ type filter hook input priority 0; }'");
    let before = host.ruleset();
    let (code, _, log) = pointsman(&host, &["--cleanup"]);
    assert_eq!(code, Some(0), "with nothing to remove: {log}");
    once(&host, &Manifests::new(every_shape()));
    assert_ne!(host.ruleset(), before);
    let (code, _, log) = pointsman(&host, &["--cleanup"]);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(host.ruleset(), before);
}

/// Names of the chains of a ruleset, per table.
fn chains(ruleset: &str) -> Vec<String> {
    blocks(ruleset)
        .into_keys()
        .filter(|name| name.contains("\tchain "))
        .collect()
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn chains_grow_with_shapes_and_not_with_services() {
    let services = |count: u32| {
        let mut objects = Vec::new();
        for index in 0..count {
            let name = format!("svc-{index}");
            let ip = format!("10.96.{}.{}", index / 256, index % 256);
            let service = service(&name, &[&ip]);
            let service = match index % 3 {
                0 => service.node_port(30_000 + u16::try_from(index).unwrap()),
                1 => service.affinity(60),
                _ => service,
            };
            objects.push(service.0);
            let count = [1, 5, 9, 17][index as usize % 4];
            let addresses: Vec<String> = (0..count)
                .map(|slot| format!("10.244.{}.{}", index % 256, slot))
                .collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            objects.push(slice(&name, "TCP", &addresses));
        }
        Manifests::new(objects)
    };
    let few = chains(&dry_run(&services(24), &[]));
    let many = chains(&dry_run(&services(600), &[]));
    assert!(few.len() > 40);
    assert_eq!(few, many);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_running_process_follows_the_files_and_takes_away_what_nobody_uses() {
    let manifests = Manifests::new(every_shape());
    let host = Host::new();
    let process = Pointsman::start(&host, &["--manifests", manifests.path()]);
    manifests.write(
        "objects.json",
        vec![
            service("other", &["10.96.0.77"]).0,
            slice(
                "other",
                "TCP",
                &["10.244.1.1", "10.244.1.2", "10.244.1.3", "10.244.1.4"],
            ),
        ],
    );
    let from_nothing = Host::new();
    once(&from_nothing, &manifests);
    let wanted = blocks(&from_nothing.ruleset());
    eventually("the ruleset is that of the new objects alone", || {
        blocks(&host.ruleset()) == wanted
    });
    manifests.write_text("objects.json", "{ broken");
    process.wait_for("objects.json:1");
    assert_same(
        &blocks(&host.ruleset()),
        &wanted,
        "a broken file changes nothing",
    );
    let log = process.log();
    assert_eq!(process.terminate(), Some(0), "{log}");
    assert_same(&blocks(&host.ruleset()), &wanted, "the rules stay in place");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_change_while_running_survives_interference() {
    let manifests = Manifests::new(every_shape());
    let host = Host::new();
    let _process = Pointsman::start(&host, &["--manifests", manifests.path()]);
    // What the process believes to be there is not, and what it wants to add is.
    host.sh(
        "nft delete element ip pointsman endpoints '{ 10.96.0.1 . tcp . 80 . c000:0 }'
             nft add element ip pointsman endpoints '{ 10.96.0.77 . tcp . 80 . c000:0 : 10.9.9.9 . 9 }'",
    );
    manifests.write(
        "objects.json",
        vec![
            service("other", &["10.96.0.77"]).0,
            slice("other", "TCP", &["10.244.1.1"]),
        ],
    );
    let from_nothing = Host::new();
    once(&from_nothing, &manifests);
    let wanted = blocks(&from_nothing.ruleset());
    eventually("the ruleset is right all the same", || {
        blocks(&host.ruleset()) == wanted
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn bad_objects_are_named_and_everything_else_is_programmed() {
    let long = "x".repeat(63);
    let many: Vec<String> = (0..10_000)
        .map(|index| {
            format!(
                "10.{}.{}.{}",
                128 + (index >> 16),
                (index >> 8) & 255,
                index & 255
            )
        })
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long_service = service(&long, &["10.96.1.1"])
        .set("/metadata/namespace", json!(long))
        .set("/spec/ports/0/name", json!("fifteen-letters"));
    let manifests = Manifests::new(vec![
        service("garbage", &["10.96.999.1"]).0,
        service("ports", &["10.96.1.2"])
            .set("/spec/ports/0/port", json!(0))
            .0,
        service("shape", &["10.96.1.3"])
            .set("/spec/ports", json!("eighty"))
            .0,
        service("twin", &["10.96.1.4"])
            .created("2024-01-01T00:00:00Z")
            .0,
        service("twin-too", &["10.96.1.4"])
            .created("2024-01-02T00:00:00Z")
            .0,
        slice("nobody", "TCP", &["10.244.1.1"]),
        service("crowd", &["10.96.1.5"]).0,
        slice("crowd", "TCP", &many),
        long_service.0,
        service("good", &["10.96.1.6"]).0,
        slice("good", "TCP", &["10.244.1.1", "nonsense"]),
    ]);
    let host = Host::new();
    let (code, _, log) = pointsman(&host, &["--manifests", manifests.path(), "--once"]);
    assert_eq!(code, Some(0), "{log}");
    for text in [
        "Service default/garbage",
        "spec.clusterIPs[0]",
        "Service default/ports",
        "spec.ports[0].port",
        "Service default/shape",
        "two Services claim one address and port",
        "EndpointSlice default/good-IPv4",
        "endpoints[1].addresses[0]",
    ] {
        assert!(log.contains(text), "{text}: {log}");
    }
    let listed = host.sh("nft list table ip pointsman");
    for text in [
        "10.96.1.5 . tcp . 80 comment \"default/crowd:http\" : 8000:8094",
        "10.96.1.6 . tcp . 80 comment \"default/good:http\" : 8000:1",
        "10.96.1.4 . tcp . 80 comment \"default/twin:http\"",
        "10.96.1.5 . tcp . 80 . c000:270f : ",
        &format!("comment \"{long}/xxx"),
    ] {
        let labelled = || listed.lines().filter(|line| line.contains("comment"));
        assert!(
            listed.contains(text),
            "{text} is not in {:#?}",
            labelled().take(20).collect::<Vec<_>>()
        );
    }
    assert!(!listed.contains("10.96.1.2 . tcp"));
}

#[test]
#[cfg_attr(no_root, ignore = "needs root")]
fn without_privileges_it_says_so_and_changes_nothing() {
    let manifests = Manifests::new(every_shape());
    let host = Host::new();
    let command = format!(
        "setpriv --bounding-set -all --inh-caps -all --ambient-caps -all {} --manifests {} --hostname-override {NODE} --conntrack-max-per-core 0 --once",
        crate::harness::BINARY.display(),
        manifests.path()
    );
    let (ok, text) = host.try_sh(&command);
    assert!(!ok);
    assert!(text.contains("CAP_NET_ADMIN"), "{text}");
    assert_eq!(host.ruleset(), "");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_refusal_names_the_service_that_caused_it_and_applies_nothing() {
    use pointsman::core::compile::Compiled;
    use pointsman::core::diff::Engine;
    use pointsman::core::ir::{Action, Destination, Forwarding, Host as At, Label, Sources};
    use pointsman::core::model::{ObjectKey, Owner, Protocol, ServiceId};
    use pointsman::dataplane::Options;
    use pointsman::dataplane::nftables::Nftables;
    use pointsman::dataplane::{ApplyError, Backend};

    // A range twice, which compiling a Service never gives: the kernel refuses it.
    let compiled = |number: u8, ranges: &[&str]| Compiled {
        created: 1,
        key: Some(ObjectKey::new("default", format!("svc-{number}"))),
        destinations: Box::new([(
            Destination {
                host: At::Address([203, 0, 113, number].into()),
                protocol: Protocol::Tcp,
                port: 80,
            },
            Forwarding {
                label: Label::new(&format!("default/svc-{number}")),
                action: Action::Reject,
                sources: Sources::Only(ranges.iter().map(|range| range.parse().unwrap()).collect()),
            },
        )]),
        ..Compiled::default()
    };
    let wanted: Vec<(u8, Compiled)> = (1..=50)
        .map(|number| {
            let ranges: &[&str] = if number == 37 {
                &["10.0.0.0/8", "10.0.0.0/8"]
            } else {
                &["10.0.0.0/8"]
            };
            (number, compiled(number, ranges))
        })
        .collect();
    let host = Host::new();
    for isolate in [false, true] {
        let wanted = wanted.clone();
        let refused = host.run(move || {
            let mut backend = Nftables::connect(Options::default()).expect("nftables");
            let mut engine = Engine::default();
            for (number, compiled) in wanted {
                engine.update(
                    Owner::Service(ServiceId::nth(u32::from(number))),
                    Some(compiled),
                );
            }
            engine.adopt(backend.read().expect("an empty kernel"));
            backend.isolate_services(isolate);
            match backend.apply(engine.pending().delta()) {
                Err(ApplyError::Refused(refused)) => refused,
                other => panic!("not refused: {other:?}"),
            }
        });
        let owners: Vec<Owner> = refused
            .iter()
            .flat_map(|refused| refused.owners.iter().copied())
            .collect();
        let culprit = Owner::Service(ServiceId::nth(37));
        assert_eq!(owners, [culprit], "isolate: {isolate}, {refused:?}");
        assert!(refused[0].what.contains("allowed-sources"), "{refused:?}");
        assert_ne!(refused[0].errno as i32, 0);
        assert_eq!(host.ruleset(), "", "nothing of it was applied");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn many_endpoints_are_read_back_whole_and_what_was_tampered_with_too() {
    use pointsman::core::compile::Compiled;
    use pointsman::core::diff::Engine;
    use pointsman::core::ir::{
        Action, Destination, Draw, Entry, Forwarding, Host as At, Label, List, SourcePolicy,
        Sources,
    };
    use pointsman::core::model::{Endpoint, Endpoints, Family, Owner, Protocol, ServiceId};
    use pointsman::dataplane::Backend;
    use pointsman::dataplane::Options;
    use pointsman::dataplane::nftables::Nftables;

    let endpoints = |count: u32| -> Endpoints {
        let first = u32::from(std::net::Ipv4Addr::new(11, 0, 0, 0));
        let address = |index| std::net::Ipv4Addr::from(first + index).into();
        (0..count)
            .map(|index| Endpoint::new(address(index), 8080))
            .collect()
    };
    // One list that takes more than a request, many that share requests, and a second list.
    let mut destinations = Vec::new();
    let mut balance = |host, port, primary, external: Option<u32>| {
        let destination = Destination {
            host,
            protocol: Protocol::Tcp,
            port,
        };
        let policy = external.map_or(SourcePolicy::ClusterIp, |_| SourcePolicy::ExternalLocal);
        let forwarding = Forwarding {
            label: Label::new("default/many"),
            action: Action::Balance {
                policy,
                primary: endpoints(primary),
                external: external.map(endpoints),
                draw: Draw::Random,
                affinity: None,
            },
            sources: Sources::Any,
        };
        destinations.push((destination, forwarding));
    };
    let address = |last: u8| At::Address([10, 96, 1, last].into());
    balance(address(0), 80, 33_000, None);
    for last in 1..=200 {
        let last_port = 8000 + u16::from(last);
        balance(address(last), last_port, u32::from(last) % 7 + 1, None);
    }
    balance(address(201), 80, 1024, Some(1025));
    balance(address(202), 80, 5, Some(0));
    balance(At::Node(Family::V4), 30080, 3, Some(2));

    let host = Host::new();
    let read = |host: &Host| {
        host.run(|| {
            let mut backend = Nftables::connect(Options::default()).expect("nftables");
            let mut entries = backend.read().expect("the entries");
            entries.sort_unstable();
            entries
        })
    };
    let applied = host.run(move || {
        let mut engine = Engine::default();
        let compiled = Compiled {
            destinations: destinations.into(),
            ..Compiled::default()
        };
        engine.update(Owner::Service(ServiceId::FIRST), Some(compiled));
        let mut backend = Nftables::connect(Options::default()).expect("nftables");
        engine.adopt(backend.read().expect("an empty kernel"));
        let pending = engine.pending();
        backend.apply(pending.delta()).expect("a transaction");
        engine.commit(pending);
        engine.applied_entries()
    });
    assert!(read(&host) == applied);

    let slot = |index| Entry::Slot {
        destination: Destination {
            host: address(0),
            protocol: Protocol::Tcp,
            port: 80,
        },
        list: List::Primary,
        index,
        remembered: false,
        endpoint: Endpoint::new([11, 0, 0, 9].into(), 8080),
    };
    let key =
        |index: u32| format!("ip pointsman endpoints '{{ 10.96.1.0 . tcp . 80 . c000:{index:x}");
    host.sh(&format!(
        "nft add element {} : 11.0.0.9 . 8080 }}'",
        key(40_000)
    ));
    let found = read(&host);
    assert_eq!(found.len(), applied.len() + 1);
    assert!(
        found.contains(&slot(40_000)),
        "what nobody leads to is seen"
    );
    host.sh(&format!("nft delete element {} }}'", key(40_000)));
    host.sh(&format!("nft delete element {} }}'", key(9)));
    let found = read(&host);
    assert_eq!(found.len(), applied.len() - 1);
    assert!(!found.contains(&slot(9)), "what is gone is not");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn what_draws_for_clients_that_are_remembered_goes_too_when_somebody_has_broken_what_is_remembered()
{
    let host = Host::new();
    let pods: Vec<String> = (1..=7).map(|last| format!("10.244.1.{last}")).collect();
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    let sticky = |count: usize| {
        vec![
            service("sticky", &["10.96.0.8"]).affinity(600).0,
            slice("sticky", "TCP", &pods[..count]),
        ]
    };
    let manifests = Manifests::new(sticky(5));
    let process = Pointsman::start(&host, &["--manifests", manifests.path(), "-v", "2"]);
    host.sh("nft delete element ip pointsman affinity-ids '{ 10.96.0.8 . tcp . 80 . c000:0 }'");
    process.wait_for("belong to nothing");
    let draws = || host.sh("nft list map ip pointsman draws; nft list chains ip");
    eventually("all of it is there again", || {
        let (found, _) = host.try_sh(
            "nft get element ip pointsman affinity-ids '{ 10.96.0.8 . tcp . 80 . c000:0 }'",
        );
        found
    });
    assert!(draws().contains("draw-5"));
    manifests.write("objects.json", sticky(7));
    eventually("one of seven is drawn", || draws().contains("draw-7"));
    eventually("nobody draws one of five any more", || {
        !draws().contains("draw-5")
    });
}
