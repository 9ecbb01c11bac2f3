//! The agent: what keeps a node in step with the cluster, from the first moment to SIGTERM.
//!
//! The sync loop (`sync_loop`) runs in a thread of its own, since a transaction blocks. Where the
//! objects come from is the business of `files` and `cluster`; what is served to others meanwhile, of
//! `services`.

mod answers;
mod budget;
mod chores;
pub(crate) mod cluster;
pub(crate) mod connection_counts;
mod desired;
#[cfg(test)]
mod fakes;
pub(crate) mod files;
mod inbox;
mod inquiries;
pub(crate) mod journal;
pub(crate) mod local_api;
mod metrics;
mod noted;
mod observer;
pub(crate) mod preflight;
mod published;
pub(crate) mod question;
pub mod reconciler;
mod repairs;
mod schedule;
mod services;
pub(crate) mod status;
mod sync_loop;
mod tasks;
mod waiting;
pub(crate) mod watches;

use anyhow::{Context, Result};

use crate::config::{Config, NoPodCidrs};
use crate::core::compile::NodePortAddresses;
use crate::core::model::{Change, Node, PerFamily};
use crate::dataplane::iptables;
use crate::dataplane::{ApplyError, Backend, Mode, Options};
use crate::host::sysctl::{self, SysctlError};
use crate::host::{self, interfaces::interface_addresses};
use crate::source::balancing::Balancing;
use crate::source::convert::ConvertOptions;

use reconciler::{Desired, Proxy};

pub(crate) use published::{log_sync, stale_flows};
pub(crate) use services::run;

/// Has a backend program a cluster. Reads and changes nothing yet.
pub(crate) fn start<B: Backend>(
    config: &Config,
    desired: Desired,
    mut backend: B,
) -> Result<Proxy<B>> {
    let node = desired.state().node();
    if config.node_port_addresses == NodePortAddresses::Primary && node.addresses.is_empty() {
        tracing::warn!(
            node = config.node_name,
            "there is no Node of this name with an address: NodePorts are accepted nowhere until there is",
        );
    }
    backend.reconfigure(options(config, node)?);
    if config.takeover {
        backend.take_over()?;
    }
    Ok(Proxy::new(desired, backend))
}

/// Whether what another proxy has left is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TakenOver {
    /// All of it that can be.
    Done,
    /// Not what has to wait for ipvs.
    NotYet,
}

/// Says how what kube-proxy's ipvs mode leaves is removed, in an order in which nothing is missed:
/// connections of virtual servers that go are handed to our rules; the addresses go after what answered at
/// them. The chains that guard those are removed here, and the sets after the chains that read them.
pub(crate) fn warn_of_ipvs() {
    tracing::warn!(
        "this node has what kube-proxy's ipvs mode leaves: new connections pass it by, and those that it has \
         go on; when they may end: sysctl -w net.ipv4.vs.expire_nodest_conn=1; ipvsadm -C; \
         ip link delete kube-ipvs0; and once its chains are removed, which is done here: \
         ipset -n list | grep ^KUBE- | xargs -n1 ipset destroy",
    );
}

/// Removes what iptables mode has programmed here, once our own rules are in place: it would go on to serve what is
/// no longer to be served.
pub(crate) fn remove_other_mode<B: Backend>(proxy: &mut Proxy<B>) {
    if B::MODE != Mode::Nftables {
        return;
    }
    let legacy = iptables::remove_legacy().map_err(ApplyError::from);
    let nft = proxy.backend_mut().remove_other_mode();
    if let Err(error) = nft.and(legacy) {
        tracing::warn!(
            %error,
            "what iptables mode has programmed is still there, and serves what is no longer to be served: \
             `pointsman --cleanup` removes everything, and a start after it programs nftables again",
        );
    }
}

/// Says that what another proxy has left is there, and serves beside our rules.
pub(crate) fn warn_of_leftovers<B: Backend>(proxy: &mut Proxy<B>) {
    if proxy.backend_mut().has_leftovers().unwrap_or(false) {
        tracing::warn!(
            "this node has kube-proxy's rules besides, of which one that goes on to change is in our way: stop \
             it, and start this program with --takeover, or run kube-proxy --cleanup",
        );
    }
}

/// Removes what kube-proxy's iptables mode has left, once our own rules are in place.
pub(crate) fn take_over_leftovers<B: Backend>(
    proxy: &mut Proxy<B>,
) -> Result<TakenOver, ApplyError> {
    if host::has_ipvs() {
        // Its chains guard its addresses as long as there are any.
        return Ok(TakenOver::NotYet);
    }
    let chains = proxy.backend_mut().remove_leftovers()?;
    if chains > 0 {
        tracing::info!(chains, "kube-proxy's chains are removed");
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
    Ok(TakenOver::Done)
}

/// Sets conntrack's limits and timeouts, and what a mode needs.
pub(crate) fn apply_sysctls(config: &Config, mode: Mode) -> Result<(), SysctlError> {
    config.conntrack.apply(sysctl::processors())?;
    route_localnet(config, mode)
}

fn route_localnet(config: &Config, mode: Mode) -> Result<(), SysctlError> {
    if mode == Mode::Iptables && config.routes_localhost() {
        sysctl::route_localnet()?;
    }
    Ok(())
}

/// The same for who goes on to run, and may have to leave it to an init container, which does not run again when this
/// one starts anew: a node without a proxy is worse off than one with another limit.
pub(crate) fn apply_sysctls_if_allowed(config: &Config, mode: Mode) -> Result<(), SysctlError> {
    let conntrack = config.conntrack.apply(sysctl::processors());
    for applied in [conntrack, route_localnet(config, mode)] {
        match applied {
            Err(error) if error.is_a_matter_of_rights() => tracing::warn!(
                %error,
                "this process may not set it; the pod's init container does when the pod is made anew",
            ),
            applied => applied?,
        }
    }
    Ok(())
}

/// An empty cluster around this node.
pub(crate) fn new_desired(config: &Config) -> Result<Desired> {
    let node = Node::named(config.node_name.as_str());
    let mut desired = Desired::new(node, config.node_port_addresses.clone());
    let addresses = interface_addresses().context("cannot list the node's addresses")?;
    desired.take([Change::InterfaceAddresses(addresses)]);
    Ok(desired)
}

pub(crate) fn convert_options(config: &Config) -> ConvertOptions {
    ConvertOptions {
        bind_address: config.bind_address,
        external_ips: config.external_ips,
        balancing: Balancing {
            algorithm: config.algorithm,
            ejects: config.ejects,
            by_iptables: config.mode == Mode::Iptables,
        },
    }
}

/// What a backend has to know on this node.
pub(crate) fn options(config: &Config, node: &Node) -> Result<Options, NoPodCidrs> {
    Ok(Options {
        masquerade_bit: config.masquerade_bit,
        masquerade_all: config.masquerade_all,
        local_detector: config.local_detector(node)?,
        node_ports_everywhere: PerFamily::from_fn(|family| config.node_port_addresses.all(family)),
        on_loopback: PerFamily::from_fn(|family| config.node_port_addresses.loopback(family)),
        localhost_node_ports: config.routes_localhost(),
        look_every: config.sync_period,
        drop_invalid: !config.conntrack.tcp_be_liberal,
        ..Options::default()
    })
}
