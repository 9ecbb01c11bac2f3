//! What flags mean, and which are refused.

use super::*;
use clap::Parser;

fn parse(flags: &[&str]) -> Result<Config, UsageError> {
    let mut all = vec!["pointsman", "--manifests", "x"];
    all.extend(flags);
    Config::from_args(&Args::try_parse_from(all).unwrap(), "Host-1")
}

#[test]
fn wrong_values_are_refused_by_the_name_of_their_flag() {
    let cases: [(&[&str], &str); 14] = [
        (&["--proxy-mode", "ipvs"], "proxy-mode"),
        (&["--dry-run", "--output", "xml"], "output"),
        (&["--cluster-cidr", "10.0.0.0"], "cluster-cidr"),
        (&["--cluster-cidr", "nonsense"], "cluster-cidr"),
        (&["--cluster-cidr", "10.0.0.0/8,11.0.0.0/8"], "cluster-cidr"),
        (&["--cluster-cidr", "10.0.0.0/8, fd00::/8"], "cluster-cidr"),
        (&["--detect-local-mode", "Magic"], "detect-local-mode"),
        (
            &["--detect-local-mode", "BridgeInterface"],
            "pod-bridge-interface",
        ),
        (
            &[
                "--detect-local-mode",
                "BridgeInterface",
                "--pod-bridge-interface",
                "much-too-long-name",
            ],
            "pod-bridge-interface",
        ),
        (
            &["--detect-local-mode", "InterfaceNamePrefix"],
            "pod-interface-name-prefix",
        ),
        (
            &[
                "--detect-local-mode",
                "InterfaceNamePrefix",
                "--pod-interface-name-prefix",
                "a\"b",
            ],
            "pod-interface-name-prefix",
        ),
        (
            &["--nodeport-addresses", "primary,10.0.0.0/8"],
            "nodeport-addresses",
        ),
        (&["--nodeport-addresses", "10.0.0.1"], "nodeport-addresses"),
        (
            &["--nodeport-addresses", "10.0.0.0/8,"],
            "nodeport-addresses",
        ),
    ];
    for (flags, flag) in cases {
        let error = parse(flags).unwrap_err();
        assert_eq!(error.flag, flag, "{flags:?}: {error}");
    }
    let args = Args::try_parse_from(["pointsman"]).unwrap();
    assert_eq!(Config::from_args(&args, "h").unwrap_err().flag, "manifests");
    let args = Args::try_parse_from(["pointsman", "--manifests", "x"]).unwrap();
    assert_eq!(
        Config::from_args(&args, "").unwrap_err().flag,
        "hostname-override"
    );
    let args = Args::try_parse_from(["pointsman", "--logging-format", "xml"]).unwrap();
    assert_eq!(args.log_format().unwrap_err().flag, "logging-format");
}

#[test]
fn c4_the_node_is_named_by_the_host_or_the_override_in_lower_case() {
    assert_eq!(parse(&[]).unwrap().node_name, "host-1");
    let config = parse(&["--hostname-override", " Node-7 "]).unwrap();
    assert_eq!(config.node_name, "node-7");
}

#[test]
fn booleans_are_written_as_for_kube_proxy() {
    for (flags, expected) in [
        (&[][..], false),
        (&["--masquerade-all"], true),
        (&["--masquerade-all=true"], true),
        (&["--masquerade-all=false"], false),
    ] {
        assert_eq!(parse(flags).unwrap().masquerade_all, expected, "{flags:?}");
    }
}

#[test]
fn durations_are_written_as_for_kube_proxy() {
    let cases = [
        ("24h", Some(86_400_000)),
        ("1h30m", Some(5_400_000)),
        ("0s", Some(0)),
        ("0", Some(0)),
        ("1.5s", Some(1_500)),
        ("250ms", Some(250)),
        ("", None),
        ("10", None),
        ("-1s", None),
        ("1 h", None),
        ("h", None),
        ("1d", None),
    ];
    for (text, expected) in cases {
        let found = parse(&[&format!("--conntrack-udp-timeout={text}")]);
        match expected {
            Some(milliseconds) => {
                let timeout = found.unwrap().conntrack.udp_timeout;
                assert_eq!(timeout, Duration::from_millis(milliseconds), "{text:?}");
            }
            None => assert_eq!(found.unwrap_err().flag, "conntrack-udp-timeout", "{text:?}"),
        }
    }
    assert_eq!(parse(&[]).unwrap().conntrack, Conntrack::default());
    let error = parse(&["--conntrack-min=-1"]).unwrap_err();
    assert_eq!(error.flag, "conntrack-min");
}

#[test]
fn actions_are_exclusive() {
    assert_eq!(parse(&[]).unwrap().action, Action::Run);
    assert_eq!(parse(&["--once"]).unwrap().action, Action::Once);
    assert_eq!(
        parse(&["--dry-run"]).unwrap().action,
        Action::DryRun(Output::Nft)
    );
    assert_eq!(
        parse(&["--dry-run", "--output=json"]).unwrap().action,
        Action::DryRun(Output::Json)
    );
    assert_eq!(parse(&["--cleanup"]).unwrap().action, Action::Cleanup);
    for flags in [
        ["--once", "--dry-run"],
        ["--once", "--cleanup"],
        ["--dry-run", "--cleanup"],
    ] {
        assert!(Args::try_parse_from(["pointsman"].into_iter().chain(flags)).is_err());
    }
}

#[test]
fn e6_pods_are_recognised_as_configured_by_one_network_of_each_family() {
    let node = Node {
        pod_cidrs: ["10.244.1.0/24", "10.245.1.0/24"]
            .map(|text| text.parse().unwrap())
            .to_vec(),
        ..Node::named("node-1")
    };
    let network = |text: &str| LocalDetector::Network(text.parse().unwrap());
    let none = LocalDetector::None;
    let cases: [(&[&str], LocalDetector, LocalDetector); 6] = [
        (&[], none.clone(), none.clone()),
        (
            &["--cluster-cidr", "10.1.2.3/16"],
            network("10.1.0.0/16"),
            none.clone(),
        ),
        (
            &["--cluster-cidr", "fd00::/8,10.0.0.0/8"],
            network("10.0.0.0/8"),
            network("fd00::/8"),
        ),
        (
            &["--detect-local-mode", "NodeCIDR"],
            network("10.244.1.0/24"),
            none,
        ),
        (
            &[
                "--detect-local-mode",
                "BridgeInterface",
                "--pod-bridge-interface",
                "cni0",
            ],
            LocalDetector::Interface("cni0".into()),
            LocalDetector::Interface("cni0".into()),
        ),
        (
            &[
                "--detect-local-mode",
                "InterfaceNamePrefix",
                "--pod-interface-name-prefix",
                "veth",
            ],
            LocalDetector::InterfacePrefix("veth".into()),
            LocalDetector::InterfacePrefix("veth".into()),
        ),
    ];
    for (flags, v4, v6) in cases {
        let detector = parse(flags).unwrap().local_detector(&node).unwrap();
        assert_eq!(detector, PerFamily { v4, v6 }, "{flags:?}");
    }
    let config = parse(&["--detect-local-mode", "NodeCIDR"]).unwrap();
    let error = config.local_detector(&Node::named("node-1")).unwrap_err();
    assert_eq!(error.flag, "detect-local-mode");
}
