//! kube-proxy's configuration file: `kubeproxy.config.k8s.io/v1alpha1`, kind
//! `KubeProxyConfiguration`, its fields and their defaults (docs/semantics.md, K).
//!
//! Flags are turned into the same object, so that defaults and checks exist once. What a field
//! means to this program is `config`'s business.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::durations::GoDuration;

/// The one version there is.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The one kind there is.
pub const KIND: &str = "KubeProxyConfiguration";

/// What `mode` may be; the first is not said.
pub const MODES: &[&str] = &["", "nftables", "iptables", "ipvs"];
/// What `detectLocalMode` may be.
pub const LOCAL_MODES: &[&str] = &[
    "",
    "ClusterCIDR",
    "NodeCIDR",
    "BridgeInterface",
    "InterfaceNamePrefix",
];
/// What `logging.format` may be.
pub const FORMATS: &[&str] = &["text", "json"];

/// `null` is the zero value, as in Go.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[allow(missing_docs, reason = "the names and meanings are kube-proxy's")]
        pub struct $name {
            $($(#[$attribute])* #[serde(deserialize_with = "or_default")] pub $field: $type,)*
        }
    };
}

section! {
    /// The whole configuration.
    KubeProxyConfiguration {
        api_version: String,
        kind: String,
        feature_gates: BTreeMap<String, bool>,
        client_connection: ClientConnection,
        logging: Logging,
        hostname_override: String,
        bind_address: String,
        healthz_bind_address: String,
        metrics_bind_address: String,
        bind_address_hard_fail: bool,
        enable_profiling: bool,
        show_hidden_metrics_for_version: String,
        mode: String,
        iptables: Iptables,
        ipvs: Ipvs,
        nftables: Nftables,
        winkernel: BTreeMap<String, Value>,
        detect_local_mode: String,
        detect_local: DetectLocal,
        #[serde(rename = "clusterCIDR")]
        cluster_cidr: String,
        node_port_addresses: Option<Vec<String>>,
        oom_score_adj: Option<i64>,
        conntrack: Conntrack,
        config_sync_period: GoDuration,
        port_range: String,
        windows_run_as_service: bool,
    }
}

section! {
    /// `clientConnection`.
    ClientConnection {
        kubeconfig: String,
        accept_content_types: String,
        content_type: String,
        qps: f64,
        burst: i64,
    }
}

section! {
    /// `logging`. Options are kept as they are: they have no meaning here.
    Logging {
        format: String,
        flush_frequency: Value,
        verbosity: u32,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        vmodule: Vec<Value>,
        options: BTreeMap<String, Value>,
    }
}

section! {
    /// `iptables`.
    Iptables {
        masquerade_bit: Option<i64>,
        masquerade_all: bool,
        localhost_node_ports: Option<bool>,
        sync_period: GoDuration,
        min_sync_period: GoDuration,
    }
}

section! {
    /// `nftables`.
    Nftables {
        masquerade_bit: Option<i64>,
        masquerade_all: bool,
        sync_period: GoDuration,
        min_sync_period: GoDuration,
    }
}

section! {
    /// `ipvs`.
    Ipvs {
        sync_period: GoDuration,
        min_sync_period: GoDuration,
        scheduler: String,
        #[serde(rename = "excludeCIDRs")]
        exclude_cidrs: Option<Vec<String>>,
        #[serde(rename = "strictARP")]
        strict_arp: bool,
        tcp_timeout: GoDuration,
        tcp_fin_timeout: GoDuration,
        udp_timeout: GoDuration,
    }
}

section! {
    /// `detectLocal`.
    DetectLocal {
        bridge_interface: String,
        interface_name_prefix: String,
    }
}

section! {
    /// `conntrack`.
    Conntrack {
        max_per_core: Option<i64>,
        min: Option<i64>,
        tcp_established_timeout: Option<GoDuration>,
        tcp_close_wait_timeout: Option<GoDuration>,
        tcp_be_liberal: bool,
        udp_timeout: GoDuration,
        udp_stream_timeout: GoDuration,
    }
}

const SYNC_PERIOD: GoDuration = GoDuration::seconds(30);
const MIN_SYNC_PERIOD: GoDuration = GoDuration::seconds(1);

impl KubeProxyConfiguration {
    /// Fills in what was left out, as kube-proxy does.
    pub fn set_defaults(&mut self) {
        let text = |field: &mut String, default: &str| {
            if field.is_empty() {
                default.clone_into(field);
            }
        };
        let duration = |field: &mut GoDuration, default: GoDuration| {
            if field.is_zero() {
                *field = default;
            }
        };
        text(&mut self.api_version, API_VERSION);
        text(&mut self.kind, KIND);
        text(&mut self.bind_address, "0.0.0.0");
        let v6 = self.bind_address.contains(':');
        let (everywhere, here) = if v6 {
            ("[::]", "[::1]")
        } else {
            ("0.0.0.0", "127.0.0.1")
        };
        address(&mut self.healthz_bind_address, everywhere, 10256);
        address(&mut self.metrics_bind_address, here, 10249);
        let client = &mut self.client_connection;
        text(
            &mut client.content_type,
            "application/vnd.kubernetes.protobuf",
        );
        if client.qps == 0.0 {
            client.qps = 5.0;
        }
        if client.burst == 0 {
            client.burst = 10;
        }
        text(&mut self.logging.format, "text");
        for period in [
            &mut self.iptables.sync_period,
            &mut self.nftables.sync_period,
            &mut self.ipvs.sync_period,
        ] {
            duration(period, SYNC_PERIOD);
        }
        for period in [
            &mut self.iptables.min_sync_period,
            &mut self.nftables.min_sync_period,
        ] {
            duration(period, MIN_SYNC_PERIOD);
        }
        self.iptables.masquerade_bit.get_or_insert(14);
        self.nftables.masquerade_bit.get_or_insert(14);
        self.iptables.localhost_node_ports.get_or_insert(true);
        let conntrack = &mut self.conntrack;
        conntrack.max_per_core.get_or_insert(32_768);
        conntrack.min.get_or_insert(131_072);
        conntrack
            .tcp_established_timeout
            .get_or_insert(GoDuration::seconds(24 * 3600));
        conntrack
            .tcp_close_wait_timeout
            .get_or_insert(GoDuration::seconds(3600));
        duration(&mut self.config_sync_period, GoDuration::seconds(15 * 60));
        self.oom_score_adj.get_or_insert(-999);
    }
}

/// An address to listen on: nothing means the default, and one without a port gets it.
fn address(field: &mut String, default: &str, port: u16) {
    if field.is_empty() {
        *field = format!("{default}:{port}");
    } else if let Ok(address) = field.parse::<std::net::IpAddr>() {
        *field = std::net::SocketAddr::new(address, port).to_string();
    }
}
