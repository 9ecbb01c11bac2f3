//! Flags as meant: checked, parsed, and with every choice made.

use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use thiserror::Error;

use super::Args;
use crate::backend::nftables::LocalDetector;
use crate::compile::NodePortAddresses;
use crate::model::{Family, Node, PerFamily};
use crate::networks;
use crate::sysctl::Conntrack;

/// A flag whose value makes no sense. Nothing has been done; exit code 2.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("--{flag}: {problem}")]
pub struct UsageError {
    /// The flag, without its dashes.
    pub flag: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

fn usage(flag: &'static str, problem: impl Into<String>) -> UsageError {
    UsageError {
        flag,
        problem: problem.into(),
    }
}

/// How a dry run is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// nft syntax.
    Nft,
    /// The intermediate representation.
    Json,
}

/// How logs are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Be the proxy.
    Run,
    /// Sync once.
    Once,
    /// Print what would be programmed.
    DryRun(Output),
    /// Remove what is ours.
    Cleanup,
}

/// How pods are recognised, as far as flags can say it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum DetectLocal {
    ClusterCidr(Vec<IpNetwork>),
    NodeCidr,
    Interface(String),
    InterfacePrefix(String),
}

/// The effective configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What to do.
    pub action: Action,
    /// Where the objects are; absent only for [`Action::Cleanup`].
    pub manifests: Option<PathBuf>,
    /// This node's name, lowercased.
    pub node_name: String,
    /// Where `NodePort`s are accepted.
    pub node_port_addresses: NodePortAddresses,
    /// Whether `ClusterIP` traffic is always masqueraded.
    pub masquerade_all: bool,
    /// What conntrack should be like.
    pub conntrack: Conntrack,
    detect_local: DetectLocal,
}

impl Config {
    /// Checks the flags. `hostname` is the host's name, for want of an override.
    ///
    /// # Errors
    ///
    /// The first flag that makes no sense.
    pub fn from_args(args: &Args, hostname: &str) -> Result<Self, UsageError> {
        if args.proxy_mode != "nftables" {
            return Err(usage(
                "proxy-mode",
                format!("{:?} is not supported; there is nftables", args.proxy_mode),
            ));
        }
        let action = action(args)?;
        if args.manifests.is_none() && action != Action::Cleanup {
            return Err(usage(
                "manifests",
                "is needed: where are the cluster's objects?",
            ));
        }
        let name = if args.hostname_override.trim().is_empty() {
            hostname
        } else {
            &args.hostname_override
        };
        let node_name = name.trim().to_lowercase();
        if node_name.is_empty() {
            return Err(usage(
                "hostname-override",
                "is needed, since this host has no name",
            ));
        }
        Ok(Self {
            action,
            manifests: args.manifests.clone(),
            node_name,
            node_port_addresses: node_port_addresses(&args.nodeport_addresses)?,
            masquerade_all: args.masquerade_all,
            conntrack: conntrack(args)?,
            detect_local: detect_local(args)?,
        })
    }

    /// How packets of pods are recognised on this node.
    ///
    /// # Errors
    ///
    /// If that depends on the Node's pod ranges and it has none.
    pub fn local_detector(&self, node: &Node) -> Result<PerFamily<LocalDetector>, UsageError> {
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
                return Err(usage(
                    "detect-local-mode",
                    format!(
                        "NodeCIDR needs spec.podCIDRs of Node {:?}, and there are none; check the name with --hostname-override",
                        &*node.name
                    ),
                ));
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
}

fn action(args: &Args) -> Result<Action, UsageError> {
    let output = match args.output.as_str() {
        "nft" => Output::Nft,
        "json" => Output::Json,
        other => {
            return Err(usage(
                "output",
                format!("{other:?} is neither nft nor json"),
            ));
        }
    };
    Ok(if args.cleanup {
        Action::Cleanup
    } else if args.dry_run {
        Action::DryRun(output)
    } else if args.once {
        Action::Once
    } else {
        Action::Run
    })
}

impl Args {
    /// How to log.
    ///
    /// # Errors
    ///
    /// If the format is neither text nor json.
    pub fn log_format(&self) -> Result<LogFormat, UsageError> {
        match self.logging_format.as_str() {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(usage(
                "logging-format",
                format!("{other:?} is neither text nor json"),
            )),
        }
    }
}

fn conntrack(args: &Args) -> Result<Conntrack, UsageError> {
    let count = |flag: &'static str, number: i64| {
        u32::try_from(number)
            .map_err(|_| usage(flag, format!("{number} is not between 0 and {}", u32::MAX)))
    };
    Ok(Conntrack {
        max_per_core: count("conntrack-max-per-core", args.conntrack_max_per_core)?,
        min: count("conntrack-min", args.conntrack_min)?,
        tcp_established_timeout: duration(
            "conntrack-tcp-timeout-established",
            &args.conntrack_tcp_timeout_established,
        )?,
        tcp_close_wait_timeout: duration(
            "conntrack-tcp-timeout-close-wait",
            &args.conntrack_tcp_timeout_close_wait,
        )?,
        tcp_be_liberal: args.conntrack_tcp_be_liberal,
        udp_timeout: duration("conntrack-udp-timeout", &args.conntrack_udp_timeout)?,
        udp_stream_timeout: duration(
            "conntrack-udp-timeout-stream",
            &args.conntrack_udp_timeout_stream,
        )?,
    })
}

/// Reads a duration as Go writes it: numbers with units, like `1h30m` or `0.5s`, or a bare 0.
fn duration(flag: &'static str, text: &str) -> Result<Duration, UsageError> {
    let wrong = || {
        usage(
            flag,
            format!("{text:?} is not a duration, like 24h, 90s or 1h30m"),
        )
    };
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let number = rest.len()
            - rest
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
                .len();
        let (amount, after) = rest.split_at(number);
        let unit = after.len() - after.trim_start_matches(|c: char| c.is_alphabetic()).len();
        let (unit, after) = after.split_at(unit);
        let scale = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        let amount: f64 = amount.parse().map_err(|_| wrong())?;
        seconds += amount * scale;
        rest = after;
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

fn network(flag: &'static str, text: &str) -> Result<IpNetwork, UsageError> {
    // Without a prefix it would be read as a single address, which nobody means.
    text.parse()
        .ok()
        .filter(|_| text.contains('/'))
        .map(networks::canonical)
        .ok_or_else(|| {
            usage(
                flag,
                format!("{text:?} is not a network in CIDR notation, like 10.244.0.0/16"),
            )
        })
}

fn node_port_addresses(list: &[String]) -> Result<NodePortAddresses, UsageError> {
    let flag = "nodeport-addresses";
    match list {
        [] => Ok(NodePortAddresses::All),
        [one] if one.is_empty() => Ok(NodePortAddresses::All),
        [one] if one == "primary" => Ok(NodePortAddresses::Primary),
        many if many.iter().any(|text| text == "primary") => Err(usage(
            flag,
            "primary cannot be combined with CIDRs; give one or the other",
        )),
        many => many
            .iter()
            .map(|text| network(flag, text))
            .collect::<Result<_, _>>()
            .map(NodePortAddresses::Networks),
    }
}

fn detect_local(args: &Args) -> Result<DetectLocal, UsageError> {
    let cidrs = cluster_cidrs(&args.cluster_cidr)?;
    let interface = |flag: &'static str, name: &str| {
        // IFNAMSIZ, less the final NUL.
        let valid = !name.is_empty()
            && name.len() <= 15
            && name
                .chars()
                .all(|c| c.is_ascii_graphic() && !"\"\\/*".contains(c));
        if valid {
            Ok(name.to_owned())
        } else {
            Err(usage(
                flag,
                format!(
                    "{name:?} is not an interface's name, which --detect-local-mode={} needs",
                    args.detect_local_mode
                ),
            ))
        }
    };
    match args.detect_local_mode.as_str() {
        "" | "ClusterCIDR" => Ok(DetectLocal::ClusterCidr(cidrs)),
        "NodeCIDR" => Ok(DetectLocal::NodeCidr),
        "BridgeInterface" => interface("pod-bridge-interface", &args.pod_bridge_interface)
            .map(DetectLocal::Interface),
        "InterfaceNamePrefix" => {
            interface("pod-interface-name-prefix", &args.pod_interface_name_prefix)
                .map(DetectLocal::InterfacePrefix)
        }
        other => Err(usage(
            "detect-local-mode",
            format!(
                "{other:?} is none of ClusterCIDR, NodeCIDR, BridgeInterface and InterfaceNamePrefix"
            ),
        )),
    }
}

fn cluster_cidrs(text: &str) -> Result<Vec<IpNetwork>, UsageError> {
    let flag = "cluster-cidr";
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let cidrs: Vec<IpNetwork> = text
        .split(',')
        .map(|text| network(flag, text))
        .collect::<Result<_, _>>()?;
    let of = |wanted: Family| {
        cidrs
            .iter()
            .filter(|network| networks::family(**network) == wanted)
            .count()
    };
    if of(Family::V4) > 1 || of(Family::V6) > 1 {
        return Err(usage(
            flag,
            format!("{text:?} is neither one network nor one of each family"),
        ));
    }
    Ok(cidrs)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
