//! What kube-proxy leaves behind, and what it does not own.

use super::*;
use crate::objects::Manifests;

/// What kube-proxy's two modes leave, beside what others have.
const LEFT_BEHIND: &str = "
table ip kube-proxy { chain services { counter; }; }
table ip6 kube-proxy { chain services { counter; }; }
table ip nat {
    chain KUBE-SEP-X { meta l4proto tcp counter dnat to 10.244.1.9:8080; }
    chain KUBE-SVC-X { counter jump KUBE-SEP-X; }
    chain KUBE-MARK-MASQ { counter meta mark set meta mark or 0x4000; }
    chain KUBE-SERVICES { ip daddr 10.96.0.77 counter jump KUBE-SVC-X; counter jump KUBE-MARK-MASQ; }
    chain KUBE-POSTROUTING { counter; }
    chain THEIRS { counter; }
    chain PREROUTING {
        type nat hook prerouting priority -100;
        counter jump KUBE-SERVICES
        ip daddr 192.0.2.99 counter jump THEIRS
    }
    chain POSTROUTING {
        type nat hook postrouting priority 100;
        counter jump KUBE-POSTROUTING
        ip daddr 192.0.2.98 counter masquerade
    }
}
table ip filter {
    chain KUBE-FIREWALL { counter drop; }
    chain KUBE-FORWARD { counter accept; }
    chain KUBE-SERVICES { counter; }
    chain INPUT {
        type filter hook input priority 0;
        ip saddr 192.0.2.97 counter jump KUBE-FIREWALL
    }
    chain FORWARD {
        type filter hook forward priority 0;
        counter jump KUBE-FORWARD
        ct state new counter jump KUBE-SERVICES
        ip daddr 192.0.2.96 counter accept
    }
}
table ip mangle { chain KUBE-PROXY-CANARY { }; }
table ip theirs { chain KUBE-SERVICES { counter; }; }
";

/// Kube-proxy's.
const GOES: [&str; 9] = [
    "table ip kube-proxy",
    "table ip6 kube-proxy",
    "chain KUBE-SEP-X",
    "chain KUBE-SVC-X",
    "chain KUBE-MARK-MASQ",
    "chain KUBE-POSTROUTING",
    "jump KUBE-SERVICES",
    "chain KUBE-FORWARD",
    "chain KUBE-PROXY-CANARY",
];

/// Other people's, and kubelet's.
const STAYS: [&str; 9] = [
    "chain THEIRS",
    "jump THEIRS",
    "192.0.2.98",
    "chain KUBE-FIREWALL",
    "jump KUBE-FIREWALL",
    "192.0.2.96",
    "table ip theirs",
    "chain PREROUTING",
    "chain POSTROUTING",
];

fn leave_behind(host: &Host) {
    let (ok, said) = host.sh_with_input("nft -f -", LEFT_BEHIND);
    assert!(ok, "{said}");
    let ruleset = host.ruleset();
    for text in GOES.iter().chain(&STAYS) {
        assert!(ruleset.contains(text), "{text}: {ruleset}");
    }
}

/// The words of the ruleset without the counters' values.
fn without_counts(host: &Host) -> Vec<String> {
    let ruleset = host.ruleset();
    let words = ruleset.split_whitespace();
    let words = words.filter(|word| !word.bytes().all(|byte| byte.is_ascii_digit()));
    words.map(str::to_owned).collect()
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn takeover_removes_kube_proxys_tables_and_chains_and_nobody_elses() {
    let host = Host::new();
    leave_behind(&host);
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    server.misbehave(Kind::Slices, Phase::List, Answer::Stall, 1);
    let before = without_counts(&host);
    let process = launch(&host, &server, &["--takeover"]);
    for kind in Kind::ALL {
        server.wait_for_watch(kind);
    }
    wait_for_health(&host, "/livez", 200);
    let now = without_counts(&host);
    assert_eq!(now, before, "not before ours can take over");
    server.behave();
    process.wait_for("kube-proxy's chains are removed");
    let ruleset = host.ruleset();
    for text in GOES {
        assert!(!ruleset.contains(text), "{text} is still there: {ruleset}");
    }
    for text in STAYS {
        assert!(ruleset.contains(text), "{text} is gone: {ruleset}");
    }
    assert_eq!(ruleset.matches("chain KUBE-SERVICES").count(), 1, "theirs");
    in_step("our own rules", &host, &server);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn by_kube_proxys_name_it_takes_over_unless_told_otherwise() {
    let directory = tempfile::tempdir().expect("a directory");
    let name = directory.path().join("kube-proxy");
    std::os::unix::fs::symlink(crate::harness::BINARY.as_path(), &name).expect("a link");
    for (flag, goes) in [("", true), ("--takeover=false", false)] {
        let host = Host::new();
        leave_behind(&host);
        let manifests = Manifests::new(web("web", 10, &[1]).to_vec());
        let command = format!(
            "{} --manifests {} --hostname-override {} --conntrack-max-per-core 0 --once {flag}",
            name.display(),
            manifests.path(),
            crate::harness::NODE,
        );
        host.sh(&command);
        let ruleset = host.ruleset();
        assert!(ruleset.contains("10.96.0.10"), "{ruleset}");
        for text in GOES {
            assert_eq!(!ruleset.contains(text), goes, "{flag} {text}: {ruleset}");
        }
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn without_takeover_everything_of_kube_proxys_stays() {
    let host = Host::new();
    leave_behind(&host);
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let process = start(&host, &server);
    process.wait_for("this node has kube-proxy's rules besides");
    in_step("our own rules", &host, &server);
    assert_eq!(process.terminate(), Some(0));
    host.sh("nft delete table ip pointsman; nft delete table ip6 pointsman");
    let fresh = Host::new();
    leave_behind(&fresh);
    assert_eq!(without_counts(&host), without_counts(&fresh));
}
