//! iptables mode by either variant: what is written, what is left alone, and what is put right. What packets
//! experience is tested by the tests of nftables mode (`POINTSMAN_TEST_BY`).

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    Host, NODE, Pointsman, Servers, World, eventually, eventually_within, get, metric, pointsman,
};
use crate::objects::{Manifests, service, slice};

/// The variants that this kernel has: newer ones may be without `ip_tables`.
fn variants() -> Vec<&'static str> {
    let host = Host::new();
    let has = |variant: &&str| host.try_sh(&format!("iptables-{variant}-save -t nat")).0;
    let variants: Vec<&str> = ["nft", "legacy"].into_iter().filter(has).collect();
    assert!(variants.contains(&"nft"));
    variants
}

/// Until others' changes are looked for again, where a look takes long.
const PATIENCE: Duration = Duration::from_secs(120);
const CIDR: [&str; 2] = ["--cluster-cidr", "10.244.0.0/16,fd00:244::/56"];

/// Has the kubelet say which variant the node uses.
fn hint(host: &Host, variant: &str) {
    host.sh("ip link set lo up");
    for command in ["iptables", "ip6tables"] {
        host.sh(&format!(
            "{command}-{variant} -t mangle -N KUBE-IPTABLES-HINT"
        ));
    }
}

/// Has somebody else write rules.
fn left_behind(host: &Host, variant: &str, text: &str) {
    let restore = format!("iptables-{variant}-restore --noflush");
    let (works, said) = host.sh_with_input(&restore, text);
    assert!(works, "{said}");
}

/// What both families hold; without counters.
fn saved(host: &Host, variant: &str) -> String {
    let all = host.sh(&format!(
        "iptables-{variant}-save; ip6tables-{variant}-save"
    ));
    let lines = all.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| match line.strip_prefix(':') {
            Some(_) => line.split(" [").next().unwrap_or_default(),
            None => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn arguments<'a>(manifests: &'a Manifests, more: &[&'a str]) -> Vec<&'a str> {
    let mode = ["--proxy-mode", "iptables", "--conntrack-max-per-core", "0"];
    let node = ["--hostname-override", NODE, "--manifests", manifests.path()];
    [&mode[..], &node, &CIDR, more].concat()
}

/// Programs objects once. Returns the log.
fn once(host: &Host, manifests: &Manifests, more: &[&str]) -> String {
    let more = [&["--once", "-v", "2"], more].concat();
    let all = arguments(manifests, &more);
    let all = [
        &[
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ],
        &all[..],
    ]
    .concat();
    let (code, _, log) = pointsman(host, &all);
    assert_eq!(code, Some(0), "{log}");
    log
}

/// A number in the last line of a sync.
fn said(log: &str, field: &str) -> usize {
    let line = log.lines().rfind(|line| line.contains("synced"));
    let (_, rest) = line
        .and_then(|line| line.split_once(&format!("{field}=")))
        .unwrap_or_else(|| panic!("no {field} in {log}"));
    rest.split(' ').next().unwrap().parse().unwrap()
}

fn web(number: u16, endpoints: &[&str]) -> Vec<Value> {
    let name = format!("web-{number}");
    let [high, low] = number.to_be_bytes();
    let address = format!("10.96.{high}.{low}");
    let mut objects = vec![service(&name, &[&address]).0];
    objects.push(slice(&name, "TCP", endpoints));
    objects
}

fn many(count: u16) -> Vec<Value> {
    (1..=count)
        .flat_map(|number| web(number, &["10.244.1.1", "10.244.1.2"]))
        .collect()
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_start_over_what_is_there_writes_nothing_and_a_change_only_what_differs() {
    for variant in variants() {
        let host = Host::new();
        hint(&host, variant);
        let manifests = Manifests::new(many(300));
        let first = said(&once(&host, &manifests, &[]), "operations");
        assert!(first > 1_500, "{variant}: {first}");
        let before = saved(&host, variant);
        assert_eq!(
            said(&once(&host, &manifests, &[]), "operations"),
            0,
            "{variant}"
        );
        assert_eq!(saved(&host, variant), before, "{variant}");
        manifests.write("more.json", web(1_000, &["10.244.1.9"]));
        let log = once(&host, &manifests, &[]);
        let second = said(&log, "operations");
        assert!((2..200).contains(&second), "{variant}: {second}\n{log}");
        manifests.write("more.json", Vec::new());
        once(&host, &manifests, &[]);
        assert_eq!(saved(&host, variant), before, "{variant}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn rules_and_chains_of_others_stay_and_cleanup_takes_away_ours_alone() {
    for variant in variants() {
        let host = Host::new();
        hint(&host, variant);
        for command in ["iptables", "ip6tables"] {
            host.sh(&format!(
                "{command}-{variant} -t nat -N CNI; {command}-{variant} -t nat -A CNI -j RETURN
                 {command}-{variant} -t nat -A PREROUTING -p tcp --dport 4444 -j CNI
                 {command}-{variant} -A FORWARD -p udp --dport 4444 -j DROP
                 {command}-{variant} -A INPUT -m comment --comment 'PTM-MINE -j POINTSMAN-' -j ACCEPT"
            ));
        }
        let before = saved(&host, variant);
        let manifests = Manifests::new(many(20));
        once(&host, &manifests, &[]);
        let with_ours = saved(&host, variant);
        for line in before.lines() {
            assert!(with_ours.contains(line), "{variant}: {line}");
        }
        let (code, _, log) = pointsman(&host, &["--cleanup"]);
        assert_eq!(code, Some(0), "{log}");
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        assert_eq!(sorted(&saved(&host, variant)), sorted(&before), "{variant}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_dry_run_is_what_every_tool_accepts_and_what_is_programmed() {
    let manifests = Manifests::new(many(40));
    let host = Host::new();
    let (code, text, log) = pointsman(&host, &arguments(&manifests, &["--dry-run"]));
    assert_eq!(code, Some(0), "{log}");
    for variant in variants() {
        let (printed, programmed) = (Host::new(), Host::new());
        for command in ["iptables", "ip6tables"] {
            let restore = format!("{command}-{variant}-restore --noflush");
            let (works, output) = printed.sh_with_input(&restore, &text);
            assert!(works, "{restore}: {output}");
        }
        hint(&programmed, variant);
        once(&programmed, &manifests, &[]);
        let without_marks = |host: &Host| {
            let all = saved(host, variant);
            let rules = all.lines().filter(|line| line.starts_with("-A "));
            let marks = ["--comment \"pointsman:", "--comment pointsman:"];
            let is_mark = |line: &str| marks.iter().any(|mark| line.contains(mark));
            let rules = rules.filter(|line| !is_mark(line));
            let mut rules: Vec<String> = rules.map(str::to_owned).collect();
            rules.sort_unstable();
            rules
        };
        assert_eq!(
            without_marks(&printed),
            without_marks(&programmed),
            "{variant}"
        );
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn g6_what_others_change_is_put_back_within_the_sync_period_however_busy_the_node_is() {
    for variant in variants() {
        let world = World::new();
        hint(&world.node, variant);
        let _servers = Servers::tcp(&world.pods, &[8080]);
        let manifests = Manifests::new(web(1, &["10.244.1.1"]));
        let all = arguments(
            &manifests,
            &[
                "--iptables-sync-period",
                "1s",
                "-v",
                "2",
                "--iptables-min-sync-period",
                "0s",
            ],
        );
        let _process = Pointsman::start_without_cidr(&world.node, &all);
        let target = "10.96.0.1:80";
        let endpoint: SocketAddr = "10.244.1.1:8080".parse().unwrap();
        eventually("it is served", || {
            world
                .pod
                .connect(target)
                .is_ok_and(|seen| seen.endpoint == endpoint)
        });
        for tampering in [
            "-t nat -F",
            "-t nat -F PTM-10.96.0.1-T80",
            "-t nat -D PREROUTING 1",
            "-t nat -R PTM-10.96.0.1-T80 2 -p tcp -j DNAT --to-destination 10.244.1.7:8080",
            "-t nat -R PREROUTING 1 -s 203.0.113.99 -j POINTSMAN-SERVICES",
        ] {
            world.node.sh(&format!("iptables-{variant} -w {tampering}"));
            let mut last = 0;
            eventually_within(
                PATIENCE,
                &format!("{variant}: it is served after {tampering}"),
                || {
                    // Another Service changes all the time.
                    last = last % 200 + 1;
                    let other = web(2, &[&format!("10.244.1.{last}")]);
                    manifests.write("other.json", other);
                    world
                        .pod
                        .connect(target)
                        .is_ok_and(|seen| seen.endpoint == endpoint)
                },
            );
        }
        assert!(metric(&world.node, "pointsman_interference_total") >= 5.0);
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn another_program_that_has_the_lock_is_waited_for_and_named_as_the_reason() {
    let world = World::new();
    if !variants().contains(&"legacy") {
        eprintln!("ignored: this kernel has no ip_tables, and only that has a lock");
        return;
    }
    hint(&world.node, "legacy");
    let directory = tempfile::tempdir().unwrap();
    let lock = directory.path().join("lock");
    let lock = lock.to_str().unwrap();
    let _servers = Servers::tcp(&world.pods, &[8080]);
    let mut holder = hold(&world.node, lock);
    let manifests = Manifests::new(web(1, &["10.244.1.1"]));
    let all = arguments(&manifests, &[]);
    let process = Pointsman::launch_with(&world.node, &all, &[("XTABLES_LOCKFILE", lock)]);
    process.wait_for("has held the lock of iptables for 5 s");
    holder.kill().unwrap();
    holder.wait().unwrap();
    process.wait_for("synced");
    assert!(world.pod.connect("10.96.0.1:80").is_ok());
}

/// A process that has the lock of iptables until it is killed.
fn hold(host: &Host, lock: &str) -> std::process::Child {
    let of = lock.to_owned();
    let holder = host.run(move || {
        std::process::Command::new("flock")
            .args(["--no-fork", &of, "sleep", "300"])
            .spawn()
    });
    eventually("somebody has the lock", || {
        !host.try_sh(&format!("flock --nonblock {lock} true")).0
    });
    holder.unwrap()
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn kube_proxys_chains_go_once_ours_are_there_and_the_kubelets_stay() {
    for variant in variants() {
        let host = Host::new();
        hint(&host, variant);
        left_behind(
            &host,
            variant,
            "*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABCDEFGHIJKLMNOP - [0:0]
:KUBE-POSTROUTING - [0:0]
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-ABCDEFGHIJKLMNOP
-I PREROUTING 1 -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I OUTPUT 1 -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
-I FORWARD 1 -j KUBE-FORWARD
-I INPUT 1 -j KUBE-FIREWALL
COMMIT
",
        );
        let manifests = Manifests::new(many(3));
        once(&host, &manifests, &["--takeover"]);
        let after = saved(&host, variant);
        for gone in [
            "KUBE-SERVICES",
            "KUBE-SVC-",
            "KUBE-POSTROUTING",
            "KUBE-FORWARD",
        ] {
            assert!(!after.contains(gone), "{variant}: {gone}\n{after}");
        }
        assert!(after.contains("-A INPUT -j KUBE-FIREWALL"), "{variant}");
        assert!(after.contains("PTM-10.96.0.1-T80"), "{variant}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn from_mode_to_mode_no_connection_is_lost_and_only_one_of_them_is_left() {
    let world = World::new();
    hint(&world.node, "nft");
    let _servers = Servers::tcp(&world.pods, &[8080]);
    let manifests = Manifests::new(web(1, &["10.244.1.1"]));
    let target = "10.96.0.1:80";
    let nftables: Vec<&str> = arguments(&manifests, &["--takeover"]);
    let nftables: Vec<&str> = nftables
        .iter()
        .map(|argument| {
            if *argument == "iptables" {
                "nftables"
            } else {
                argument
            }
        })
        .collect();
    // What is ours goes without being asked for.
    let without = |argument: &&&str| **argument != "--takeover";
    let plainly: Vec<&str> = nftables.iter().filter(without).copied().collect();
    let iptables = arguments(&manifests, &[]);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut client = None;
    for (mode, all) in [
        ("nftables", &nftables),
        ("iptables", &iptables),
        ("nftables", &plainly),
    ] {
        let process = Pointsman::start_without_cidr(&world.node, all);
        eventually(&format!("{mode} alone"), || {
            let tables = world.node.sh("nft list tables");
            let saved = saved(&world.node, "nft");
            let ours = [tables.contains("pointsman"), saved.contains("PTM-")];
            ours == [mode == "nftables", mode == "iptables"]
        });
        let client = client.get_or_insert_with(|| {
            let (stop, target) = (std::sync::Arc::clone(&stop), target.parse().unwrap());
            world.pod.spawn(move || {
                let (mut tried, mut lost) = (0, 0);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    tried += 1;
                    lost += usize::from(crate::harness::connect(None, target).is_err());
                }
                (tried, lost)
            })
        });
        assert!(!client.is_finished());
        assert_eq!(process.terminate(), Some(0));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (tried, lost): (usize, usize) = client.unwrap().join().unwrap();
    assert!(tried > 100, "{tried}");
    assert_eq!(lost, 0, "of {tried}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn j_l_metrics_have_kube_proxys_names_for_this_mode_and_proxy_mode_says_which_it_is() {
    let host = Host::new();
    hint(&host, "nft");
    let manifests = Manifests::new(many(10));
    let all = arguments(&manifests, &[]);
    let _process = Pointsman::start_without_cidr(&host, &all);
    let mode = get(&host, "127.0.0.1:10249", "/proxyMode").expect("an answer");
    assert_eq!(mode.body, "iptables");
    let rules = |table: &str, what: &str| {
        let labels = format!("{{ip_family=\"IPv4\",table=\"{table}\"}}");
        let name = format!("kubeproxy_sync_proxy_rules_iptables_{what}{labels}");
        metric(&host, &name)
    };
    for table in ["nat", "filter"] {
        let listed = host.sh(&format!("iptables-nft-save -t {table}"));
        let listed = listed
            .lines()
            .filter(|line| line.starts_with("-A "))
            .count();
        assert_eq!(rules(table, "total"), listed as f64, "{table}");
        assert!(rules(table, "last") >= rules(table, "total"), "{table}");
    }
    for failures in ["restore_failures_total", "partial_restore_failures_total"] {
        let name = format!("kubeproxy_sync_proxy_rules_iptables_{failures}{{ip_family=\"IPv4\"}}");
        assert_eq!(metric(&host, &name), 0.0, "{failures}");
    }
}

/// The rules of both families' tables, as they are listed, without marks.
fn rules(host: &Host, variant: &str) -> Vec<String> {
    let all = saved(host, variant);
    let rules = all.lines().filter(|line| line.starts_with("-A "));
    let mut rules: Vec<String> = rules
        .filter(|line| !line.contains("--comment pointsman:") && !line.contains("\"pointsman:"))
        .map(str::to_owned)
        .collect();
    rules.sort_unstable();
    rules
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn rules_are_listed_as_they_are_written_so_that_a_chain_can_be_held_against_its_mark() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    // Ranges on both sides of the middle of all addresses, and addresses that libraries spell differently.
    let ranges: Vec<String> = (0..40)
        .map(|number| format!("{}.10.0.0/16", number * 6))
        .collect();
    let manifests = Manifests::new(vec![
        service("ranges", &["10.96.7.1"])
            .vips(&["203.0.113.7"])
            .set("/spec/loadBalancerSourceRanges", serde_json::json!(ranges))
            .0,
        slice("ranges", "TCP", &["10.244.1.1", "10.244.1.2", "10.244.1.3"]),
        service("odd", &["fd00:96::7"])
            .external_ips(&["::1.2.3.5", "2001:db8:0:1:0:1:0:1"])
            .0,
        slice("odd", "TCP", &["::1.2.3.4", "::ffff:0:1", "fd00:0:0:1::1"]),
    ]);
    for entry in std::fs::read_dir(golden).unwrap() {
        let file = entry.unwrap().path();
        if file
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            let name = file.file_name().unwrap().to_str().unwrap();
            manifests.write_text(name, &std::fs::read_to_string(&file).unwrap());
        }
    }
    let detectors = [
        &[
            "--detect-local-mode",
            "InterfaceNamePrefix",
            "--pod-interface-name-prefix",
            "veth",
        ][..],
        &[
            "--detect-local-mode",
            "BridgeInterface",
            "--pod-bridge-interface",
            "cni0",
        ],
        &[],
        &["--cluster-cidr", "0.0.0.0/0,::/0"],
    ];
    for variant in variants() {
        for detector in detectors {
            let host = Host::new();
            hint(&host, variant);
            let mut all = vec!["--proxy-mode", "iptables", "--conntrack-max-per-core", "0"];
            all.extend(["--hostname-override", NODE, "--manifests", manifests.path()]);
            all.extend(detector);
            let (code, text, log) = pointsman(&host, &[&all[..], &["--dry-run"]].concat());
            assert_eq!(code, Some(0), "{log}");
            let (code, _, log) = pointsman(&host, &[&all[..], &["--once"]].concat());
            assert_eq!(code, Some(0), "{log}");
            let written = text.lines().filter_map(|line| {
                let rule = line
                    .strip_prefix("-4 ")
                    .or_else(|| line.strip_prefix("-6 "))?;
                let first = rule
                    .strip_prefix("-I ")
                    .and_then(|rule| rule.split_once(" 1 "));
                Some(match first {
                    Some((chain, rule)) => format!("-A {chain} {rule}"),
                    None => rule.to_owned(),
                })
            });
            let mut written: Vec<String> = written.collect();
            written.sort_unstable();
            assert!(written.len() > 90, "{}", written.len());
            for (written, listed) in written.iter().zip(rules(&host, variant)) {
                assert_eq!(*written, listed, "{variant}");
            }
        }
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn g6_what_was_changed_while_nobody_was_there_is_put_right_at_the_next_start() {
    for variant in variants() {
        let host = Host::new();
        hint(&host, variant);
        let manifests = Manifests::new(many(3));
        once(&host, &manifests, &[]);
        let before = saved(&host, variant);
        let replaced = "-R PTM-10.96.0.1-T80 2 -p tcp -j DNAT --to-destination 10.244.1.7:8080";
        host.sh(&format!(
            "iptables-{variant} -t nat {replaced}
             iptables-{variant} -t nat -R OUTPUT 1 -s 203.0.113.99 -j POINTSMAN-SERVICES
             iptables-{variant} -t nat -A OUTPUT -j POINTSMAN-SERVICES
             ip6tables-{variant} -R INPUT 1 -j POINTSMAN-INPUT"
        ));
        assert_ne!(said(&once(&host, &manifests, &[]), "operations"), 0);
        assert_eq!(saved(&host, variant), before, "{variant}");
        assert_eq!(said(&once(&host, &manifests, &[]), "operations"), 0);
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_table_that_iptables_cannot_list_is_served_and_its_hooks_do_not_pile_up() {
    let host = Host::new();
    hint(&host, "nft");
    let manifests = Manifests::new(many(3));
    once(&host, &manifests, &[]);
    let foreign = "ip nat POSTROUTING ip saddr { 1.2.3.4, 1.2.3.5 } counter masquerade";
    host.sh(&format!("nft add rule {foreign}"));
    manifests.write("more.json", web(9, &["10.244.1.9"]));
    for _ in 0..2 {
        let log = once(&host, &manifests, &[]);
        assert!(log.contains("iptables cannot read its table nat"), "{log}");
        let table = host.sh("nft list table ip nat");
        assert_eq!(
            table.matches("jump POINTSMAN-SERVICES").count(),
            2,
            "{table}"
        );
        assert!(table.contains("dnat to 10.244.1.9:8080"), "{table}");
    }
    let (code, _, log) = pointsman(&host, &["--cleanup"]);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("nft list table ip nat"), "{log}");
    // What can be removed is.
    let after = saved(&host, "nft");
    assert!(!after.contains("POINTSMAN-REFUSED"), "{after}");
    host.sh("nft flush chain ip nat POSTROUTING");
    let (code, _, log) = pointsman(&host, &["--cleanup"]);
    assert_eq!(code, Some(0), "{log}");
    assert!(!saved(&host, "nft").contains("POINTSMAN"));
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn what_the_other_variant_holds_goes_when_the_node_goes_over_and_with_cleanup() {
    if variants().len() < 2 {
        eprintln!("ignored: this kernel has no ip_tables");
        return;
    }
    let host = Host::new();
    hint(&host, "legacy");
    let manifests = Manifests::new(many(3));
    once(&host, &manifests, &[]);
    assert!(saved(&host, "legacy").contains("PTM-10.96.0.1-T80"));
    hint(&host, "nft");
    once(&host, &manifests, &[]);
    assert!(saved(&host, "nft").contains("PTM-10.96.0.1-T80"));
    let legacy = saved(&host, "legacy");
    assert!(
        !legacy.contains("POINTSMAN") && !legacy.contains("PTM"),
        "{legacy}"
    );

    let other = Host::new();
    hint(&other, "legacy");
    once(&other, &manifests, &[]);
    hint(&other, "nft");
    let (code, _, log) = pointsman(&other, &["--cleanup"]);
    assert_eq!(code, Some(0), "{log}");
    let legacy = saved(&other, "legacy");
    assert!(
        !legacy.contains("POINTSMAN") && !legacy.contains("PTM"),
        "{legacy}"
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_chain_of_ours_that_somebody_elses_rule_leads_to_holds_nothing_else_up() {
    for variant in variants() {
        let host = Host::new();
        hint(&host, variant);
        let manifests = Manifests::new(web(1, &["10.244.1.1"]));
        manifests.write("gone.json", web(2, &["10.244.1.2"]));
        once(&host, &manifests, &[]);
        host.sh(&format!(
            "iptables-{variant} -t nat -N MINE
             iptables-{variant} -t nat -A MINE -j PTM-10.96.0.2-T80"
        ));
        manifests.write("gone.json", web(3, &["10.244.1.3"]));
        let log = once(&host, &manifests, &[]);
        assert!(log.contains("chains are kept, empty"), "{log}");
        let after = saved(&host, variant);
        let leads = "-d 10.96.0.3/32 -p tcp -m tcp --dport 80";
        assert!(after.contains(leads), "{variant}: {after}");
        assert!(after.contains("-A MINE -j PTM-10.96.0.2-T80"), "{variant}");
        assert!(!after.contains("-A PTM-10.96.0.2-T80 "), "{variant}");
        // It goes when it can.
        host.sh(&format!("iptables-{variant} -t nat -F MINE"));
        once(&host, &manifests, &[]);
        assert!(
            !saved(&host, variant).contains("PTM-10.96.0.2-T80"),
            "{variant}"
        );
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_cleanup_that_does_not_get_the_lock_says_so_and_fails() {
    if !variants().contains(&"legacy") {
        eprintln!("ignored: this kernel has no ip_tables, and only that has a lock");
        return;
    }
    let host = Host::new();
    hint(&host, "legacy");
    let manifests = Manifests::new(many(2));
    once(&host, &manifests, &[]);
    let directory = tempfile::tempdir().unwrap();
    let lock = directory.path().join("lock");
    let lock = lock.to_str().unwrap();
    let mut holder = hold(&host, lock);
    let cleanup = Pointsman::launch_with(&host, &["--cleanup"], &[("XTABLES_LOCKFILE", lock)]);
    cleanup.wait_for("has held the lock of iptables for 5 s");
    assert_eq!(cleanup.wait(), Some(1));
    let _ = holder.kill();
    let _ = holder.wait();
}

/// A directory with a tool that refuses what holds some words, and does not say which line it was; and the file
/// that counts its calls.
fn refusing(host: &Host, variant: &str, words: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let name = format!("iptables-{variant}-restore");
    let real = host.sh(&format!("PATH=$PATH:/usr/sbin:/sbin command -v {name}"));
    let (tool, calls) = (directory.path().join(&name), directory.path().join("calls"));
    let script = format!(
        "#!/bin/sh\necho >>{calls}\ninput=$(cat)\ncase $input in *'{words}'*) \
         echo '{name}: Invalid argument.' >&2; exit 1;; esac\n\
         printf '%s\\n' \"$input\" | {real} \"$@\"\n",
        calls = calls.display(),
        real = real.trim(),
    );
    std::fs::write(&tool, script).unwrap();
    host.sh(&format!("chmod 755 {}", tool.display()));
    (directory, calls)
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_service_that_is_refused_is_found_in_few_steps_and_everybody_else_is_served() {
    for variant in variants() {
        let host = Host::new();
        hint(&host, variant);
        let manifests = Manifests::new(many(300));
        let (directory, calls) = refusing(&host, variant, "-A PTM-10.96.0.77-T80 ");
        let path = format!(
            "{}:/usr/sbin:/sbin:/usr/bin:/bin",
            directory.path().display()
        );
        let all = arguments(&manifests, &["-v", "2"]);
        let process = Pointsman::launch_with(&host, &all, &[("PATH", &path)]);
        process.wait_for("synced");
        let after = saved(&host, variant);
        assert!(after.contains("-A PTM-10.96.1.44-T80 "), "{variant}");
        assert!(!after.contains("-A PTM-10.96.0.77-T80 "), "{variant}");
        assert!(
            process.log().contains("default/web-77"),
            "{}",
            process.log()
        );
        let calls = std::fs::read_to_string(calls).unwrap().lines().count();
        assert!(calls < 60, "{variant}: {calls}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn without_the_module_that_remembers_clients_services_are_served_without_affinity() {
    for variant in variants() {
        let host = Host::new();
        hint(&host, variant);
        let mut objects = many(3);
        objects.push(service("sticky", &["10.96.9.9"]).affinity(600).0);
        objects.push(slice("sticky", "TCP", &["10.244.1.1", "10.244.1.2"]));
        let manifests = Manifests::new(objects);
        let (directory, _) = refusing(&host, variant, "-m recent");
        let path = format!(
            "{}:/usr/sbin:/sbin:/usr/bin:/bin",
            directory.path().display()
        );
        let all = arguments(&manifests, &["-v", "2"]);
        let process = Pointsman::launch_with(&host, &all, &[("PATH", &path)]);
        process.wait_for("synced");
        let log = process.log();
        assert!(log.contains("modprobe xt_recent"), "{log}");
        let after = saved(&host, variant);
        assert!(after.contains("-A PTM-10.96.9.9-T80 "), "{variant}");
        assert!(!after.contains("PTM-PROBE"), "{variant}");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn takeover_leaves_what_others_use_and_removes_the_tables_of_kube_proxys_nftables_mode() {
    for variant in variants() {
        let host = Host::new();
        hint(&host, variant);
        left_behind(
            &host,
            variant,
            "*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:HOSTPORTS - [0:0]
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-SERVICES -j KUBE-MARK-MASQ
-A HOSTPORTS -s 10.244.1.5/32 -j KUBE-MARK-MASQ
-I PREROUTING 1 -j KUBE-SERVICES
COMMIT
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
",
        );
        host.sh("nft add table ip kube-proxy");
        let manifests = Manifests::new(many(3));
        once(&host, &manifests, &["--takeover"]);
        let after = saved(&host, variant);
        for gone in ["KUBE-SERVICES", "KUBE-PROXY-CANARY"] {
            assert!(!after.contains(gone), "{variant}: {gone}\n{after}");
        }
        assert!(after.contains("-A HOSTPORTS -s 10.244.1.5/32 -j KUBE-MARK-MASQ"));
        assert!(after.contains("-A KUBE-MARK-MASQ -j MARK"), "{after}");
        assert!(!host.sh("nft list tables").contains("kube-proxy"));
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e12_node_ports_on_localhost_are_led_to_endpoints_and_neighbours_do_not_reach_loopback() {
    for variant in variants() {
        let world = World::new();
        let node = &world.node;
        hint(node, variant);
        let _servers = Servers::tcp(&world.pods, &[8080]);
        let _private = Servers::tcp(node, &[9000]);
        let objects = vec![
            service("web", &["10.96.0.1"]).node_port(30080).0,
            slice("web", "TCP", &["10.244.1.1"]),
        ];
        let manifests = Manifests::new(objects);
        let endpoint: SocketAddr = "10.244.1.1:8080".parse().unwrap();
        let is_served = |target: &str| node.connect(target).map(|seen| seen.endpoint);
        let all = arguments(&manifests, &[]);
        let process = Pointsman::start_without_cidr(node, &all);
        assert_eq!(is_served("127.0.0.1:30080"), Ok(endpoint), "{variant}");
        assert!(node.connect("127.0.0.1:9000").is_ok());
        // A neighbour that sends to 127.0.0.1 through the node.
        world
            .client
            .sh("sysctl -qw net.ipv4.conf.all.route_localnet=1
             ip addr del 127.0.0.1/8 dev lo; ip route del local 127.0.0.0/8 table local || true
             ip route add 127.0.0.1/32 via 192.0.2.1");
        let from_outside = || {
            let target: SocketAddr = "127.0.0.1:9000".parse().unwrap();
            world.client.run(move || {
                crate::harness::connect_within(
                    Some("192.0.2.2".parse().unwrap()),
                    target,
                    Duration::from_millis(500),
                )
            })
        };
        assert!(from_outside().is_err(), "{variant}");
        assert_eq!(process.terminate(), Some(0));
        // Without our rules it does: this is what they are for.
        let (code, _, log) = pointsman(node, &["--cleanup"]);
        assert_eq!(code, Some(0), "{log}");
        assert!(from_outside().is_ok(), "{variant}");

        let off = arguments(&manifests, &["--iptables-localhost-nodeports=false"]);
        let _process = Pointsman::start_without_cidr(node, &off);
        assert!(is_served("127.0.0.1:30080").is_err(), "{variant}");
        assert_eq!(is_served("192.0.2.1:30080"), Ok(endpoint), "{variant}");
    }
}
