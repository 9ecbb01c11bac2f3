//! What flags mean, and which are refused.

use super::*;
use crate::core::model::Family;
use clap::Parser;

fn parse(flags: &[&str]) -> Result<Config, UsageError> {
    let mut all = vec!["pointsman", "--manifests", "x"];
    all.extend(flags);
    from_args(&all, "Host-1")
}

fn from_args(flags: &[&str], hostname: &str) -> Result<Config, UsageError> {
    let args = Args::try_parse_from(flags).unwrap();
    Config::from_args(&args, hostname).map_err(|error| match error {
        ConfigError::Usage(error) => error,
        ConfigError::File(error) => panic!("{error}"),
    })
}

#[test]
fn wrong_values_are_refused_by_the_name_of_their_flag() {
    let cases: [(&[&str], &str); 15] = [
        (&["--cluster-cidr", "10.0.0.0"], "cluster-cidr"),
        (&["--cluster-cidr", "nonsense"], "cluster-cidr"),
        (&["--cluster-cidr", "10.0.0.0/8,11.0.0.0/8"], "cluster-cidr"),
        (&["--cluster-cidr", "10.0.0.0/8, fd00::/8"], "cluster-cidr"),
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
            &["--nodeport-addresses", "primary,10.0.0.0/8,primary"],
            "nodeport-addresses",
        ),
        (&["--metrics-port", "0"], "metrics-port"),
        (
            &["--iptables-masquerade-bit", "32"],
            "iptables-masquerade-bit",
        ),
        (&["--iptables-sync-period", "-1s"], "iptables-sync-period"),
        (&["--feature-gates", "X=maybe"], "feature-gates"),
        (&["--nodeport-addresses", "10.0.0.1"], "nodeport-addresses"),
        (
            &["--nodeport-addresses", "10.0.0.0/8,"],
            "nodeport-addresses",
        ),
    ];
    for (flags, flag) in cases {
        let error = parse(flags).unwrap_err();
        assert_eq!(error.name, format!("--{flag}"), "{flags:?}: {error}");
    }
    let error = from_args(&["pointsman"], "").unwrap_err();
    assert_eq!(error.name, "--hostname-override");
}

#[test]
fn a_word_that_is_none_of_those_that_a_flag_takes_is_refused_with_those_that_it_takes() {
    for (flag, word, words) in [
        ("proxy-mode", "magic", "none of nftables, iptables and ipvs"),
        ("logging-format", "xml", "neither text nor json"),
        (
            "detect-local-mode",
            "Magic",
            "none of ClusterCIDR, NodeCIDR, BridgeInterface and InterfaceNamePrefix",
        ),
    ] {
        let error = parse(&[&format!("--{flag}={word}")]).unwrap_err();
        assert_eq!(error.name, format!("--{flag}"));
        assert!(error.problem.contains(words), "{error}");
        assert!(
            parse(&[&format!("--{flag}=")]).is_ok(),
            "{flag} is not said"
        );
    }
    for (flags, words) in [
        (
            &["--dry-run", "--output", "xml"][..],
            "[possible values: nft, json]",
        ),
        (
            &["--masquerade-all=yes"],
            "invalid value 'yes' for '--masquerade-all",
        ),
        (&["--cleanup=yes"], "invalid value 'yes' for '--cleanup"),
        (&["--v=-1"], "invalid value '-1' for '--v"),
    ] {
        let error = Args::try_parse_from(["pointsman"].iter().chain(flags)).unwrap_err();
        assert!(error.to_string().contains(words), "{flags:?}: {error}");
    }
    // Where the file decides, what a flag says does not matter.
    let config = with_file("mode: nftables", &["--proxy-mode=userspace"]).unwrap();
    let ignored = config
        .warnings
        .iter()
        .any(|text| text.contains("--proxy-mode"));
    assert!(ignored, "{:?}", config.warnings);
}

#[test]
fn a_flag_may_be_given_again_as_for_kube_proxy() {
    let config = parse(&[
        "--hostname-override=a",
        "--hostname-override=b",
        "--nodeport-addresses=",
        "--nodeport-addresses=10.0.0.0/8",
        "--nodeport-addresses=fd00::/8",
        "-v=2",
        "-v=3",
    ]);
    let config = config.unwrap();
    assert_eq!(config.node_name, "b", "the last one counts");
    assert_eq!(config.verbosity, 3);
    let both = NodePortAddresses::Networks(vec![
        "10.0.0.0/8".parse().unwrap(),
        "fd00::/8".parse().unwrap(),
    ]);
    assert_eq!(config.node_port_addresses, both, "lists grow");
}

#[test]
fn the_short_help_leaves_out_what_is_only_accepted_and_every_flag_has_a_field_that_there_is() {
    use clap::CommandFactory;

    let short = Args::command().render_help().to_string();
    let long = Args::command().render_long_help().to_string();
    let all = KubeProxyConfiguration::default();
    let all = serde_json::to_value(all).unwrap();
    for flag in super::super::table::FLAGS {
        let shown = |text: &str| text.contains(&format!("--{}", flag.name));
        assert!(shown(&long), "{}", flag.name);
        assert_eq!(shown(&short), !flag.idle, "{}", flag.name);
        for field in flag.fields {
            let pointer = format!("/{}", field.replace('.', "/"));
            assert!(all.pointer(&pointer).is_some(), "{}: {field}", flag.name);
        }
    }
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
        (&["--masquerade-all=1"], true),
        (&["--masquerade-all=F"], false),
        (&["--masquerade-all=0", "--masquerade-all"], true),
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
            None => assert_eq!(
                found.unwrap_err().name,
                "--conntrack-udp-timeout",
                "{text:?}"
            ),
        }
    }
    assert_eq!(parse(&[]).unwrap().conntrack, Conntrack::default());
    let error = parse(&["--conntrack-min=-1"]).unwrap_err();
    assert_eq!(error.name, "--conntrack-min");
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
    assert!(error.to_string().contains("node-1"), "{error}");
}

/// A configuration file with some YAML in it.
fn with_file(yaml: &str, flags: &[&str]) -> Result<Config, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        "apiVersion: {}\nkind: {}\n{yaml}",
        file::API_VERSION,
        file::KIND
    );
    std::fs::write(file.path(), text).unwrap();
    let mut all = vec!["pointsman", "--config", file.path().to_str().unwrap()];
    all.extend(flags);
    let args = Args::try_parse_from(all).unwrap();
    Config::from_args(&args, "host").map_err(|error| error.to_string())
}

#[test]
fn a_wrong_field_of_the_configuration_file_is_refused_by_name() {
    let cases = [
        ("mode: userspace", "mode"),
        ("detectLocalMode: Magic", "detectLocalMode"),
        ("clusterCIDR: 10.0.0.0", "clusterCIDR"),
        ("clusterCIDR: 10.0.0.0/8,11.0.0.0/8", "clusterCIDR"),
        ("clusterCIDR: [10.0.0.0/8]", "clusterCIDR"),
        ("bindAddress: localhost", "bindAddress"),
        ("healthzBindAddress: 0.0.0.0:0", "healthzBindAddress"),
        ("healthzBindAddress: nowhere", "healthzBindAddress"),
        ("metricsBindAddress: 127.0.0.1:70000", "metricsBindAddress"),
        ("metricsBindAddress: ':10249'", "metricsBindAddress"),
        ("bindAddressHardFail: maybe", "bindAddressHardFail"),
        (
            "nodePortAddresses: [localhost, 10.0.0.0/8, localhost]",
            "nodePortAddresses[2]",
        ),
        ("nodePortAddresses: [10.0.0.1]", "nodePortAddresses[0]"),
        ("nodePortAddresses: [Localhost]", "nodePortAddresses[0]"),
        ("nodePortAddresses: 10.0.0.0/8", "nodePortAddresses"),
        ("oomScoreAdj: -1001", "oomScoreAdj"),
        ("oomScoreAdj: low", "oomScoreAdj"),
        ("configSyncPeriod: -15m", "configSyncPeriod"),
        ("configSyncPeriod: 15", "configSyncPeriod"),
        ("conntrack: {maxPerCore: -1}", "conntrack.maxPerCore"),
        ("conntrack: {min: -1}", "conntrack.min"),
        (
            "conntrack: {tcpEstablishedTimeout: -1s}",
            "conntrack.tcpEstablishedTimeout",
        ),
        (
            "conntrack: {tcpCloseWaitTimeout: 1 hour}",
            "conntrack.tcpCloseWaitTimeout",
        ),
        ("conntrack: {udpTimeout: -5s}", "conntrack.udpTimeout"),
        (
            "conntrack: {udpStreamTimeout: 1d}",
            "conntrack.udpStreamTimeout",
        ),
        ("iptables: {masqueradeBit: 32}", "iptables.masqueradeBit"),
        ("iptables: {syncPeriod: -30s}", "iptables.syncPeriod"),
        ("iptables: {minSyncPeriod: 1m}", "iptables.minSyncPeriod"),
        (
            "mode: nftables\nnftables: {masqueradeBit: -1}",
            "nftables.masqueradeBit",
        ),
        (
            "mode: nftables\nnftables: {minSyncPeriod: -1s}",
            "nftables.minSyncPeriod",
        ),
        ("nftables: {masqueradeAll: 'yes'}", "nftables.masqueradeAll"),
        ("ipvs: {udpTimeout: -1s}", "ipvs.udpTimeout"),
        (
            "detectLocalMode: BridgeInterface",
            "detectLocal.bridgeInterface",
        ),
        (
            "detectLocalMode: InterfaceNamePrefix",
            "detectLocal.interfaceNamePrefix",
        ),
        (
            "showHiddenMetricsForVersion: '1.20'",
            "showHiddenMetricsForVersion",
        ),
        ("clientConnection: {burst: -1}", "clientConnection.burst"),
        ("clientConnection: {qps: fast}", "clientConnection.qps"),
        (
            "featureGates: {MultiCIDRServiceAllocator: false}",
            "featureGates",
        ),
        ("logging: {format: xml}", "logging.format"),
        ("hostnameOverride: {a: b}", "hostnameOverride"),
    ];
    for (yaml, field) in cases {
        let error = with_file(yaml, &[]).expect_err(yaml);
        assert!(error.contains(&format!(": {field}: ")), "{yaml}: {error}");
    }
}

#[test]
fn another_kind_or_version_or_no_yaml_at_all_is_refused() {
    let cases = [
        (
            "kind: KubeProxyConfiguration\napiVersion: v1\n",
            "apiVersion",
        ),
        (
            "kind: KubeletConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1\n",
            "kind",
        ),
        ("a: [", "neither YAML nor JSON"),
        ("", "apiVersion"),
    ];
    for (text, named) in cases {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let error = load(file.path()).unwrap_err().to_string();
        assert!(error.contains(named), "{text:?}: {error}");
    }
}

/// As kubeadm 1.36 writes it into the ConfigMap, for a dual-stack cluster.
const KUBEADM: &str = include_str!("../../tests/data/kubeadm.config.conf");

#[test]
fn the_file_that_kubeadm_writes_is_taken_as_it_is() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), KUBEADM).unwrap();
    let path = file.path().to_str().unwrap();
    let config = from_args(
        &["pointsman", "--config", path, "--hostname-override=Node-1"],
        "h",
    )
    .unwrap();
    assert_eq!(config.node_name, "node-1");
    assert_eq!(config.conntrack, Conntrack::default());
    assert_eq!(
        config.health_address,
        Some("0.0.0.0:10256".parse().unwrap())
    );
    assert_eq!(config.metrics_address, "127.0.0.1:10249".parse().unwrap());
    assert_eq!(config.sync_period, Duration::from_secs(30));
    assert_eq!(config.min_sync_period, Duration::ZERO);
    assert_eq!(config.masquerade_bit, 14);
    assert_eq!(config.node_port_addresses, NodePortAddresses::All);
    let kubeconfig = Some("/var/lib/kube-proxy/kubeconfig.conf".into());
    assert_eq!(
        config.origin,
        Origin::Cluster {
            kubeconfig,
            server: None,
            accept: vec!["application/vnd.kubernetes.protobuf".into(), "*/*".into()],
        }
    );
    // The mode is worth a word, and nothing else is.
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(config.warnings[0].starts_with("mode is not set"));
}

#[test]
fn fields_mean_what_they_mean_to_kube_proxy() {
    let config = with_file(
        "mode: nftables\nnftables: {masqueradeAll: true, masqueradeBit: 5, syncPeriod: 1m, minSyncPeriod: 2s}\niptables: {masqueradeBit: 7}\nbindAddress: 192.0.2.7\nfeatureGates: {AllowServiceExternalIPs: false}\n",
        &[],
    )
    .unwrap();
    assert!(config.masquerade_all);
    assert_eq!(config.masquerade_bit, 5);
    assert_eq!(config.sync_period, Duration::from_secs(60));
    assert_eq!(config.min_sync_period, Duration::from_secs(2));
    assert_eq!(config.node_port_addresses, NodePortAddresses::Primary);
    assert_eq!(config.bind_address, Some("192.0.2.7".parse().unwrap()));
    assert!(!config.external_ips);
    let iptables = with_file(
        "mode: iptables\niptables: {masqueradeBit: 7, minSyncPeriod: 3s}",
        &[],
    )
    .unwrap();
    assert_eq!(iptables.masquerade_bit, 7);
    assert_eq!(iptables.min_sync_period, Duration::from_secs(3));
    let six = with_file("bindAddress: '::'", &[]).unwrap();
    assert_eq!(six.health_address, Some("[::]:10256".parse().unwrap()));
    assert_eq!(six.metrics_address, "[::1]:10249".parse().unwrap());
    let bare = with_file(
        "metricsBindAddress: 0.0.0.0\nhealthzBindAddress: 192.0.2.1",
        &[],
    )
    .unwrap();
    assert_eq!(
        bare.health_address,
        Some("192.0.2.1:10256".parse().unwrap())
    );
    assert_eq!(bare.metrics_address, "0.0.0.0:10249".parse().unwrap());
}

#[test]
fn n_k4_the_file_wins_over_flags_but_a_few_and_says_which_it_ignores() {
    let yaml = "mode: nftables\nclusterCIDR: 10.0.0.0/8\nhostnameOverride: from-file\nlogging: {verbosity: 2}";
    let flags = [
        "--cluster-cidr=11.0.0.0/8",
        "--masquerade-all",
        "--healthz-port=0",
        "--hostname-override=from-flag",
        "-v=4",
        "--logging-format=json",
    ];
    let config = with_file(yaml, &flags).unwrap();
    assert_eq!(config.node_name, "from-flag");
    assert_eq!(config.verbosity, 4);
    assert_eq!(config.log_format, LogFormat::Json);
    assert!(!config.masquerade_all);
    assert!(config.health_address.is_some());
    assert_eq!(config.effective.cluster_cidr, "10.0.0.0/8");
    let [warning] = config.warnings.as_slice() else {
        panic!("{:?}", config.warnings);
    };
    for flag in ["--cluster-cidr", "--masquerade-all", "--healthz-port"] {
        assert!(warning.contains(flag), "{warning}");
    }
    assert!(!warning.contains("hostname"), "{warning}");
    assert!(with_file(yaml, &["-v=4"]).unwrap().warnings.is_empty());
}

#[test]
fn unknown_and_repeated_fields_are_warnings() {
    let config = with_file(
        "mode: nftables\nnoSuchField: 1\nconntrack: {noMax: 2}\n",
        &[],
    )
    .unwrap();
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert!(
        config.warnings[0].contains("conntrack.noMax")
            || config.warnings[1].contains("conntrack.noMax")
    );
    let config = with_file("mode: iptables\nmode: nftables\n", &[]).unwrap();
    assert_eq!(config.effective.mode, "nftables");
    assert!(
        config.warnings[0].contains("the last one counts"),
        "{:?}",
        config.warnings
    );
}

#[test]
fn flags_without_a_meaning_here_are_accepted_and_said() {
    let config = parse(&[
        "--ipvs-scheduler=rr",
        "--profiling",
        "--feature-gates=Foo=true",
        "--vmodule=a=1",
    ])
    .unwrap();
    for word in ["ipvs", "profiling", "Foo", "vmodule"] {
        assert!(
            config.warnings.iter().any(|warning| warning.contains(word)),
            "{word}: {:?}",
            config.warnings
        );
    }
    assert!(parse(&[]).unwrap().warnings.is_empty());
    let off = parse(&["--healthz-port=0"]).unwrap();
    assert_eq!(off.health_address, None);
}

#[test]
fn the_effective_configuration_can_be_written_and_read_again() {
    let config = with_file("mode: nftables\nnodePortAddresses: [10.0.0.0/8]\n", &[]).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    crate::config::write(file.path(), &config.effective).unwrap();
    let path = file.path().to_str().unwrap();
    let again = from_args(&["pointsman", "--config", path], "host").unwrap();
    assert_eq!(again.effective, config.effective);
    assert!(again.warnings.is_empty(), "{:?}", again.warnings);
    let text = std::fs::read_to_string(file.path()).unwrap();
    assert!(text.contains("syncPeriod: 30s"), "{text}");
}

#[test]
fn e12_node_port_addresses_may_be_any_mix_of_keywords_and_networks() {
    let networks = |texts: &[&str]| -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    };
    let cases = [
        ("[primary]", NodePortAddresses::Primary, [false, false]),
        (
            "[primary, localhost]",
            NodePortAddresses::PrimaryAnd(networks(&["127.0.0.0/8", "::1/128"])),
            [true, true],
        ),
        (
            "[localhost]",
            NodePortAddresses::Networks(networks(&["127.0.0.0/8", "::1/128"])),
            [true, true],
        ),
        (
            "[all]",
            NodePortAddresses::Networks(networks(&["0.0.0.0/0", "::/0"])),
            [false, false],
        ),
        (
            "[10.0.0.0/8, primary]",
            NodePortAddresses::PrimaryAnd(networks(&["10.0.0.0/8"])),
            [false, false],
        ),
        (
            "[0.0.0.0/0, 127.0.0.1/32]",
            NodePortAddresses::Networks(networks(&["0.0.0.0/0", "127.0.0.1/32"])),
            [true, false],
        ),
        (
            "[127.0.0.53/32]",
            NodePortAddresses::Networks(networks(&["127.0.0.53/32"])),
            [false, false],
        ),
        (
            "['126.0.0.0/7', '::/127']",
            NodePortAddresses::Networks(networks(&["126.0.0.0/7", "::/127"])),
            [false, false],
        ),
    ];
    for (text, expected, loopback) in cases {
        let file = format!("mode: nftables\nnodePortAddresses: {text}\n");
        let addresses = with_file(&file, &[]).unwrap().node_port_addresses;
        assert_eq!(addresses, expected, "{text}");
        let found = Family::BOTH.map(|family| addresses.loopback(family));
        assert_eq!(found, loopback, "{text}");
    }
}

#[test]
fn p1_the_scheduler_of_ipvs_is_the_default_where_ipvs_is_the_mode_and_a_flag_comes_before_it() {
    let cases: [(&str, &[&str], Algorithm, Option<&str>); 7] = [
        ("mode: nftables", &[], Algorithm::Random, None),
        ("mode: ipvs", &[], Algorithm::RoundRobin, None),
        (
            "mode: ipvs\nipvs: {scheduler: lc}",
            &[],
            Algorithm::LeastConnection,
            None,
        ),
        (
            "mode: ipvs\nipvs: {scheduler: mh}",
            &["--algorithm=sh"],
            Algorithm::SourceHash,
            None,
        ),
        (
            "mode: ipvs\nipvs: {scheduler: lblc}",
            &[],
            Algorithm::RoundRobin,
            Some("ipvs.scheduler is lblc, which is not to be had: rr counts"),
        ),
        (
            "mode: iptables\nipvs: {scheduler: lc}",
            &[],
            Algorithm::Random,
            Some("ipvs.scheduler has no effect, because mode is not ipvs"),
        ),
        (
            "mode: nftables",
            &["--algorithm=wrr"],
            Algorithm::RoundRobin,
            None,
        ),
    ];
    for (file, flags, expected, warning) in cases {
        let config = with_file(file, flags).unwrap();
        assert_eq!(config.algorithm, expected, "{file} {flags:?}");
        if let Some(warning) = warning {
            let mut warnings = config.warnings.iter();
            assert!(
                warnings.any(|text| text.contains(warning)),
                "{:?}",
                config.warnings
            );
        }
    }
    let error = parse(&["--algorithm=fastest"]).unwrap_err().to_string();
    assert!(
        error.contains("--algorithm") && error.contains("maglev"),
        "{error}"
    );
    let config = parse(&["--eject-unanswering", "--most-ejected-percent=30"]).unwrap();
    assert_eq!((config.ejects, config.most_ejected_percent), (true, 30));
    assert!(!parse(&[]).unwrap().ejects);
}
