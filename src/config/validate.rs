//! What a configuration may say, field by field (docs/semantics.md, K7), beyond what parsing it for use
//! finds anyway.

use std::net::{IpAddr, SocketAddr};

use super::component_config::{FORMATS, KubeProxyConfiguration, LOCAL_MODES, MODES};
use super::errors::UsageError;

/// The release whose hidden metrics may still be asked for.
const PREVIOUS_MINOR: &str = "1.35";
/// Gates that can no longer be turned off.
const LOCKED_GATES: [&str; 2] = ["MultiCIDRServiceAllocator", "PreferSameTrafficDistribution"];

/// Checks a configuration after its defaults.
///
/// # Errors
///
/// The first field that makes no sense.
pub(super) fn validate(config: &KubeProxyConfiguration) -> Result<(), UsageError> {
    let wrong = |field: &str, problem: String| Err(UsageError::field(field, problem));
    for gate in LOCKED_GATES {
        if config.feature_gates.get(gate) == Some(&false) {
            return wrong(
                "featureGates",
                format!("{gate} is locked on and cannot be false"),
            );
        }
    }
    if !MODES.contains(&config.mode.as_str()) {
        return wrong(
            "mode",
            format!("{:?} is none of nftables, iptables and ipvs", config.mode),
        );
    }
    if !FORMATS.contains(&config.logging.format.as_str()) {
        return wrong(
            "logging.format",
            format!("{:?} is neither text nor json", config.logging.format),
        );
    }
    numbers(config)?;
    periods(config)?;
    addresses(config)?;
    if !LOCAL_MODES.contains(&config.detect_local_mode.as_str()) {
        return wrong(
            "detectLocalMode",
            format!(
                "{:?} is none of ClusterCIDR, NodeCIDR, BridgeInterface and InterfaceNamePrefix",
                config.detect_local_mode
            ),
        );
    }
    let version = &config.show_hidden_metrics_for_version;
    if !version.is_empty() && version != PREVIOUS_MINOR {
        return wrong(
            "showHiddenMetricsForVersion",
            format!("{version:?} is not {PREVIOUS_MINOR:?}, the only version it may be"),
        );
    }
    Ok(())
}

fn numbers(config: &KubeProxyConfiguration) -> Result<(), UsageError> {
    let conntrack = &config.conntrack;
    let most = i64::from(u32::MAX);
    let ranges = [
        (
            "iptables.masqueradeBit",
            config.iptables.masquerade_bit,
            0,
            31,
        ),
        (
            "nftables.masqueradeBit",
            config.nftables.masquerade_bit,
            0,
            31,
        ),
        ("oomScoreAdj", config.oom_score_adj, -1000, 1000),
        ("conntrack.maxPerCore", conntrack.max_per_core, 0, most),
        ("conntrack.min", conntrack.min, 0, most),
        (
            "clientConnection.burst",
            Some(config.client_connection.burst),
            0,
            most,
        ),
    ];
    for (field, number, least, most) in ranges {
        let number = number.unwrap_or(least);
        if !(least..=most).contains(&number) {
            return Err(UsageError::field(
                field,
                format!("{number} is not between {least} and {most}"),
            ));
        }
    }
    Ok(())
}

fn periods(config: &KubeProxyConfiguration) -> Result<(), UsageError> {
    let conntrack = &config.conntrack;
    let ipvs = &config.ipvs;
    let not_negative = [
        (
            "conntrack.tcpEstablishedTimeout",
            conntrack.tcp_established_timeout.unwrap_or_default(),
        ),
        (
            "conntrack.tcpCloseWaitTimeout",
            conntrack.tcp_close_wait_timeout.unwrap_or_default(),
        ),
        ("conntrack.udpTimeout", conntrack.udp_timeout),
        ("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout),
        ("ipvs.tcpTimeout", ipvs.tcp_timeout),
        ("ipvs.tcpFinTimeout", ipvs.tcp_fin_timeout),
        ("ipvs.udpTimeout", ipvs.udp_timeout),
        ("iptables.minSyncPeriod", config.iptables.min_sync_period),
        ("nftables.minSyncPeriod", config.nftables.min_sync_period),
        ("ipvs.minSyncPeriod", ipvs.min_sync_period),
    ];
    for (field, duration) in not_negative {
        if duration.is_negative() {
            return Err(UsageError::field(
                field,
                format!("{duration} is less than 0"),
            ));
        }
    }
    let positive = [
        ("iptables.syncPeriod", config.iptables.sync_period),
        ("nftables.syncPeriod", config.nftables.sync_period),
        ("ipvs.syncPeriod", ipvs.sync_period),
        ("configSyncPeriod", config.config_sync_period),
    ];
    for (field, duration) in positive {
        if duration.is_negative() || duration.is_zero() {
            return Err(UsageError::field(
                field,
                format!("{duration} is not more than 0"),
            ));
        }
    }
    let pairs = [
        (
            "iptables.minSyncPeriod",
            config.iptables.min_sync_period,
            config.iptables.sync_period,
        ),
        (
            "nftables.minSyncPeriod",
            config.nftables.min_sync_period,
            config.nftables.sync_period,
        ),
        ("ipvs.minSyncPeriod", ipvs.min_sync_period, ipvs.sync_period),
    ];
    for (field, least, period) in pairs {
        if least > period {
            return Err(UsageError::field(
                field,
                format!("{least} is more than syncPeriod, which is {period}"),
            ));
        }
    }
    Ok(())
}

fn addresses(config: &KubeProxyConfiguration) -> Result<(), UsageError> {
    if config.bind_address.parse::<IpAddr>().is_err() {
        return Err(UsageError::field(
            "bindAddress",
            format!("{:?} is not an IP address", config.bind_address),
        ));
    }
    for (field, text) in [
        ("healthzBindAddress", &config.healthz_bind_address),
        ("metricsBindAddress", &config.metrics_bind_address),
    ] {
        let valid = text
            .parse::<SocketAddr>()
            .is_ok_and(|address| address.port() != 0);
        if !valid {
            return Err(UsageError::field(
                field,
                format!("{text:?} is not an address and a port, like 127.0.0.1:10249"),
            ));
        }
    }
    Ok(())
}
