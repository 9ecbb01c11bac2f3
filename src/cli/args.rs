//! Flags as typed. Names are kube-proxy's where kube-proxy has one; nothing is checked here
//! beyond its syntax.

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
    /// Take the cluster's objects from files: a file, a directory (searched for *.yaml, *.yml
    /// and *.json) or - for standard input
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

    /// Remove everything that pointsman has programmed, nothing else, and exit
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL", hide_default_value = true, hide_possible_values = true)]
    pub cleanup: bool,

    /// This node's name, if it is not the host's name
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub hostname_override: String,

    /// The range of the cluster's pods; for dual stack, one of each family with a comma between
    ///
    /// With --detect-local-mode=ClusterCIDR, traffic from inside it is not masqueraded.
    #[arg(
        long,
        value_name = "CIDR[,CIDR]",
        default_value = "",
        hide_default_value = true
    )]
    pub cluster_cidr: String,

    /// How to recognise this cluster's pods: ClusterCIDR, NodeCIDR, BridgeInterface or
    /// InterfaceNamePrefix
    #[arg(long, value_name = "MODE", default_value = "ClusterCIDR")]
    pub detect_local_mode: String,

    /// The bridge that pods are behind, for --detect-local-mode=BridgeInterface
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub pod_bridge_interface: String,

    /// How the names of pods' interfaces begin, for --detect-local-mode=InterfaceNamePrefix
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "",
        hide_default_value = true
    )]
    pub pod_interface_name_prefix: String,

    /// Masquerade all traffic to ClusterIPs
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL", hide_default_value = true, hide_possible_values = true)]
    pub masquerade_all: bool,

    /// Where NodePorts are accepted: primary (the node's own address of each family) or CIDRs;
    /// a family without a CIDR accepts them on every address
    #[arg(
        long,
        value_name = "primary|CIDR,...",
        value_delimiter = ',',
        default_value = "primary"
    )]
    pub nodeport_addresses: Vec<String>,

    /// Connections to track per processor; 0 leaves the host's limit alone
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 32_768,
        allow_negative_numbers = true
    )]
    pub conntrack_max_per_core: i64,

    /// Connections to track at the least, however few the processors
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 131_072,
        allow_negative_numbers = true
    )]
    pub conntrack_min: i64,

    /// How long an idle TCP connection is tracked, like 24h; 0 leaves the host's time alone
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    pub conntrack_tcp_timeout_established: String,

    /// How long a TCP connection in CLOSE_WAIT is tracked; 0 leaves the host's time alone
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub conntrack_tcp_timeout_close_wait: String,

    /// Let TCP packets outside the window through
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL", hide_default_value = true, hide_possible_values = true)]
    pub conntrack_tcp_be_liberal: bool,

    /// How long a UDP flow without an answer is tracked; 0 leaves the host's time alone
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub conntrack_udp_timeout: String,

    /// How long a UDP flow with an answer is tracked; 0 leaves the host's time alone
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    pub conntrack_udp_timeout_stream: String,

    /// Which backend to program; there is nftables
    #[arg(long, value_name = "MODE", default_value = "nftables")]
    pub proxy_mode: String,

    /// How much to log: 0 for what matters, 4 for every sync, 6 for everything
    #[arg(short = 'v', long = "v", value_name = "LEVEL", default_value_t = 0)]
    pub verbosity: u8,

    /// How to log: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub logging_format: String,

    /// Print the version and exit
    #[arg(long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}
