//! Flags as typed. Names are kube-proxy's where kube-proxy has one; nothing is checked here
//! beyond its syntax, and nothing is defaulted: a flag that was not given is `None`.

use std::path::PathBuf;

use clap::Parser;

/// Makes every connection to a Kubernetes Service reach one of its endpoints.
///
/// Without --once, --dry-run or --cleanup it keeps the node's nftables in step with the
/// cluster's Services until it is stopped; the rules stay in place then.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "pointsman",
    version,
    disable_version_flag = true,
    max_term_width = 100
)]
pub struct Args {
    /// Take the cluster's objects from files instead of an API server: a file, a directory
    /// (searched for *.yaml, *.yml and *.json) or - for standard input
    ///
    /// Services, EndpointSlices, Nodes and ServiceCIDRs count, alone or in Lists as kubectl
    /// prints them; other kinds are passed over. Changes to the files are followed.
    #[arg(long, value_name = "PATH")]
    pub manifests: Option<PathBuf>,

    /// Program the node once and exit; 0 only if all of it was committed
    #[arg(long, conflicts_with_all = ["dry_run", "cleanup"])]
    pub once: bool,

    /// Print what would be programmed and exit; needs no privileges and changes nothing
    #[arg(long, conflicts_with = "cleanup")]
    pub dry_run: bool,

    /// How to print it: nft (a ruleset for nft -f) or json (the intermediate representation)
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "nft",
        requires = "dry_run"
    )]
    pub output: String,

    /// Remove kube-proxy's nftables tables and iptables chains with our first transaction
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub takeover: Option<bool>,

    /// Print the version and exit
    #[arg(long, action = clap::ArgAction::Version)]
    version: Option<bool>,

    /// kube-proxy's configuration file (v1alpha1); the flags below that it has fields for are
    /// ignored then
    #[arg(long, value_name = "PATH", help_heading = "Cluster and node")]
    pub config: Option<PathBuf>,

    /// How to reach the API server; without it, as a pod does
    #[arg(long, value_name = "PATH", help_heading = "Cluster and node")]
    pub kubeconfig: Option<String>,

    /// The API server's address, instead of the one in --kubeconfig
    #[arg(long, value_name = "URL", help_heading = "Cluster and node")]
    pub master: Option<String>,

    /// This node's name, if it is not the host's name
    #[arg(long, value_name = "NAME", help_heading = "Cluster and node")]
    pub hostname_override: Option<String>,

    /// The range of the cluster's pods; for dual stack, one of each family with a comma between
    ///
    /// With --detect-local-mode=ClusterCIDR, traffic from inside it is not masqueraded.
    #[arg(long, value_name = "CIDR[,CIDR]", help_heading = "Cluster and node")]
    pub cluster_cidr: Option<String>,

    /// How to recognise this cluster's pods: ClusterCIDR, NodeCIDR, BridgeInterface or
    /// InterfaceNamePrefix [default: ClusterCIDR]
    #[arg(long, value_name = "MODE", help_heading = "Cluster and node")]
    pub detect_local_mode: Option<String>,

    /// The bridge that pods are behind, for --detect-local-mode=BridgeInterface
    #[arg(long, value_name = "NAME", help_heading = "Cluster and node")]
    pub pod_bridge_interface: Option<String>,

    /// How the names of pods' interfaces begin, for --detect-local-mode=InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", help_heading = "Cluster and node")]
    pub pod_interface_name_prefix: Option<String>,

    /// This node's address of its family, instead of the Node object's [default: 0.0.0.0]
    #[arg(long, value_name = "IP", help_heading = "Cluster and node")]
    pub bind_address: Option<String>,

    /// Accepted for kube-proxy's sake: watches need no resync [default: 15m]
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        help_heading = "Cluster and node"
    )]
    pub config_sync_period: Option<String>,

    /// Accepted for kube-proxy's sake: a few watches need no limit [default: 5]
    #[arg(
        long,
        value_name = "NUMBER",
        allow_negative_numbers = true,
        help_heading = "Cluster and node"
    )]
    pub kube_api_qps: Option<f64>,

    /// Accepted for kube-proxy's sake [default: 10]
    #[arg(
        long,
        value_name = "NUMBER",
        allow_negative_numbers = true,
        help_heading = "Cluster and node"
    )]
    pub kube_api_burst: Option<i64>,

    /// Accepted for kube-proxy's sake: objects are read as JSON
    #[arg(long, value_name = "TYPE", help_heading = "Cluster and node")]
    pub kube_api_content_type: Option<String>,

    /// Set conntrack's limits and timeouts, which may need more privileges than running does, and
    /// exit
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = "Cluster and node")]
    pub init_only: Option<bool>,

    /// Remove everything that pointsman has programmed, nothing else, and exit
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = "Cluster and node")]
    pub cleanup: Option<bool>,

    /// Write the effective configuration to this file and exit
    #[arg(long, value_name = "PATH", help_heading = "Cluster and node")]
    pub write_config_to: Option<PathBuf>,

    /// kube-proxy's feature gates; AllowServiceExternalIPs=false makes externalIPs count for nothing
    #[arg(
        long,
        value_name = "NAME=BOOL,...",
        value_delimiter = ',',
        help_heading = "Cluster and node"
    )]
    pub feature_gates: Option<Vec<String>>,

    /// What kube-proxy would program: nftables, iptables or ipvs. pointsman programs nftables;
    /// with iptables or ipvs NodePorts are accepted on every address, as they were [default: nftables]
    #[arg(long, value_name = "MODE", help_heading = "Traffic")]
    pub proxy_mode: Option<String>,

    /// Masquerade all traffic to ClusterIPs
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = "Traffic")]
    pub masquerade_all: Option<bool>,

    /// Where NodePorts are accepted: primary (the node's own address of each family) or CIDRs;
    /// a family without a CIDR accepts them on every address [default: primary]
    #[arg(
        long,
        value_name = "primary|CIDR,...",
        value_delimiter = ',',
        help_heading = "Traffic"
    )]
    pub nodeport_addresses: Option<Vec<String>>,

    /// The longest pause between retries of a failed sync [default: 30s]
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        help_heading = "Traffic"
    )]
    pub iptables_sync_period: Option<String>,

    /// The shortest time between two syncs [default: none]
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        help_heading = "Traffic"
    )]
    pub iptables_min_sync_period: Option<String>,

    /// The bit of the packet mark that asks for masquerading, in iptables mode [default: 14]
    #[arg(
        long,
        value_name = "NUMBER",
        allow_negative_numbers = true,
        help_heading = "Traffic"
    )]
    pub iptables_masquerade_bit: Option<i64>,

    /// Accepted for kube-proxy's sake: NodePorts are never served on loopback addresses
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = "Traffic")]
    pub iptables_localhost_nodeports: Option<bool>,

    /// Accepted for kube-proxy's sake: there is no IPVS here
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        help_heading = "Traffic"
    )]
    pub ipvs_sync_period: Option<String>,

    /// Accepted for kube-proxy's sake: there is no IPVS here
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        help_heading = "Traffic"
    )]
    pub ipvs_min_sync_period: Option<String>,

    /// Accepted for kube-proxy's sake: there is no IPVS here
    #[arg(long, value_name = "NAME", help_heading = "Traffic")]
    pub ipvs_scheduler: Option<String>,

    /// Accepted for kube-proxy's sake: there is no IPVS here
    #[arg(
        long,
        value_name = "CIDR,...",
        value_delimiter = ',',
        help_heading = "Traffic"
    )]
    pub ipvs_exclude_cidrs: Option<Vec<String>>,

    /// Accepted for kube-proxy's sake: there is no IPVS here
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = "Traffic")]
    pub ipvs_strict_arp: Option<bool>,

    /// Accepted for kube-proxy's sake: there is no IPVS here
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        help_heading = "Traffic"
    )]
    pub ipvs_tcp_timeout: Option<String>,

    /// Accepted for kube-proxy's sake: there is no IPVS here
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        help_heading = "Traffic"
    )]
    pub ipvs_tcpfin_timeout: Option<String>,

    /// Accepted for kube-proxy's sake: there is no IPVS here
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        help_heading = "Traffic"
    )]
    pub ipvs_udp_timeout: Option<String>,

    /// Connections to track per processor; 0 leaves the host's limit alone [default: 32768]
    #[arg(
        long,
        value_name = "NUMBER",
        allow_negative_numbers = true,
        help_heading = "Conntrack"
    )]
    pub conntrack_max_per_core: Option<i64>,

    /// Connections to track at the least, however few the processors [default: 131072]
    #[arg(
        long,
        value_name = "NUMBER",
        allow_negative_numbers = true,
        help_heading = "Conntrack"
    )]
    pub conntrack_min: Option<i64>,

    /// How long an idle TCP connection is tracked; 0 leaves the host's time alone [default: 24h]
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        help_heading = "Conntrack"
    )]
    pub conntrack_tcp_timeout_established: Option<String>,

    /// How long a TCP connection in CLOSE_WAIT is tracked; 0 leaves the host's time alone
    /// [default: 1h]
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        help_heading = "Conntrack"
    )]
    pub conntrack_tcp_timeout_close_wait: Option<String>,

    /// Let TCP packets outside the window through
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = "Conntrack")]
    pub conntrack_tcp_be_liberal: Option<bool>,

    /// How long a UDP flow without an answer is tracked; 0 leaves the host's time alone [default: 0s]
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        help_heading = "Conntrack"
    )]
    pub conntrack_udp_timeout: Option<String>,

    /// How long a UDP flow with an answer is tracked; 0 leaves the host's time alone [default: 0s]
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        help_heading = "Conntrack"
    )]
    pub conntrack_udp_timeout_stream: Option<String>,

    /// Where /healthz and /livez are served [default: 0.0.0.0:10256]
    #[arg(
        long,
        value_name = "IP:PORT",
        help_heading = "Health, metrics and logs"
    )]
    pub healthz_bind_address: Option<String>,

    /// 0 turns /healthz and /livez off (deprecated)
    #[arg(
        long,
        value_name = "PORT",
        allow_negative_numbers = true,
        help_heading = "Health, metrics and logs"
    )]
    pub healthz_port: Option<i64>,

    /// Where /metrics is served [default: 127.0.0.1:10249]
    #[arg(
        long,
        value_name = "IP:PORT",
        help_heading = "Health, metrics and logs"
    )]
    pub metrics_bind_address: Option<String>,

    /// The port of /metrics, if --metrics-bind-address has none (deprecated)
    #[arg(
        long,
        value_name = "PORT",
        allow_negative_numbers = true,
        help_heading = "Health, metrics and logs"
    )]
    pub metrics_port: Option<i64>,

    /// End if those addresses cannot be had, instead of trying again
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = "Health, metrics and logs")]
    pub bind_address_hard_fail: Option<bool>,

    /// Accepted for kube-proxy's sake: there is no profiling endpoint
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = "Health, metrics and logs")]
    pub profiling: Option<bool>,

    /// Accepted for kube-proxy's sake: no metric is hidden
    #[arg(
        long,
        value_name = "VERSION",
        help_heading = "Health, metrics and logs"
    )]
    pub show_hidden_metrics_for_version: Option<String>,

    /// This process's oom_score_adj [default: -999]
    #[arg(
        long,
        value_name = "NUMBER",
        allow_negative_numbers = true,
        help_heading = "Health, metrics and logs"
    )]
    pub oom_score_adj: Option<i64>,

    /// How much to log: 0 for what matters, 4 for every sync, 6 for everything [default: 0]
    #[arg(
        short = 'v',
        long = "v",
        value_name = "LEVEL",
        help_heading = "Health, metrics and logs"
    )]
    pub verbosity: Option<u32>,

    /// How to log: text or json [default: text]
    #[arg(long, value_name = "FORMAT", help_heading = "Health, metrics and logs")]
    pub logging_format: Option<String>,

    /// Accepted for kube-proxy's sake
    #[arg(
        long,
        value_name = "PATTERN=LEVEL,...",
        value_delimiter = ',',
        help_heading = "Health, metrics and logs"
    )]
    pub vmodule: Option<Vec<String>>,

    /// Accepted for kube-proxy's sake
    #[arg(
        long,
        value_name = "DURATION",
        allow_hyphen_values = true,
        help_heading = "Health, metrics and logs"
    )]
    pub log_flush_frequency: Option<String>,

    /// Accepted for kube-proxy's sake
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = "Health, metrics and logs")]
    pub log_text_split_stream: Option<bool>,

    /// Accepted for kube-proxy's sake
    #[arg(long, value_name = "SIZE", help_heading = "Health, metrics and logs")]
    pub log_text_info_buffer_size: Option<String>,

    /// Accepted for kube-proxy's sake
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, help_heading = "Health, metrics and logs")]
    pub log_json_split_stream: Option<bool>,

    /// Accepted for kube-proxy's sake
    #[arg(long, value_name = "SIZE", help_heading = "Health, metrics and logs")]
    pub log_json_info_buffer_size: Option<String>,

    /// Accepted for kube-proxy's sake
    #[arg(long, value_name = "PATH", help_heading = "Health, metrics and logs")]
    pub boot_id_file: Option<String>,

    /// Accepted for kube-proxy's sake
    #[arg(long, value_name = "PATH", help_heading = "Health, metrics and logs")]
    pub machine_id_file: Option<String>,
}
