//! Flags turned into kube-proxy's configuration object, and which flag stands for which field
//! (docs/semantics.md, K2 to K6).

use super::Args;
use super::component_config::{KIND, KubeProxyConfiguration};
use super::durations::GoDuration;
use super::errors::UsageError;

/// Fields and the flags that set them.
const FLAGS: [(&str, &str); 42] = [
    ("clientConnection.kubeconfig", "kubeconfig"),
    ("clientConnection.contentType", "kube-api-content-type"),
    ("clientConnection.qps", "kube-api-qps"),
    ("clientConnection.burst", "kube-api-burst"),
    ("logging.format", "logging-format"),
    ("hostnameOverride", "hostname-override"),
    ("bindAddress", "bind-address"),
    ("healthzBindAddress", "healthz-bind-address"),
    ("metricsBindAddress", "metrics-bind-address"),
    ("bindAddressHardFail", "bind-address-hard-fail"),
    ("enableProfiling", "profiling"),
    (
        "showHiddenMetricsForVersion",
        "show-hidden-metrics-for-version",
    ),
    ("featureGates", "feature-gates"),
    ("mode", "proxy-mode"),
    ("iptables.masqueradeBit", "iptables-masquerade-bit"),
    ("iptables.masqueradeAll", "masquerade-all"),
    (
        "iptables.localhostNodePorts",
        "iptables-localhost-nodeports",
    ),
    ("iptables.syncPeriod", "iptables-sync-period"),
    ("iptables.minSyncPeriod", "iptables-min-sync-period"),
    ("nftables.masqueradeAll", "masquerade-all"),
    ("nftables.syncPeriod", "iptables-sync-period"),
    ("nftables.minSyncPeriod", "iptables-min-sync-period"),
    ("ipvs.syncPeriod", "ipvs-sync-period"),
    ("ipvs.minSyncPeriod", "ipvs-min-sync-period"),
    ("ipvs.scheduler", "ipvs-scheduler"),
    ("ipvs.excludeCIDRs", "ipvs-exclude-cidrs"),
    ("ipvs.strictARP", "ipvs-strict-arp"),
    ("ipvs.tcpTimeout", "ipvs-tcp-timeout"),
    ("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout"),
    ("ipvs.udpTimeout", "ipvs-udp-timeout"),
    ("detectLocalMode", "detect-local-mode"),
    ("detectLocal.bridgeInterface", "pod-bridge-interface"),
    (
        "detectLocal.interfaceNamePrefix",
        "pod-interface-name-prefix",
    ),
    ("clusterCIDR", "cluster-cidr"),
    ("nodePortAddresses", "nodeport-addresses"),
    ("oomScoreAdj", "oom-score-adj"),
    ("conntrack.maxPerCore", "conntrack-max-per-core"),
    ("conntrack.min", "conntrack-min"),
    (
        "conntrack.tcpEstablishedTimeout",
        "conntrack-tcp-timeout-established",
    ),
    (
        "conntrack.tcpCloseWaitTimeout",
        "conntrack-tcp-timeout-close-wait",
    ),
    ("conntrack.udpTimeout", "conntrack-udp-timeout"),
    ("configSyncPeriod", "config-sync-period"),
];

/// The flag that sets a field.
pub(super) fn flag_of(field: &str) -> Option<&'static str> {
    // An index, as in nodePortAddresses[1], is part of the same flag.
    let field = field.split('[').next().unwrap_or(field);
    FLAGS
        .iter()
        .find(|(name, _)| *name == field)
        .map(|(_, flag)| *flag)
        .or_else(|| {
            (field == "conntrack.udpStreamTimeout").then_some("conntrack-udp-timeout-stream")
        })
}

fn duration(flag: &str, text: Option<&str>) -> Result<Option<GoDuration>, UsageError> {
    text.map(|text| {
        text.parse()
            .map_err(|error: super::durations::NotADuration| {
                UsageError::flag(flag, error.to_string())
            })
    })
    .transpose()
}

/// The configuration that the flags describe, before defaults; and whether `/healthz` is off.
///
/// # Errors
///
/// A flag whose value cannot be read at all.
pub(super) fn configuration(args: &Args) -> Result<(KubeProxyConfiguration, bool), UsageError> {
    let mut config = KubeProxyConfiguration {
        kind: KIND.to_owned(),
        // What kube-proxy leaves to its platform is known here.
        mode: args
            .proxy_mode
            .clone()
            .unwrap_or_else(|| "nftables".to_owned()),
        ..KubeProxyConfiguration::default()
    };
    let text = |flag: &Option<String>| flag.clone().unwrap_or_default();
    config.feature_gates = feature_gates(args.feature_gates.as_deref().unwrap_or_default())?;
    config.client_connection.kubeconfig = text(&args.kubeconfig);
    config.client_connection.content_type = text(&args.kube_api_content_type);
    config.client_connection.qps = args.kube_api_qps.unwrap_or_default();
    config.client_connection.burst = args.kube_api_burst.unwrap_or_default();
    config.hostname_override = text(&args.hostname_override);
    config.bind_address = text(&args.bind_address);
    config.healthz_bind_address = text(&args.healthz_bind_address);
    config.metrics_bind_address = text(&args.metrics_bind_address);
    config.bind_address_hard_fail = args.bind_address_hard_fail.unwrap_or_default();
    config.enable_profiling = args.profiling.unwrap_or_default();
    config.show_hidden_metrics_for_version = text(&args.show_hidden_metrics_for_version);
    config.detect_local_mode = text(&args.detect_local_mode);
    config.detect_local.bridge_interface = text(&args.pod_bridge_interface);
    config.detect_local.interface_name_prefix = text(&args.pod_interface_name_prefix);
    if args.cluster_cidr.as_deref() == Some("") && args.manifests.is_none() {
        return Err(UsageError::flag(
            "cluster-cidr",
            "is empty; leave it out if there is none",
        ));
    }
    config.cluster_cidr = text(&args.cluster_cidr);
    config
        .node_port_addresses
        .clone_from(&args.nodeport_addresses);
    if args.nodeport_addresses.as_deref() == Some(&[String::new()]) {
        config.node_port_addresses = Some(Vec::new());
    }
    config.oom_score_adj = args.oom_score_adj;
    let masquerade_all = args.masquerade_all.unwrap_or_default();
    let sync = duration("iptables-sync-period", args.iptables_sync_period.as_deref())?;
    let min = duration(
        "iptables-min-sync-period",
        args.iptables_min_sync_period.as_deref(),
    )?;
    config.iptables.masquerade_bit = args.iptables_masquerade_bit;
    config.iptables.localhost_node_ports = args.iptables_localhost_nodeports;
    config.iptables.masquerade_all = masquerade_all;
    config.nftables.masquerade_all = masquerade_all;
    config.iptables.sync_period = sync.unwrap_or_default();
    config.nftables.sync_period = sync.unwrap_or_default();
    config.iptables.min_sync_period = min.unwrap_or_default();
    config.nftables.min_sync_period = min.unwrap_or_default();
    ipvs(args, &mut config)?;
    conntrack(args, &mut config)?;
    config.config_sync_period =
        duration("config-sync-period", args.config_sync_period.as_deref())?.unwrap_or_default();
    let healthz_off = ports(args, &mut config)?;
    Ok((config, healthz_off))
}

fn ipvs(args: &Args, config: &mut KubeProxyConfiguration) -> Result<(), UsageError> {
    let ipvs = &mut config.ipvs;
    for (flag, text, field) in [
        (
            "ipvs-sync-period",
            &args.ipvs_sync_period,
            &mut ipvs.sync_period,
        ),
        (
            "ipvs-min-sync-period",
            &args.ipvs_min_sync_period,
            &mut ipvs.min_sync_period,
        ),
        (
            "ipvs-tcp-timeout",
            &args.ipvs_tcp_timeout,
            &mut ipvs.tcp_timeout,
        ),
        (
            "ipvs-tcpfin-timeout",
            &args.ipvs_tcpfin_timeout,
            &mut ipvs.tcp_fin_timeout,
        ),
        (
            "ipvs-udp-timeout",
            &args.ipvs_udp_timeout,
            &mut ipvs.udp_timeout,
        ),
    ] {
        *field = duration(flag, text.as_deref())?.unwrap_or_default();
    }
    ipvs.scheduler = args.ipvs_scheduler.clone().unwrap_or_default();
    ipvs.exclude_cidrs.clone_from(&args.ipvs_exclude_cidrs);
    ipvs.strict_arp = args.ipvs_strict_arp.unwrap_or_default();
    Ok(())
}

fn conntrack(args: &Args, config: &mut KubeProxyConfiguration) -> Result<(), UsageError> {
    let conntrack = &mut config.conntrack;
    conntrack.max_per_core = args.conntrack_max_per_core;
    conntrack.min = args.conntrack_min;
    conntrack.tcp_be_liberal = args.conntrack_tcp_be_liberal.unwrap_or_default();
    conntrack.tcp_established_timeout = duration(
        "conntrack-tcp-timeout-established",
        args.conntrack_tcp_timeout_established.as_deref(),
    )?;
    conntrack.tcp_close_wait_timeout = duration(
        "conntrack-tcp-timeout-close-wait",
        args.conntrack_tcp_timeout_close_wait.as_deref(),
    )?;
    conntrack.udp_timeout = duration(
        "conntrack-udp-timeout",
        args.conntrack_udp_timeout.as_deref(),
    )?
    .unwrap_or_default();
    conntrack.udp_stream_timeout = duration(
        "conntrack-udp-timeout-stream",
        args.conntrack_udp_timeout_stream.as_deref(),
    )?
    .unwrap_or_default();
    Ok(())
}

/// The deprecated ports count where the address has none; 0 means no server, which only
/// `/healthz` can do without. Returns whether it does.
fn ports(args: &Args, config: &mut KubeProxyConfiguration) -> Result<bool, UsageError> {
    let mut healthz_off = false;
    for (flag, port, address) in [
        (
            "healthz-port",
            args.healthz_port,
            &mut config.healthz_bind_address,
        ),
        (
            "metrics-port",
            args.metrics_port,
            &mut config.metrics_bind_address,
        ),
    ] {
        match port.map(u16::try_from) {
            None => {}
            Some(Ok(0)) if flag == "healthz-port" => healthz_off = true,
            Some(Ok(port)) if port > 0 => {
                if let Ok(ip) = address.parse::<std::net::IpAddr>() {
                    *address = std::net::SocketAddr::new(ip, port).to_string();
                }
            }
            Some(_) => {
                return Err(UsageError::flag(flag, "is not between 1 and 65535"));
            }
        }
    }
    Ok(healthz_off)
}

fn feature_gates(list: &[String]) -> Result<std::collections::BTreeMap<String, bool>, UsageError> {
    list.iter()
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match value.parse() {
                Ok(value) => Ok((name.trim().to_owned(), value)),
                Err(_) => Err(UsageError::flag(
                    "feature-gates",
                    format!("{pair:?} is not NAME=true or NAME=false"),
                )),
            }
        })
        .collect()
}

/// The flags that were given although the configuration file decides (docs/semantics.md, K4).
pub(super) fn ignored(args: &Args) -> Vec<&'static str> {
    macro_rules! given {
        ($($field:ident => $flag:literal),* $(,)?) => {
            [$((args.$field.is_some(), $flag)),*]
        };
    }
    given! {
        kubeconfig => "kubeconfig",
        kube_api_content_type => "kube-api-content-type",
        kube_api_qps => "kube-api-qps",
        kube_api_burst => "kube-api-burst",
        bind_address => "bind-address",
        healthz_bind_address => "healthz-bind-address",
        healthz_port => "healthz-port",
        metrics_bind_address => "metrics-bind-address",
        metrics_port => "metrics-port",
        bind_address_hard_fail => "bind-address-hard-fail",
        profiling => "profiling",
        show_hidden_metrics_for_version => "show-hidden-metrics-for-version",
        feature_gates => "feature-gates",
        proxy_mode => "proxy-mode",
        masquerade_all => "masquerade-all",
        nodeport_addresses => "nodeport-addresses",
        iptables_masquerade_bit => "iptables-masquerade-bit",
        iptables_localhost_nodeports => "iptables-localhost-nodeports",
        iptables_sync_period => "iptables-sync-period",
        iptables_min_sync_period => "iptables-min-sync-period",
        ipvs_sync_period => "ipvs-sync-period",
        ipvs_min_sync_period => "ipvs-min-sync-period",
        ipvs_scheduler => "ipvs-scheduler",
        ipvs_exclude_cidrs => "ipvs-exclude-cidrs",
        ipvs_strict_arp => "ipvs-strict-arp",
        ipvs_tcp_timeout => "ipvs-tcp-timeout",
        ipvs_tcpfin_timeout => "ipvs-tcpfin-timeout",
        ipvs_udp_timeout => "ipvs-udp-timeout",
        detect_local_mode => "detect-local-mode",
        pod_bridge_interface => "pod-bridge-interface",
        pod_interface_name_prefix => "pod-interface-name-prefix",
        cluster_cidr => "cluster-cidr",
        oom_score_adj => "oom-score-adj",
        config_sync_period => "config-sync-period",
        conntrack_max_per_core => "conntrack-max-per-core",
        conntrack_min => "conntrack-min",
        conntrack_tcp_timeout_established => "conntrack-tcp-timeout-established",
        conntrack_tcp_timeout_close_wait => "conntrack-tcp-timeout-close-wait",
        conntrack_tcp_be_liberal => "conntrack-tcp-be-liberal",
        conntrack_udp_timeout => "conntrack-udp-timeout",
        conntrack_udp_timeout_stream => "conntrack-udp-timeout-stream",
    }
    .into_iter()
    .filter_map(|(given, flag)| given.then_some(flag))
    .collect()
}
