//! Flags as typed. kube-proxy's are in `table`; here are ours, and those of kube-proxy that say what to
//! do. Nothing is checked beyond its syntax, and nothing is defaulted: a flag that was not given is
//! `None`.

use std::path::PathBuf;

use clap::Parser;

use super::flags::{KubeProxyFlags, go_bool};

/// How a dry run is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A ruleset for nft -f
    Nft,
    /// The intermediate representation
    Json,
}

/// Where the running agent is asked.
pub const DEFAULT_SOCKET: &str = "/run/pointsman/pointsman.sock";

/// Of what connections are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ServiceMetrics {
    /// Nothing is counted
    Off,
    /// By Service port
    Services,
    /// By Service port, and by endpoint
    Endpoints,
}

/// Makes every connection to a Kubernetes Service reach one of its endpoints.
///
/// Without --once, --dry-run or --cleanup it keeps the node's nftables in step with the
/// cluster's Services until it is stopped; the rules stay in place then.
#[derive(Debug, Clone, PartialEq, Parser)]
#[command(
    name = "pointsman",
    version,
    disable_version_flag = true,
    // As for kube-proxy, the last one counts.
    args_override_self = true,
    max_term_width = 100,
    after_help = "Flags that are accepted for kube-proxy's sake and have no effect are in --help.",
    after_long_help = ""
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

    /// How to print it
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        default_value = "nft",
        requires = "dry_run"
    )]
    pub output: Output,

    /// Remove kube-proxy's nftables tables and iptables chains with our first transaction
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, value_parser = go_bool())]
    pub takeover: Option<bool>,

    /// Where this node's administrators ask what is going on: pointsman explain, status, verify, top and history
    /// do; nowhere if it is empty
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, help_heading = "Observing")]
    pub socket: String,

    /// Count connections to Services, for /metrics and pointsman top; of each endpoint besides
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        default_value = "off",
        help_heading = "Observing"
    )]
    pub service_metrics: ServiceMetrics,

    /// Which endpoint a new connection goes to, where a Service's annotation pointsman.io/algorithm does not
    /// say it: random, rr, sh, dh, maglev, lc, sed, nq, or another name of IPVS's for one of these [default:
    /// random, or the scheduler of IPVS that a configuration with mode ipvs has]
    #[arg(long, value_name = "NAME", help_heading = "Balancing")]
    pub algorithm: Option<String>,

    /// Pass over endpoints that do not answer, of Services whose annotation pointsman.io/ejection does not say
    /// otherwise
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, value_parser = go_bool(), help_heading = "Balancing")]
    pub eject_unanswering: Option<bool>,

    /// How much of a list of endpoints is passed over at most, in percent; never all of it
    #[arg(
        long,
        value_name = "PERCENT",
        default_value_t = 50,
        value_parser = clap::value_parser!(u8).range(1..=99),
        help_heading = "Balancing"
    )]
    pub most_ejected_percent: u8,

    /// Print the version and exit
    #[arg(long, action = clap::ArgAction::Version)]
    version: Option<bool>,

    /// kube-proxy's configuration file (v1alpha1); flags that it has fields for are ignored then
    #[arg(long, value_name = "PATH", help_heading = "Cluster and node")]
    pub config: Option<PathBuf>,

    /// The API server's address, instead of the one in --kubeconfig
    #[arg(long, value_name = "URL", help_heading = "Cluster and node")]
    pub master: Option<String>,

    /// Set conntrack's limits and timeouts, which may need more privileges than running does, and
    /// exit
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, value_parser = go_bool())]
    pub init_only: Option<bool>,

    /// Remove everything that pointsman has programmed, nothing else, and exit
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true, value_parser = go_bool())]
    pub cleanup: Option<bool>,

    /// Write the effective configuration to this file and exit
    #[arg(long, value_name = "PATH")]
    pub write_config_to: Option<PathBuf>,

    /// kube-proxy's.
    #[command(flatten)]
    pub kube_proxy: KubeProxyFlags,
}
