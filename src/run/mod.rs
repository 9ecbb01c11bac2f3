//! What the program does once it knows what it was asked: puts the parts together.
//!
//! The sync loop (`sync_loop`) runs in a thread of its own, since a transaction blocks. Where
//! the objects come from is the business of `files` and `cluster`; what is served to others
//! meanwhile, of `services`.

mod cluster;
mod files;
mod services;
mod sync_loop;

use std::fmt::Write;
use std::thread;

use anyhow::{Context, Result};

use crate::backend::nftables::{Nftables, ProgramConfig};
use crate::cli::{self, Action, Config, NoPodCidrs, Origin, Output};
use crate::compile::NodePortAddresses;
use crate::conntrack;
use crate::dry_run;
use crate::model::{Change, Family, Node, PerFamily};
use crate::proxy::{Desired, Proxy};
use crate::source::Warning;
use crate::source::addresses::interface_addresses;
use crate::source::convert::ConvertOptions;

/// Does what was asked.
///
/// # Errors
///
/// If it cannot be done; the message says what to do about it.
pub fn run(config: &Config) -> Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    match &config.action {
        Action::WriteConfig(path) => Ok(cli::write(path, &config.effective)?),
        Action::Cleanup => cleanup(),
        Action::Init => apply_sysctls(config),
        Action::DryRun(output) => {
            let desired = load(config)?;
            let program = program(config, desired.state().node())?;
            print_whole(&match output {
                Output::Nft => dry_run::nft(&program, &desired),
                Output::Json => dry_run::json(&desired)?,
            })
        }
        Action::Once => {
            let desired = load(config)?;
            apply_sysctls(config)?;
            once(config, desired)
        }
        Action::Run => {
            adjust_oom_score(config.oom_score_adj);
            apply_sysctls(config)?;
            runtime()?.block_on(services::run(config))
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn cleanup() -> Result<()> {
    let program = ProgramConfig {
        families: families(),
        ..ProgramConfig::default()
    };
    Ok(Nftables::connect(program)?.cleanup()?)
}

/// The cluster as it is now.
fn load(config: &Config) -> Result<Desired> {
    let mut desired = new_desired(config)?;
    match &config.origin {
        Origin::Manifests(path) => {
            let mut manifests = files::manifests(config, path);
            desired.take(files::load_strictly(&mut manifests)?);
        }
        Origin::Cluster { .. } => {
            runtime()?.block_on(async {
                let mut cluster = cluster::connect(config).await?;
                cluster::fill(config, &mut cluster, &mut desired, |_| ()).await
            })?;
        }
    }
    desired.compile();
    Ok(desired)
}

fn once(config: &Config, desired: Desired) -> Result<()> {
    let mut proxy = start(config, desired)?;
    let synced = proxy.sync()?;
    anyhow::ensure!(
        synced.left_out == 0,
        "the kernel refused {} Services; everything else was committed",
        synced.left_out
    );
    take_over_iptables(config, &mut proxy);
    conntrack::clean(&sync_loop::stale_flows(&mut proxy))?;
    // There is no later for what is left to do.
    proxy.tidy();
    sync_loop::log_sync(&proxy, &synced);
    Ok(())
}

/// Connects to the kernel and takes over what it holds. Changes nothing yet.
fn start(config: &Config, desired: Desired) -> Result<Proxy<Nftables>> {
    let node = desired.state().node();
    if config.node_port_addresses == NodePortAddresses::Primary && node.addresses.is_empty() {
        tracing::warn!(
            node = config.node_name,
            "there is no Node of this name with an address: NodePorts are accepted nowhere until there is",
        );
    }
    let program = ProgramConfig {
        families: families(),
        ..program(config, node)?
    };
    let mut backend = Nftables::connect(program)?;
    if config.takeover {
        backend.take_over()?;
    }
    Ok(Proxy::start(desired, backend)?)
}

/// Removes the chains of kube-proxy's iptables mode, once our own rules are in place.
fn take_over_iptables(config: &Config, proxy: &mut Proxy<Nftables>) {
    if !config.takeover {
        return;
    }
    match proxy.backend_mut().remove_iptables_leftovers() {
        Ok(0) => {}
        Ok(chains) => tracing::info!(chains, "kube-proxy's iptables chains are removed"),
        Err(error) => tracing::warn!(
            %error,
            "kube-proxy's iptables chains could not be removed; kube-proxy --cleanup does it",
        ),
    }
    // Written by iptables-legacy, which does not go through nf_tables.
    let legacy = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
    if legacy
        .iter()
        .any(|path| std::fs::read_to_string(path).is_ok_and(|names| names.contains("nat")))
    {
        tracing::warn!(
            "this node has iptables-legacy rules: if they are kube-proxy's, remove them with kube-proxy --cleanup",
        );
    }
}

fn apply_sysctls(config: &Config) -> Result<()> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    Ok(config.conntrack.apply(processors)?)
}

/// Only a wish: a container may lack the capability.
fn adjust_oom_score(adjustment: i16) {
    let path = "/proc/self/oom_score_adj";
    let wanted = adjustment.to_string();
    let current = std::fs::read_to_string(path).unwrap_or_default();
    if current.trim() != wanted
        && let Err(error) = std::fs::write(path, &wanted)
    {
        tracing::info!(%error, adjustment, "oom_score_adj stays as it is");
    }
}

/// Prints all of a text; a reader that goes away early is no error of ours.
fn print_whole(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    match out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(newline.as_bytes()))
        .and_then(|()| out.flush())
    {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// An empty cluster around this node.
fn new_desired(config: &Config) -> Result<Desired> {
    let node = Node::named(config.node_name.as_str());
    let mut desired = Desired::new(node, config.node_port_addresses.clone());
    let addresses = interface_addresses().context("cannot list the node's addresses")?;
    desired.take([Change::InterfaceAddresses(addresses)]);
    Ok(desired)
}

fn convert_options(config: &Config) -> ConvertOptions {
    ConvertOptions {
        bind_address: config.bind_address,
        external_ips: config.external_ips,
    }
}

/// The program that suits a node.
fn program(config: &Config, node: &Node) -> Result<ProgramConfig, NoPodCidrs> {
    Ok(ProgramConfig {
        masquerade_bit: config.masquerade_bit,
        masquerade_all: config.masquerade_all,
        local_detector: config.local_detector(node)?,
        node_ports_everywhere: PerFamily::from_fn(|family| config.node_port_addresses.all(family)),
        ..ProgramConfig::default()
    })
}

/// The families that this kernel speaks.
fn families() -> Vec<Family> {
    let off = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
    let disabled = std::fs::read_to_string(off).is_ok_and(|value| value.trim() == "1");
    if std::path::Path::new("/proc/net/if_inet6").exists() && !disabled {
        Family::BOTH.to_vec()
    } else {
        vec![Family::V4]
    }
}

/// Logs what could not be used, and returns the names of the fields, without their indices.
fn report(warnings: impl IntoIterator<Item = Warning>) -> Vec<String> {
    warnings
        .into_iter()
        .map(|warning| {
            tracing::warn!(
                object = warning.object,
                field = warning.field,
                "{}",
                warning.problem
            );
            let mut name = String::new();
            for part in warning.field.split_inclusive('[') {
                // Writing to a String cannot fail.
                let _ = write!(
                    name,
                    "{}",
                    part.trim_start_matches(|c: char| c.is_ascii_digit())
                );
            }
            name
        })
        .collect()
}
