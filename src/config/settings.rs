//! The configuration as meant: checked, parsed, and with every choice made.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::addresses::{DetectLocal, detect_local, node_port_addresses};
use super::args::{Args, Output, ServiceMetrics};
use super::component_config::{self as file, KubeProxyConfiguration};
use super::errors::{ConfigError, NoPodCidrs, UsageError};
use super::file::load;
use super::table::flag_of;
use super::validate::validate;
use crate::core::compile::NodePortAddresses;
use crate::core::model::{Algorithm, LocalDetector};
use crate::core::model::{Node, PerFamily};
use crate::core::networks;
use crate::dataplane::{CountingLevel, Mode};
use crate::host::sysctl::Conntrack;

/// How logs are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Be the proxy.
    Run,
    /// Sync once.
    Once,
    /// Set what may need more privileges, and end.
    Init,
    /// Print what would be programmed.
    DryRun(Output),
    /// Remove what is ours.
    Cleanup,
    /// Write the effective configuration.
    WriteConfig(PathBuf),
}

/// Where the cluster's objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Files.
    Manifests(PathBuf),
    /// An API server.
    Cluster {
        /// The kubeconfig; without one, a pod's service account.
        kubeconfig: Option<PathBuf>,
        /// The server's URL, if the kubeconfig's is not the right one.
        server: Option<String>,
        /// The media types that it is asked for, the preferred one first.
        accept: Vec<String>,
    },
}

/// The configuration file in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it said.
    pub text: String,
}

/// The effective configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What to do.
    pub action: Action,
    /// What the rules are programmed by.
    pub mode: Mode,
    /// Where the objects are.
    pub origin: Origin,
    /// This node's name, lowercased.
    pub node_name: String,
    /// This node's address of its family, whatever its Node says.
    pub bind_address: Option<IpAddr>,
    /// Where `NodePort`s are accepted.
    pub node_port_addresses: NodePortAddresses,
    /// Whether `ClusterIP` traffic is always masqueraded.
    pub masquerade_all: bool,
    /// The bit of the packet mark that asks for masquerading.
    pub masquerade_bit: u8,
    /// Whether `spec.externalIPs` counts.
    pub external_ips: bool,
    /// Which endpoint a new connection goes to, where a Service does not say it.
    pub algorithm: Algorithm,
    /// Whether endpoints that do not answer are passed over, where a Service does not say it.
    pub ejects: bool,
    /// How much of a list is passed over at most, in percent.
    pub most_ejected_percent: u8,
    /// What conntrack should be like.
    pub conntrack: Conntrack,
    /// The shortest time between two syncs.
    pub min_sync_period: Duration,
    /// The longest time between retries of a failed sync.
    pub sync_period: Duration,
    /// Where health is served, if it is.
    pub health_address: Option<SocketAddr>,
    /// Where metrics are served.
    pub metrics_address: SocketAddr,
    /// Whether it is fatal if those addresses cannot be had.
    pub bind_hard_fail: bool,
    /// This process's `oom_score_adj`.
    pub oom_score_adj: i16,
    /// Whether kube-proxy's leftovers are removed.
    pub takeover: bool,
    /// Where administrators ask, if anywhere.
    pub socket: Option<PathBuf>,
    /// Of what connections are counted.
    pub counting: CountingLevel,
    /// How much to log.
    pub verbosity: u32,
    /// How to log.
    pub log_format: LogFormat,
    /// The configuration file, if there is one.
    pub file: Option<ConfigFile>,
    /// All of it as kube-proxy's object, with defaults.
    pub effective: KubeProxyConfiguration,
    /// What to tell the operator.
    pub warnings: Vec<String>,
    /// What it was made from, beside the file.
    pub(super) given: Box<(Args, String)>,
    pub(super) detect_local: DetectLocal,
}

impl Config {
    /// Whether iptables mode leads `NodePort`s on 127.0.0.1 to their endpoints, as in kube-proxy's.
    #[must_use]
    pub fn routes_localhost(&self) -> bool {
        self.effective.iptables.localhost_node_ports != Some(false)
            && self.node_port_addresses.hold_localhost()
    }

    /// Reads the configuration file, if there is one, and checks everything. `hostname` is the
    /// host's name, for want of an override.
    ///
    /// # Errors
    ///
    /// The first flag or field that makes no sense.
    pub fn from_args(args: &Args, hostname: &str) -> Result<Self, ConfigError> {
        let (mut raw, healthz_off, mut warnings, config_file) = match &args.config {
            None => {
                if args.kube_proxy.has_empty("cluster-cidr") && args.manifests.is_none() {
                    return Err(UsageError::flag(
                        "cluster-cidr",
                        "is empty; leave it out if there is none",
                    )
                    .into());
                }
                let (raw, healthz_off) = args.kube_proxy.configuration()?;
                (raw, healthz_off, Vec::new(), None)
            }
            Some(path) => {
                let loaded = load(path)?;
                let mut warnings = loaded.warnings;
                let ignored = args.kube_proxy.ignored();
                if !ignored.is_empty() {
                    warnings.push(format!(
                        "with --config these flags are ignored: --{}",
                        ignored.join(", --")
                    ));
                }
                let config_file = ConfigFile {
                    path: path.clone(),
                    text: loaded.text,
                };
                (loaded.configuration, false, warnings, Some(config_file))
            }
        };
        args.kube_proxy.override_file(&mut raw)?;
        let periods = Periods::of(&raw);
        raw.set_defaults();
        // What flags said is complained about by the flag's name.
        let named = |error: UsageError| match (&config_file, flag_of(&error.name)) {
            (None, Some(flag)) => UsageError::flag(flag, error.problem),
            (Some(file), _) => UsageError::field(
                format!("{}: {}", file.path.display(), error.name),
                error.problem,
            ),
            (None, None) => error,
        };
        validate(&raw).map_err(named)?;
        let action = action(args)?;
        warnings.extend(without_meaning(args, &raw));
        let node_port_addresses = node_port_addresses(&raw).map_err(named)?;
        let detect_local = detect_local(&raw).map_err(named)?;
        let nftables = raw.mode == "nftables";
        let mode = match raw.mode.as_str() {
            "nftables" | "ipvs" => Mode::Nftables,
            "iptables" => Mode::Iptables,
            _ => Mode::Either,
        };
        let masquerade_bit = if nftables {
            raw.nftables.masquerade_bit
        } else {
            raw.iptables.masquerade_bit
        };
        let node_name = node_name(&raw, hostname)?;
        let log_format = if raw.logging.format == "json" {
            LogFormat::Json
        } else {
            LogFormat::Text
        };
        Ok(Self {
            action,
            mode,
            origin: origin(args, &raw),
            node_name,
            bind_address: raw
                .bind_address
                .parse()
                .ok()
                .filter(|address: &IpAddr| !address.is_unspecified()),
            node_port_addresses,
            masquerade_all: if nftables {
                raw.nftables.masquerade_all
            } else {
                raw.iptables.masquerade_all
            },
            // Both are checked, so the default is never needed.
            masquerade_bit: masquerade_bit
                .and_then(|bit| u8::try_from(bit).ok())
                .unwrap_or(14),
            external_ips: raw.feature_gates.get("AllowServiceExternalIPs") != Some(&false),
            algorithm: algorithm(args, &raw, &mut warnings)?,
            ejects: args.eject_unanswering.unwrap_or_default(),
            most_ejected_percent: args.most_ejected_percent,
            conntrack: conntrack(&raw.conntrack),
            min_sync_period: periods.min,
            sync_period: periods.longest(&raw),
            health_address: raw
                .healthz_bind_address
                .parse()
                .ok()
                .filter(|_| !healthz_off),
            metrics_address: raw
                .metrics_bind_address
                .parse()
                .map_err(|_| named(UsageError::field("metricsBindAddress", "is not an address")))?,
            bind_hard_fail: raw.bind_address_hard_fail,
            oom_score_adj: raw
                .oom_score_adj
                .and_then(|adjustment| i16::try_from(adjustment).ok())
                .unwrap_or(0),
            takeover: args.takeover.unwrap_or_default(),
            socket: Some(PathBuf::from(&args.socket)).filter(|path| !path.as_os_str().is_empty()),
            counting: match args.service_metrics {
                ServiceMetrics::Off => CountingLevel::Nothing,
                ServiceMetrics::Services => CountingLevel::Services,
                ServiceMetrics::Endpoints => CountingLevel::Endpoints,
            },
            verbosity: raw.logging.verbosity,
            log_format,
            file: config_file,
            effective: raw,
            warnings,
            given: Box::new((args.clone(), hostname.to_owned())),
            detect_local,
        })
    }

    /// How packets of pods are recognised on this node.
    ///
    /// # Errors
    ///
    /// If that depends on the Node's pod ranges and it has none.
    pub fn local_detector(&self, node: &Node) -> Result<PerFamily<LocalDetector>, NoPodCidrs> {
        let by_network = |list: &[IpNetwork]| {
            PerFamily::from_fn(|family| {
                list.iter()
                    .find(|network| networks::family(**network) == family)
                    .map_or(LocalDetector::None, |network| {
                        LocalDetector::Network(*network)
                    })
            })
        };
        Ok(match &self.detect_local {
            DetectLocal::ClusterCidr(list) => by_network(list),
            DetectLocal::NodeCidr if node.pod_cidrs.is_empty() => {
                return Err(NoPodCidrs(node.name.to_string()));
            }
            DetectLocal::NodeCidr => by_network(&node.pod_cidrs),
            DetectLocal::Interface(name) => {
                PerFamily::from_fn(|_| LocalDetector::Interface(name.clone()))
            }
            DetectLocal::InterfacePrefix(prefix) => {
                PerFamily::from_fn(|_| LocalDetector::InterfacePrefix(prefix.clone()))
            }
        })
    }

    /// Whether the Node's pod ranges matter.
    #[must_use]
    pub fn needs_pod_cidrs(&self) -> bool {
        self.detect_local == DetectLocal::NodeCidr
    }
}

/// The times between syncs that somebody asked for.
struct Periods {
    min: Duration,
}

impl Periods {
    /// Before defaults: kube-proxy's least time between syncs is meant for a proxy that needs it.
    fn of(raw: &KubeProxyConfiguration) -> Self {
        let min = match raw.mode.as_str() {
            "nftables" => raw.nftables.min_sync_period,
            "ipvs" => raw.ipvs.min_sync_period,
            _ => raw.iptables.min_sync_period,
        };
        Self { min: min.to_std() }
    }

    fn longest(&self, raw: &KubeProxyConfiguration) -> Duration {
        match raw.mode.as_str() {
            "nftables" => raw.nftables.sync_period,
            "ipvs" => raw.ipvs.sync_period,
            _ => raw.iptables.sync_period,
        }
        .to_std()
        .max(self.min)
    }
}

/// The scheduler of IPVS counts where kube-proxy would use it; its default is rr.
fn algorithm(
    args: &Args,
    raw: &KubeProxyConfiguration,
    warnings: &mut Vec<String>,
) -> Result<Algorithm, UsageError> {
    if let Some(name) = &args.algorithm {
        return Algorithm::named(name).ok_or_else(|| {
            let problem = format!("{name:?} is none of {}", Algorithm::names());
            UsageError::flag("algorithm", problem)
        });
    }
    if raw.mode != "ipvs" {
        return Ok(Algorithm::Random);
    }
    Ok(match raw.ipvs.scheduler.as_str() {
        "" => Algorithm::RoundRobin,
        name => Algorithm::named(name).unwrap_or_else(|| {
            warnings.push(format!(
                "ipvs.scheduler is {name}, which is not to be had: rr counts, of {}",
                Algorithm::names()
            ));
            Algorithm::RoundRobin
        }),
    })
}

fn action(args: &Args) -> Result<Action, UsageError> {
    let cleanup = args.cleanup.unwrap_or_default();
    if cleanup && (args.once || args.dry_run) {
        return Err(UsageError::flag(
            "cleanup",
            "cannot be combined with --once or --dry-run",
        ));
    }
    Ok(if let Some(path) = &args.write_config_to {
        Action::WriteConfig(path.clone())
    } else if cleanup {
        Action::Cleanup
    } else if args.init_only.unwrap_or_default() {
        Action::Init
    } else if args.dry_run {
        Action::DryRun(args.output)
    } else if args.once {
        Action::Once
    } else {
        Action::Run
    })
}

fn origin(args: &Args, raw: &KubeProxyConfiguration) -> Origin {
    match &args.manifests {
        Some(path) => Origin::Manifests(path.clone()),
        None => Origin::Cluster {
            kubeconfig: Some(raw.client_connection.kubeconfig.as_str())
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            server: args.master.clone().filter(|url| !url.is_empty()),
            accept: accept(&raw.client_connection),
        },
    }
}

/// As in `client-go`: without `acceptContentTypes`, `contentType` and then anything.
fn accept(client: &file::ClientConnection) -> Vec<String> {
    let types = match client.accept_content_types.trim() {
        "" => format!("{},*/*", client.content_type),
        types => types.to_owned(),
    };
    types
        .split(',')
        .map(|text| text.trim().to_owned())
        .collect()
}

fn node_name(raw: &KubeProxyConfiguration, hostname: &str) -> Result<String, UsageError> {
    let name = raw.hostname_override.trim();
    let name = if name.is_empty() { hostname } else { name };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        return Err(UsageError::flag(
            "hostname-override",
            "is needed, since this host has no name",
        ));
    }
    Ok(name)
}

/// What was asked for and has no meaning, or another one than in kube-proxy.
fn without_meaning(args: &Args, raw: &KubeProxyConfiguration) -> Vec<String> {
    let mut warnings = Vec::new();
    match raw.mode.as_str() {
        "nftables" | "iptables" => {}
        "" => warnings.push(
            "mode is not set, which means iptables to kube-proxy: pointsman programs nftables where the kernel has it, and accepts NodePorts on every address unless nodePortAddresses says otherwise"
                .to_owned(),
        ),
        mode => warnings.push(format!(
            "mode is {mode}: pointsman programs nftables, and accepts NodePorts on every address unless nodePortAddresses says otherwise"
        )),
    }
    let ipvs = &raw.ipvs;
    if !ipvs.scheduler.is_empty() && raw.mode != "ipvs" {
        warnings.push("ipvs.scheduler has no effect, because mode is not ipvs".to_owned());
    }
    if ipvs.strict_arp
        || ipvs
            .exclude_cidrs
            .as_ref()
            .is_some_and(|list| !list.is_empty())
        || [ipvs.tcp_timeout, ipvs.tcp_fin_timeout, ipvs.udp_timeout]
            .iter()
            .any(|timeout| !timeout.is_zero())
    {
        warnings.push(
            "ipvs settings other than the scheduler have no effect: timeouts are conntrack's"
                .to_owned(),
        );
    }
    for gate in raw.feature_gates.keys() {
        if ![
            "AllowServiceExternalIPs",
            "MultiCIDRServiceAllocator",
            "PreferSameTrafficDistribution",
        ]
        .contains(&gate.as_str())
        {
            warnings.push(format!("feature gate {gate} has no effect here"));
        }
    }
    if raw.enable_profiling {
        warnings.push("profiling has no effect: there is no profiling endpoint".to_owned());
    }
    if args.kube_proxy.has("vmodule") || !raw.logging.vmodule.is_empty() {
        warnings.push("vmodule has no effect: -v applies everywhere".to_owned());
    }
    warnings
}

fn conntrack(raw: &file::Conntrack) -> Conntrack {
    // Checked: neither negative nor beyond the range.
    let count = |number: Option<i64>| u32::try_from(number.unwrap_or(0)).unwrap_or(u32::MAX);
    Conntrack {
        max_per_core: count(raw.max_per_core),
        min: count(raw.min),
        tcp_established_timeout: raw.tcp_established_timeout.unwrap_or_default().to_std(),
        tcp_close_wait_timeout: raw.tcp_close_wait_timeout.unwrap_or_default().to_std(),
        tcp_be_liberal: raw.tcp_be_liberal,
        udp_timeout: raw.udp_timeout.to_std(),
        udp_stream_timeout: raw.udp_stream_timeout.to_std(),
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
